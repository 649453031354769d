"""The Dockerfile, read line by line: what it copies is there, and what it starts exists."""

import json
import re
import shlex
import tomllib
from pathlib import Path, PurePosixPath

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(text):
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


ALL = instructions((ROOT / "Dockerfile").read_text())
LAST_STAGE = ALL[max(place for place, (name, _) in enumerate(ALL) if name == "FROM") :]


def values(name, stage=ALL):
    return [value for instruction, value in stage if instruction == name]


def arguments():
    return dict(value.split("=", 1) for value in values("ARG"))


def copied():
    """Paths of the repository that are copied."""
    for value in values("COPY"):
        if not value.startswith("--from"):
            yield from value.split()[:-1]


def test_every_copied_path_exists_and_is_sent_to_the_builder():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied()) == allowed
    assert all((ROOT / path).exists() for path in copied())


def test_everything_that_the_package_is_built_from_is_copied():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    needed = {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "constraints.txt"}
    needed |= {PurePosixPath(path).parts[0] for path in build["targets"]["wheel"]["packages"]}
    assert needed == set(copied())


def test_container_runs_a_command_of_ours_as_no_root():
    [user], [entrypoint], [command] = (values(name, LAST_STAGE) for name in ("USER", "ENTRYPOINT", "CMD"))
    assert user == "clipgraft"
    assert any(f"useradd --create-home --uid 1000 {user} " in run for run in values("RUN", LAST_STAGE))
    assert json.loads(entrypoint)[0] in PROJECT["scripts"]
    assert json.loads(command) == ["--help"]
    order = [name for name, _ in LAST_STAGE]
    assert order.index("USER") > max(place for place, name in enumerate(order) if name in ("RUN", "COPY"))


def test_models_caches_and_work_are_volumes_of_that_user():
    volumes = json.loads(values("VOLUME", LAST_STAGE)[0])
    environment = dict(pair.split("=", 1) for pair in shlex.split(" ".join(values("ENV", LAST_STAGE))))
    assert environment["HF_HOME"] in volumes
    assert environment["XDG_CACHE_HOME"] in volumes
    assert values("WORKDIR", LAST_STAGE)[0] in volumes
    assert f"chown clipgraft:clipgraft {' '.join(volumes)}" in " ".join(values("RUN", LAST_STAGE))


def test_extras_and_python_are_those_of_the_package():
    found = arguments()
    offered = set(PROJECT["optional-dependencies"]) - {"dev", "docs"}
    assert set(found["EXTRAS"].split(",")) == offered
    assert found["PYTHON"] in SpecifierSet(PROJECT["requires-python"])
    assert found["TORCH_INDEX"] == '""'


def test_everything_is_installed_in_the_tested_versions():
    installs = [run for run in values("RUN") if "pip install" in run]
    assert len(installs) == 2
    assert all("--constraint /build/constraints.txt" in run for run in installs)


@pytest.mark.parametrize("name", ["TORCH_INDEX", "EXTRAS", "PYTHON"])
def test_build_arguments_are_documented_with_their_defaults(name):
    documented = re.search(rf"\| `{name}` \| `([^`]*)`", (ROOT / "docs" / "docker.md").read_text())
    assert documented[1] == arguments()[name]
