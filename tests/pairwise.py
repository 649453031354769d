"""Rows of settings that hold each pair of values once at least."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from random import Random
from typing import Any

Pair = frozenset[tuple[str, Any]]


def all_pairs(factors: Mapping[str, Sequence[Any]]) -> list[Pair]:
    """Each two values of different factors."""
    return [
        frozenset({(first, one), (second, other)})
        for first, second in combinations(factors, 2)
        for one in factors[first]
        for other in factors[second]
    ]


def pairs_of(row: Mapping[str, Any]) -> set[Pair]:
    """Each two values of a row."""
    return {frozenset(pair) for pair in combinations(row.items(), 2)}


def covering_rows(
    factors: Mapping[str, Sequence[Any]], is_refused: Callable[[Pair], bool]
) -> list[dict[str, Any]]:
    """Draw rows, the same each time, until each pair that is not refused is in one."""
    random, rows = Random(0), []
    missing = [pair for pair in all_pairs(factors) if not is_refused(pair)]
    while missing:
        row = dict(sorted(missing[0]))
        for name in random.sample(list(factors), len(factors)):
            choices = [
                value
                for value in random.sample(list(factors[name]), len(factors[name]))
                if name not in row and not any(map(is_refused, pairs_of({**row, name: value})))
            ]
            if choices:
                row[name] = max(
                    choices, key=lambda value: len(pairs_of({**row, name: value}).intersection(missing))
                )
        assert row.keys() == factors.keys(), f"no value goes with the rest of {row}"
        rows.append({name: row[name] for name in factors})
        missing = [pair for pair in missing if pair not in pairs_of(row)]
    return rows
