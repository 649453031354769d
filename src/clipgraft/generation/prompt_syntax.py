"""Prompt syntax: weighted words, as A1111 writes them, and breaks.

`(word)` weighs 1.1 times as much, `[word]` 1 / 1.1, `(word:1.3)` 1.3 times; brackets nest and multiply, and
stay open to the end without a partner. A backslash makes a bracket literal; `BREAK` begins a new chunk.
Source: A1111's wiki, "Features: Attention/emphasis".
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from clipgraft.errors import UserError
from clipgraft.section import PromptSyntax

BRACKET_WEIGHT = 1.1
MAX_WEIGHT = 10.0
"""Far beyond what keeps an image whole (some 1.5)."""
TOKEN = re.compile(
    r"""\\(?P<escaped>[()\[\]\\]?)
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?[\d.]+)\s*\)
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]+ | :)""",
    re.VERBOSE,
)
BREAK = re.compile(r"\s*\bBREAK\b\s*")
REFUSED = {
    r"\bAND\b": "AND (composed prompts)",
    r"<lora:[^>]*>": "<lora:NAME:STRENGTH>, which stands in a prompt alone, with --lora-dir",
    r"<(lyco|hypernet):[^>]*>": "a LyCORIS file or a hypernetwork",
    r"\[[^\[\]]*:[^\[\]]*:?\s*[\d.]+\s*\]|\[[^\[\]]*\|[^\[\]]*\]": "prompt editing ([from:to:when], [a|b])",
}
"""Syntax of A1111 with another meaning than its text."""


class Span(NamedTuple):
    """Part of a prompt with one weight."""

    text: str
    weight: float


class _Piece(NamedTuple):
    text: str
    weight: float
    is_break: bool = False


def parse_prompt(prompt: str, syntax: PromptSyntax) -> list[list[Span]]:
    """Split a prompt at its breaks, and each part into weighted spans.

    Args:
        prompt: As typed.
        syntax: `plain`: one part of one span, the text as it is.

    Raises:
        UserError: If a weight is no number or beyond ±10, or the syntax is A1111's, but unsupported.
    """
    if syntax == "plain":
        return [[Span(prompt, 1.0)]]
    for pattern, name in REFUSED.items():
        if found := re.search(pattern, prompt):
            raise UserError(
                f"prompt: {found[0][:40]!r} is {name}, which the weighted syntax does not know; take it out, "
                "or set prompt_syntax to plain"
            )
    parts: list[list[Span]] = [[]]
    for piece in _pieces(prompt):
        if abs(piece.weight) > MAX_WEIGHT:
            raise UserError(
                f"prompt: {piece.text[:40]!r} weighs {piece.weight:g}; "
                f"{-MAX_WEIGHT:g} to {MAX_WEIGHT:g} are allowed"
            )
        if piece.is_break:
            parts.append([])
        elif parts[-1] and parts[-1][-1].weight == piece.weight:
            parts[-1][-1] = Span(parts[-1][-1].text + piece.text, piece.weight)
        else:
            parts[-1].append(Span(piece.text, piece.weight))
    return parts[:-1] if len(parts) > 1 and not parts[-1] else parts


def _pieces(prompt: str) -> list[_Piece]:
    """Return texts and breaks, weighted by all brackets around them."""
    pieces: list[_Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, weight: float) -> None:
        pieces[start:] = [piece._replace(weight=piece.weight * weight) for piece in pieces[start:]]

    for token in TOKEN.finditer(prompt):
        partner = {")": "(", "]": "["}.get(token["close"] or "")
        if token["open"]:
            opened[token["open"]].append(len(pieces))
        elif token["weight"] and opened["("]:
            multiply(opened["("].pop(), _weight(token["weight"]))
        elif partner and opened[partner]:
            multiply(opened[partner].pop(), BRACKET_WEIGHT if partner == "(" else 1 / BRACKET_WEIGHT)
        elif token["escaped"] is not None:
            pieces.append(_Piece(token["escaped"], 1.0))
        else:
            pieces.extend(_split_at_breaks(token[0]))
    for start in opened["("]:
        multiply(start, BRACKET_WEIGHT)
    for start in opened["["]:
        multiply(start, 1 / BRACKET_WEIGHT)
    return pieces


def _split_at_breaks(text: str) -> Iterator[_Piece]:
    for number, part in enumerate(BREAK.split(text)):
        if number:
            yield _Piece("", 1.0, is_break=True)
        if part:
            yield _Piece(part, 1.0)


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"prompt: weight {text!r} is no number; write e.g. (word:1.3)") from None
