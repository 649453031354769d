"""Images reproduced to the bit from their metadata, or refused with the reason."""

import json

import pytest
from huggingface_hub import constants
from image_world import generate, rows_of
from PIL import Image, PngImagePlugin

import tiny
from clipgraft.generation.image_encoding import RECORD_KEY, write_image
from clipgraft.generation.metadata import texts_of
from helpers import call, refused


@pytest.mark.parametrize("with_graft", [False, True])
def test_image_is_reproduced_to_the_bit(base, graft, tmp_path, with_graft):
    graft_option = ["--graft", graft] if with_graft else []
    prompts = ["A dog", "A cat", "A kite"]
    generate(base, tmp_path / "a", *prompts, *graft_option, "--scheduler", "ddim", "--width", 72)
    original = tmp_path / "a" / "a-cat_seed0.png"
    options = [*graft_option, "--base", base, "--out", tmp_path / "b"]
    assert call("generate", "--from-image", original, *options) == 0
    assert (tmp_path / "b" / original.name).read_bytes() == original.read_bytes()


def test_reproducing_with_another_model_is_refused(base, graft, tmp_path, capsys):
    generate(base, tmp_path, "A dog")
    options = ["generate", "--from-image", tmp_path / "a-dog_seed0.png", "--out", tmp_path / "b"]
    other = tiny.write_base(tmp_path / "other", seed=2)
    assert "the vae here (sha256" in refused(capsys, *options, "--base", other)
    assert "generated with the base's own text encoder; leave --graft out" in refused(
        capsys, *options, "--graft", graft
    )
    assert "that image's base is a local one; name it with --base" in refused(capsys, *options)


def test_image_is_not_reproduced_over_itself(base, tmp_path, capsys):
    generate(base, tmp_path / "a", "A dog")
    original = tmp_path / "a" / "a-dog_seed0.png"
    before = original.read_bytes()
    options = ["generate", "--from-image", original, "--base", base, "--out"]
    assert "is the folder of that image; name another one" in refused(capsys, *options, tmp_path / "a")
    assert original.read_bytes() == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / original.name).write_bytes(b"another one")
    assert call(*options, tmp_path / "b") == 0
    assert (tmp_path / "b" / original.name).read_bytes() == b"another one"
    assert (tmp_path / "b" / "a-dog_seed0_2.png").read_bytes() == before


def test_dry_run_reproduces_nothing(base, tmp_path, capsys):
    generate(base, tmp_path / "a", "A dog")
    options = ["--base", base, "--out", tmp_path / "b", "--dry-run"]
    assert call("generate", "--from-image", tmp_path / "a" / "a-dog_seed0.png", *options) == 0
    assert "1 image, 2 steps" in capsys.readouterr().err
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
    ],
)
def test_option_without_effect_is_refused(tmp_path, capsys, options, message):
    assert message in refused(capsys, "generate", "--out", tmp_path, *options)


def test_other_precision_needs_the_same_text_encoder(base, tmp_path, capsys):
    options = ["generate", "--base", base, "--out"]
    generate(base, tmp_path / "a", "A dog", "--engine", "torch")
    original = tmp_path / "a" / "a-dog_seed0.png"
    with Image.open(original) as image:
        record = json.loads(image.info[RECORD_KEY])
        record["models"]["dtype"] = "float16"
        write_image(image, original, texts=texts_of(record))
    capsys.readouterr()
    assert call(*options, tmp_path / "b", "--from-image", original) == 0
    assert "the unet's weights cannot be compared: float16 then, " in capsys.readouterr().err
    with Image.open(original) as image:
        record["models"]["text_encoder_sha256"] = "0" * 64
        write_image(image, original, texts=texts_of(record))
    message = refused(capsys, *options, tmp_path / "b", "--from-image", original)
    assert "the text encoder here (sha256" in message


def test_base_of_the_hub_is_loaded_at_its_commit(base, tmp_path, monkeypatch):
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


@pytest.mark.integration
def test_image_to_image_is_reproduced_with_its_init_image(base, tmp_path, capsys):
    for name, color in (("red", "red"), ("blue", "blue")):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{name}.png")
    generate(base, tmp_path / "a", "A dog", "--init-image", tmp_path / "red.png")
    original = tmp_path / "a" / "a-dog_seed0.png"
    options = ["generate", "--from-image", original, "--base", base, "--out", tmp_path / "b"]
    assert "name it with --init-image" in refused(capsys, *options)
    assert "blue.png is not the file that the image was made with" in refused(
        capsys, *options, "--init-image", tmp_path / "blue.png"
    )
    generate(base, tmp_path / "plain", "A dog")
    plain = ["generate", "--from-image", tmp_path / "plain" / original.name, "--base", base]
    plain += ["--out", tmp_path / "b", "--init-image", tmp_path / "red.png"]
    assert "was started from noise alone; leave --init-image out" in refused(capsys, *plain)
    assert call(*options, "--init-image", tmp_path / "red.png") == 0
    assert (tmp_path / "b" / original.name).read_bytes() == original.read_bytes()


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
def test_damaged_record_is_one_line_that_names_it(base, three_images, tmp_path, capsys, damage):
    with Image.open(three_images / rows_of(three_images)[0]["file"]) as image:
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
