"""What the page says of evaluation.json: figures between floors and ceilings, and nothing picked by hand."""

import json
from dataclasses import replace

import pytest
from example_run import EVALUATION_VERSION_1, picture_row, write_evaluation, write_json

from clipgraft.evaluation.results import Difference, Evaluation, Metric
from clipgraft.reporting.evidence import (
    differences_tables,
    failed_images,
    failures_table,
    fine_tuning_verdict,
    metric_tables,
    nearest_training_images,
    rank_prompts,
    verdict,
)
from clipgraft.reporting.html import render_report
from clipgraft.reporting.run_data import read_run


@pytest.fixture
def judged(run_dir):
    write_evaluation(run_dir / "evaluate")
    return read_run(run_dir)


def test_tables_show_intervals_floors_and_ceilings(judged):
    table = metric_tables(judged.evaluation)[0][0]
    assert table.title == "Prompt fidelity"
    assert table.rows[0] == ("the base with its own text encoder (ceiling)", "90.0 % [80.0 to 100.0]")
    assert table.rows[2] == ("graft of CLIP after fine-tuning", "80.0 % [70.0 to 90.0]")
    assert table.rows[4] == ("the same seeds without a prompt (floor)", "30.0 % [20.0 to 40.0]")


def test_fidelity_is_shown_by_parts_of_prompt_sets(run_dir):
    evaluation = write_evaluation(run_dir / "evaluate")
    row = next(row for row in evaluation["figures"] if row["metric"] == "prompt_fidelity")
    parts = [f"plain/{name}" for name in ("held_out_combinations", "seen_combinations", "no_subject")]
    names = ["held_out", "plain", *parts, "prompts_file", "test"]
    sets = [
        {"name": name, "title": name, "part_of": "plain" if name in parts else None, "num_prompts": 4}
        for name in names
    ]
    figures = [row | {"prompt_set": name, "value": 0.5} for name in names]
    figures += [each | {"metric": "clip_score_raw"} for each in figures]
    write_evaluation(run_dir / "evaluate", prompt_sets=sets, figures=figures)
    first, others = metric_tables(read_run(run_dir).evaluation)
    heads = {table.title: table.head[1:] for table in first}
    assert set(heads["Prompt fidelity"]) == set(names)
    assert heads["CLIPScore, raw cosine"] == ("held_out", "plain", "prompts_file", "test")
    assert {table.title: table.head[1:] for table in others}["CLIPScore, raw cosine"] == tuple(parts)


def test_parts_of_composed_prompts_have_their_own_table(run_dir):
    evaluation = write_evaluation(run_dir / "evaluate")
    row = next(row for row in evaluation["figures"] if row["metric"] == "prompt_fidelity")
    parts = [f"composed/{name}" for name in ("relation", "number")]
    sets = [
        {"name": name, "title": name, "part_of": "composed" if name in parts else None, "num_prompts": 4}
        for name in ("plain", "composed", *parts)
    ]
    figures = [row | {"prompt_set": each["name"], "value": 0.5} for each in sets]
    write_evaluation(run_dir / "evaluate", prompt_sets=sets, figures=figures)
    first, _ = metric_tables(read_run(run_dir).evaluation)
    assert [(table.title, table.head[1:]) for table in first] == [
        ("Prompt fidelity", ("plain", "composed")),
        ("Prompt fidelity: composed", tuple(parts)),
    ]


def test_grafts_of_any_name_are_shown_among_ranked_prompts(run_dir):
    evaluation = json.loads(json.dumps(write_evaluation(run_dir / "evaluate")).replace('"after"', '"mine-2"'))
    write_json(run_dir / "evaluate" / "evaluation.json", evaluation)
    ranked, _ = rank_prompts(read_run(run_dir))
    shown = [cell.variant for cell in ranked["Best"][0].cells]
    assert shown == ["teacher", "before", "mine-2"]


def test_figure_that_was_not_taken_says_why(judged):
    table = next(table for table in metric_tables(judged.evaluation)[1] if table.title == "CMMD")
    assert table.rows[0][1] == "n/a"
    assert "2 images; at least 100 are needed (--force takes fewer)." in table.note


def test_differences_count_prompts_that_got_better(judged):
    first, others = differences_tables(judged.evaluation)
    assert first.rows[0] == ("Prompt fidelity, percentage points",)
    assert first.rows[-1] == (
        "retrieval over the test split, before → after",
        "+18.4",
        "+16.0 to +21.0",
        "70, 4 of 300",
        "better",
    )
    assert others is None


def test_simple_and_composed_prompts_are_below_the_whole_set(run_dir):
    evaluation = write_evaluation(run_dir / "evaluate")
    parents = {"fixed": None, "plain": "fixed", "composed": "fixed", "plain/no_subject": "plain"}
    sets = [{"name": name, "title": name, "part_of": parent} for name, parent in parents.items()]
    row = next(row for row in evaluation["differences"] if row["metric"] == "prompt_fidelity")
    rows = [row | {"prompt_set": name, "baseline": "before", "variant": "after"} for name in parents]
    write_evaluation(run_dir / "evaluate", prompt_sets=sets, differences=rows)
    run = read_run(run_dir)
    first, _ = differences_tables(run.evaluation)
    names = [cells[0].split(",")[0] for cells in first.rows]
    assert names == ["Prompt fidelity", "fixed", "plain", "composed"]
    [sentence] = fine_tuning_verdict(run.evaluation)
    assert sentence.endswith(" on fixed.")
    assert " on plain" not in sentence


def test_lesser_differences_come_after_the_main_ones(run_dir):
    row = {
        "metric": "prompt_fidelity",
        "prompt_set": "plain",
        "baseline": "before",
        "variant": "after",
        "value": 0.1,
    }
    rows = [
        row | {"prompt_set": "plain/no_subject"},
        row | {"baseline": "random_bridge"},
        row | {"metric": "same_seed_psnr"},
        row | {"metric": "clip_score_raw"},
        row,
    ]
    write_evaluation(run_dir / "evaluate", differences=rows)
    first, others = differences_tables(read_run(run_dir).evaluation)
    assert [cells[0] for cells in first.rows if len(cells) == 1] == [
        "Prompt fidelity, percentage points",
        "CLIPScore, raw cosine",
    ]
    assert sum(len(cells) > 1 for cells in others.rows) == 3


@pytest.mark.parametrize(
    ("interval", "higher_is_better", "said"),
    [
        ([0.01, 0.2], True, "better"),
        ([0.01, 0.2], False, "worse"),
        ([-0.2, -0.01], True, "worse"),
        ([-0.2, -0.01], False, "better"),
        ([-0.2, 0.01], True, "no difference shown"),
        ([0.0, 0.2], True, "no difference shown"),
        ([0.01, 0.2], None, "higher"),
        ([-0.2, -0.1], None, "lower"),
        (None, True, ""),
    ],
)
def test_verdict_needs_an_interval_without_zero(interval, higher_is_better, said):
    row = Difference(metric="m", interval=interval)
    assert verdict(row, Metric(title="m", higher_is_better=higher_is_better)) == said


@pytest.mark.parametrize(
    ("plain", "composed", "said"),
    [
        (
            [0.02, 0.2],
            [-0.1, 0.3],
            "Images: fine-tuning helped. Prompt fidelity changed by +10.0 points (95 % interval +2.0 to",
        ),
        ([-0.2, 0.2], [0.1, 0.3], "Images: fine-tuning helped. "),
        ([-0.2, -0.02], [-0.1, 0.2], "Images: fine-tuning did harm. "),
        ([-0.2, -0.02], [0.1, 0.3], "Images: fine-tuning helped in part. "),
        ([-0.1, 0.2], [-0.1, 0.2], "Images: fine-tuning shows no certain effect. "),
    ],
)
def test_one_sentence_says_whether_fine_tuning_helped(run_dir, plain, composed, said):
    evaluation = write_evaluation(run_dir / "evaluate")
    sets = [*evaluation["prompt_sets"], {"name": "composed", "title": "composed prompts", "num_prompts": 4}]
    row = {"metric": "prompt_fidelity", "prompt_set": "plain", "value": 0.1, "interval": plain}
    rows = [row, row | {"prompt_set": "composed", "interval": composed}]
    rows = [row | {"metric": "text_to_image_recall@1", "interval": [0.5, 0.6]}, *rows]
    differences = [each | {"baseline": "before", "variant": "after"} for each in rows]
    write_evaluation(run_dir / "evaluate", differences=differences, prompt_sets=sets)
    run = read_run(run_dir)
    images, retrieval = fine_tuning_verdict(run.evaluation)
    assert images.startswith(said)
    assert images.endswith(" on composed prompts.")
    assert retrieval.startswith("Retrieval: fine-tuning helped. ")
    head = render_report(run).split("<h2>Images</h2>")[0]
    assert said.split(". ")[0] in head
    assert "Retrieval: fine-tuning helped." in head


def test_without_a_pair_no_verdict_is_given(run_dir):
    write_evaluation(run_dir / "evaluate", differences=[])
    assert fine_tuning_verdict(read_run(run_dir).evaluation) == []


def test_images_and_loss_come_before_figures(run_dir):
    write_evaluation(run_dir / "evaluate")
    page = render_report(read_run(run_dir))
    places = [page.index(f"<h2>{title}</h2>") for title in ("Images", "Loss", "Evaluation")]
    assert places == sorted(places)


def test_difference_without_an_interval_says_why(run_dir):
    evaluation = write_evaluation(run_dir / "evaluate")
    row = next(row for row in evaluation["differences"] if row["metric"] == "clip_score_raw")
    row |= {"value": 0.0, "interval": None, "note": "no interval: no prompt differs from another"}
    write_evaluation(run_dir / "evaluate", differences=[row])
    cells = differences_tables(read_run(run_dir).evaluation)[0].rows[1]
    assert cells[1:3] == ("+0.000", "no interval: no prompt differs from another")
    assert cells[-1] == "no difference shown"


def test_ranked_prompts_are_those_of_a_sort(run_dir):
    evaluation = write_evaluation(run_dir / "evaluate", num_prompts=200)
    scores = {
        row["prompt_id"]: row["scores"]["prompt_fidelity"]
        for row in evaluation["images"]
        if row["variant"] == "after"
    }
    order = sorted(scores, key=scores.get)
    ranked, note = rank_prompts(read_run(run_dir))
    assert [group.prompt for group in ranked["Worst"]] == [f"prompt number {i}" for i in order[:3]]
    assert [group.prompt for group in ranked["Best"]] == [f"prompt number {i}" for i in order[:-4:-1]]
    assert [cell.variant for cell in ranked["Best"][0].cells] == ["teacher", "before", "after"]
    assert "Of 200 prompts, ranked by Prompt fidelity of the variant 'after'" in note


def test_failed_images_are_counted_but_never_ranked(judged):
    assert ("CLIP of 'after' with an untrained map for a bridge (floor)", "4", "3", "0", "1", "0") in (
        failures_table(judged.evaluation).rows
    )
    assert failed_images(judged) == (
        [
            (
                "A colorful garden with blooming flowers during the day",
                "random_bridge",
                "failed: all black",
            )
        ],
        1,
    )
    own = replace(judged.images[0], status="blocked")
    assert failed_images(replace(judged, images=[own]))[1] == 2


def test_nearest_training_picture_stands_beside_the_drawn_one(judged):
    drawn, nearest = nearest_training_images(judged)[0].cells
    assert drawn.source.startswith("data:image/png")
    assert nearest.source != drawn.source
    assert nearest.caption == "cosine 0.830"


def test_page_shows_the_evaluation_and_its_warnings(judged):
    html = render_report(judged)
    for text in ("Did it help?", "not independent", "Best and worst prompts", "Failures", "Nearest training"):
        assert text in html


def test_hostile_prompts_stay_text(run_dir):
    evaluation = write_evaluation(run_dir / "evaluate")
    for row in (*evaluation["prompts"], *evaluation["variants"], *evaluation["prompt_sets"]):
        row |= {key: "<script>alert(1)</script>" for key in ("prompt", "title") if key in row}
    evaluation["notes"] = ["<img src=x onerror=alert(2)>"]
    write_json(run_dir / "evaluate" / "evaluation.json", evaluation)
    html = render_report(read_run(run_dir))
    assert html.count("<script>") == 1
    assert "<img src=x" not in html


def test_evaluation_of_a_later_version_is_named_and_left_out(run_dir):
    write_evaluation(run_dir / "evaluate", schema_version=3)
    run = read_run(run_dir)
    assert run.evaluation == Evaluation()
    assert (
        "evaluation.json cannot be read: is of version 3, and this clipgraft reads up to 2" in run.problems[0]
    )


def test_evaluation_of_version_1_is_read_with_todays_names(run_dir):
    folder = run_dir / "evaluate"
    write_evaluation(folder)
    (folder / "evaluation.json").write_text(EVALUATION_VERSION_1.read_text())
    evaluation = read_run(run_dir).evaluation
    assert evaluation.names("ceiling") == ["teacher", "real_images"]
    assert evaluation.difference("before", "after")[0].value == 0.2
    assert {row.variant for row in evaluation.figures} <= {each.name for each in evaluation.variants}
    assert evaluation.images[0].file.startswith("pictures/teacher/")


def test_evaluation_without_a_version_is_read(run_dir):
    evaluation = write_evaluation(run_dir / "evaluate")
    del evaluation["schema_version"]
    write_json(run_dir / "evaluate" / "evaluation.json", evaluation)
    run = read_run(run_dir)
    assert run.problems == []
    assert metric_tables(run.evaluation)[0][0].title == "Prompt fidelity"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"figures": None}, "figures: input should be a valid list"),
        ({"counts": [{"num_images": 3}]}, "counts.0.variant: field required"),
        ({"metrics": []}, "metrics: input should be"),
        ({"differences": [{"metric": "cmmd", "interval": [1]}]}, "differences.0.interval.1: field required"),
    ],
)
def test_damaged_evaluation_is_one_sentence_on_the_page(run_dir, changes, said):
    write_evaluation(run_dir / "evaluate", **changes)
    run = read_run(run_dir)
    assert [said in problem for problem in run.problems] == [True]
    assert run.evaluation == Evaluation()
    assert "clipgraft report" in render_report(run)


def test_picture_outside_the_run_is_not_taken_into_the_page(run_dir):
    evaluation = write_evaluation(run_dir / "evaluate")
    for row in evaluation["images"]:
        row["file"] = "../../secret.png"
    write_json(run_dir / "evaluate" / "evaluation.json", evaluation)
    ranked, _ = rank_prompts(read_run(run_dir))
    assert not any(cell.source for groups in ranked.values() for group in groups for cell in group.cells)


def test_refined_pictures_are_a_column_of_their_own(run_dir):
    rows = [picture_row(f"{column}.png", "a", column=column) for column in ("after", "refined")]
    write_json(run_dir / "generate" / "images.json", rows)
    assert "graft refined" in render_report(read_run(run_dir))
