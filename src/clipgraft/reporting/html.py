"""The report: one HTML file that can be sent to a colleague.

Figures and pictures lie inside it. Nothing is fetched and no script runs: the page forbids both to itself, so
that a caption which is a script stays a caption.
"""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from clipgraft.reporting import sections
from clipgraft.reporting.evaluations import evaluations_table
from clipgraft.reporting.pictures import group_pictures
from clipgraft.reporting.plots import DARK, LIGHT, Theme, plot_loss, render_loss
from clipgraft.reporting.run import Run, read_run, write_whole

MAX_REPORT_BYTES = 5_000_000
MAX_RECIPE_CHARACTERS = 100_000
"""Shown of recipe.toml: with markup's `<` written out, at most 0.6 MB."""
TEMPLATES_DIR = Path(__file__).parent / "templates"


def write_report(run_dir: Path) -> Path:
    """Write the report of a run.

    Args:
        run_dir: Folder of a run, finished or not, or of a single stage.

    Returns:
        Path of `report.html`, at most 5 MB.

    Raises:
        FileNotFoundError: If there is no such folder.

    Side effects:
        Writes `loss.png` and `loss.svg` beside the report where steps were logged. Each file is written whole
        or not at all: where the disk is full, an older report stays as it was.
    """
    run = read_run(run_dir)
    page = render_report(run).encode("utf-8")
    assert len(page) <= MAX_REPORT_BYTES, (
        f"report of {len(page):,} bytes; at most {MAX_REPORT_BYTES:,} are allowed"
    )
    if run.log:
        log_dir = run_dir if run.is_single_stage else run_dir / "finetune"
        plot_loss(log_dir / "log.jsonl", run_dir)
    write_whole(run_dir / "report.html", page)
    return run_dir / "report.html"


def render_report(run: Run) -> str:
    """Return the report's HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES_DIR),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((TEMPLATES_DIR / "report.css").read_text(encoding="utf-8"))
    pictures, num_hidden = group_pictures(run.pictures)
    return environment.get_template("report.html.j2").render(
        run=run,
        style=style,
        style_hash=_sha256(style),
        started=sections.started(run),
        lead=sections.describe_run(run),
        highlights=sections.highlights(run),
        pictures=pictures,
        num_hidden_pictures=num_hidden,
        recall=sections.recall_table(run),
        evaluations=evaluations_table(run),
        loss_figures={
            name: _loss_figure(run, theme) for name, theme in (("light", LIGHT), ("dark", DARK)) if run.log
        },
        loss_notes=sections.loss_notes(run),
        bridge=sections.bridge_table(run),
        fidelity=sections.fidelity_table(run),
        data=sections.data_table(run),
        settings=sections.settings_tables(run),
        environment=sections.environment_rows(run),
        recipe_text=run.recipe_text[:MAX_RECIPE_CHARACTERS],
        is_recipe_cut=len(run.recipe_text) > MAX_RECIPE_CHARACTERS,
    )


def _loss_figure(run: Run, theme: Theme) -> str:
    encoded = base64.b64encode(render_loss(run.log, "svg", theme)).decode("ascii")
    return f"data:image/svg+xml;base64,{encoded}"


def _sha256(style: str) -> str:
    """Hash of the only style sheet that the page allows itself, as its policy names it."""
    return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
