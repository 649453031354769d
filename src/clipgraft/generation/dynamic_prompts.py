"""Dynamic prompts: alternatives and wildcard files, drawn by a seed.

`{a|b}` is one of its alternatives, `{3::a|b}` draws a three times as often, `{2$$a|b|c}` is two of them with
a comma between, `{1-2$$ and $$a|b|c}` one or two with " and ". `__name__` is a line of `name.txt`. All nest.
Source: the syntax of the sd-dynamic-prompts extension (adieyal/dynamicprompts, docs/SYNTAX.md).
"""

import difflib
import random
import re
from pathlib import Path

from clipgraft.errors import UserError
from clipgraft.files import read_text
from clipgraft.sampling_params import SamplingParams

ALTERNATIVES = re.compile(r"(?<!\\)\{([^{}]*)(?<!\\)\}")
"""The innermost ones; a brace without a partner is text, as is one behind a backslash."""
COUNT = re.compile(r"(?P<least>\d{1,4})?(?P<dash>-)?(?P<most>\d{1,4})?\$\$(?:(?P<between>[^$|]*)\$\$)?")
WEIGHT = re.compile(r"^\s*(\d{1,6}\.?\d{0,6})::")
WILDCARD = re.compile(r"__([^\W_][^\n{}|]{0,200}?)__")
VARIABLE = re.compile(r"\$\{[^{}]{0,40}")
MAX_DEPTH = 100
"""Of braces within braces, and wildcards that lead to wildcards (a guess)."""
MAX_CHARACTERS = 32_000
"""Of a resolved prompt, unless its template is longer; some 100 chunks of 75 tokens (a guess)."""
MAX_WILDCARD_BYTES = 16 * 2**20


class DynamicPrompts:
    """Templates of prompts, resolved with wildcard files.

    Args:
        wildcards: Folder of wildcard files; empty: `__name__` is text.

    Raises:
        UserError: If it is no folder.
    """

    def __init__(self, wildcards: str):
        self.folder = Path(wildcards) if wildcards else None
        if self.folder and not self.folder.is_dir():
            raise UserError(f"wildcards {wildcards} is not a folder; name one with .txt files")
        self._lines: dict[str, list[str]] = {}

    def resolved(self, template: str, params: SamplingParams) -> tuple[str, SamplingParams]:
        """Return a prompt and its parameters, drawn by seed; see `resolve`."""
        if not isinstance(template, str):
            return template, params  # refused where requests are made
        negative = self.resolve(params.negative_prompt, f"{params.seed} negative")
        changes = {"negative_prompt": negative, "dynamic_prompts": False, "wildcards": ""}
        return self.resolve(template, str(params.seed)), SamplingParams.of(params, **changes)

    def resolve(self, template: str, seed: str) -> str:
        """Return the prompt of a template, the same for a seed.

        Raises:
            UserError: If a wildcard is missing, empty or without an end, or the prompt grows too long.
        """
        if found := VARIABLE.search(template):
            raise UserError(f"prompt: {found[0]!r} begins a variable, which is not known here; take it out")
        draw, text = random.Random(seed), template
        for _ in range(MAX_DEPTH):
            resolved = ALTERNATIVES.sub(lambda found: _choose(found[1], draw), text)
            if resolved == text and self.folder is not None:
                resolved = WILDCARD.sub(lambda found: draw.choice(self._lines_of(found[1])), text)
            if len(resolved) > max(MAX_CHARACTERS, len(template)):
                raise UserError(f"prompt {template[:60]!r} grows beyond {MAX_CHARACTERS:,} characters")
            if resolved == text:
                return re.sub(r"\\([{}])", r"\1", text)
            text = resolved
        raise UserError(
            f"prompt {template[:60]!r} nests deeper than {MAX_DEPTH}, or a wildcard leads back to itself"
        )

    def _lines_of(self, name: str) -> list[str]:
        if name not in self._lines:
            self._lines[name] = self._read(name)
        return self._lines[name]

    def _read(self, name: str) -> list[str]:
        path = self._path(name)
        text = read_text(path, error=UserError, max_bytes=MAX_WILDCARD_BYTES, by_people=True)
        lines = [line.strip() for line in text.split("\n")]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise UserError(f"wildcard file {path} has no line to draw; write one or take it out")
        return found

    def _path(self, name: str) -> Path:
        """Find a wildcard's file by its path, or the path's end."""
        assert self.folder is not None
        path = self.folder / f"{name}.txt"
        if ".." not in path.parts and path.is_file():
            return path
        paths = sorted(
            each for each in self.folder.rglob("*") if each.suffix.lower() == ".txt" and each.is_file()
        )
        files = {each.relative_to(self.folder).with_suffix("").as_posix(): each for each in paths}
        for known, each in files.items():
            if f"/{known}".casefold().endswith(f"/{name}".casefold()):
                return each
        near = difflib.get_close_matches(name, files, n=3) or list(files)[:10]
        hint = f"; there are {', '.join(near)}" if near else ", nor any other .txt file"
        raise UserError(f"wildcard __{name}__ has no file {name}.txt in {self.folder}{hint}")


def _choose(content: str, draw: random.Random) -> str:
    """Draw one or several of the alternatives between braces."""
    least, most, between = 1, 1, ", "
    if count := COUNT.match(content):
        content = content[count.end() :]
        least = int(count["least"] or 1)
        most = int(count["most"] or (content.count("|") + 1 if count["dash"] else least))
        between = count["between"] if count["between"] is not None else between
    options = content.split("|")
    chosen = []
    for _ in range(min(draw.randint(min(least, most), max(least, most)), len(options))):
        weights = [float(found[1]) if (found := WEIGHT.match(option)) else 1.0 for option in options]
        [index] = draw.choices(range(len(options)), weights if sum(weights) else None)
        chosen.append(WEIGHT.sub("", options.pop(index), count=1))
    return between.join(chosen)
