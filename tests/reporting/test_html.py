"""The report: right and readable whatever a run's folder holds, and nothing in it is obeyed."""

import base64
import hashlib
import json
import re
import resource
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from example_run import (
    DATA,
    full_log_rows,
    log_rows,
    picture_row,
    write_evaluation,
    write_json,
    write_log,
    write_picture,
    write_pictures,
)

from clipgraft.reporting.html import MAX_REPORT_BYTES, render_report
from clipgraft.reporting.report import report
from clipgraft.reporting.run_data import read_run

VOID_TAGS = {"meta", "img", "source"}
HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>\" onload='alert(3)' {{ 7 * 7 }} &amp;"


class Page(HTMLParser):
    """A page as a browser reads it: its tags with their attributes, and its text without style."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def sum_of(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def read_page(run_dir):
    page = Page(render_report(read_run(run_dir)))
    assert page.open == []
    return page


def test_report_of_a_whole_run_has_every_part(run_dir):
    text = read_page(run_dir).text
    for heading in ("Images", "Retrieval", "Loss", "Bridge", "Data", "Recipe", "Time and environment"):
        assert heading in text
    assert "recall@1 11.2 % 31.2 % +20.0" in text
    assert "1,000 held-out images with 5,000 captions" in text
    assert "Words 0.412 0.301 0.911 0.911" in text
    assert "A dog running on the beach at sunset seed 0, 25 steps, guidance 7.5, 64 x 64 pixels" in text
    assert "train 6,000 30,000" in text
    assert "total 8,000 40,000" in text
    assert "in no split 91 1042020065_fb3d3ba5ba.jpg" in text
    assert "fine-tuning 12 min 34 s" in text
    assert "2026-01-31 12:00 UTC" in text
    assert "clipgraft demo --out runs/demo" in text
    assert "is unknown" not in text


def test_report_fetches_nothing_and_runs_nothing_but_its_own_script(run_dir):
    html = report(run_dir).read_text(encoding="utf-8")
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"link", "iframe", "object", "embed", "form", "base", "svg"}
    for _, attrs in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attrs)
        for name in ("src", "srcset", "href"):
            assert attrs.get(name, "data:image/").startswith("data:image/")
    policy = page.all("meta")[1]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert page.all("script") == [{}]
    script = re.search("<script>(.*?)</script>", html, re.DOTALL).group(1)
    assert f"script-src 'sha256-{sum_of(script)}';" in policy
    assert not re.search(r"fetch|XMLHttp|https?:|import|eval|innerHTML", script)
    style = re.search("<style>(.*?)</style>", html, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert f"style-src 'sha256-{sum_of(style)}'" in policy


def test_report_tells_nobody_where_the_folders_lie(run_dir):
    html = report(run_dir).read_text(encoding="utf-8")
    assert str(run_dir.parent) not in html
    assert "/home/someone" not in html


def test_hostile_text_stays_text_wherever_it_stands(run_dir):
    row = picture_row("a.png", HOSTILE, negative_prompt=HOSTILE, column=HOSTILE[:50], status=HOSTILE)
    write_pictures(run_dir / "generate", [row, row | {"column": "after", "guidance_scale": HOSTILE}])
    left_out = [{"kind": HOSTILE, "reason": HOSTILE, "count": HOSTILE, "examples": [HOSTILE]}]
    write_json(run_dir / "data.json", DATA | {"left_out": left_out, "format": HOSTILE, "root": HOSTILE})
    write_json(run_dir / "environment.json", {"command": HOSTILE, "started": HOSTILE, HOSTILE: HOSTILE})
    (run_dir / "recipe.toml").write_text(f"[clip]\nname = '''{HOSTILE}'''\n", encoding="utf-8")
    page = read_page(run_dir)
    assert page.all("script") == [{}]
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.text.count(" ".join(HOSTILE.split())) >= 7
    assert page.all("img")[0]["alt"] == HOSTILE


def test_arabic_and_emoji_prompts_are_shown_whole_and_in_their_own_direction(run_dir):
    prompts = ["كلب يجري على الشاطئ عند غروب الشمس", "🐕‍🦺 on the 🏖️ at 🌅"]
    write_pictures(
        run_dir / "generate", [picture_row(f"{i}.png", prompt) for i, prompt in enumerate(prompts)]
    )
    page = read_page(run_dir)
    assert all(prompt in page.text for prompt in prompts)
    assert [attrs["dir"] for attrs in page.all("p") if attrs.get("class") == "prompt"] == ["auto", "auto"]


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("generate", "No image was generated: generate/images.json is missing"),
        ("bridge", "No bridge was measured: none was fitted."),
        ("bridge/metrics.json", "No bridge was measured: fitting has not finished."),
        ("finetune", "Recall was not measured: fine-tuning was not run."),
        ("finetune/metrics.json", "fine-tuning has not finished, the last logged step is 60."),
        ("finetune/log.jsonl", "No optimizer step was logged."),
        ("data.json", "The number of images and captions is unknown"),
        ("recipe.toml", "There is no recipe.toml in this folder."),
        ("environment.json", "Where it ran is unknown"),
        ("generate/dog_seed0.png", "dog_seed0.png is missing"),
    ],
)
def test_a_missing_part_is_said_in_a_sentence(run_dir, missing, sentence):
    path = run_dir / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert sentence in read_page(run_dir).text


def test_killed_run_is_reported_as_far_as_it_came(run_dir):
    for stage in ("bridge", "generate"):
        shutil.rmtree(run_dir / stage)
    (run_dir / "finetune" / "metrics.json").unlink()
    log = run_dir / "finetune" / "log.jsonl"
    write_log(log, log_rows(3, 20)[:47])
    with log.open("a") as file:
        file.write('{"step": 48, "ep')
    text = read_page(run_dir).text
    assert "Fine-tuning of CLIP flatland on the captioned images of flatland8k has not finished." in text
    assert "fine-tuning has not finished, the last logged step is 47." in text
    assert "log.jsonl: 1 of 48 lines cannot be read." in text
    assert "Epoch 3 has no mean: it was not finished" in text


@pytest.mark.parametrize(
    "damage", ['{"torch": ', "[1]", "\x00", '{"before": 3, "after": [], "linear": 1}', "null"]
)
def test_damaged_files_never_stop_the_report(run_dir, damage):
    for path in run_dir.rglob("*.json*"):
        path.write_text(damage, encoding="utf-8")
    (run_dir / "recipe.toml").write_text("= nothing", encoding="utf-8")
    text = read_page(run_dir).text
    assert "recipe.toml cannot be read: is not TOML" in text
    assert "images.json" in text


def test_values_of_a_wrong_kind_never_stop_the_report(run_dir):
    wrong = {"before": {"text_to_image_recall@1": "high"}, "after": {"num_images": None}, "seconds": "long"}
    write_json(run_dir / "finetune" / "metrics.json", wrong | {"num_epochs": [], "skipped_steps": "no"})
    write_json(run_dir / "data.json", {"splits": {"train": None, "test": "x"}, "left_out": ["a", {}]})
    write_json(run_dir / "generate" / "images.json", [1, {}, {"file": 3}, {"file": "dog_seed0.png"}])
    assert "images.json: a row names no file and is left out." in read_page(run_dir).text


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


def test_columns_of_one_prompt_and_seed_stand_side_by_side(run_dir):
    rows = [
        picture_row(f"{seed}-{column}.png", "a red disc", seed=seed, column=column)
        for seed in (0, 1)
        for column in ("teacher", "before", "after")
    ]
    write_pictures(run_dir / "generate", rows)
    page = read_page(run_dir)
    labels = "the base's own text encoder CLIP before fine-tuning CLIP after fine-tuning"
    assert page.text.count(f"{labels} a red disc seed") == 2
    assert page.text.index("a red disc seed 0") < page.text.index("a red disc seed 1")


def test_seeds_of_one_prompt_stand_together(run_dir):
    rows = [picture_row(f"{seed}.png", "a red disc", seed=seed) for seed in (4, 5)]
    write_pictures(run_dir / "generate", rows)
    assert "seed 4 seed 5 a red disc 25 steps" in read_page(run_dir).text


def test_failed_picture_is_called_failed(run_dir):
    write_pictures(run_dir / "generate", [picture_row("a.png", "a red disc", status="failed_black")])
    assert "failed: all black" in read_page(run_dir).text


def test_file_outside_the_run_is_not_taken_into_the_page(run_dir):
    write_picture(run_dir.parent / "secret.png")
    write_json(run_dir / "generate" / "images.json", [picture_row("../../secret.png", "a red disc")])
    page = read_page(run_dir)
    assert "../../secret.png lies outside the run's folder and is not shown" in page.text
    assert len(page.all("img")) == 1  # the loss


def test_damaged_picture_is_named(run_dir):
    (run_dir / "generate" / "dog_seed0.png").write_bytes(b"no picture")
    text = read_page(run_dir).text
    assert "dog_seed0.png: is no image of a known format" in text


def test_small_picture_is_embedded_byte_for_byte(run_dir):
    content = (run_dir / "generate" / "dog_seed0.png").read_bytes()
    assert (
        read_page(run_dir).all("img")[0]["src"]
        == f"data:image/png;base64,{base64.b64encode(content).decode()}"
    )


def test_many_heavy_pictures_long_logs_and_a_long_recipe_stay_under_five_megabytes(run_dir):
    rows = [picture_row(f"{i}.png", f"{i} {HOSTILE * 30}") for i in range(63)]
    write_pictures(run_dir / "generate", rows, side=256, noise=True)
    write_evaluation(run_dir / "evaluate", num_prompts=2000, side=192, noise=True)
    with (run_dir / "recipe.toml").open("a", encoding="utf-8") as file:
        file.write("# " + '"<🐕>' * 50_000)
    write_log(run_dir / "finetune" / "log.jsonl", full_log_rows(10, 800))
    html = render_report(read_run(run_dir))
    page = Page(html)
    assert len(html.encode()) <= MAX_REPORT_BYTES
    assert "3 more images are in the run's folder" in page.text
    assert "Of 2,000 prompts, ranked by Prompt fidelity" in page.text
    assert "The rest is in recipe.toml." in page.text
    assert all(len(attrs["src"]) > 1000 for attrs in page.all("img"))


@pytest.mark.parametrize(
    ("stage", "headings", "others"),
    [
        ("finetune", ("Retrieval", "Loss", "Recipe"), ("Images", "Bridge")),
        ("bridge", ("Bridge", "Recipe"), ("Images", "Retrieval")),
        ("generate", ("Images",), ("Retrieval", "Loss", "Bridge")),
    ],
)
def test_single_stage_has_its_own_parts_and_misses_no_others(run_dir, stage, headings, others):
    for name in ("recipe.toml", "environment.json"):
        shutil.copy(run_dir / name, run_dir / stage / name)
    html = report(run_dir / stage).read_text(encoding="utf-8")
    assert all(f"<h2>{heading}</h2>" in html for heading in headings)
    assert not any(f"<h2>{heading}</h2>" in html for heading in others)


def test_folder_of_a_run_that_has_only_begun_is_said_to_hold_nothing(tmp_path):
    (tmp_path / "recipe.toml").write_text("seed = 0")
    assert "There are no results in this folder yet." in read_page(tmp_path).text


def test_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"is not a run: it holds neither recipe.toml, .*; name a folder that cl"
    ):
        report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_loss_figure_lies_beside_the_report(run_dir):
    report(run_dir)
    assert (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (run_dir / "loss.svg").is_file()


def test_old_report_survives_a_write_that_fails(run_dir):
    report(run_dir)
    before = {path: path.read_bytes() for path in run_dir.glob("*") if path.is_file()}
    write_log(run_dir / "finetune" / "log.jsonl", log_rows(4, 20))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            report(run_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {path: path.read_bytes() for path in run_dir.glob("*") if path.is_file()} == before


def test_report_of_no_folder_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run folder not found: .*nowhere"):
        report(tmp_path / "nowhere")


def test_report_is_written_without_torch():
    code = "import sys, clipgraft.reporting.html; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
