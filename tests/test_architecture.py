"""The house rules that a machine can hold."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "clipgraft"
MODULES = sorted(SOURCE.rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("test_*.py"))

LAYERS = (
    {"__main__"},
    {"cli"},
    {"studio"},
    {"whole_run", "pretraining"},
    {"download"},
    {"exporting"},
    {"distilling"},
    {"finetuning", "bridging"},
    {"reporting"},
    {"evaluation"},
    {"generation"},
    {"training"},
    {"models"},
    {"data"},
    {"flatland"},
    {"runs", "cached_arrays"},
    {"device"},
    {"measured"},
    {"cache", "console", "memory"},
    {"config"},
    {"pretrain_settings"},
    {"settings"},
    {"sampling_params"},
    {"section"},
    {"scheduler_recipes"},
    {"files"},
    {"errors"},
)
"""From top to bottom; a module imports from layers below its own, or from its own package."""


def layer_of(name: str) -> int:
    return next(level for level, members in enumerate(LAYERS) if name in members)


def imports_of(path: Path) -> set[str]:
    """Names of clipgraft's own top-level modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names |= {module.split(".")[1] for module in modules if module.startswith("clipgraft.")}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down_only(path):
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for imported in imports_of(path) - {own}:
        assert layer_of(imported) > layer_of(own), f"{path.name} ({own}) imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} has more than 60 lines"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_docstrings_begin_with_twelve_words_at_most(path):
    """What stands in backticks or brackets does not count."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            first = (ast.get_docstring(node) or "").split("\n")[0]
            words = re.sub(r"`[^`]*`|\([^()]*\)|\[[^]]*\]", "", first).split()
            assert len(words) <= 12, first


def test_no_drawer_has_a_place():
    names = {part.removesuffix(".py") for path in MODULES for part in path.relative_to(SOURCE).parts}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_no_two_files_have_one_name():
    """A name is a module's only one in search results; pytest imports test files by name alone."""
    modules = [path.name for path in MODULES if path.name != "__init__.py"]
    for names in (modules, [path.name for path in TESTS]):
        assert [name for name, count in Counter(names).items() if count > 1] == []


def test_tests_stay_small_and_shortly_named():
    for path in TESTS:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, path
        assert not re.findall(r"^ *def (test_\w{55,})", text, re.MULTILINE), path


def test_nothing_is_pickled():
    for path in MODULES:
        assert not re.search(
            r"\bimport pickle\b|torch\.load\(|trust_remote_code=True", path.read_text(encoding="utf-8")
        ), path


def test_design_draws_the_files_that_are_on_disk():
    text = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8")
    tree = text.split("```tree\n")[1].split("```")[0]
    drawn, folders = set(), []
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        folders = folders[: indent // 2]
        if name.endswith("/"):
            folders.append(name)
        else:
            drawn.add("".join(folders) + name)
    on_disk = {str(path.relative_to(SOURCE)) for path in MODULES if path.name != "__init__.py"}
    assert {name for name in drawn if name.endswith(".py")} == on_disk


@pytest.mark.parametrize(
    "module",
    ["config", "settings", "cli", "errors", "reporting.html", "data.dataset", "data.formats"],
)
def test_module_imports_without_torch(module):
    code = f"import sys, clipgraft.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def packages_of(path: Path) -> set[str]:
    """Top-level names of all other packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names |= {str(module).partition(".")[0] for module in modules}
    return names - sys.stdlib_module_names - {"clipgraft"}


def plain(name: str) -> str:
    return re.split(r"[<>=\[; ]", name)[0].lower().replace("_", "-")


def test_every_imported_package_is_declared_and_pinned():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = {plain(name) for name in project["dependencies"]}
    declared = needed | {plain(name) for extra in extras.values() for name in extra}
    pinned = {plain(line) for line in (REPOSITORY / "constraints.txt").read_text().splitlines()}
    distributions = packages_distributions()
    for path in MODULES:
        for package in packages_of(path):
            names = {plain(name) for name in distributions.get(package, [package])}
            assert names & declared, f"{path.name} imports {package}, which pyproject.toml does not declare"
            assert names & pinned, f"{package} is not pinned in constraints.txt"
            only_app = path.is_relative_to(SOURCE / "studio") or package in (
                "openvino",
                "peft",
                "scipy",
                "py3langid",
                "pillow_heif",
                "pyarrow",
                "fsspec",
                "braceexpand",
            )
            assert only_app or names & needed, f"{path.name} needs {package}, declared for an extra alone"


def test_public_names_are_where_init_says():
    import clipgraft

    for name in clipgraft.__all__:
        assert getattr(clipgraft, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = clipgraft.nothing


def test_import_of_clipgraft_is_light():
    code = "import sys, clipgraft; sys.exit(bool({'torch', 'numpy', 'pydantic'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
