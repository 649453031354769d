"""A model card in Markdown, from the same data as the page."""

import re
from collections.abc import Sequence

from clipgraft.reporting import evidence, sections
from clipgraft.reporting.costs import resources_table, started
from clipgraft.reporting.format import Table, short_name
from clipgraft.reporting.run_data import Run
from clipgraft.reporting.setting_tables import setting, settings_tables

MAX_RECIPE_ROWS = 60


def render_model_card(run: Run) -> str:
    """Return the card: what it is, data, recipe, figures, limits, and how to make it again.

    Args:
        run: What its folder holds; what is missing is left out.
    """
    base = short_name(setting(run, "base.name"))
    how = run.evaluation.describe_settings()
    parts = [
        f"# {_plain(run.name)}",
        _plain(sections.describe_run(run)),
        _section("Data", sections.data_table(run)),
        _settings(run),
        _section("Retrieval", sections.recall_table(run)),
        _section("Bridge", sections.bridge_table(run)),
        _section("Refining", sections.refine_table(run)),
        _section("Differences, pair by pair", evidence.differences_tables(run.evaluation)[0]),
        *(_section(table.title, table) for table in evidence.metric_tables(run.evaluation)[0]),
        *(f"> {_plain(note)}" for note in run.evaluation.notes),
        _plain(how and f"Generated and scored with: {how}"),
        "## Limits\n\nThe figures hold for the data and the base named here, and for prompts like those "
        f"measured. The base{f' ({_plain(base)})' if base else ''} and CLIP have licences of their own.",
        _section("Time, energy and memory", resources_table(run)),
        _again(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _settings(run: Run) -> str:
    rows: list[tuple[str, ...]] = [
        row for title, rows in settings_tables(run).items() for row in ((title,), *rows)
    ]
    return _section("Recipe", Table(("setting", "value"), rows[:MAX_RECIPE_ROWS])) if rows else ""


def _again(run: Run) -> str:
    lines = ["## Make it again"]
    if run.environment.get("command"):
        lines.append(f"    {' '.join(str(run.environment['command']).split())}")
    versions = [
        f"{key} {run.environment[key]}"
        for key in ("clipgraft", "torch", "device")
        if run.environment.get(key)
    ]
    if versions:
        lines.append(_plain(f"With {', '.join(versions)}; {started(run)}.".replace("; .", ".")))
    return "\n\n".join(lines) if len(lines) > 1 else ""


def _section(title: str, table: Table | None) -> str:
    if table is None:
        return ""
    width = len(table.head)
    lines = [_row(table.head), "|" + " --- |" * width]
    lines += [_row((f"**{row[0]}**",) + ("",) * (width - 1) if len(row) == 1 else row) for row in table.rows]
    return f"## {_plain(title)}\n\n" + "\n".join(lines) + (f"\n\n{_plain(table.note)}" if table.note else "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """One line in which nothing is markup: file names and reasons come from strangers."""
    line = " ".join(str(text).split())[:1000]
    return re.sub(r"([\\`|<>\[\]])", r"\\\1", line)
