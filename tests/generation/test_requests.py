"""Image requests from files of prompts: each line checked, bad ones named or skipped."""

import io
import json
import sys

import pytest
from image_world import generate, rows_of
from PIL import Image

from helpers import refused


def test_file_of_prompts_gives_an_image_per_line(base, tmp_path):
    (tmp_path / "prompts.txt").write_text("﻿A dog\n\nA cat, black\n", encoding="utf-8")
    assert generate(base, tmp_path / "out", "--from-file", tmp_path / "prompts.txt") == 0
    assert [row["prompt"] for row in rows_of(tmp_path / "out")] == ["A dog", "A cat, black"]


def test_jsonl_lines_have_settings_of_their_own(base, tmp_path):
    lines = [
        {"prompt": "A dog", "seed": 5, "num_images_per_prompt": 2},
        {"prompt": "A cat", "width": 72, "num_inference_steps": 1},
    ]
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
        (b'{"prompt": "A dog", "sed": 1}', "unknown setting 'sed'; did you mean 'seed'?"),
        (b'{"prompt": "A dog", "steps": 0}', "'steps' is called 'num_inference_steps' now"),
        (
            b'{"prompt": "A dog", "num_inference_steps": 0}',
            "setting 'num_inference_steps': input should be greater than or equal to 1; got 0",
        ),
        (b'{"prompt": "A dog", "seed": "x"}', "setting 'seed': input should be a valid integer; got 'x'"),
        (b'{"prompt": 7}', "prompt must be a text; got 7"),
        (
            b'{"prompt": "A dog", "scheduler": []}',
            "setting 'scheduler': input should be a valid string; got []",
        ),
        (
            b'{"prompt": "A dog", "guidance_scale": 1' + b"0" * 400 + b"}",
            "setting 'guidance_scale': input should be",
        ),
        (b'{"prompt": "A dog", "init_image": 7}', "setting 'init_image': input should be a valid string"),
        (b'{"prompt": "\\ud800"}', "the line is not JSON of whole characters: '\\ud800' holds half"),
        (b'{"prompt": "\xff"}', "not UTF-8 text (byte 13)"),
    ],
)
def test_bad_line_is_named_by_its_number_or_skipped(base, tmp_path, capsys, line, reason):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(b'{"prompt": "A cat"}\n' + line + b"\n")
    message = refused(capsys, "generate", "--from-file", prompts, "--base", base, "--out", tmp_path / "out")
    assert f"prompts.jsonl, line 2: {reason}" in message
    assert message.endswith("correct it (generate leaves it out with --skip-bad-lines)")
    assert not (tmp_path / "out").exists()
    assert generate(base, tmp_path / "out", "--from-file", prompts, "--skip-bad-lines") == 0
    assert f"skipped: prompts.jsonl, line 2: {reason}" in " ".join(capsys.readouterr().err.split())
    assert len(rows_of(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no picture", "expected a JPEG, PNG, WebP, AVIF or HEIC image"),
        (b"", "is empty (0 bytes)"),
        (None, "has 8x8 pixels; each side needs"),
    ],
)
def test_line_with_a_bad_init_image_is_a_bad_line(base, tmp_path, capsys, content, reason):
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
    assert "prompts.txt holds no prompt" in message
    assert "no prompt; " in refused(capsys, "generate", "--base", base, "--out", tmp_path)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--negative-prompt", "blurry", "--guidance-scale", 1),
            "negative prompt has no effect at guidance scale 1",
        ),
        (("--strength", 0.5), "strength has no effect without an initial image"),
    ],
)
def test_a_setting_without_effect_is_said(base, capsys, tmp_path, options, sentence):
    assert generate(base, tmp_path / "out", "A dog", *options) == 0
    assert sentence in capsys.readouterr().err
    [row] = rows_of(tmp_path / "out")
    assert any(sentence in note for note in row["notes"])
    assert (
        generate(base, tmp_path / "plain", "A dog", "--negative-prompt", "blurry", "--guidance-scale", 2) == 0
    )
    assert "no effect" not in capsys.readouterr().err
