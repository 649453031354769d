"""Runs side by side: comparable figures, differing settings, resources, images."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes

from clipgraft.evaluation.results import TEACHER, Metric
from clipgraft.reporting.embedded_images import PageImage, PromptImages, group_images
from clipgraft.reporting.evidence import figure_text, last_variant
from clipgraft.reporting.format import Table, decimal, duration, gigabytes, percent, sub_dict
from clipgraft.reporting.plots import LIGHT, epoch_means, render_figure, style_axes
from clipgraft.reporting.provenance import STAGE_LABELS, setting, setting_text
from clipgraft.reporting.run_data import RunData, is_number
from clipgraft.reporting.sections import DIRECTIONS, TOKEN_CLASSES, describe_run
from clipgraft.runs.run import STAGES

MARKERS = "osD^vP"
IGNORED_SETTINGS = ("device",)
SAMPLING = ("seed", "negative_prompt", "num_inference_steps", "guidance_scale", "height", "width")
"""Must be equal, besides the prompt, for two runs' images to be shown side by side."""
LOSS_SETTINGS = tuple(
    f"finetune.{key}"
    for key in (
        "batch_size",
        "gradient_accumulation_steps",
        "accumulation",
        "captions_per_image",
        "loss",
        "duplicate_images",
        "distill_weight",
    )
)
"""A contrastive loss depends on its batch, so these must be equal."""


def run_names(runs: Sequence[RunData]) -> list[str]:
    """Return the names of the folders; equal ones are numbered."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]


def lead(runs: Sequence[RunData]) -> str:
    """Summarise what is compared, and whether the data is the same."""
    first, *others = {describe_run(run) for run in runs}
    what = first if not others else ""
    return f"{len(runs)} runs side by side. {what} {_data_sentence(runs)}".replace("  ", " ").strip()


def comparability(runs: Sequence[RunData]) -> dict[str, str]:
    """Return why runs cannot be compared, by kind of figure."""
    tuned = [run for run in runs if run.finetune]
    logged = [run for run in runs if run.log]
    bridged = [run for run in runs if run.bridge]
    test = [
        (data_key(run), *(_after(run).get(key) for key in ("num_images", "num_captions"))) for run in tuned
    ]
    batch = [tuple(setting(run, key) for key in ("data.max_train_images", *LOSS_SETTINGS)) for run in logged]
    captions = [
        (data_key(run), setting(run, "base.name"), run.bridge.get("num_held_out_captions")) for run in bridged
    ]
    evaluated = [_evaluation_key(run) for run in runs if run.evaluation.figures]
    return {
        "recall": _unknown_data(tuned) or _reason(test, "recall was measured on different test images"),
        "loss": _unknown_data(logged)
        or _reason([data_key(run) for run in logged], "the runs are on different data")
        or _reason(batch, "a contrastive loss depends on its batch"),
        "bridge": _unknown_data(bridged)
        or _reason(captions, "the bridges were measured on different captions or bases"),
        "evaluation": _reason(
            evaluated,
            "images were generated or scored with different settings, bases, prompts or photographs",
        ),
    }


def _unknown_data(runs: Sequence[RunData]) -> str:
    """Reason not to compare if the data of a run is unknown."""
    is_known = all(data_key(run) is not None for run in runs)
    return "" if is_known else "the data of some runs is unknown"


def _evaluation_key(run: RunData) -> Any:
    """Determinants of an evaluation's figures, besides the grafts."""
    evaluation = run.evaluation
    return (
        evaluation.settings,
        [variant.sha256 for variant in evaluation.variants if variant.name == TEACHER],
        [(prompt.prompt, prompt.image_id) for prompt in evaluation.prompts],
        evaluation.data.model_copy(update={"source": ""}),
    )


def data_key(run: RunData) -> Any:
    """Return a run's data fingerprint, else its counts, else None."""
    if run.data.get("fingerprint"):
        return run.data["fingerprint"]
    return repr([run.data.get("format"), run.data.get("counts")]) if run.data else None


def figures_tables(runs: Sequence[RunData]) -> list[Table]:
    """Return figures by kind, one column per run, or why not comparable."""
    reasons = comparability(runs)
    kinds: dict[str, tuple[str, Callable[[RunData], dict[str, str]]]] = {
        "recall": ("Retrieval", _recall),
        "loss": ("Loss", _loss),
        "bridge": ("Bridge: error of hidden states", _bridge),
        "evaluation": ("Evaluation", _evaluated),
    }
    tables = []
    for kind, (title, read) in kinds.items():
        columns = [read(run) for run in runs]
        if not any(columns):
            continue
        if reasons[kind]:
            tables.append(Table((), [], f"Not compared: {reasons[kind]}.", title))
        else:
            tables.append(Table(("", *run_names(runs)), _across(columns), _note(kind), title))
    return tables


def differing_settings(runs: Sequence[RunData]) -> dict[str, list[Any]]:
    """Return the differing settings: dotted name -> one value per run."""
    flat = [_flat(run.recipe) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values if key not in IGNORED_SETTINGS)
    found = {key: [values.get(key) for values in flat] for key in keys}
    return {key: values for key, values in found.items() if len({repr(value) for value in values}) > 1}


def settings_table(runs: Sequence[RunData], *, differing: bool) -> Table | None:
    """Return the differing, or the equal, settings; None without any."""
    differ = differing_settings(runs)
    if differing:
        rows: list[tuple[str, ...]] = [
            (key, *(setting_text(key, value) if value is not None else "-" for value in values))
            for key, values in differ.items()
        ]
        return Table(("setting", *run_names(runs)), rows) if rows else None
    same = {key: value for key, value in _flat(runs[0].recipe).items() if key not in differ}
    rows = [(key, setting_text(key, value)) for key, value in same.items()]
    return Table(("setting", "in all runs"), rows) if rows else None


def resources_table(runs: Sequence[RunData]) -> Table | None:
    """Return time and memory by stage, one column per run."""
    columns = []
    for run in runs:
        used = run.resources
        column = {
            f"{STAGE_LABELS[stage]}, time": duration(used[stage]["seconds"])
            for stage in (*STAGES, "")
            if stage in used and is_number(used[stage].get("seconds"))
        }
        peaks = [
            values["peak_memory_bytes"]
            for values in used.values()
            if is_number(values.get("peak_memory_bytes"))
        ]
        columns.append(column | ({"peak memory": gigabytes(max(peaks))} if peaks else {}))
        for key in ("cpu", "gpu", "torch"):
            if run.environment.get(key):
                columns[-1][key] = str(run.environment[key])
    return Table(("", *run_names(runs)), _across(columns)) if any(columns) else None


def compared_images(runs: Sequence[RunData]) -> tuple[list[PromptImages], int]:
    """Return images of equal prompts and settings, and the number omitted."""
    groups: dict[str, list[PageImage]] = {}
    for name, run in zip(run_names(runs), runs, strict=True):
        variants = {image.variant for image in run.images}
        last = next(
            (variant for variant in ("distilled", "refined", "after", "") if variant in variants), None
        )
        for image, row in zip(run.images, run.image_rows, strict=True):
            if image.variant == last:
                key = repr([image.prompt, *(row.get(key) for key in SAMPLING)])
                groups.setdefault(key, []).append(replace(image, variant=name))
    return group_images([image for images in groups.values() if len(images) > 1 for image in images])


def loss_notes(runs: Sequence[RunData]) -> list[str]:
    """Explain why the losses cannot be compared; empty if they can."""
    reason = comparability(runs)["loss"]
    return [f"Compare the shapes of these lines, not their heights: {reason}."] if reason else []


def render_losses(runs: Sequence[RunData], image_format: str) -> bytes:
    """Return a figure of each run's mean loss per epoch."""

    def draw(axes: Axes) -> None:
        colors = cycle((LIGHT.batch, LIGHT.mean, LIGHT.text))
        for name, run, marker, color in zip(run_names(runs), runs, cycle(MARKERS), colors, strict=False):
            means = epoch_means(run.log)
            label = name if len(name) <= 32 else f"{name[:31]}…"
            axes.plot(
                [epoch + 1 for epoch, _, _ in means],
                [loss for _, _, loss in means],
                color=color,
                marker=marker,
                markersize=4.5,
                label=label.replace("$", r"\$"),
            )
        style_axes(axes, "mean loss of the epoch", legend=True, x_label="epoch")

    return render_figure(draw, image_format)


def _data_sentence(runs: Sequence[RunData]) -> str:
    keys = [data_key(run) for run in runs]
    if None in keys:
        return (
            "The data of some runs is unknown; figures that depend on it are compared only where it is "
            "known for all."
        )
    if len(set(keys)) == 1:
        return "All have the same data."
    return "Their data differs, so only figures that do not depend on it are compared."


def _reason(keys: Sequence[Any], sentence: str) -> str:
    return sentence if len({repr(key) for key in keys}) > 1 else ""


def _note(kind: str) -> str:
    if kind == "evaluation":
        return (
            "In brackets: 95 % intervals over prompts; they do not cover another training seed. If those of "
            "two runs overlap, no difference is shown."
        )
    return ""


def _across(columns: Sequence[dict[str, str]]) -> list[tuple[str, ...]]:
    labels = dict.fromkeys(label for column in columns for label in column)
    return [(label, *(column.get(label, "-") for column in columns)) for label in labels]


def _after(run: RunData) -> dict[str, Any]:
    return sub_dict(run.finetune, "after")


def _recall(run: RunData) -> dict[str, str]:
    found = {}
    for direction, label in DIRECTIONS.items():
        for k in (1, 5):
            key = f"{direction}_recall@{k}"
            pair = sub_dict(run.finetune, "before").get(key), _after(run).get(key)
            if any(map(is_number, pair)):
                found[f"{label}, recall@{k}"] = f"{percent(pair[0])} → {percent(pair[1])}"
    return found


def _loss(run: RunData) -> dict[str, str]:
    means = epoch_means(run.log)
    if not means:
        return {}
    return {"mean of first epoch": decimal(means[0][2]), "mean of last epoch": decimal(means[-1][2])} | {
        "steps": f"{len(run.log):,}"
    }


def _bridge(run: RunData) -> dict[str, str]:
    best = sub_dict(run.bridge, "residual") or sub_dict(run.bridge, "linear")
    error = sub_dict(best, "relative_error")
    return {
        label: decimal(error[name]) for name, label in TOKEN_CLASSES.items() if is_number(error.get(name))
    }


def _evaluated(run: RunData) -> dict[str, str]:
    evaluation, variant = run.evaluation, last_variant(run.evaluation)
    titles = {each.name: each.title for each in evaluation.prompt_sets}
    found = {}
    for figure in evaluation.figures:
        if figure.variant == variant:
            metric = evaluation.metrics.get(figure.metric, Metric(title=figure.metric))
            title = f"{metric.title}; {titles.get(figure.prompt_set, figure.prompt_set)}"
            found[title] = figure_text(figure, metric)
    return found


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            if key != "pretrain":
                flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
