"""Metadata of images: readable by other tools, without paths."""

import json
import re
from importlib.metadata import version
from pathlib import Path

import torch
from image_world import generate, rows_of
from PIL import Image

from clipgraft.generation.image_encoding import PARAMETERS_KEY, RECORD_KEY
from clipgraft.generation.metadata import versions
from clipgraft.models.base import FrozenBase
from helpers import import_openvino, refused

A1111_PAIR = re.compile(r"\s*(\w[\w \-/]+):\s*(\"(?:\\.|[^\\\"])+\"|[^,]*)(?:,|$)")
"""With which A1111 and Forge read the last line of `parameters` (modules/infotext_utils.py)."""


def test_metadata_is_in_the_form_that_other_tools_read(base, tmp_path):
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
    sums = FrozenBase.load(str(base), dtype=dtype).weight_checksums()
    assert record["models"]["unet_sha256"] == sums["unet"]
    sums = FrozenBase.load(str(base)).weight_checksums()  # the text encoder is float32 on every engine
    assert record["models"]["text_encoder_sha256"] == sums["text_encoder"]
    assert record["scheduler"]["_class_name"] == "DPMSolverMultistepScheduler"
    assert record["versions"]["torch"] == torch.__version__


def test_metadata_holds_no_path(base, graft, tmp_path):
    generate(base, tmp_path, "A dog", "--graft", graft)
    text = (tmp_path / "a-dog_seed0.png").read_bytes()
    assert str(base).encode() not in text
    assert base.parent.name.encode() not in text
    assert Path.home().name.encode() not in text


def test_unicode_prompt_survives_in_the_metadata(base, tmp_path):
    generate(base, tmp_path, "狗 🐕")
    with Image.open(next(tmp_path.glob("*.png"))) as image:
        image.load()
        assert image.info[PARAMETERS_KEY].startswith("狗 🐕\n")
        assert json.loads(image.info[RECORD_KEY])["job"]["prompt"] == "狗 🐕"


def test_image_without_metadata_holds_nothing(base, tmp_path, capsys):
    generate(base, tmp_path, "A dog", "--no-metadata")
    with Image.open(tmp_path / "a-dog_seed0.png") as image:
        assert image.info == {}
    message = refused(capsys, "generate", "--from-image", tmp_path / "a-dog_seed0.png", "--out", tmp_path)
    assert "holds no record of its generation" in message


def test_unread_part_of_a_negative_prompt_is_noted(base, tmp_path, capsys):
    long = "a dog " * 80 + "beach"
    generate(base, tmp_path, "A dog", "--negative-prompt", long, "--long-prompts", "cut")
    assert "note: negative prompt 'a dog a dog" in capsys.readouterr().err
    [note] = rows_of(tmp_path)[0]["notes"]
    assert note.startswith("negative prompt: ")
    assert "77 are read; cut off: " in note
    with Image.open(tmp_path / "a-dog_seed0.png") as image:
        assert json.loads(image.info[RECORD_KEY])["notes"] == [note]


def test_version_of_openvino_is_recorded_with_that_engine():
    import_openvino()
    assert versions("openvino") == versions("torch") | {"openvino": version("openvino")}
