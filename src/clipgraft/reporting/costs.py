"""What the page says of time, memory, energy and environment."""

from datetime import datetime
from typing import Any

from clipgraft.reporting.format import Table, duration, gigabytes, with_number_note
from clipgraft.reporting.run_data import STAGES, Run, is_number

WATTS_OF_A_CORE = 6.0
"""Of a busy core with its share of memory and board: 64-core servers draw 300-400 W (guess)."""
WATTS_OF_A_GPU = 300.0
"""Between a desktop card's 200 and a data centre card's 700 (guess)."""
STAGE_LABELS = {
    "": "in all",
    "finetune": "fine-tuning",
    "bridge_before": "bridge of CLIP before",
    "bridge": "bridge of CLIP after",
    "refine": "refining",
    "generate": "drawing",
    "evaluate": "evaluating",
}


def resources_table(run: Run) -> Table | None:
    """Lay out time, processor time, peak memory and estimated energy by stage; None where none is known."""
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
        "energy, about",
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
    """Estimate energy from processor time and, where a GPU was used, the whole time at a fixed draw.

    Args:
        used: What `resources.json` holds.
        environment: What `environment.json` holds.

    Returns:
        Watt hours; None where processor time is not known.
    """
    if not is_number(used.get("processor_seconds")):
        return None
    joules = used["processor_seconds"] * WATTS_OF_A_CORE
    if environment.get("device") == "cuda" and is_number(used.get("seconds")):
        joules += used["seconds"] * WATTS_OF_A_GPU
    return joules / 3600


def environment_rows(run: Run) -> list[tuple[str, str]]:
    """List where it ran: versions and machine."""
    hidden = ("command", "started", "seconds")
    return [
        (key.replace("_", " "), str(value))
        for key, value in run.environment.items()
        if key not in hidden and value not in (None, "")
    ]


def started(run: Run) -> str:
    """Say when the run began, to the minute; empty where that is not known."""
    value = str(run.environment.get("started") or "")
    try:
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return value


def _from_metrics(run: Run) -> dict[str, dict[str, Any]]:
    """Seconds of the stages that trained, which runs without `resources.json` have in their metrics."""
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


def _note(run: Run) -> str:
    gpu = f" and {WATTS_OF_A_GPU:.0f} W for the GPU all the while" if _has_gpu(run) else ""
    return (
        f"Energy is not measured but estimated, to a factor of two: {WATTS_OF_A_CORE:.0f} W for each busy "
        f"core{gpu}. Processor time counts every core. Peak memory is the process's since it began, so a "
        "later stage never shows less than an earlier one."
    )


def _has_gpu(run: Run) -> bool:
    return run.environment.get("device") == "cuda"


def _time(value: Any) -> str:
    return duration(value) if is_number(value) else "-"


def _energy(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1000:.2f} kWh" if value >= 1000 else f"{value:.2g} Wh"
