"""Settings, time, memory, energy and environment of a run."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from clipgraft.reporting.format import Table, duration, gigabytes, short_name, sub_dict, with_number_note
from clipgraft.reporting.run_data import RunData, is_number
from clipgraft.runs.run import STAGES
from clipgraft.settings import FLATLAND8K

WATTS_OF_A_CORE = 6.0
"""Per busy core, including memory and board: 64-core servers draw 300-400 W (guess)."""
WATTS_OF_A_GPU = 300.0
"""Between a desktop card's 200 and a data centre card's 700 (guess)."""
STAGE_LABELS = {
    "": "total",
    "finetune": "fine-tuning",
    "bridge_before": "bridge of CLIP before",
    "bridge": "bridge of CLIP after",
    "refine": "refinement",
    "distill": "distillation",
    "new_words": "finding new words",
    "generate": "generation",
    "evaluate": "evaluation",
}


SETTINGS: dict[str, tuple[str, ...]] = {
    "Data": (
        "data.source",
        "data.include_unsplit",
        "data.image_field",
        "data.caption_field",
        "data.separator",
        "data.caption_extension",
        "data.num_train_images",
        "data.on_damaged",
        "data.max_train_images",
        "data.max_val_images",
        "data.max_test_images",
        "seed",
    ),
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
        "finetune.resize_mode",
        "finetune.crop_scale",
    ),
    "Bridge": (
        "base.name",
        "bridge.ridge",
        "bridge.hidden_size",
        "bridge.num_epochs",
        "bridge.learning_rate",
        "bridge.batch_size",
    ),
    "Refinement": (
        "refine.num_epochs",
        "refine.learning_rate",
        "refine.batch_size",
        "refine.crop",
    ),
    "Distillation": (
        "distill.num_epochs",
        "distill.learning_rate",
        "distill.batch_size",
    ),
    "Images": (
        "generate.seed",
        "generate.num_inference_steps",
        "generate.guidance_scale",
        "generate.num_images_per_prompt",
        "generate.negative_prompt",
    ),
}
OPTIONAL = ("Refinement", "Distillation")
"""Stages that a whole run need not have."""
MEANING_OF_EMPTY: dict[str, dict[Any, str]] = {
    "data.source": {"": FLATLAND8K},
    "data.num_train_images": {0: ""},
    "data.max_train_images": {0: "all"},
    "data.max_val_images": {0: "all"},
    "data.max_test_images": {0: "all"},
    "finetune.resize_mode": {"": "CLIP's own"},
    "generate.negative_prompt": {"": "none"},
}
"""Settings that are empty and not named here are not shown."""


def settings_tables(run: RunData) -> dict[str, list[tuple[str, str]]]:
    """Return the main settings by stage (of one stage, its own)."""
    has_results = {
        "Data": True,
        "Fine-tuning": bool(run.finetune or run.log) and not run.bridge,
        "Bridge": bool(run.bridge),
        "Refinement": bool(run.refine),
        "Distillation": bool(run.distill),
        "Images": bool(run.images),
    }
    return {
        title: rows
        for title, keys in SETTINGS.items()
        if (has_results[title] or not (run.is_single_stage or title in OPTIONAL))
        and (
            rows := [
                (_label(key), text)
                for key in keys
                if (value := setting(run, key)) is not None and (text := setting_text(key, value))
            ]
        )
    }


def setting(run: RunData, dotted: str) -> Any:
    """Return a setting by dotted name, else as recorded with the images."""
    *sections, key = dotted.split(".")
    values = run.recipe
    for section in sections:
        values = sub_dict(values, section)
    if dotted == "data.source" and isinstance(parts := values.get("sources"), list) and parts:
        return [_weighted(part) for part in parts if isinstance(part, dict)]
    used = run.image_rows[0] if run.image_rows and sections == ["generate"] else {}
    return values.get(key, used.get(key))


def _weighted(part: dict[str, Any]) -> str:
    """Return one of several sources with its weight: `photos x 2`."""
    weight = part.get("weight", 1)
    name = short_name(part.get("source")) or FLATLAND8K
    return f"{name} x {weight:g}" if is_number(weight) else name


def _label(dotted: str) -> str:
    names = {"clip.name": "CLIP", "base.name": "diffusion model", "data.source": "source"}
    return names.get(dotted, dotted.rpartition(".")[2].replace("_", " "))


def setting_text(dotted: str, value: Any) -> str:
    """Format a setting's value, folders without their parents."""
    if not isinstance(value, (list, dict)) and value in MEANING_OF_EMPTY.get(dotted, {}):
        return MEANING_OF_EMPTY[dotted][value]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "; ".join(map(short_name, value))
    return f"{value:g}" if isinstance(value, float) else short_name(value) or str(value)


def shown_recipe(run: RunData) -> str:
    """Return the recipe's text with paths cut to their last part."""
    text = run.recipe_text
    for value in _texts(run.recipe):
        if short_name(value) != value:
            text = text.replace(value, short_name(value))
    return text


def _texts(values: Any) -> Iterator[str]:
    """Yield all texts in nested settings."""
    if isinstance(values, str):
        yield values
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        yield from _texts(value)


def resources_table(run: RunData) -> Table | None:
    """Return time, memory and estimated energy by stage; None if unknown."""
    used = {stage: run.resources[stage] for stage in STAGES if stage in run.resources}
    if "" in run.resources:
        used[""] = run.resources[""]
    elif len(used) > 1:
        used[""] = _total(list(used.values()))
    used = used or _from_metrics(run)
    if not used:
        return None
    has_gpu = any("peak_gpu_memory_bytes" in values for values in used.values())
    head = (
        "",
        "time",
        "processor time",
        "peak memory",
        *(["GPU memory"] if has_gpu else []),
        "energy (estimate)",
    )
    rows = []
    for stage, values in used.items():
        memory = ["peak_memory_bytes", *(["peak_gpu_memory_bytes"] if has_gpu else [])]
        rows.append(
            (
                "this stage" if run.is_single_stage else STAGE_LABELS[stage],
                *(_time(values.get(key)) for key in ("seconds", "processor_seconds")),
                *(gigabytes(values[key]) if is_number(values.get(key)) else "-" for key in memory),
                _energy(watt_hours(values, run.environment)),
            )
        )
    return Table(head, rows, with_number_note(_note(run), rows))


def watt_hours(used: dict[str, Any], environment: dict[str, Any]) -> float | None:
    """Estimate watt hours from CPU and GPU time; None if unknown.

    Arguments are the contents of `resources.json` and `environment.json`.
    """
    if not is_number(used.get("processor_seconds")):
        return None
    joules = used["processor_seconds"] * WATTS_OF_A_CORE
    if environment.get("device") == "cuda" and is_number(used.get("seconds")):
        joules += used["seconds"] * WATTS_OF_A_GPU
    return joules / 3600


def environment_rows(run: RunData) -> list[tuple[str, str]]:
    """Return versions and machine as labels and values."""
    hidden = ("command", "started", "seconds")
    return [
        (key.replace("_", " "), str(value))
        for key, value in run.environment.items()
        if key not in hidden and value not in (None, "")
    ]


def started(run: RunData) -> str:
    """Return when the run started, to the minute; empty if unknown."""
    value = str(run.environment.get("started") or "")
    try:
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return value


def _from_metrics(run: RunData) -> dict[str, dict[str, Any]]:
    """Seconds of training, for runs without `resources.json`."""
    found = {"finetune": run.finetune, "bridge": run.bridge}
    return {
        stage: {"seconds": values["seconds"]}
        for stage, values in found.items()
        if is_number(values.get("seconds"))
    }


def _total(used: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for key in dict.fromkeys(key for values in used for key in values):
        numbers = [values[key] for values in used if is_number(values.get(key))]
        if numbers:
            total[key] = max(numbers) if key.startswith("peak") else sum(numbers)
    return total


def _note(run: RunData) -> str:
    gpu = f" and {WATTS_OF_A_GPU:.0f} W for the GPU throughout" if _has_gpu(run) else ""
    return (
        f"Energy is estimated, within a factor of two: {WATTS_OF_A_CORE:.0f} W per busy core{gpu}. Processor "
        "time is summed over cores. Peak memory is that of the process since its start, so it never falls "
        "from one stage to the next."
    )


def _has_gpu(run: RunData) -> bool:
    return run.environment.get("device") == "cuda"


def _time(value: Any) -> str:
    return duration(value) if is_number(value) else "-"


def _energy(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1000:.2f} kWh" if value >= 1000 else f"{value:.2g} Wh"
