"""The benchmarks page: it is that of the files, and its figures are theirs."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import results_page


def test_page_is_that_of_the_results() -> None:
    written = results_page.PAGE.read_text(encoding="utf-8")
    assert written == results_page.page(), "run: python benchmarks/results_page.py"


def test_file_without_a_section_is_shown_whole(tmp_path, monkeypatch) -> None:
    environment = {
        "command": "python bench_new.py",
        "started": "2026-11-27T04:01:34",
        "torch": "2.13.0",
        "cpu": "CPU",
        "num_threads": 1,
    }
    results = {
        "share": {"mean": 0.5, "interval": [0.25, 0.8125]},
        "of_three": {"mean": 1.5, "spread": 0.25, "values": [1, 2, 1.5]},
        "peak_bytes": 4_210_225_152,
        "images": 1234,
        "seconds": {"alone": 2.0, "all": 1234.5},
        "equal": True,
        "environment": environment,
    }
    (tmp_path / "new_one.json").write_text(json.dumps(results))
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    assert results_page.page().removeprefix(results_page.INTRODUCTION).splitlines() == [
        "",
        "## new one",
        "",
        "|  |  |",
        "| --- | --- |",
        "| share | 0.5 (0.25 to 0.812) |",
        "| of three | 1.5 ± 0.25 |",
        "| peak bytes | 4.21 GB |",
        "| images | 1,234 |",
        "| seconds: alone | 2 |",
        "| seconds: all | 1,234 |",
        "| equal | yes |",
        "",
        "- `python bench_new.py`: 2026-11-27, torch 2.13.0, CPU, 1 thread; `benchmarks/results/new_one.json`",
    ]


def test_rows_become_a_table_with_its_first_key_in_the_corner(tmp_path, monkeypatch) -> None:
    rows = [{"num_images": 500, "a": {"seconds": 0.5}}, {"num_images": 5000, "a": {"seconds": 4}, "b": 1e-16}]
    (tmp_path / "evaluation.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    section = results_page.Section("", "", (results_page.Part("rows"),))
    monkeypatch.setitem(results_page.SECTIONS, "evaluation", section)
    lines = results_page.page().splitlines()
    assert lines[lines.index("| num images | a: seconds | b |") :][:4] == [
        "| num images | a: seconds | b |",
        "| --- | --- | --- |",
        "| 500 | 0.5 |  |",
        "| 5,000 | 4 | 0 |",
    ]


def test_part_that_is_gone_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "recipes.json").write_text("{}")
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    with pytest.raises(KeyError, match=r"recipes.json has no 'recipes'; correct SECTIONS"):
        results_page.page()
