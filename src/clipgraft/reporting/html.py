"""Self-contained HTML reports with embedded figures and images.

A content security policy allows one script, by its hash; scripts in captions stay text.
"""

import base64
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from clipgraft.errors import UserError
from clipgraft.generation.contact_sheet import TEMPLATES_DIR, fill_template, policy_hash
from clipgraft.reporting import comparison, evidence, provenance, sections
from clipgraft.reporting.curves import RunFigure, run_figures
from clipgraft.reporting.embedded_images import group_images
from clipgraft.reporting.evidence import Ranking
from clipgraft.reporting.plots import darkened
from clipgraft.reporting.run_data import RunData

MAX_REPORT_BYTES = 5_000_000
MAX_RECIPE_CHARACTERS = 100_000
"""Limit for recipe.toml on the page: at most 0.6 MB once escaped."""


def render_report(
    run: RunData,
    ranking: Ranking | None = None,
    figures: Sequence[RunFigure] | None = None,
    *,
    refresh_seconds: int = 0,
) -> str:
    """Return the HTML of a run's page.

    Args:
        ranking: Best and worst prompts; None = compute them.
        figures: The run's figures; None = render them.
        refresh_seconds: A browser reloads the page so often; 0 = never.

    Raises:
        UserError: If the page would be larger than 5 MB.
    """
    shown = {figure.name: _figure(figure) for figure in (run_figures(run) if figures is None else figures)}
    images, num_hidden = group_images(run.images)
    first_differences, other_differences = evidence.differences_tables(run.evaluation)
    first_metrics, other_metrics = evidence.metric_tables(run.evaluation)
    failed, num_failed = evidence.failed_images(run)
    return _render(
        "report.html.j2",
        title=run.name,
        refresh_seconds=refresh_seconds,
        progress=sections.progress(run),
        run=run,
        started=provenance.started(run),
        lead=sections.describe_run(run),
        verdict=evidence.fine_tuning_verdict(run.evaluation),
        highlights=sections.highlights(run),
        images=images,
        num_hidden_images=num_hidden,
        recall=sections.recall_table(run),
        validation=sections.validation_table(run),
        loss_figure=shown.pop("loss", None),
        curves=list(shown.values()),
        bridge=sections.bridge_table(run),
        further=sections.further_tables(run),
        evidence={
            "notes": run.evaluation.notes,
            "settings": run.evaluation.describe_settings(),
            "differences": first_differences,
            "other_differences": other_differences,
            "tables": first_metrics,
            "others": other_metrics,
        },
        ranking=ranking or evidence.rank_prompts(run),
        failures=evidence.failures_table(run.evaluation),
        failed=failed,
        num_failed=num_failed,
        nearest=evidence.nearest_training_images(run),
        data=sections.data_table(run),
        settings=provenance.settings_tables(run),
        resources=provenance.resources_table(run),
        environment=provenance.environment_rows(run),
        recipe_text=provenance.shown_recipe(run)[:MAX_RECIPE_CHARACTERS],
        is_recipe_cut=len(run.recipe_text) > MAX_RECIPE_CHARACTERS,
    )


def render_comparison(runs: Sequence[RunData]) -> str:
    """Return the HTML of a comparison of runs.

    Raises:
        UserError: If the page would be larger than 5 MB.
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
            comparison.render_losses(runs, "svg"),
            "Mean loss of each epoch, one line per run",
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


def _figure(figure: RunFigure) -> dict[str, Any]:
    return _themed(figure.svg, figure.alt, figure.notes) | {"title": figure.title}


def _themed(light: bytes, alt: str, notes: list[str]) -> dict[str, Any]:
    return {"light": _data_uri(light), "dark": _data_uri(darkened(light)), "alt": alt, "notes": notes}


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


def _render(template: str, **values: Any) -> str:
    page = fill_template(
        template, ("report.css",), script=Markup(_script()), script_hash=script_hash(), **values
    )
    num_bytes = len(page.encode())
    if num_bytes > MAX_REPORT_BYTES:
        raise UserError(
            f"the page of {values['title']!r} would be {num_bytes:,} bytes, and at most {MAX_REPORT_BYTES:,} "
            "are allowed; report a stage's folder alone, compare fewer runs, or evaluate fewer grafts at once"
        )
    return page


def script_hash() -> str:
    """Hash of the report's script for a content security policy."""
    return policy_hash(_script())


def _script() -> str:
    return (TEMPLATES_DIR / "report.js").read_text(encoding="utf-8")
