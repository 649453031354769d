"""Tables and sentences of the page, and what they say where something is missing."""

import json

import pytest
from example_run import (
    DATA,
    log_rows,
    write_evaluation,
    write_json,
    write_log,
)
from read_page import read_page

from clipgraft.reporting.html import render_report
from clipgraft.reporting.run_data import read_run


def test_figure_that_is_not_a_number_is_named_so(run_dir):
    path = run_dir / "finetune" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["after"]["text_to_image_recall@1"] = None
    metrics["before"]["image_to_text_recall@5"] = float("nan")
    write_json(path, metrics)
    text = read_page(run_dir).text
    assert "recall@1 11.2 % n/a n/a" in text
    assert "recall@5 n/a 60.2 % n/a" in text
    assert "n/a: the value was not a finite number" in text


def test_one_epoch_and_steps_without_a_loss_are_said(run_dir):
    rows = log_rows(1, 20)
    rows[3]["loss"] = None
    write_log(run_dir / "finetune" / "log.jsonl", rows)
    text = read_page(run_dir).text
    assert "1 of 20 steps has no finite loss" in text
    assert "With a single epoch, the red mean is one point." in text


def test_data_without_test_images_has_no_recall(run_dir):
    path = run_dir / "finetune" / "metrics.json"
    write_json(path, json.loads(path.read_text()) | {"before": None, "after": None})
    assert "Recall was not measured: the data has no test images." in read_page(run_dir).text


def test_what_a_paired_metric_would_have_said_is_told_apart(run_dir):
    path = run_dir / "finetune" / "metrics.json"
    metrics = json.loads(path.read_text())
    paired = {"paired_text_to_image_recall@1": 0.042, "paired_image_to_text_recall@1": 0.036}
    write_json(path, metrics | {"after": metrics["after"] | paired})
    text = read_page(run_dir).text
    assert "would give 4.2 % and 3.6 % for recall@1 after" in text
    assert "it cannot exceed 20 %" in text


def test_evaluations_on_the_way_are_laid_out_by_epoch(run_dir):
    rows = [
        {"step": 20 * k, "epoch": k, "num_images": 40, "val_loss": 3.0 - k / 10, "drift_words": k / 50}
        for k in range(25)
    ]
    text = "\n".join(map(json.dumps, rows))
    (run_dir / "finetune" / "evaluations.jsonl").write_text(text)
    page = read_page(run_dir).text
    assert "On 40 validation images, before the first step and after epochs." in page
    assert "drift: words" in page
    assert "0.480" in page
    assert "image R@1" not in page


def test_damaged_evaluations_are_named(run_dir):
    (run_dir / "finetune" / "evaluations.jsonl").write_text('{"step": 0}\n[1]\n')
    assert "evaluations.jsonl cannot be read" in read_page(run_dir).text


def test_short_form_of_data_counts_is_understood(run_dir):
    (run_dir / "data.json").unlink()
    write_json(run_dir / "finetune" / "data.json", {"num_train_images": 6000, "num_test_images": 1000})
    assert "train 6,000 - test 1,000 - total 7,000" in read_page(run_dir).text


def test_bridge_without_the_mlp_has_two_columns(run_dir):
    path = run_dir / "bridge" / "metrics.json"
    write_json(path, {key: value for key, value in json.loads(path.read_text()).items() if key != "residual"})
    text = read_page(run_dir).text
    assert "tokens error, linear cosine, linear" in text
    assert "0.412 linear map; 0 = perfect copy" in text


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {"duplicates": [["a", "b"], ["c", "d"]], "leakage": [{"a": "train", "b": "test"}]},
            "Duplicate photographs: 2; of these in more than one split: 1.",
        ),
        (
            {"duplicates": [], "leakage": [], "num_images_read": 0, "unreadable": None},
            "Duplicate photographs: 0; of these in more than one split: 0.",
        ),
        ({"duplicates": None, "leakage": None}, "Duplicate photographs were not checked for."),
        (
            {"duplicates": [], "leakage": [], "num_images_read": 0, "unreadable": {}},
            "Duplicate photographs were not checked for.",
        ),
        ({"duplicates": "x", "leakage": 3}, "Duplicate photographs were not checked for."),
    ],
    ids=["some", "none", "not looked for", "not looked for by an earlier version", "damaged"],
)
def test_copies_of_photographs_are_told_or_that_nobody_looked(run_dir, found, said):
    write_json(run_dir / "data.json", DATA | found)
    assert said in " ".join(render_report(read_run(run_dir)).split())


@pytest.mark.parametrize("used", [320, 6000])
def test_report_says_if_it_trained_on_a_part_of_the_images(run_dir, used):
    path = run_dir / "finetune" / "metrics.json"
    write_json(path, json.loads(path.read_text()) | {"num_train_images": used})
    said = "CLIP was fine-tuned on 320 of the 6,000 training images." in read_page(run_dir).text
    assert said == (used == 320)


def test_a_difference_without_an_interval_is_not_called_a_gain(run_dir):
    colours = [attributes.get("class") for attributes in read_page(run_dir).all("td")]
    assert not {"up", "down"} & {*colours}
    write_evaluation(run_dir / "evaluate")
    page = read_page(run_dir)
    assert "up" in [attributes.get("class") for attributes in page.all("td")]
    assert {"class": "interval"} in page.all("span")
