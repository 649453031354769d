"""The documentation: links, commands and Python code lead to things that are there."""

import ast
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest
from typer.main import get_command

import clipgraft
from clipgraft.cli.app import app
from clipgraft.config import Recipe, recipe_with
from clipgraft.section import Section

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
PAST = {"CHANGELOG.md", "benchmarks.md"}
"""Texts that name commands of their time."""
FENCED = re.compile(r"^ *```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?P<code>(?: {4}[^\n]*\n|\n(?= {4}))+)")
INLINE = re.compile(r"`(?P<code>[^`\n]+)`")
LINK = re.compile(r"\]\((?P<target>[^()\s]+)\)")
HEADING = re.compile(r"^#+ (?P<title>.+)$", re.MULTILINE)
COMMAND_LINE = get_command(app)
SHELL = {"&", "&&", "|", "||", "<", ">", ">>", ";"}
"""Where a command's own arguments end."""


class Block(NamedTuple):
    """Code of a page."""

    path: Path
    language: str
    code: str


def blocks() -> Iterator[Block]:
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        yield from (Block(path, found["language"], found["code"]) for found in FENCED.finditer(text))
        for found in INDENTED.finditer(FENCED.sub("", text)):
            yield Block(path, "", re.sub("^ {4}", "", found["code"], flags=re.MULTILINE))


def prose(text: str) -> str:
    return INLINE.sub("", INDENTED.sub("", FENCED.sub("", text)))


def anchors(text: str) -> set[str]:
    """Anchors of headings, as the site's generator and code hosts make them."""
    titles = (found["title"].replace("`", "") for found in HEADING.finditer(FENCED.sub("", text)))
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def links(path: Path) -> list[str]:
    targets = (found["target"] for found in LINK.finditer(prose(path.read_text(encoding="utf-8"))))
    return [unquote(target) for target in targets if not target.startswith(("https://", "http://"))]


def broken(path: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    place = (path.parent / name).resolve() if name else path
    on_site = DOCS not in path.parents or place.is_relative_to(DOCS)
    if not place.exists() or not on_site:
        return True
    return bool(anchor) and anchor not in anchors(place.read_text(encoding="utf-8"))


def test_every_link_and_anchor_is_there() -> None:
    found = [(path, target) for path in TEXTS for target in links(path)]
    assert len(found) > 60
    assert [f"{path.name}: {target}" for path, target in found if broken(path, target)] == []


def test_navigation_lists_every_page_once() -> None:
    nav = tomllib.loads((REPOSITORY / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]

    def listed(entries: list) -> Iterator[str]:
        for entry in entries:
            target = next(iter(entry.values())) if isinstance(entry, dict) else entry
            yield from listed(target) if isinstance(target, list) else [target]

    assert sorted(listed(nav)) == sorted(path.relative_to(DOCS).as_posix() for path in PAGES)


def test_code_in_tables_shows_no_backslash_before_a_bar() -> None:
    # Code hosts need `\|` there and the site shows the backslash; <code>&#124;</code> is a bar on both.
    rows = [
        line for path in TEXTS for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "|"
    ]
    assert len(rows) > 300
    assert [row for row in rows if re.search(r"`[^`]*\\\|[^`]*`", row)] == []


def commands(code: str) -> Iterator[list[str]]:
    """Arguments of each `clipgraft` or `-m clipgraft` in code."""
    for line in re.sub(r"\\\n\s*", "", code).splitlines():
        if "clipgraft " not in line:
            continue
        try:
            words = shlex.split(re.sub(r"(^|\s)#\s.*", "", line.removeprefix("$ ")))
        except ValueError:  # a quote in a line of output
            continue
        for place, word in enumerate(words):
            begins = all(re.fullmatch(r"\w+=\S*", before) for before in words[:place])
            if word == "clipgraft" and (begins or words[place - 1] == "-m"):
                end = next((at for at, each in enumerate(words) if at > place and each in SHELL), len(words))
                yield words[place + 1 : end]


def documented_commands() -> list[tuple[str, list[str]]]:
    """Commands in blocks of code, whole ones."""
    return [(block.path.name, each) for block in blocks() for each in commands(block.code)]


def mentioned_commands() -> list[tuple[str, list[str]]]:
    """Commands within sentences, which may lack arguments."""
    found = []
    for path in TEXTS:
        spans = INLINE.finditer(FENCED.sub("", path.read_text(encoding="utf-8")))
        code = [span["code"] for span in spans if span["code"].startswith("clipgraft ")]
        if path.name not in PAST:
            found += [(path.name, each) for text in code for each in commands(text)]
    return found


def parse(arguments: list[str]) -> dict:
    """Read arguments as the command line does, and run nothing."""
    command, name, context = COMMAND_LINE, "clipgraft", None
    while True:
        context = command.make_context(name, arguments, parent=context)
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        if not hasattr(command, "resolve_command"):
            return context.params
        name, command, arguments = command.resolve_command(context, rest)


def wrong_commands(found: list[tuple[str, list[str]]], allowed: frozenset[str] = frozenset()) -> list[str]:
    wrong = []
    for name, arguments in found:
        try:
            recipe_with(None, parse(arguments).get("set_", ()))
        except Exception as error:
            if type(error).__name__ in allowed:
                continue
            wrong.append(f"{name}: clipgraft {shlex.join(arguments)}: {error}")
    return wrong


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with the file that a setting of the documentation is read from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("hound\n", encoding="utf-8")
    return tmp_path


def test_every_documented_command_parses(place) -> None:
    found = documented_commands()
    assert len(found) > 100
    assert wrong_commands(found) == []


def test_commands_in_sentences_and_their_options_exist(place) -> None:
    found = mentioned_commands()
    assert len(found) > 30
    assert wrong_commands(found, frozenset({"MissingParameter", "BadOptionUsage"})) == []


def test_wrong_command_is_found(place) -> None:
    lines = [
        "clipgraft generate a --ou b",
        "clipgraft finetune --out a --set finetune.learning_rat=1",
        "clipgraft ladder",
    ]
    assert len(wrong_commands([("page", each) for line in lines for each in commands(line)])) == 3


def python_code() -> list[Block]:
    return [block for block in blocks() if block.language == "python"]


def test_python_is_marked_as_such() -> None:
    looks = re.compile(r"^(import|from) [\w.]+", re.MULTILINE)
    unmarked = [block for block in blocks() if not block.language and looks.search(block.code)]
    assert [f"{block.path.name}: {block.code}" for block in unmarked] == []


@pytest.mark.parametrize("block", python_code(), ids=lambda block: block.path.stem)
def test_python_code_compiles_and_its_names_exist(block) -> None:
    tree = ast.parse(block.code)
    ours = {"clipgraft"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                importlib.import_module(each.name)
                ours |= {each.asname} if each.name == "clipgraft" and each.asname else set()
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert [each.name for each in node.names if not hasattr(module, each.name)] == []
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours
    }
    assert used <= set(clipgraft.__all__)


def api_targets() -> set[str]:
    texts = (path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    return {target for text in texts for target in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}


def test_api_pages_hold_every_public_name_and_setting() -> None:
    public = {f"clipgraft.{room}.{name}" for name, room in clipgraft._ROOMS.items()}
    sections = {field.annotation for name, field in Recipe.model_fields.items() if name != "pretrain"}
    bases = {base for each in sections if isinstance(each, type) for base in each.__mro__}
    settings = [each for each in bases if issubclass(each, Section) and each is not Section]
    shown = api_targets()
    assert public - shown == set()
    assert {f"{each.__module__}.{each.__name__}" for each in settings} - shown == set()


@pytest.mark.parametrize("target", sorted(api_targets()))
def test_name_of_an_api_page_exists(target: str) -> None:
    module, _, name = target.rpartition(".")
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", clipgraft.__all__)
def test_public_functions_describe_every_argument(name: str) -> None:
    function = getattr(clipgraft, name)
    if not inspect.isfunction(function):
        return
    described = set(re.findall(r"^ +\**(\w+): ", str(inspect.getdoc(function)), re.MULTILINE))
    if "Arguments not listed are those of `fit_bridge`" in str(function.__doc__):
        described |= inspect.signature(clipgraft.fit_bridge).parameters.keys()
    assert inspect.signature(function).parameters.keys() - described == set()
