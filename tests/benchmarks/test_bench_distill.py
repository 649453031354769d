"""The table of the distilling benchmark, from scores of two seeds by hand."""

import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from bench_distill import BASE, DISTILLED, FIXED, GRAFT, PLAIN, WORDS, summarize, table_of


def scores(words, plain, likeness):
    return {WORDS: words, PLAIN: plain, FIXED: plain, "ssim": [likeness] * 3}


@pytest.fixture
def seeds():
    first = {
        BASE: scores([0.0, 0.5], [1.0, 1.0], 1.0),
        GRAFT: scores([0.5, 1.0], [0.5, 1.0], 0.6),
        DISTILLED: scores([1.0, 1.0], [1.0, 1.0], 0.9),
    }
    second = first | {DISTILLED: scores([0.5, 1.0], [1.0, 0.5], 0.8)}
    return {0: {"images": first}, 1: {"images": second}, 2: {"words": {}}}


def test_means_are_over_prompts_and_seeds(seeds):
    found = summarize(seeds)
    assert found["rows"][DISTILLED]["num_seeds"] == 2
    assert found["rows"][DISTILLED][WORDS]["mean"] == pytest.approx((1.0 + 1.0 + 0.5 + 1.0) / 4)
    assert found["rows"][DISTILLED]["ssim_median"] == pytest.approx(0.85)
    assert found["rows"][BASE][PLAIN] == {"mean": 1.0, "interval": None}


def test_an_encoder_of_one_seed_has_a_row_of_its_own(seeds):
    seeds[1]["images"]["embeddings"] = scores([0.5, 0.5], [1.0, 1.0], 1.0)
    found = summarize(seeds)
    assert found["rows"]["embeddings"]["num_seeds"] == 1
    assert found["differences"][f"embeddings - {DISTILLED}, {WORDS}"]["mean"] == pytest.approx(-0.25)


def test_differences_are_paired_by_prompt(seeds):
    found = summarize(seeds)["differences"]
    assert found[f"{DISTILLED} - {GRAFT}, {WORDS}"]["mean"] == pytest.approx(0.125)
    assert found[f"{DISTILLED} - {BASE}, {PLAIN}"]["mean"] == pytest.approx(-0.125)
    assert f"{GRAFT} - {BASE}, {FIXED}" in found


def test_the_table_names_each_text_encoder(seeds):
    console = Console(width=140, record=True)
    console.print(table_of(summarize(seeds)))
    text = console.export_text()
    assert "seeds" in text
    assert all(name in text for name in (BASE, GRAFT, DISTILLED))
    assert "0.875" in text
