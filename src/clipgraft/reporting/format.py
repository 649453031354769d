"""How the page writes numbers, names and tables; every number is formatted here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipgraft.reporting.run_data import is_number

NO_NUMBER = "n/a"
NO_NUMBER_NOTE = "n/a: the value was not a finite number, so nothing can be said of it."


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text below a head; a row of one text is a heading within the table."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Highlight:
    """A figure to see first."""

    label: str
    value: str
    note: str


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


def gigabytes(num_bytes: float) -> str:
    """Format bytes as GB of 10^9."""
    return f"{num_bytes / 1e9:.2f} GB"


def short_name(value: Any) -> str:
    """A folder's own name alone: the way to it would tell a stranger the user's name."""
    return Path(str(value)).name if Path(str(value)).is_absolute() else str(value or "")


def sub_dict(values: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under a key; an empty one where there is none, or something else."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def with_number_note(note: str, rows: list[tuple[str, ...]]) -> str:
    """Say below a table what its n/a means, where it has one."""
    return f"{note} {NO_NUMBER_NOTE}".strip() if any(NO_NUMBER in row for row in rows) else note


def short_setting(value: Any) -> Any:
    """A value for machines: of a folder its own name alone, in a list as well."""
    if isinstance(value, list):
        return [short_setting(item) for item in value]
    return short_name(value) if isinstance(value, str) else value
