"""What a release says of itself, in three files."""

import re
from pathlib import Path

import clipgraft

ROOT = Path(__file__).parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
HEADINGS = re.findall(r"^## (.*)", CHANGELOG, re.MULTILINE)


def number(version):
    return tuple(map(int, version.split(".")))


def test_citation_names_this_version_and_licence():
    text = (ROOT / "CITATION.cff").read_text()
    named = dict(re.findall(r"^([a-z-]+): (\S.*)$", text, re.MULTILINE))
    assert named["version"] == clipgraft.__version__
    assert f'license = "{named["license"]}"' in (ROOT / "pyproject.toml").read_text()
    assert {"cff-version", "message", "title", "type"} <= named.keys()
    assert "authors:\n  - name: " in text


def test_changelog_has_one_part_per_release_newest_first():
    assert HEADINGS[0] == "Unreleased"
    released = [re.fullmatch(r"(\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d", heading)[1] for heading in HEADINGS[1:]]
    assert released == sorted(set(released), key=number, reverse=True)
    assert all(number(version) <= number(clipgraft.__version__) for version in released)
