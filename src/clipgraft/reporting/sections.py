"""Tables and sentences of the report's sections."""

from collections.abc import Sequence
from typing import Any

from clipgraft.reporting.format import (
    NO_NUMBER,
    Highlight,
    Table,
    count,
    decimal,
    difference,
    percent,
    short_name,
    sub_dict,
    with_number_note,
)
from clipgraft.reporting.provenance import STAGE_LABELS, setting, setting_text
from clipgraft.reporting.run_data import RunData, is_number
from clipgraft.runs.run import STAGES

MAX_EXCLUDED_ROWS = 30
DIRECTIONS = {"text_to_image": "Image found by its caption", "image_to_text": "Caption found by its image"}
TOKEN_CLASSES = {"bos": "Start (BOS)", "words": "Words", "eos": "End (EOS)", "padding": "Padding"}
MAPS = {"linear": "linear", "residual": "+ MLP"}
MAX_VALIDATION_ROWS = 12
"""Above this, evenly spaced rows are shown, including the first and the last."""
VALIDATION_COLUMNS = {
    "text_to_image_recall@1": ("image R@1", percent),
    "image_to_text_recall@1": ("text R@1", percent),
    "val_loss": ("loss", decimal),
    "drift_words": ("drift: words", decimal),
    "drift_eos": ("EOS", decimal),
    "drift_padding": ("padding", decimal),
}


def describe_run(run: RunData) -> str:
    """Summarise the run in a sentence or two."""
    clip, base = short_name(setting(run, "clip.name")), short_name(setting(run, "base.name"))
    source = setting_text("data.source", setting(run, "data.source"))
    sentences = []
    if run.finetune:
        epochs = run.finetune.get("num_epochs")
        length = f" for {epochs} {'epoch' if epochs == 1 else 'epochs'}" if is_number(epochs) else ""
        sentences.append(f"CLIP {clip} was fine-tuned on the captioned images of {source}{length}.")
    elif "finetune" in run.begun:
        sentences.append(f"Fine-tuning of CLIP {clip} on the captioned images of {source} has not finished.")
    if run.bridge:
        sentences.append(f"CLIP's text tower was grafted onto the frozen diffusion model {base}.")
    if run.images:
        number = "One image was" if len(run.images) == 1 else f"{len(run.images):,} images were"
        sentences.append(f"{number} generated.")
    return " ".join(sentences) or "There are no results in this folder yet."


def progress(run: RunData) -> str:
    """Return the progress of an active run in one sentence."""
    epochs = setting(run, "finetune.num_epochs")
    if run.finetune or run.bridge or not run.log:
        begun = [stage for stage in STAGES if stage in run.begun]
        return f"Now: {STAGE_LABELS[begun[-1]]}." if begun else ""
    last = run.log[-1]
    of = f" of {epochs}" if is_number(epochs) else ""
    return f"Fine-tuning: epoch {last['epoch'] + 1}{of}, step {last['step']:,}."


def highlights(run: RunData) -> list[Highlight]:
    """Return recall@1 in both directions and the bridge's error on words."""
    found = []
    before, after = sub_dict(run.finetune, "before"), sub_dict(run.finetune, "after")
    for direction in DIRECTIONS:
        key = f"{direction}_recall@1"
        if is_number(after.get(key)):
            was = f"{percent(before.get(key))} before fine-tuning" if is_number(before.get(key)) else ""
            name = direction.replace("_", " ").capitalize()
            found.append(Highlight(f"{name} recall@1", percent(after[key]), was))
    error = {
        name: sub_dict(sub_dict(run.bridge, name), "relative_error").get("words")
        for name in MAPS
        if name in run.bridge
    }
    measured = {name: value for name, value in error.items() if is_number(value)}
    if measured:
        name, value = list(measured.items())[-1]
        kind = "with the MLP" if name == "residual" else "linear map"
        found.append(Highlight("Bridge error on words", decimal(value), f"{kind}; 0 = perfect copy"))
    return found


def recall_table(run: RunData) -> Table | None:
    """Return recall before and after fine-tuning, with differences."""
    before, after = sub_dict(run.finetune, "before"), sub_dict(run.finetune, "after")
    if not before and not after:
        return None
    rows: list[tuple[str, ...]] = []
    for direction, label in DIRECTIONS.items():
        rows.append((label,))
        for k in (1, 5, 10):
            key = f"{direction}_recall@{k}"
            pair = before.get(key), after.get(key)
            rows.append((f"recall@{k}", percent(pair[0]), percent(pair[1]), difference(*pair)))
    num_images, num_captions = (after.get(key, before.get(key)) for key in ("num_images", "num_captions"))
    note = (
        f"{count(num_images)} held-out images with {count(num_captions)} captions; any caption of an image "
        "counts as correct."
    )
    if is_number(num_images) and num_images:
        chance = percent(1 / num_images)
        note += f" By chance, a caption finds its image first in {chance} of cases."
    note += _paired_note(after)
    return Table(("", "before", "after", "difference, points"), rows, with_number_note(note, rows))


def _paired_note(after: dict[str, Any]) -> str:
    """Note the recall over caption-image pairs, a commonly confused metric."""
    paired = [after.get(f"paired_{name}_recall@1") for name in ("text_to_image", "image_to_text")]
    if not all(map(is_number, paired)):
        return ""
    return (
        " A metric over caption-image pairs, which accepts only one of an image's copies, such as that of "
        f"open_clip's training log, would give {percent(paired[0])} and {percent(paired[1])} for recall@1 "
        "after; with five captions per image it cannot exceed 20 %."
    )


def validation_table(run: RunData) -> Table | None:
    """Return recall, loss and drift on the validation split by epoch."""
    rows = run.validation
    if not rows:
        return None
    columns = {
        key: shown
        for key, shown in VALIDATION_COLUMNS.items()
        if any(is_number(row.get(key)) for row in rows)
    }
    spaced = min(len(rows), MAX_VALIDATION_ROWS)
    chosen = [rows[round(k * (len(rows) - 1) / max(1, spaced - 1))] for k in range(spaced)]
    cells = [_validation_cells(row, columns) for row in chosen]
    note = (
        f"On {count(rows[-1].get('num_images'))} validation images, before the first step and after epochs. "
        "R@1: recall@1 of images by captions and of captions by images. Loss: on one fixed batch. Drift: "
        "distance of the text tower's hidden states from their start, relative to their norm; 0 = unmoved. A "
        "diffusion model reads words, EOS and padding; the contrastive loss reads EOS only."
    )
    return Table(("after epoch", *(label for label, _ in columns.values())), cells, note)


def _validation_cells(row: dict[str, Any], columns: dict[str, Any]) -> tuple[str, ...]:
    epoch = str(row["epoch"]) if is_number(row.get("epoch")) else NO_NUMBER
    return (epoch, *(shown(row.get(key)) for key, (_, shown) in columns.items()))


def bridge_table(run: RunData) -> Table | None:
    """Return the bridge's error and cosine by token class."""
    maps = [name for name in MAPS if sub_dict(run.bridge, name)]
    if not maps:
        return None
    measures = {"relative_error": "error", "cosine": "cosine"}
    head = tuple(f"{label}, {MAPS[name]}" for label in measures.values() for name in maps)
    rows = [
        (
            label,
            *[
                decimal(sub_dict(sub_dict(run.bridge, name), measure).get(token_class))
                for measure in measures
                for name in maps
            ],
        )
        for token_class, label in TOKEN_CLASSES.items()
    ]
    note = (
        "Grafted hidden states against those of the diffusion model's own text encoder, by token class: an "
        "error of 0 and a cosine of 1 are a perfect copy."
    )
    if is_number(run.bridge.get("num_held_out_captions")):
        note += f" Measured on {count(run.bridge['num_held_out_captions'])} held-out captions"
        note += (
            f", fitted on {count(run.bridge.get('num_captions'))}." if "num_captions" in run.bridge else "."
        )
    return Table(("tokens", *head), rows, with_number_note(note, rows))


def further_tables(run: RunData) -> dict[str, Table]:
    """Return the tables of the stages after the bridge, by title."""
    tables = {"Refinement": refine_table(run), "Distillation": distill_table(run)}
    return {title: table for title, table in tables.items() if table}


def refine_table(run: RunData) -> Table | None:
    """Return the noise prediction error before and after refining."""
    before, after = sub_dict(run.refine, "before"), sub_dict(run.refine, "after")
    keys = [key for key in before | after if is_number(before.get(key)) or is_number(after.get(key))]
    if not keys:
        return None
    rows: list[tuple[str, ...]] = [
        (key.replace("_", " "), decimal(before.get(key)), decimal(after.get(key))) for key in keys
    ]
    note = (
        "Error of the U-Net's noise prediction with the graft against that with its own text encoder, on "
        "test images, by timestep; 0 = equal."
    )
    return Table(("", "before refining", "after"), rows, with_number_note(note, rows))


def distill_table(run: RunData) -> Table | None:
    """Return errors of the distilled text encoder's states by token class."""
    columns = {
        "new words, before": ("before", "new_words"),
        "new words, after": ("after", "new_words"),
        "all others, after": ("after", "held"),
    }
    errors = {label: sub_dict(sub_dict(run.distill, when), kind) for label, (when, kind) in columns.items()}
    if not any(errors.values()):
        return None
    rows = [
        (label, *[decimal(error.get(token_class)) for error in errors.values()])
        for token_class, label in TOKEN_CLASSES.items()
    ]
    words = ", ".join(
        f"{word} ({count(number)})" for word, number in sub_dict(run.distill, "word_counts").items()
    )
    note = (
        "Relative error of hidden states on held-out captions, by token class: of captions with new words "
        "against the graft's, of all others against those of the base's own text encoder; 0 = equal. "
        f"New words, with their captions: {words}."
    )
    return Table(("tokens", *errors), rows, with_number_note(note, rows))


def data_table(run: RunData) -> Table | None:
    """Count images and captions by split, and excluded ones by reason."""
    counts = sub_dict(run.data, "counts") or sub_dict(run.data, "splits") or _counts_of_images(run.data)
    if not counts:
        return None
    rows: list[tuple[str, ...]] = [("Included",)]
    totals = {"images": 0, "captions": 0}
    for split, held in counts.items():
        held = held if isinstance(held, dict) else {"images": held}
        rows.append((str(split), count(held.get("images")), count(held.get("captions")), ""))
        for kind in totals:
            totals[kind] += held[kind] if is_number(held.get(kind)) else 0
    if len(counts) > 1:
        rows.append(("total", count(totals["images"]), count(totals["captions"] or None), ""))
    excluded = [group for group in run.data.get("excluded") or [] if isinstance(group, dict)]
    if excluded:
        rows.append(("Excluded",))
    rows += [_excluded_row(group) for group in excluded[:MAX_EXCLUDED_ROWS]]
    note = ""
    if run.data.get("root") or run.data.get("format"):
        note = (
            f"{short_name(run.data.get('root', ''))}, read as {run.data.get('format', 'captioned images')}."
        )
    if len(excluded) > MAX_EXCLUDED_ROWS:
        note += f" {len(excluded) - MAX_EXCLUDED_ROWS:,} more reasons are in data.json."
    if not excluded and "excluded" in run.data:
        note += " Nothing was excluded."
    used: Any = run.finetune.get("num_train_images")
    found: Any = sub_dict(counts, "train").get("images")
    if is_number(used) and is_number(found) and used < found:
        note += f" CLIP was fine-tuned on {count(used)} of the {count(found)} training images."
    note += _copies_note(run.data)
    return Table(("", "images", "captions", "example"), rows, note.strip())


def _copies_note(data: dict[str, Any]) -> str:
    """Count duplicate photographs, or say that they were not checked."""
    if "leakage" not in data:
        return ""
    copies, leaks = data.get("duplicates"), data["leakage"]
    # Runs of earlier versions have empty lists here, though no photograph was read.
    was_not_read = not copies and data.get("num_images_read") == 0 and data.get("unreadable") == {}
    if not (isinstance(copies, list) and isinstance(leaks, list)) or was_not_read:
        return " Duplicate photographs were not checked for."
    num_copies, num_leaks = count(len(copies)), count(len(leaks))
    return f" Duplicate photographs: {num_copies}; of these in more than one split: {num_leaks}."


def _counts_of_images(data: dict[str, Any]) -> dict[str, Any]:
    """The short form: `num_train_images`, `num_test_images`."""
    counts = {split: data.get(f"num_{split}_images") for split in ("train", "val", "test")}
    return {split: number for split, number in counts.items() if number is not None}


def _excluded_row(group: dict[str, Any]) -> tuple[str, ...]:
    number, is_caption = count(group.get("count")), group.get("kind") == "caption"
    examples = group.get("examples") or []
    example = str(examples[0]) if isinstance(examples, Sequence) and examples else ""
    return (
        str(group.get("reason", "no reason given")),
        "" if is_caption else number,
        number if is_caption else "",
        example,
    )
