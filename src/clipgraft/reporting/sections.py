"""What each section of the report says: tables of text and sentences, made from a run's plain data.

What is missing becomes a sentence here; the template only lays out.
"""

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
from clipgraft.reporting.provenance import STAGE_LABELS, setting
from clipgraft.reporting.run_data import RunData, is_number
from clipgraft.runs.run import STAGES

MAX_LEFT_OUT_ROWS = 30
DIRECTIONS = {"text_to_image": "Image found by its caption", "image_to_text": "Caption found by its image"}
TOKEN_CLASSES = {"bos": "Start (BOS)", "words": "Words", "eos": "End (EOS)", "padding": "Padding"}
MAPS = {"linear": "linear", "residual": "+ MLP"}
MAX_VALIDATION_ROWS = 12
"""Of more evaluations, evenly spaced ones are shown, the first and the last among them."""
VALIDATION_COLUMNS = {
    "text_to_image_recall@1": ("image R@1", percent),
    "image_to_text_recall@1": ("text R@1", percent),
    "val_loss": ("loss", decimal),
    "drift_words": ("drift of words", decimal),
    "drift_eos": ("of EOS", decimal),
    "drift_padding": ("of padding", decimal),
}


def describe_run(run: RunData) -> str:
    """Say in a sentence or two what was done, and with what."""
    clip, base = short_name(setting(run, "clip.name")), short_name(setting(run, "base.name"))
    source = short_name(setting(run, "data.source")) or "flatland8k"
    sentences = []
    if run.finetune:
        epochs = run.finetune.get("num_epochs")
        length = f" for {epochs} {'epoch' if epochs == 1 else 'epochs'}" if is_number(epochs) else ""
        sentences.append(f"CLIP {clip} was fine-tuned on the captioned images of {source}{length}.")
    elif "finetune" in run.begun:
        sentences.append(f"Fine-tuning of CLIP {clip} on the captioned images of {source} has not ended.")
    if run.bridge:
        sentences.append(f"CLIP's text tower was grafted onto the frozen diffusion model {base}.")
    if run.images:
        number = "One image was" if len(run.images) == 1 else f"{len(run.images):,} images were"
        sentences.append(f"{number} generated.")
    return " ".join(sentences) or "This folder holds no results yet."


def progress(run: RunData) -> str:
    """Say how far a run that is at work has come."""
    epochs = setting(run, "finetune.num_epochs")
    if run.finetune or run.bridge or not run.log:
        begun = [stage for stage in STAGES if stage in run.begun]
        return f"Now: {STAGE_LABELS[begun[-1]]}." if begun else ""
    last = run.log[-1]
    of = f" of {epochs}" if is_number(epochs) else ""
    return f"Fine-tuning: epoch {last['epoch'] + 1}{of}, step {last['step']:,}."


def highlights(run: RunData) -> list[Highlight]:
    """Pick the figures that tell most: recall@1 both ways, and how close the bridge comes on words."""
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
        found.append(Highlight("State error on words", decimal(value), f"{kind}; 0 is a perfect copy"))
    return found


def recall_table(run: RunData) -> Table | None:
    """Lay out recall before and after fine-tuning with differences; None if it was not measured."""
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
        f"{count(num_images)} held-out images with {count(num_captions)} captions; any of an image's "
        "captions counts. Differences are in percentage points."
    )
    if is_number(num_images) and num_images:
        chance = percent(1 / num_images)
        note += f" By chance, the first image found by a caption would be right in {chance} of cases."
    note += _paired_note(after)
    return Table(("", "before", "after", "difference"), rows, with_number_note(note, rows))


def _paired_note(after: dict[str, Any]) -> str:
    """What a metric of caption-image pairs would have said, so that nobody compares the two."""
    paired = [after.get(f"paired_{name}_recall@1") for name in ("text_to_image", "image_to_text")]
    if not all(map(is_number, paired)):
        return ""
    return (
        " A metric that knows one right answer among the repeated images of caption-image pairs, such as "
        f"that of open_clip's training log, would say {percent(paired[0])} and {percent(paired[1])} for "
        "recall@1 after; with five captions an image it cannot pass 20 %."
    )


def validation_table(run: RunData) -> Table | None:
    """Lay out recall, loss and drift on the validation split by epoch; None where nothing was evaluated."""
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
        "R@1: recall@1, the image found by a caption and a caption found by an image. Loss: of one fixed "
        "batch. Drift: how far the text tower's states have moved from where they began; 0 is unmoved, 1 as "
        "far as from the origin. A diffusion model reads words, EOS and padding; the contrastive loss reads "
        "EOS alone."
    )
    return Table(("after epoch", *(label for label, _ in columns.values())), cells, note)


def _validation_cells(row: dict[str, Any], columns: dict[str, Any]) -> tuple[str, ...]:
    epoch = str(row["epoch"]) if is_number(row.get("epoch")) else NO_NUMBER
    return (epoch, *(shown(row.get(key)) for key, (_, shown) in columns.items()))


def bridge_table(run: RunData) -> Table | None:
    """Lay out state error and cosine by token class, linear beside + MLP; None if there is no bridge."""
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
        "How far the grafted tower's states are from the diffusion model's own, by kind of token: a relative "
        "error of 0 and a cosine of 1 would be a perfect copy."
    )
    if is_number(run.bridge.get("num_held_out_captions")):
        note += f" Measured on {count(run.bridge['num_held_out_captions'])} held-out captions"
        note += (
            f", fitted on {count(run.bridge.get('num_captions'))}." if "num_captions" in run.bridge else "."
        )
    return Table(("tokens", *head), rows, with_number_note(note, rows))


def refine_table(run: RunData) -> Table | None:
    """Lay out the error of predicted noise before and after refining; None if nothing was refined."""
    before, after = sub_dict(run.refine, "before"), sub_dict(run.refine, "after")
    keys = [key for key in before | after if is_number(before.get(key)) or is_number(after.get(key))]
    if not keys:
        return None
    rows: list[tuple[str, ...]] = [
        (key.replace("_", " "), decimal(before.get(key)), decimal(after.get(key))) for key in keys
    ]
    note = (
        "Error of the noise that the U-Net predicts with the graft, against its prediction with its own text "
        "encoder, on test pictures; 0 is a perfect copy."
    )
    return Table(("", "before refining", "after"), rows, with_number_note(note, rows))


def data_table(run: RunData) -> Table | None:
    """Count images and captions in by split, and out by reason; None if nothing was counted."""
    counts = sub_dict(run.data, "counts") or sub_dict(run.data, "splits") or _counts_of_images(run.data)
    if not counts:
        return None
    rows: list[tuple[str, ...]] = [("Counted in",)]
    totals = {"images": 0, "captions": 0}
    for split, held in counts.items():
        held = held if isinstance(held, dict) else {"images": held}
        rows.append((str(split), count(held.get("images")), count(held.get("captions")), ""))
        for kind in totals:
            totals[kind] += held[kind] if is_number(held.get(kind)) else 0
    if len(counts) > 1:
        rows.append(("in all", count(totals["images"]), count(totals["captions"] or None), ""))
    left_out = [group for group in run.data.get("excluded") or [] if isinstance(group, dict)]
    if left_out:
        rows.append(("Counted out",))
    rows += [_left_out_row(group) for group in left_out[:MAX_LEFT_OUT_ROWS]]
    note = ""
    if run.data.get("root") or run.data.get("format"):
        note = (
            f"{short_name(run.data.get('root', ''))}, read as {run.data.get('format', 'captioned images')}."
        )
    if len(left_out) > MAX_LEFT_OUT_ROWS:
        note += f" {len(left_out) - MAX_LEFT_OUT_ROWS:,} more reasons are in data.json."
    if not left_out and "excluded" in run.data:
        note += " Nothing was left out."
    note += _copies_note(run.data)
    return Table(("", "images", "captions", "for example"), rows, note.strip())


def _copies_note(data: dict[str, Any]) -> str:
    """Say how many photographs are there twice, and in two splits; that nobody looked is said too."""
    if "leakage" not in data:
        return ""
    copies, leaks = data.get("duplicates"), data["leakage"]
    # Runs of earlier versions have empty lists here, though no photograph was read.
    was_not_read = not copies and data.get("num_images_read") == 0 and data.get("unreadable") == {}
    if not (isinstance(copies, list) and isinstance(leaks, list)) or was_not_read:
        return " Whether photographs are there twice, or in two splits, was not checked."
    num_copies, num_leaks = count(len(copies)), count(len(leaks))
    return f" Photographs with the same bytes: {num_copies}; in more than one split: {num_leaks}."


def _counts_of_images(data: dict[str, Any]) -> dict[str, Any]:
    """The short form: `num_train_images`, `num_test_images`."""
    counts = {split: data.get(f"num_{split}_images") for split in ("train", "val", "test")}
    return {split: number for split, number in counts.items() if number is not None}


def _left_out_row(group: dict[str, Any]) -> tuple[str, ...]:
    number, is_caption = count(group.get("count")), group.get("kind") == "caption"
    examples = group.get("examples") or []
    example = str(examples[0]) if isinstance(examples, Sequence) and examples else ""
    return (
        str(group.get("reason", "no reason given")),
        "" if is_caption else number,
        number if is_caption else "",
        example,
    )
