"""The page: right and readable whatever a run's folder holds, and nothing in it is obeyed."""

import base64
import hashlib
import re
import shutil
import subprocess
import sys

import pytest
from example_run import (
    DATA,
    full_log_rows,
    log_rows,
    picture_row,
    write_evaluation,
    write_json,
    write_log,
    write_pictures,
)
from read_page import Page, read_page

from clipgraft.reporting.html import MAX_REPORT_BYTES, render_report
from clipgraft.reporting.report import report
from clipgraft.reporting.run_data import read_run
from helpers import files_of_at_most

HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>\" onload='alert(3)' {{ 7 * 7 }} &amp;"


def sum_of(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


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


def test_page_fetches_nothing_and_runs_its_own_script_only(run_dir):
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


def test_prompts_are_shown_whole_and_in_their_direction(run_dir):
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


@pytest.mark.integration
def test_page_of_a_large_run_stays_under_five_megabytes(run_dir):
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


def test_run_that_has_only_begun_has_no_results(tmp_path):
    (tmp_path / "recipe.toml").write_text("seed = 0")
    assert "There are no results in this folder yet." in read_page(tmp_path).text


def test_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a folder with holiday.jpg, not a run; name a folder that `cl"):
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
    with files_of_at_most(4096), pytest.raises(OSError, match="File too large"):
        report(run_dir)
    assert {path: path.read_bytes() for path in run_dir.glob("*") if path.is_file()} == before


def test_report_of_no_folder_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run folder not found: .*nowhere"):
        report(tmp_path / "nowhere")


@pytest.mark.integration
def test_report_is_written_without_torch():
    code = "import sys, clipgraft.reporting.html; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
