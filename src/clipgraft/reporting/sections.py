"""What each section of the report says: tables of text and sentences, made from a run's plain data.

Every number is formatted here, and what is missing becomes a sentence here; the template only lays out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from clipgraft.reporting.pictures import COLUMN_LABELS
from clipgraft.reporting.plots import epoch_means
from clipgraft.reporting.run import Run, is_number

NO_NUMBER = "n/a"
NO_NUMBER_NOTE = "n/a: the value was not a finite number, so nothing can be said of it."
MAX_LEFT_OUT_ROWS = 30
DIRECTIONS = {"text_to_image": "Image found by its caption", "image_to_text": "Caption found by its image"}
TOKEN_CLASSES = {"bos": "Start (BOS)", "words": "Words", "eos": "End (EOS)", "padding": "Padding"}
MAPS = {"linear": "linear", "residual": "+ MLP"}
SETTINGS: dict[str, tuple[str, ...]] = {
    "Data": ("data.source", "data.include_unsplit", "data.max_train_images", "data.max_test_images", "seed"),
    "Fine-tuning": (
        "clip.name",
        "finetune.num_epochs",
        "finetune.batch_size",
        "finetune.gradient_accumulation_steps",
        "finetune.learning_rate",
        "finetune.lr_schedule",
        "finetune.warmup_steps",
        "finetune.weight_decay",
        "finetune.max_grad_norm",
    ),
    "Bridge": (
        "base.name",
        "bridge.ridge",
        "bridge.hidden_size",
        "bridge.num_epochs",
        "bridge.learning_rate",
        "bridge.batch_size",
    ),
    "Pictures": (
        "generate.seed",
        "generate.num_inference_steps",
        "generate.guidance_scale",
        "generate.num_images_per_prompt",
        "generate.negative_prompt",
    ),
}
MEANING_OF_EMPTY: dict[str, dict[Any, str]] = {
    "data.source": {"": "flatland8k, drawn"},
    "data.max_train_images": {0: "all"},
    "data.max_test_images": {0: "all"},
    "generate.negative_prompt": {"": "none"},
}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text below a head; a row of one text is a heading within the table."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Highlight:
    """A figure to see first."""

    label: str
    value: str
    note: str


def describe_run(run: Run) -> str:
    """Say in a sentence or two what was done, and with what."""
    clip, base = short_name(_setting(run, "clip.name")), short_name(_setting(run, "base.name"))
    source = short_name(_setting(run, "data.source")) or "flatland8k"
    sentences = []
    if run.finetune:
        epochs = run.finetune.get("num_epochs")
        length = f" for {epochs} {'epoch' if epochs == 1 else 'epochs'}" if is_number(epochs) else ""
        sentences.append(f"CLIP {clip} was fine-tuned on the captioned images of {source}{length}.")
    elif "finetune" in run.begun:
        sentences.append(f"Fine-tuning of CLIP {clip} on the captioned images of {source} has not ended.")
    if run.bridge:
        sentences.append(f"CLIP's text tower was grafted onto the frozen diffusion model {base}.")
    if run.pictures:
        number = "One picture was" if len(run.pictures) == 1 else f"{len(run.pictures):,} pictures were"
        sentences.append(f"{number} drawn.")
    return " ".join(sentences) or "This folder holds no results yet."


def highlights(run: Run) -> list[Highlight]:
    """Pick the figures that tell most: recall@1 both ways, and how close the bridge comes on words."""
    found = []
    before, after = _dict(run.finetune, "before"), _dict(run.finetune, "after")
    for direction in DIRECTIONS:
        key = f"{direction}_recall@1"
        if is_number(after.get(key)):
            was = f"{percent(before.get(key))} before fine-tuning" if is_number(before.get(key)) else ""
            name = direction.replace("_", " ").capitalize()
            found.append(Highlight(f"{name} recall@1", percent(after[key]), was))
    error = {
        name: _dict(_dict(run.bridge, name), "relative_error").get("words")
        for name in MAPS
        if name in run.bridge
    }
    measured = {name: value for name, value in error.items() if is_number(value)}
    if measured:
        name, value = list(measured.items())[-1]
        kind = "with the MLP" if name == "residual" else "linear map"
        found.append(Highlight("State error on words", decimal(value), f"{kind}; 0 is a perfect copy"))
    return found


def recall_table(run: Run) -> Table | None:
    """Lay out recall before and after fine-tuning with differences; None if it was not measured."""
    before, after = _dict(run.finetune, "before"), _dict(run.finetune, "after")
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
    return Table(("", "before", "after", "difference"), rows, _with_number_note(note, rows))


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


def loss_notes(run: Run) -> list[str]:
    """Say what a reader of the loss figure must know: gaps, single points, unfinished epochs."""
    notes = []
    num_gaps = sum(not is_number(row["loss"]) for row in run.log)
    if num_gaps:
        verb = "has" if num_gaps == 1 else "have"
        notes.append(
            f"{num_gaps:,} of {len(run.log):,} steps {verb} no finite loss, where the line has a gap."
        )
    skipped = run.finetune.get("skipped_steps")
    if is_number(skipped) and skipped:
        notes.append(f"{skipped:,} steps were skipped, their gradients being no finite numbers.")
    epochs = {row["epoch"] for row in run.log}
    for epoch in sorted(epochs - {epoch for epoch, _, _ in epoch_means(run.log)})[:1]:
        notes.append(f"Epoch {epoch + 1} has no mean: it was not finished, or no loss in it was finite.")
    if len(epochs) == 1:
        notes.append("There is one epoch only, so the red mean is a single point.")
    return notes


def bridge_table(run: Run) -> Table | None:
    """Lay out state error and cosine by token class, linear beside + MLP; None if there is no bridge."""
    maps = [name for name in MAPS if _dict(run.bridge, name)]
    if not maps:
        return None
    measures = {"relative_error": "error", "cosine": "cosine"}
    head = tuple(f"{label}, {MAPS[name]}" for label in measures.values() for name in maps)
    rows = [
        (
            label,
            *[
                decimal(_dict(_dict(run.bridge, name), measure).get(token_class))
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
    return Table(("tokens", *head), rows, _with_number_note(note, rows))


def fidelity_table(run: Run) -> Table | None:
    """Lay out prompt fidelity of each text encoder between floors and ceiling; None if not measured."""
    scores = _dict(run.evaluate, "scores")
    if not scores:
        return None
    attributes = list(dict.fromkeys(name for key in scores for name in _dict(scores[key], "by_attribute")))
    rows: list[tuple[str, ...]] = []
    for name, score in scores.items():
        low, high = (score.get("interval") or [None, None])[:2]
        figures = [decimal(score.get("mean")), f"{decimal(low)} to {decimal(high)}"]
        figures += [decimal(score.get(key)) for key in ("held_out", "seen", "all_at_once")]
        figures += [decimal(_dict(score, "by_attribute").get(attribute)) for attribute in attributes]
        rows.append((COLUMN_LABELS.get(name, name), *figures))
    accuracy = ", ".join(f"{name} {decimal(v)}" for name, v in _dict(run.evaluate, "probe_accuracy").items())
    settings = _dict(run.evaluate, "settings")
    guidance = settings.get("guidance_scale", NO_NUMBER)
    note = (
        "Share of what a prompt names (place, time, subject, colour, action) that a classifier, the probe, "
        f"finds in the picture: {count(settings.get('num_prompts'))} fixed prompts, a picture each, "
        f"{count(settings.get('num_inference_steps'))} steps, guidance {guidance}. "
        "Every second prompt is of a combination that no training picture shows. The floors are the first "
        "text encoder's pictures of the empty prompt, and its pictures of other prompts; the ceiling is what "
        f"the drawing code itself draws, where the probe's accuracy is: {accuracy}."
    )
    head = ("", "mean", "95 % interval", "held out", "seen", "all at once", *attributes)
    return Table(head, rows, _with_number_note(note, rows))


def data_table(run: Run) -> Table | None:
    """Count images and captions in by split, and out by reason; None if nothing was counted."""
    counts = _dict(run.data, "counts") or _dict(run.data, "splits") or _counts_of_images(run.data)
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
    left_out = [group for group in run.data.get("left_out") or [] if isinstance(group, dict)]
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
    if not left_out and "left_out" in run.data:
        note += " Nothing was left out."
    return Table(("", "images", "captions", "for example"), rows, note.strip())


def settings_tables(run: Run) -> dict[str, list[tuple[str, str]]]:
    """List the recipe's main settings by stage; of a single stage, only its own."""
    has_results = {
        "Data": True,
        "Fine-tuning": bool(run.finetune or run.log) and not run.bridge,
        "Bridge": bool(run.bridge),
        "Pictures": bool(run.pictures),
    }
    return {
        title: rows
        for title, keys in SETTINGS.items()
        if (has_results[title] or not run.is_single_stage)
        and (
            rows := [
                (_label(key), _shown_setting(run, key)) for key in keys if _setting(run, key) is not None
            ]
        )
    }


def environment_rows(run: Run) -> list[tuple[str, str]]:
    """List how long it took and where it ran."""
    rows = [
        (f"{title} took", duration(metrics["seconds"]))
        for title, metrics in (("fine-tuning", run.finetune), ("bridge", run.bridge))
        if is_number(metrics.get("seconds"))
    ]
    for key, value in run.environment.items():
        if key == "seconds" and is_number(value):
            rows.append(("in all", duration(value)))
        elif key not in ("command", "started") and value not in (None, ""):
            rows.append((key.replace("_", " "), str(value)))
    return rows


def started(run: Run) -> str:
    """Say when the run began, to the minute; empty where that is not known."""
    value = str(run.environment.get("started") or "")
    try:
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return value


def percent(value: Any) -> str:
    """Format a fraction as a percentage."""
    return f"{100 * value:.1f} %" if is_number(value) else NO_NUMBER


def difference(before: Any, after: Any) -> str:
    """Format the difference of two fractions in percentage points, with its sign."""
    return f"{100 * (after - before):+.1f}" if is_number(before) and is_number(after) else NO_NUMBER


def decimal(value: Any) -> str:
    """Format a number with three decimals."""
    return f"{value:.3f}" if is_number(value) else NO_NUMBER


def count(value: Any) -> str:
    """Format a number of things; a dash where it is not known."""
    return f"{value:,}" if is_number(value) else "-"


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def short_name(value: Any) -> str:
    """A folder's own name alone: the way to it would tell a stranger the user's name."""
    return Path(str(value)).name if Path(str(value)).is_absolute() else str(value or "")


def _dict(values: dict[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _setting(run: Run, dotted: str) -> Any:
    *sections, key = dotted.split(".")
    values = run.recipe
    for section in sections:
        values = _dict(values, section)
    return values.get(key)


def _label(dotted: str) -> str:
    names = {"clip.name": "CLIP", "base.name": "diffusion model", "data.source": "source"}
    return names.get(dotted, dotted.rpartition(".")[2].replace("_", " "))


def _shown_setting(run: Run, dotted: str) -> str:
    value = _setting(run, dotted)
    if not isinstance(value, (list, dict)) and value in MEANING_OF_EMPTY.get(dotted, {}):
        return MEANING_OF_EMPTY[dotted][value]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else short_name(value) or str(value)


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


def _with_number_note(note: str, rows: list[tuple[str, ...]]) -> str:
    return f"{note} {NO_NUMBER_NOTE}" if any(NO_NUMBER in row for row in rows) else note
