"""Reports as one HTML file that can be sent to a colleague.

Figures and pictures lie inside it. Nothing is fetched. The one script that the page allows itself, by its
sum, is not needed to read it; so a caption which is a script stays a caption.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from clipgraft.errors import UserError
from clipgraft.reporting import comparison, evidence, ranking, sections
from clipgraft.reporting import costs as resources
from clipgraft.reporting.curves import Curve, training_curves
from clipgraft.reporting.embedded_images import group_images
from clipgraft.reporting.plots import DARK, LIGHT, Theme, recolour, render_loss
from clipgraft.reporting.run_data import Run
from clipgraft.reporting.setting_tables import settings_tables, shown_recipe
from clipgraft.reporting.validation_curves import evaluations_table

MAX_REPORT_BYTES = 5_000_000
MAX_RECIPE_CHARACTERS = 100_000
"""Shown of recipe.toml: with markup's `<` written out, at most 0.6 MB."""
TEMPLATES_DIR = Path(__file__).parents[1] / "templates"


def render_report(run: Run, *, refresh_seconds: int = 0) -> str:
    """Return the HTML of a run's page.

    Args:
        run: What its folder holds.
        refresh_seconds: How often a browser is to load the page anew; 0 = never.

    Raises:
        ValueError: If the page would be larger than 5 MB.
    """
    images, num_hidden = group_images(run.images)
    ranked, ranked_note = ranking.ranked_prompts(run)
    first_differences, other_differences = evidence.differences_tables(run.evaluation)
    first_metrics, other_metrics = evidence.metric_tables(run.evaluation)
    failed, num_failed = ranking.failed_images(run)
    return _render(
        "report.html.j2",
        title=run.name,
        refresh_seconds=refresh_seconds,
        progress=sections.progress(run),
        run=run,
        started=resources.started(run),
        lead=sections.describe_run(run),
        highlights=sections.highlights(run),
        images=images,
        num_hidden_images=num_hidden,
        recall=sections.recall_table(run),
        evaluations=evaluations_table(run),
        loss_figure=loss_figure(run),
        curves=[_curve_figure(curve) for curve in training_curves(run)],
        bridge=sections.bridge_table(run),
        refine=sections.refine_table(run),
        evidence={
            "notes": run.evaluation.notes,
            "settings": run.evaluation.describe_settings(),
            "differences": first_differences,
            "other_differences": other_differences,
            "tables": first_metrics,
            "others": other_metrics,
        },
        ranked=ranked,
        ranked_note=ranked_note,
        failures=evidence.failures_table(run.evaluation),
        failed=failed,
        num_failed=num_failed,
        nearest=ranking.nearest_training_images(run),
        data=sections.data_table(run),
        settings=settings_tables(run),
        resources=resources.resources_table(run),
        environment=resources.environment_rows(run),
        recipe_text=shown_recipe(run)[:MAX_RECIPE_CHARACTERS],
        is_recipe_cut=len(run.recipe_text) > MAX_RECIPE_CHARACTERS,
    )


def render_comparison(runs: Sequence[Run]) -> str:
    """Return the HTML of a page that compares runs.

    Raises:
        ValueError: If the page would be larger than 5 MB.
    """
    names = comparison.run_names(runs)
    images, num_hidden = comparison.compared_images(runs)
    return _render(
        "comparison.html.j2",
        title=" and ".join(names) if len(names) < 4 else f"{len(names)} runs",
        refresh_seconds=0,
        names=names,
        runs=runs,
        lead=comparison.lead(runs),
        problems=[
            f"{name}: {sentence}"
            for name, run in zip(names, runs, strict=True)
            for sentence in (*run.problems, *run.evaluation.notes)
        ],
        tables=comparison.figures_tables(runs),
        loss_figure=_themed(
            lambda theme: comparison.render_losses(runs, "svg", theme),
            "Mean loss of each epoch, a line a run",
            comparison.loss_notes(runs),
        )
        if any(run.log for run in runs)
        else None,
        differing=comparison.settings_table(runs, differing=True),
        same=comparison.settings_table(runs, differing=False),
        images=images,
        num_hidden_images=num_hidden,
        resources=comparison.resources_table(runs),
    )


def loss_figure(run: Run) -> dict[str, Any] | None:
    """The loss as a figure for both themes; None where no step was logged."""
    if not run.log:
        return None
    alt = "Loss of each batch in blue and mean of each epoch in red, over optimizer steps"
    return _themed(lambda theme: render_loss(run.log, "svg", theme), alt, sections.loss_notes(run))


def _curve_figure(curve: Curve) -> dict[str, Any]:
    return _themed(lambda theme: curve.render("svg", theme), curve.alt, curve.notes) | {"title": curve.title}


def _themed(render: Callable[[Theme], bytes], alt: str, notes: list[str]) -> dict[str, Any]:
    light = render(LIGHT)
    return {"light": _data_uri(light), "dark": _data_uri(recolour(light, DARK)), "alt": alt, "notes": notes}


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES_DIR),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (Markup(_part(kind)) for kind in ("css", "js"))
    page = environment.get_template(template).render(
        style=style, style_hash=_sha256(style), script=script, script_hash=script_hash(), **values
    )
    num_bytes = len(page.encode())
    if num_bytes > MAX_REPORT_BYTES:
        raise UserError(
            f"the page of {values['title']!r} would be {num_bytes:,} bytes, and {MAX_REPORT_BYTES:,} are the "
            "most; report a stage's folder alone, compare fewer runs, or evaluate fewer grafts at once"
        )
    return page


def script_hash() -> str:
    """Sum of the only script that a report runs, as a content security policy names it."""
    return _sha256(_part("js"))


def _part(kind: str) -> str:
    return (TEMPLATES_DIR / f"report.{kind}").read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    """Sum of the only style sheet, or script, that the page allows itself, as its policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
