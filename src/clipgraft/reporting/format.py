"""Formats of numbers, names and tables on the page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipgraft.reporting.run_data import is_number

NO_NUMBER = "n/a"
NO_NUMBER_NOTE = "n/a: the value was not a finite number."


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text below a head (one-cell rows are headings)."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Highlight:
    """A figure shown at the top."""

    label: str
    value: str
    note: str


def percent(value: Any) -> str:
    """Format a fraction as a percentage."""
    return f"{100 * value:.1f} %" if is_number(value) else NO_NUMBER


def difference(before: Any, after: Any) -> str:
    """Format the difference of two fractions in signed percentage points."""
    return f"{100 * (after - before):+.1f}" if is_number(before) and is_number(after) else NO_NUMBER


def decimal(value: Any) -> str:
    """Format a number with three decimals."""
    return f"{value:.3f}" if is_number(value) else NO_NUMBER


def count(value: Any) -> str:
    """Format a count; a dash if unknown."""
    return f"{value:,}" if is_number(value) else "-"


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def gigabytes(num_bytes: float) -> str:
    """Format bytes as GB of 10^9."""
    return f"{num_bytes / 1e9:.2f} GB"


def short_name(value: Any) -> str:
    """Cut absolute paths, as they may name the user."""
    return Path(str(value)).name if Path(str(value)).is_absolute() else str(value or "")


def sub_dict(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return `values[key]` if it is a dict, else an empty one."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def with_number_note(note: str, rows: list[tuple[str, ...]]) -> str:
    """Explain n/a in a table's note if it occurs."""
    return f"{note} {NO_NUMBER_NOTE}".strip() if any(NO_NUMBER in row for row in rows) else note


def short_setting(value: Any) -> Any:
    """Cut absolute paths to their last part, at any depth of settings."""
    if isinstance(value, dict):
        return {key: short_setting(item) for key, item in value.items()}
    if isinstance(value, list):
        return [short_setting(item) for item in value]
    return short_name(value) if isinstance(value, str) else value
