"""`report.json`: what the page shows, for machines."""

from typing import Any

from clipgraft.reporting import ranking, sections
from clipgraft.reporting.costs import started, watt_hours
from clipgraft.reporting.format import short_name
from clipgraft.reporting.plots import epoch_means
from clipgraft.reporting.run_data import Run
from clipgraft.reporting.setting_tables import short_setting

VERSION = 2
EVALUATION_KEYS = {
    *("notes", "settings", "data", "variants", "metrics", "prompt_sets", "figures", "differences", "counts")
}
"""Parts of evaluation.json that report.json repeats."""


def summarize(run: Run) -> dict[str, Any]:
    """Return a run as JSON has it: no NaN, and no path that tells where its folder lies."""
    summary: dict[str, Any] = {
        "schema": "clipgraft.report",
        "schema_version": VERSION,
        "name": run.name,
        "started": started(run),
        "summary": sections.describe_run(run),
        "problems": run.problems,
        "recipe": run.recipe,
        "data": {
            key: run.data[key] for key in ("format", "fingerprint", "counts", "excluded") if key in run.data
        },
        "training": {
            "num_steps": len(run.log),
            "epoch_mean_loss": [
                {"epoch": epoch, "step": step, "loss": loss} for epoch, step, loss in epoch_means(run.log)
            ],
            "evaluations": run.evaluations,
        },
        "finetune": run.finetune,
        "bridge": run.bridge,
        "refine": run.refine,
        "evaluation": run.evaluation.model_dump(include=EVALUATION_KEYS & run.evaluation.model_fields_set),
        "ranked_prompts": {
            title: [group.prompt for group in groups]
            for title, groups in ranking.ranked_prompts(run)[0].items()
        },
        "num_failed_images": ranking.failed_images(run)[1],
        "images": run.image_rows,
        "resources": {
            stage or "all": used | {"watt_hours_estimated": watt_hours(used, run.environment)}
            for stage, used in run.resources.items()
        },
        "environment": run.environment,
    }
    if run.data.get("root"):
        summary["data"]["name"] = short_name(run.data["root"])
    return _without_places(summary)


def _without_places(summary: dict[str, Any]) -> dict[str, Any]:
    """Absolute paths of the recipe's models and data become their own names."""
    recipe = {
        section: {key: short_setting(value) for key, value in values.items()}
        if isinstance(values, dict)
        else values
        for section, values in summary["recipe"].items()
    }
    return summary | {"recipe": recipe}
