"""generate, grid and compare as a user meets them: files of prompts, resuming, redrawing, failures."""

import io
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image, PngImagePlugin

import clipgraft
import tiny
from clipgraft.generation import generate as generate_stage
from clipgraft.generation import image_folder as gallery
from clipgraft.generation.generate import DrawOptions
from clipgraft.generation.generate import generate as stage
from clipgraft.generation.grid import parse_axis, parse_encoders
from clipgraft.generation.metadata import PARAMETERS_KEY, RECORD_KEY, save_png, versions
from clipgraft.generation.params import Job
from clipgraft.models.base import FrozenBase
from clipgraft.models.bridge import Bridge
from clipgraft.models.configs import BaseRecord
from clipgraft.models.graft import Graft, GraftedTextEncoder
from helpers import call, refused, run_apart
from two_processes import run_in_two_processes

A1111_PAIR = re.compile(r"\s*(\w[\w \-/]+):\s*(\"(?:\\.|[^\\\"])+\"|[^,]*)(?:,|$)")
"""With which A1111 and Forge read the last line of `parameters` (modules/infotext_utils.py)."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("world") / "base")


def write_graft(folder: Path, base: Path, *, width: int = tiny.TEACHER_WIDTH, clip=None) -> Path:
    torch.manual_seed(3)
    clip = clip or tiny.build_clip()
    encoder = GraftedTextEncoder.graft(
        clip.model.text_model,
        Bridge(tiny.TEXT_WIDTH, width),
        torch.randn(77, width),
        clip.tokenizer.eos_token_id,
    )
    Graft(encoder, clip.tokenizer, BaseRecord(name=str(base), sums={})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def graft(base) -> Path:
    return write_graft(base.parent / "graft", base)


def generate(base: Path, out: Path, *arguments: object) -> int:
    return call("generate", "--base", base, "--steps", 2, "--out", out, *arguments)


def rows_of(out: Path) -> list[dict]:
    return json.loads((out / "images.json").read_text())


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# Files of prompts


def test_file_of_prompts_gives_a_picture_a_line(base, tmp_path):
    (tmp_path / "prompts.txt").write_text("﻿A dog\n\nA cat, black\n", encoding="utf-8")
    assert generate(base, tmp_path / "out", "--from-file", tmp_path / "prompts.txt") == 0
    assert [row["prompt"] for row in rows_of(tmp_path / "out")] == ["A dog", "A cat, black"]


def test_jsonl_lines_have_settings_of_their_own(base, tmp_path):
    lines = [{"prompt": "A dog", "seed": 5, "num_images": 2}, {"prompt": "A cat", "width": 72, "steps": 1}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert generate(base, tmp_path / "out", "--from-file", tmp_path / "prompts.jsonl", "--seed", 9) == 0
    found = [
        (row["prompt"], row["seed"], row["width"], row["num_inference_steps"])
        for row in rows_of(tmp_path / "out")
    ]
    assert found == [("A dog", 5, 64, 2), ("A dog", 6, 64, 2), ("A cat", 9, 72, 1)]


@pytest.mark.parametrize("text", ["A dog\nA cat\n", '{"prompt": "A dog"}\n{"prompt": "A cat"}\n'])
def test_prompts_come_from_standard_input(base, tmp_path, monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert generate(base, tmp_path, "-") == 0
    assert [row["prompt"] for row in rows_of(tmp_path)] == ["A dog", "A cat"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "A dog"', "the line is not JSON: Expecting ',' delimiter at column 19"),
        (b'{"prompt": ' + b"[" * 100_000, "the line is not JSON as read here: nested deeper than 64"),
        (
            b'{"prompt": "A dog", "seed": 1' + b"0" * 5000 + b"}",
            "the line is not JSON as read here: a number has over 4,300 digits",
        ),
        (b'["A dog"]', "the line is not JSON of the right type: an object is expected, not a list"),
        (b'{"seed": 1}', 'no object with a "prompt"'),
        (b'{"prompt": "A dog", "sed": 1}', "unknown setting 'sed' (did you mean 'seed'?)"),
        (b'{"prompt": "A dog", "steps": 0}', "steps must be from 1 to 1000 with scheduler 'dpm++'; got 0"),
        (b'{"prompt": "A dog", "seed": "x"}', "seed must be from 0 to 2^64 - 1 (64 bits); got 'x'"),
        (b'{"prompt": 7}', "prompt must be a text; got 7"),
        (
            b'{"prompt": "A dog", "scheduler": []}',
            "scheduler must be one of dpm++, pndm, ddim, euler, unipc, lcm; got []",
        ),
        (
            b'{"prompt": "A dog", "guidance_scale": 1' + b"0" * 400 + b"}",
            "guidance_scale must be from 1 (no guidance) to 100; got 10000",
        ),
        (
            b'{"prompt": "A dog", "init_image": ""}',
            "init_image must be the path of a JPEG, PNG or WebP picture; got ''",
        ),
        (b'{"prompt": "\\ud800"}', "the line is not JSON of whole characters: '\\ud800' holds half"),
        (b'{"prompt": "\xff"}', "no UTF-8 (byte 13)"),
    ],
)
def test_bad_line_is_named_with_its_number_and_left_out_by_a_flag(base, tmp_path, capsys, line, reason):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(b'{"prompt": "A cat"}\n' + line + b"\n")
    message = refused(capsys, "generate", "--from-file", prompts, "--base", base, "--out", tmp_path / "out")
    assert f"prompts.jsonl, line 2: {reason}" in message
    assert message.endswith("mend it, or add --skip-bad-lines")
    assert not (tmp_path / "out").exists()
    assert generate(base, tmp_path / "out", "--from-file", prompts, "--skip-bad-lines") == 0
    assert f"left out: prompts.jsonl, line 2: {reason}" in " ".join(capsys.readouterr().err.split())
    assert len(rows_of(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no picture", "expected a JPEG, PNG or WebP image"),
        (b"", "is empty (0 bytes)"),
        (None, "has 8x8 pixels; each side needs"),
    ],
)
def test_line_whose_first_picture_is_none_is_a_bad_line(base, tmp_path, capsys, content, reason):
    first, prompts = tmp_path / "first.png", tmp_path / "prompts.jsonl"
    if content is None:
        Image.new("RGB", (8, 8)).save(first)
    else:
        first.write_bytes(content)
    prompts.write_text('{"prompt": "A cat"}\n{"prompt": "A dog", "init_image": "first.png"}\n')
    message = refused(capsys, "generate", "--from-file", prompts, "--base", base, "--out", tmp_path / "out")
    assert f"prompts.jsonl, line 2: init_image {first}" in message
    assert reason in message


def test_file_without_a_prompt_is_refused(base, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n \n")
    message = refused(
        capsys, "generate", "--from-file", tmp_path / "prompts.txt", "--base", base, "--out", tmp_path
    )
    assert "prompts.txt holds no prompt that can be drawn" in message
    assert "no prompt to draw" in refused(capsys, "generate", "--base", base, "--out", tmp_path)


def test_empty_prompt_is_drawn_and_said(base, tmp_path, capsys):
    assert generate(base, tmp_path, "") == 0
    assert "the prompt is empty: drawn without one" in capsys.readouterr().err
    assert rows_of(tmp_path)[0]["file"] == "empty-prompt_seed0.png"


def test_prompts_that_begin_alike_have_files_of_their_own(base, tmp_path):
    long = "A dog " * 20
    assert generate(base, tmp_path, long + "one", long + "two", long + "two") == 0
    assert len({row["file"] for row in rows_of(tmp_path)}) == 3
    assert len(list(tmp_path.glob("*.png"))) == 3


# Resuming


def test_what_is_there_and_whole_is_not_drawn_again(base, tmp_path, capsys):
    generate(base, tmp_path, "A dog", "A cat", "A kite")
    dog, cat, kite = (tmp_path / f"a-{name}_seed0.png" for name in ("dog", "cat", "kite"))
    drawn = {path: pixels(path) for path in (dog, cat, kite)}
    cat.write_bytes(cat.read_bytes()[:200])
    kite.unlink()
    before = dog.stat().st_mtime_ns
    capsys.readouterr()
    assert generate(base, tmp_path, "A dog", "A cat", "A kite") == 0
    assert "3 pictures: 2 drawn" in capsys.readouterr().out
    assert dog.stat().st_mtime_ns == before
    assert all(np.abs(pixels(path).astype(int) - drawn[path]).max() <= 1 for path in drawn)


def test_row_that_a_killed_process_left_half_written_costs_its_picture_alone(base, tmp_path, capsys):
    generate(base, tmp_path, "A dog", "A cat")
    lines = [json.dumps(row) for row in rows_of(tmp_path)]
    (tmp_path / "images.json").unlink()
    (tmp_path / "images-0.jsonl").write_text(f"{lines[0]}\n{lines[1][:50]}")
    capsys.readouterr()
    generate(base, tmp_path, "A dog", "A cat")
    assert "2 pictures: 1 drawn" in capsys.readouterr().out
    assert [row["prompt"] for row in rows_of(tmp_path)] == ["A dog", "A cat"]


def test_other_settings_or_another_model_draw_again(base, graft, tmp_path, capsys):
    generate(base, tmp_path, "A dog")
    for arguments in (["--guidance-scale", 3], ["--graft", graft]):
        capsys.readouterr()
        generate(base, tmp_path, "A dog", *arguments)
        assert "1 drawn" in capsys.readouterr().out


def test_picture_of_another_job_stays_and_the_new_one_gets_a_number(base, tmp_path, capsys):
    generate(base, tmp_path, "A dog")
    first = (tmp_path / "a-dog_seed0.png").read_bytes()
    (tmp_path / "a-dog_seed0_2.png").write_bytes(b"of no job in the list")
    generate(base, tmp_path, "A dog", "--guidance-scale", 3)
    second = (tmp_path / "a-dog_seed0_3.png").read_bytes()
    assert (tmp_path / "a-dog_seed0.png").read_bytes() == first
    assert (tmp_path / "a-dog_seed0_2.png").read_bytes() == b"of no job in the list"
    assert {row["guidance_scale"]: row["file"] for row in rows_of(tmp_path)} == {
        3.0: "a-dog_seed0_3.png",
        7.5: "a-dog_seed0.png",
    }
    for arguments in ([], ["--guidance-scale", 3]):
        capsys.readouterr()
        generate(base, tmp_path, "A dog", *arguments)
        assert "0 drawn" in capsys.readouterr().out
    (tmp_path / "a-dog_seed0.png").unlink()  # its place is free, and the other job still has its own
    generate(base, tmp_path, "A dog", "--guidance-scale", 3)
    assert "0 drawn" in capsys.readouterr().out
    assert (tmp_path / "a-dog_seed0_3.png").read_bytes() == second


def test_picture_with_metadata_is_not_taken_for_one_without(base, tmp_path):
    generate(base, tmp_path, "A dog")
    before = pixels(tmp_path / "a-dog_seed0.png")
    generate(base, tmp_path, "A dog", "--no-metadata")
    with Image.open(tmp_path / "a-dog_seed0.png") as image:
        assert image.info == {}
    assert np.array_equal(pixels(tmp_path / "a-dog_seed0.png"), before)
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_interrupted_job_keeps_its_pictures_and_goes_on(base, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("\n".join(f"A dog {number}" for number in range(400)))
    command = [sys.executable, "-m", "clipgraft", "generate", "--from-file", str(prompts)]
    command += ["--base", str(base), "--out", str(out), "--steps", "3", "--batch-size", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.png"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command draws the rest" in printed
    assert "Traceback" not in errors
    rows = rows_of(out)
    assert 3 <= len(rows) < 400
    assert all(pixels(out / row["file"]).shape == (64, 64, 3) for row in rows)


def test_job_that_is_stopped_while_loading_has_drawn_nothing(base, tmp_path, capsys, monkeypatch):
    generate(base, tmp_path, "A dog", "A cat")

    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_stage, "load_generators", stop)
    capsys.readouterr()
    assert generate(base, tmp_path, "A dog", "A cat", "A kite") == 130
    assert "0 pictures: 0 drawn in " in capsys.readouterr().out
    assert len(rows_of(tmp_path)) == 2


def test_batches_stay_halved_after_one_did_not_fit_into_memory(base, tmp_path, capsys, monkeypatch):
    load = generate_stage.load_generators

    def load_with_little_memory(*arguments, **options):
        for name, generator in load(*arguments, **options):
            predict = generator.pipeline.unet.predict

            def fail(sample, *inputs, predict=predict):
                if len(sample) > 4:  # guidance doubles a batch
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                return predict(sample, *inputs)

            generator.pipeline.unet.predict = fail
            yield name, generator

    monkeypatch.setattr(generate_stage, "load_generators", load_with_little_memory)
    assert generate(base, tmp_path, "A dog", "--num-images", 9) == 0
    assert capsys.readouterr().err.count("not enough memory for 4 pictures at once; going on with 2") == 1
    sizes = []
    for row in rows_of(tmp_path):
        with Image.open(tmp_path / row["file"]) as image:
            sizes.append(json.loads(image.info[RECORD_KEY])["batch"]["size"])
    assert sizes == [2] * 8 + [1]


def test_batch_that_does_not_fit_into_memory_is_halved(base, tmp_path, capsys):
    generator = clipgraft.load(base, device="cpu")

    def fail(_module, inputs):
        if len(inputs[0]) > 4:  # guidance doubles a batch
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    generator.pipeline.unet.register_forward_pre_hook(fail)
    sizes = []
    jobs = [Job("A dog", seed, num_inference_steps=1) for seed in range(5)]
    pictures = list(generator.draw(jobs, batch_size=5, on_less_memory=sizes.append))
    assert sizes == [2]
    assert [picture.seed for picture in pictures] == [0, 1, 2, 3, 4]


def test_memory_that_does_not_suffice_for_one_picture_is_an_error(base):
    generator = clipgraft.load(base, device="cpu")

    def fail(_module, _inputs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    generator.pipeline.unet.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="memory does not suffice for one picture of 64x64 pixels"):
        generator.generate("A dog", steps=1, num_images=2)


def test_full_disk_leaves_whole_pictures_and_exit_code_2(base, tmp_path):
    limit = 6_000  # bytes a file may have: small pictures fit, large ones do not
    lines = [{"prompt": "A dog", "width": 16, "height": 16}, {"prompt": "A cat", "width": 128, "height": 128}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ended = run_apart(
        *("generate", "--from-file", str(tmp_path / "prompts.jsonl"), "--steps", "1", "--base", str(base)),
        *("--out", str(tmp_path / "out")),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: no space left")
    assert pixels(tmp_path / "out" / "a-dog_seed0.png").shape == (16, 16, 3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a-dog_seed0.png", "images-0.jsonl"}


@pytest.mark.parametrize("place", ["file/out", "file"])
def test_out_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(tmp_path, capsys, place):
    (tmp_path / "file").write_text("x")
    message = refused(capsys, "generate", "A dog", "--base", "nowhere", "--out", tmp_path / place)
    assert "cannot be written" in message
    assert "name another with --out" in message


def test_two_processes_draw_what_one_draws(base, one_thread, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"A dog {number}", "steps": 1 + number // 5} for number in range(9)]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["--from-file", str(prompts), "--base", str(base), "--batch-size", "2"]
    assert call("generate", *arguments, "--out", tmp_path / "one") == 0
    printed = run_in_two_processes("-m", "clipgraft", "generate", *arguments, "--out", tmp_path / "two")
    assert "9 pictures: 9 drawn" in printed[0]
    assert printed[1] == ""
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "one")  # sums of the files among them


def test_blocked_picture_is_no_file_no_success_and_not_tried_again(tmp_path, capsys):
    base = tiny.write_checked_base(tmp_path / "base", threshold=-1.0)
    assert generate(base, tmp_path / "out", "A dog") == 2
    printed = capsys.readouterr().out
    assert "a-dog_seed0.png is not there: blocked by the base's safety checker" in printed
    assert "1 drawn" in printed
    assert "1 blocked" in printed
    assert not list((tmp_path / "out").glob("*.png"))
    assert generate(base, tmp_path / "out", "A dog") == 2
    assert "0 drawn in" in capsys.readouterr().out


# What a picture tells of itself


def test_picture_tells_its_settings_in_the_form_that_other_tools_read(base, tmp_path):
    generate(base, tmp_path, "A dog: red, big", "--negative-prompt", "rain", "--seed", 7)
    with Image.open(tmp_path / "a-dog-red-big_seed7.png") as image:
        lines = image.info[PARAMETERS_KEY].split("\n")
        record = json.loads(image.info[RECORD_KEY])
    assert lines[:2] == ["A dog: red, big", "Negative prompt: rain"]
    values = dict(A1111_PAIR.findall(lines[2]))
    assert len(values) >= 3  # else A1111 takes the line for a part of the prompt
    assert (values["Steps"], values["Seed"], values["Size"]) == ("2", "7", "64x64")
    assert (values["Sampler"], values["Schedule type"], values["CFG scale"]) == ("DPM++ 2M", "Karras", "7.5")
    dtype = getattr(torch, record["models"]["dtype"])
    sums = FrozenBase.load(str(base), dtype=dtype).weight_sums()
    assert record["models"]["unet_sha256"] == sums["unet"]
    sums = FrozenBase.load(str(base)).weight_sums()  # the text encoder is float32 on every engine
    assert record["models"]["text_encoder_sha256"] == sums["text_encoder"]
    assert record["scheduler"]["_class_name"] == "DPMSolverMultistepScheduler"
    assert record["versions"]["torch"] == torch.__version__


def test_picture_tells_no_path(base, graft, tmp_path):
    generate(base, tmp_path, "A dog", "--graft", graft)
    text = (tmp_path / "a-dog_seed0.png").read_bytes()
    assert str(base).encode() not in text
    assert base.parent.name.encode() not in text
    assert Path.home().name.encode() not in text


def test_unicode_prompt_survives_in_the_picture(base, tmp_path):
    generate(base, tmp_path, "狗 🐕")
    with Image.open(next(tmp_path.glob("*.png"))) as image:
        image.load()
        assert image.info[PARAMETERS_KEY].startswith("狗 🐕\n")
        assert json.loads(image.info[RECORD_KEY])["job"]["prompt"] == "狗 🐕"


def test_picture_without_metadata_tells_nothing(base, tmp_path, capsys):
    generate(base, tmp_path, "A dog", "--no-metadata")
    with Image.open(tmp_path / "a-dog_seed0.png") as image:
        assert image.info == {}
    message = refused(capsys, "generate", "--from-image", tmp_path / "a-dog_seed0.png", "--out", tmp_path)
    assert "holds no record of how it was drawn" in message


def test_what_is_not_read_of_a_negative_prompt_is_said_and_recorded(base, tmp_path, capsys):
    generate(base, tmp_path, "A dog", "--negative-prompt", "a dog " * 80 + "beach")
    assert "note: negative prompt 'a dog a dog" in capsys.readouterr().err
    [note] = rows_of(tmp_path)[0]["notes"]
    assert note.startswith("negative prompt: ")
    assert "77 are read; cut off: " in note
    with Image.open(tmp_path / "a-dog_seed0.png") as image:
        assert json.loads(image.info[RECORD_KEY])["notes"] == [note]


@pytest.mark.parametrize("with_graft", [False, True])
def test_picture_is_drawn_again_to_the_bit(base, graft, tmp_path, with_graft):
    graft_option = ["--graft", graft] if with_graft else []
    prompts = ["A dog", "A cat", "A kite"]
    generate(base, tmp_path / "a", *prompts, *graft_option, "--scheduler", "ddim", "--width", 72)
    original = tmp_path / "a" / "a-cat_seed0.png"
    options = [*graft_option, "--base", base, "--out", tmp_path / "b"]
    assert call("generate", "--from-image", original, *options) == 0
    assert (tmp_path / "b" / original.name).read_bytes() == original.read_bytes()


def test_redrawing_with_another_model_is_refused(base, graft, tmp_path, capsys):
    generate(base, tmp_path, "A dog")
    options = ["generate", "--from-image", tmp_path / "a-dog_seed0.png", "--out", tmp_path / "b"]
    other = tiny.write_base(tmp_path / "other", seed=2)
    assert "the vae here (sha256" in refused(capsys, *options, "--base", other)
    assert "drawn with the base's own text encoder; leave --graft out" in refused(
        capsys, *options, "--graft", graft
    )
    assert "that picture's base is a local one; name it with --base" in refused(capsys, *options)


def test_picture_is_not_drawn_again_over_itself(base, tmp_path, capsys):
    generate(base, tmp_path / "a", "A dog")
    original = tmp_path / "a" / "a-dog_seed0.png"
    before = original.read_bytes()
    options = ["generate", "--from-image", original, "--base", base, "--out"]
    assert "is the folder of that picture; name another one" in refused(capsys, *options, tmp_path / "a")
    assert original.read_bytes() == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / original.name).write_bytes(b"another one")
    assert call(*options, tmp_path / "b") == 0
    assert (tmp_path / "b" / original.name).read_bytes() == b"another one"
    assert (tmp_path / "b" / "a-dog_seed0_2.png").read_bytes() == before


def test_dry_run_draws_no_picture_again(base, tmp_path, capsys):
    generate(base, tmp_path / "a", "A dog")
    options = ["--base", base, "--out", tmp_path / "b", "--dry-run"]
    assert call("generate", "--from-image", tmp_path / "a" / "a-dog_seed0.png", *options) == 0
    assert "1 picture, 2 steps, about " in capsys.readouterr().err
    assert not list((tmp_path / "b").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from-image", "a.png", "--grid"], "without effect beside --from-image: --grid; leave it out"),
        (
            ["--from-image", "a.png", "--steps", 25, "--seed", 0],
            "beside --from-image: --seed, --steps; leave",
        ),
        (["--from-image", "a.png", "--from-file", "b"], "beside --from-image: --from-file"),
        (["A dog", "--reference", "--scheduler", "ddim"], "beside --reference: --scheduler"),
        (["A dog", "--reference", "--compare", "--grid"], "beside --compare: --grid"),
    ],
)
def test_option_without_effect_is_refused(tmp_path, capsys, options, message):
    assert message in refused(capsys, "generate", "--out", tmp_path, *options)


def test_picture_of_another_precision_is_drawn_again_by_the_same_text_encoder_alone(base, tmp_path, capsys):
    options = ["generate", "--base", base, "--out"]
    generate(base, tmp_path / "a", "A dog", "--engine", "torch")
    original = tmp_path / "a" / "a-dog_seed0.png"
    with Image.open(original) as image:
        record = json.loads(image.info[RECORD_KEY])
        record["models"]["dtype"] = "float16"
        save_png(image, original, record)
    capsys.readouterr()
    assert call(*options, tmp_path / "b", "--from-image", original) == 0
    assert "the unet's weights cannot be compared: float16 then, " in capsys.readouterr().err
    with Image.open(original) as image:
        record["models"]["text_encoder_sha256"] = "0" * 64
        save_png(image, original, record)
    message = refused(capsys, *options, tmp_path / "b", "--from-image", original)
    assert "the text encoder here (sha256" in message


def test_picture_of_a_hubs_base_is_drawn_again_with_the_commit_that_drew_it(base, tmp_path, monkeypatch):
    hub = tmp_path / "hub" / "models--owner--base"
    for commit, seed in (("a" * 40, 1), ("b" * 40, 2)):
        tiny.write_base(hub / "snapshots" / commit, seed=seed)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert generate("owner/base", tmp_path / "a", "A dog") == 0
    (hub / "refs" / "main").write_text("b" * 40)
    original = tmp_path / "a" / "a-dog_seed0.png"
    assert call("generate", "--from-image", original, "--out", tmp_path / "b") == 0
    assert (tmp_path / "b" / original.name).read_bytes() == original.read_bytes()


def test_version_of_openvino_is_told_where_it_draws():
    pytest.importorskip("openvino", reason="openvino is not installed: pip install 'clipgraft[openvino]'")
    assert versions("openvino") == versions("torch") | {"openvino": version("openvino")}


# img2img


def test_strength_says_how_much_of_the_first_picture_is_left(base, tmp_path):
    Image.new("RGB", (100, 80), (200, 30, 30)).save(tmp_path / "red.png")
    found = {}
    for strength in (0.3, 1.0):
        out = tmp_path / str(strength)
        options = ["--init-image", tmp_path / "red.png", "--strength", strength, "--steps", 10]
        assert generate(base, out, "A dog", *options) == 0
        found[strength] = pixels(out / "a-dog_seed0.png").astype(float)
    row = rows_of(tmp_path / "0.3")[0]
    assert row["strength"] == 0.3
    assert len(row["init_image_sha256"]) == 64
    assert not np.array_equal(found[0.3], found[1.0])
    assert found[0.3].shape == (64, 64, 3)


def test_low_strength_stays_nearer_to_the_first_picture_than_high_strength(tmp_path):
    generator = clipgraft.load("flatland", device="cpu")
    first = generator.generate("A red boat on the lake", steps=8, guidance_scale=3)[0].image
    first.save(tmp_path / "first.png")
    settings = {"steps": 8, "guidance_scale": 3, "seed": 1, "init_image": tmp_path / "first.png"}
    distances = []
    for strength in (0.2, 0.6, 1.0):
        found = generator.generate("A dog on the beach at night", strength=strength, **settings)[0].image
        distances.append(np.abs(np.asarray(found, float) - np.asarray(first, float)).mean())
    assert distances == sorted(distances)


def test_picture_from_a_picture_is_drawn_again_with_that_picture_alone(base, tmp_path, capsys):
    for name, color in (("red", "red"), ("blue", "blue")):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{name}.png")
    generate(base, tmp_path / "a", "A dog", "--init-image", tmp_path / "red.png")
    original = tmp_path / "a" / "a-dog_seed0.png"
    options = ["generate", "--from-image", original, "--base", base, "--out", tmp_path / "b"]
    assert "name it with --init-image" in refused(capsys, *options)
    assert "is not the picture that was started from" in refused(
        capsys, *options, "--init-image", tmp_path / "blue.png"
    )
    generate(base, tmp_path / "plain", "A dog")
    plain = ["generate", "--from-image", tmp_path / "plain" / original.name, "--base", base]
    plain += ["--out", tmp_path / "b", "--init-image", tmp_path / "red.png"]
    assert "was drawn from noise alone; leave --init-image out" in refused(capsys, *plain)
    assert call(*options, "--init-image", tmp_path / "red.png") == 0
    assert (tmp_path / "b" / original.name).read_bytes() == original.read_bytes()


# For machines, on the way, first


def test_what_is_read_is_neither_replaced_nor_deleted(base, tmp_path, capsys):
    mine = tmp_path / "preview.png"
    Image.new("RGB", (64, 64), "red").save(mine)
    content = mine.read_bytes()
    assert generate(base, tmp_path, "A dog") == 0
    command = ["generate", "A dog", "--base", base, "--out", tmp_path, "--steps", 2]
    message = refused(capsys, *command, "--init-image", mine)
    assert "preview.png would be replaced; name another folder with --out" in message
    assert mine.read_bytes() == content


def test_json_is_all_that_is_printed(base, tmp_path, capsys):
    capsys.readouterr()
    assert generate(base, tmp_path, "A dog", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["counts"] == {"ok": 1}
    assert printed["pictures"] == rows_of(tmp_path)


def test_json_is_printed_of_a_dry_run_too(base, tmp_path, capsys):
    assert generate(base, tmp_path, "A dog", "--json", "--dry-run") == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(tmp_path), "counts": {}, "pictures": []}


def test_json_of_a_job_that_is_stopped_has_what_was_drawn(base, tmp_path, capsys, monkeypatch):
    write = gallery.save_png

    def stop_at_the_cat(image, path, record):
        if "cat" in path.name:
            raise KeyboardInterrupt
        write(image, path, record)

    monkeypatch.setattr(gallery, "save_png", stop_at_the_cat)
    assert generate(base, tmp_path, "A dog", "A cat", "--json") == 130
    printed = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in printed["pictures"]] == ["a-dog_seed0.png"]


@pytest.mark.parametrize("height", [-8, 70_000])
def test_size_that_is_out_of_range_is_refused_with_the_range(base, tmp_path, capsys, height):
    message = refused(capsys, "generate", "A dog", "--base", base, "--out", tmp_path, "--height", height)
    assert f"a multiple of 8 from 8 to 65536, or 0 for the base's own size; got {height}" in message


def test_previews_are_written_on_the_way_and_taken_away_at_the_end(base, tmp_path, monkeypatch):
    generator = clipgraft.load(base, device="cpu")
    seen = []
    jobs = [Job("A dog", seed, num_inference_steps=5) for seed in (0, 1)]
    list(
        generator.draw(
            jobs, preview_every=2, on_preview=lambda batch, images, step: seen.append((len(images), step))
        )
    )
    assert seen == [(2, 2), (2, 4)]
    write, written = generate_stage.save_png, []

    def see(image, path, record):
        write(image, path, record)
        written.append((path, pixels(path).shape))

    monkeypatch.setattr(generate_stage, "save_png", see)
    assert generate(base, tmp_path, "A dog", "A cat", "--steps", 3, "--preview-every", 1) == 0
    assert written == [(tmp_path / "preview.png", (64, 128, 3))] * 2
    assert not (tmp_path / "preview.png").exists()


def test_dry_run_says_count_and_time_and_draws_nothing(base, tmp_path, capsys):
    assert generate(base, tmp_path, "A dog", "A cat", "--dry-run") == 0
    assert "2 pictures, 4 steps, about " in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


# Grafts that do not fit


def test_graft_of_another_width_or_vocabulary_is_refused(base, tmp_path, capsys):
    narrow = write_graft(tmp_path / "narrow", base, width=20)
    message = refused(capsys, "generate", "A dog", "--graft", narrow, "--out", tmp_path / "out")
    assert "the graft gives states of width 20, but this base's U-Net takes 24" in message
    clip = tiny.build_clip()
    clip.tokenizer.add_tokens(["zebra"])
    clip.model.text_model.resize_token_embeddings(len(clip.tokenizer))
    foreign = write_graft(tmp_path / "foreign", base, clip=clip)
    message = refused(capsys, "generate", "A dog", "--graft", foreign, "--out", tmp_path / "out")
    assert "use a CLIP and a base with one vocabulary" in message


def test_graft_of_another_base_is_refused(base, tmp_path, capsys):
    folder = write_graft(tmp_path / "graft", base)
    made_for = FrozenBase.load(str(tiny.write_base(tmp_path / "other", seed=2)))
    replace(Graft.from_pretrained(folder), base=made_for.record()).save_pretrained(folder)
    options = ["--graft", folder, "--base", base, "--out", tmp_path / "out"]
    assert "the graft was made for another base" in refused(capsys, "generate", "A dog", *options)


# Grids


def test_generate_puts_its_pictures_on_one_sheet(base, tmp_path, capsys):
    assert generate(base, tmp_path, "A dog", "A cat", "--num-images", 2, "--grid") == 0
    assert f"grid: {tmp_path / 'grid.png'}" in capsys.readouterr().out
    sheet = pixels(tmp_path / "grid.png")
    last = pixels(tmp_path / "a-cat_seed1.png")
    assert np.array_equal(sheet[-8 - 64 : -8, -4 - 64 : -4], last)  # behind gaps of 4 pixels


def test_count_of_a_resumed_comparison_is_of_what_each_column_lacks(base, graft, tmp_path, capsys):
    options = ["compare", "A dog", "A cat", "--graft", "teacher", "--graft", f"mine={graft}", "--base", base]
    options += ["--steps", 1, "--out", tmp_path]
    assert call(*options) == 0
    (tmp_path / "mine" / "a-dog_seed0.png").unlink()
    capsys.readouterr()
    assert call(*options, "--dry-run") == 0
    assert "1 picture, 1 step, about " in capsys.readouterr().err


def test_grid_draws_every_combination_labelled(base, graft, tmp_path, capsys):
    axes = ["--axis", "guidance=1,3", "--axis", "seed=0-2", "--axis", f"graft=teacher,mine={graft}"]
    assert call("grid", "A dog", *axes, "--steps", 1, "--base", base, "--out", tmp_path) == 0
    printed = capsys.readouterr()
    assert "12 pictures, 12 steps, about " in printed.err
    assert "12 drawn" in printed.out
    settings = {(row["column"], row["guidance_scale"], row["seed"]) for row in rows_of(tmp_path)}
    assert len(settings) == 12
    page = (tmp_path / "grid.html").read_text()
    assert page.count("<img ") == 12
    assert all(label in page for label in ("guidance 1", "seed 2", "mine", "2 x guidance"))
    assert {path.name for path in tmp_path.glob("grid-*.png")} == {"grid-1.png", "grid-2.png"}


def test_grid_cell_is_the_picture_of_its_labels(base, tmp_path):
    axes = ["--axis", "seed=4,2", "--axis", "steps=1,2"]
    assert call("grid", "A dog", *axes, "--base", base, "--out", tmp_path) == 0
    sheet = pixels(tmp_path / "grid.png")
    row = next(row for row in rows_of(tmp_path) if (row["seed"], row["num_inference_steps"]) == (2, 2))
    second_column_second_row = sheet[-8 - 64 : -8, -4 - 64 : -4]  # behind gaps of 4 pixels
    assert np.array_equal(second_column_second_row, pixels(tmp_path / row["file"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size=1", "with a name of prompt, seed, guidance, steps, scheduler, graft; got 'size=1'"),
        ("seed", "--axis takes NAME=VALUE,VALUE"),
        ("seed=", "axis 'seed' has no value"),
        ("seed=a", "no whole number: a"),
        ("seed=5-1", "the second is to be above the first"),
        ("guidance=x", "no number: x"),
        ("steps=2,2", "axis 'steps' has a value twice"),
        ("graft=a/graft,b=", "a graft is given as NAME=FOLDER, FOLDER or teacher; got 'b='"),
        ("graft=x/a/graft,y/a/graft", "two grafts are called 'a'"),
    ],
)
def test_axis_that_is_none_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_axis(text)


def test_a_column_is_named_by_its_folder_or_as_asked_for():
    found = parse_encoders(["teacher", "runs/mine/graft", "own=teacher", "other=b"])
    assert found == {"teacher": None, "mine": Path("runs/mine/graft"), "own": None, "other": Path("b")}


def test_axis_that_comes_twice_or_holds_what_is_not_allowed_is_refused(base, tmp_path, capsys):
    options = ["--base", base, "--out", tmp_path]
    assert "an axis comes twice" in refused(
        capsys, "grid", "A dog", "--axis", "seed=1", "--axis", "seed=2", *options
    )
    assert "steps must be from 1 to 1000 with scheduler 'dpm++'; got 0" in refused(
        capsys, "grid", "A dog", "--axis", "steps=0,1", *options
    )
    assert "no prompt to draw" in refused(capsys, "grid", "--axis", "seed=1", *options)


def test_compare_puts_the_text_encoders_of_a_run_side_by_side(base, graft, tmp_path, capsys):
    for stage_name in ("bridge_before", "bridge", "refine"):
        (tmp_path / "run" / stage_name).mkdir(parents=True)
        (tmp_path / "run" / stage_name / "graft").symlink_to(graft)
    options = ["--run", tmp_path / "run", "--num-images", 2, "--steps", 1, "--base", base]
    assert call("compare", "A dog", "A cat", *options, "--out", tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out")
    assert {row["column"] for row in rows} == {"teacher", "before", "after", "refined"}
    assert len(rows) == 16
    page = (tmp_path / "out" / "grid.html").read_text()
    for label in ("CLIP before fine-tuning", "CLIP after fine-tuning, graft refined", "A cat, seed 1"):
        assert label in page
    assert (tmp_path / "out" / "grid.png").is_file()


def test_compare_of_one_or_of_no_run_is_refused(base, graft, tmp_path, capsys):
    options = ["compare", "A dog", "--base", base, "--out", tmp_path / "out"]
    assert "fewer than two text encoders" in refused(capsys, *options, "--graft", "teacher")
    assert "num_images must be at least 1; got 0" in refused(
        capsys, *options, "--graft", "teacher", "--graft", graft, "--num-images", 0
    )
    assert "is no run with a graft" in refused(capsys, *options, "--run", tmp_path)


# Memory


def test_pictures_are_not_kept(base, tmp_path, monkeypatch):
    jobs = [Job("A dog", seed, num_inference_steps=1) for seed in range(40)]
    drawn, alive, write = [], [], gallery.save_png

    def count(image, *arguments):
        drawn.append(weakref.ref(image))
        alive.append(sum(picture() is not None for picture in drawn))
        write(image, *arguments)

    monkeypatch.setattr(gallery, "save_png", count)
    stage(jobs, {"teacher": None}, tmp_path, DrawOptions(base=str(base), is_quiet=True))
    assert len(drawn) == 40
    assert max(alive) <= 2 * DrawOptions().batch_size


def test_example_in_the_readme_draws(tmp_path, monkeypatch):
    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    example = next(part for part in readme.split("```python\n") if "clipgraft.load(" in part).split("```")[0]
    assert len(example.strip().splitlines()) == 5
    monkeypatch.chdir(tmp_path)
    exec(example)
    assert pixels(tmp_path / "dog.png").std() > 20


# A damaged list of pictures


def _cut(content: bytes, _rows: list) -> bytes:
    at = content.index("é".encode()) + 1  # within a letter of the second row
    return content[:at]


DAMAGED_LISTS = {
    # What is done to it, and which of the rows 0, 1, 2 can still be read.
    "whole": (lambda content, _: content, {0, 1, 2}),
    "cut within a letter": (_cut, {0}),
    "a number": (lambda *_: b"7", set()),
    "an object": (lambda *_: b"{}", set()),
    "empty": (lambda *_: b"", set()),
    "not UTF-8": (lambda content, _: content.replace("é".encode(), b"\xe9", 1), {0, 2}),
    "nested": (lambda *_: b"[" * 100_000, set()),
    "rows of junk": (
        lambda _, rows: json.dumps([rows[0], 7, None, [], {"file": 1}, {"status": "ok"}, rows[2]]).encode(),
        {0, 2},
    ),
    "no sum": (
        lambda _, rows: json.dumps(
            [rows[0], {k: v for k, v in rows[1].items() if k != "sha256"}, rows[2]]
        ).encode(),
        {0, 2},
    ),
    "half a pair": (lambda content, _: content.replace("é".encode(), b"\\ud83d", 1), {0, 2}),
}


@pytest.fixture(scope="module")
def three_pictures(base) -> Path:
    out = base.parent / "three"
    assert generate(base, out, "A dog", "A café", "A cat", "--steps", 1) == 0
    return out


@pytest.mark.parametrize("damage", DAMAGED_LISTS)
def test_of_a_damaged_list_the_rows_that_can_be_read_are_kept(base, three_pictures, tmp_path, capsys, damage):
    out = shutil.copytree(three_pictures, tmp_path / "out")
    spoil, readable = DAMAGED_LISTS[damage]
    path = out / "images.json"
    rows = rows_of(out)
    path.write_bytes(spoil(path.read_bytes(), rows))
    capsys.readouterr()
    assert generate(base, out, "A dog", "A café", "A cat", "--steps", 1) == 0
    told = capsys.readouterr()
    said = " ".join(told.err.split())
    assert f"3 pictures: {3 - len(readable)} drawn" in told.out
    assert said.count("images.json is damaged") == (damage != "whole")
    if damage != "whole":
        assert f"{len(readable)} rows are kept, the other pictures are drawn again" in said
    assert {row["prompt"] for row in rows_of(out)} == {"A dog", "A café", "A cat"}
    for index, row in enumerate(rows_of(out)):
        assert (row["file"] == rows[index]["file"]) == (index in readable)
    assert all((out / row["file"]).is_file() for row in rows)  # what was there before stays


DAMAGED_RECORDS = {
    "no JSON": lambda _: "{",
    "a list": lambda _: "[]",
    "deep": lambda _: "[" * 100_000,
    "without a batch": lambda record: json.dumps(
        {key: value for key, value in record.items() if key != "batch"}
    ),
    "a huge batch": lambda record: json.dumps(record | {"batch": {"size": 10**9, "index": 0}}),
    "a place outside its batch": lambda record: json.dumps(record | {"batch": {"size": 1, "index": 1}}),
    "a job of another type": lambda record: json.dumps(record | {"job": 7}),
    "a job with a word too many": lambda record: json.dumps(record | {"job": record["job"] | {"x": 1}}),
    "models of another type": lambda record: json.dumps(record | {"models": []}),
    "a base that is a number": lambda record: json.dumps(record | {"models": record["models"] | {"base": 7}}),
    "a feature cache that is text": lambda record: json.dumps(
        record | {"models": record["models"] | {"feature_cache": "x"}}
    ),
    "versions that are none": lambda record: json.dumps(record | {"versions": None}),
}


@pytest.mark.parametrize("damage", DAMAGED_RECORDS)
def test_a_damaged_record_of_a_picture_is_one_line_that_names_it(
    base, three_pictures, tmp_path, capsys, damage
):
    with Image.open(three_pictures / rows_of(three_pictures)[0]["file"]) as image:
        image.load()
        info = PngImagePlugin.PngInfo()
        info.add_text(RECORD_KEY, DAMAGED_RECORDS[damage](json.loads(image.info[RECORD_KEY])))
        image.save(tmp_path / "damaged.png", pnginfo=info)
    message = refused(
        capsys,
        "generate",
        "--from-image",
        tmp_path / "damaged.png",
        "--base",
        base,
        "--out",
        tmp_path / "out",
    )
    assert "record" in message
    assert not (tmp_path / "out").exists()
