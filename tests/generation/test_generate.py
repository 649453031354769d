"""The generate command as a user meets it: stops, memory, JSON, previews, grafts that do not fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_world import generate, pixels, rows_of, write_graft
from PIL import Image

import clipgraft
import tiny
from clipgraft.errors import CheckpointError
from clipgraft.files import file_sha256
from clipgraft.generation import generate as generate_stage
from clipgraft.generation import image_folder as gallery
from clipgraft.generation.generator import load_generators
from clipgraft.generation.image_encoding import RECORD_KEY
from clipgraft.models.base import FrozenBase
from clipgraft.models.graft import Graft
from helpers import call, image_request, interrupted_when, refused


def test_empty_prompt_is_generated_with_a_note(base, tmp_path, capsys):
    assert generate(base, tmp_path, "") == 0
    assert "the prompt is empty: generated without one" in capsys.readouterr().err
    assert rows_of(tmp_path)[0]["file"] == "empty-prompt_seed0.png"


@pytest.mark.integration
def test_interrupted_generation_keeps_its_images(base, tmp_path, capsys):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("\n".join(f"A dog {number}" for number in range(400)))
    options = ["--base", base, "--out", out, "--steps", 3, "--batch-size", 2]
    with interrupted_when(lambda: len(list(out.glob("*.png"))) >= 3):
        assert call("generate", "--from-file", prompts, *options) == 130
    said = capsys.readouterr()
    assert "the same command generates the rest" in said.out
    assert "Traceback" not in said.err
    rows = rows_of(out)
    assert 3 <= len(rows) < 400
    assert all(pixels(out / row["file"]).shape == (64, 64, 3) for row in rows)


def test_stop_while_loading_generates_nothing(base, tmp_path, capsys, monkeypatch):
    generate(base, tmp_path, "A dog", "A cat")

    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_stage, "load_generators", stop)
    capsys.readouterr()
    assert generate(base, tmp_path, "A dog", "A cat", "A kite") == 130
    assert "0 images: 0 generated in " in capsys.readouterr().out
    assert len(rows_of(tmp_path)) == 2


def test_batches_stay_halved_after_one_did_not_fit(base, tmp_path, capsys, monkeypatch):
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
    assert capsys.readouterr().err.count("not enough memory for 4 images at once; going on with 2") == 1
    sizes = []
    for row in rows_of(tmp_path):
        with Image.open(tmp_path / row["file"]) as image:
            sizes.append(json.loads(image.info[RECORD_KEY])["batch"]["size"])
    assert sizes == [2] * 8 + [1]


@pytest.mark.integration
def test_batch_that_does_not_fit_into_memory_is_halved(base, tmp_path, capsys):
    generator = clipgraft.load(base, device="cpu")

    def fail(_module, inputs):
        if len(inputs[0]) > 4:  # guidance doubles a batch
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    generator.pipeline.unet.register_forward_pre_hook(fail)
    sizes = []
    requests = [image_request("A dog", seed, num_inference_steps=1) for seed in range(5)]
    images = list(generator.sample(requests, batch_size=5, on_less_memory=sizes.append))
    assert sizes == [2]
    assert [image.seed for image in images] == [0, 1, 2, 3, 4]


def test_too_little_memory_for_one_image_is_an_error(base):
    generator = clipgraft.load(base, device="cpu")

    def fail(_module, _inputs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    generator.pipeline.unet.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="memory does not suffice for one image of 64x64 pixels"):
        generator.generate("A dog", num_inference_steps=1, num_images_per_prompt=2)


def test_strength_sets_how_much_of_init_image_is_left(base, tmp_path):
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


@pytest.mark.integration
def test_low_strength_stays_nearer_to_init_image(tmp_path):
    generator = clipgraft.load("flatland", device="cpu")
    first = generator.generate("A red boat on the lake", num_inference_steps=8, guidance_scale=3)[0].image
    first.save(tmp_path / "first.png")
    settings = {
        "num_inference_steps": 8,
        "guidance_scale": 3,
        "seed": 1,
        "init_image": tmp_path / "first.png",
    }
    distances = []
    for strength in (0.2, 0.6, 1.0):
        found = generator.generate("A dog on the beach at night", strength=strength, **settings)[0].image
        distances.append(np.abs(np.asarray(found, float) - np.asarray(first, float)).mean())
    assert distances == sorted(distances)


def test_json_is_all_that_is_printed(base, tmp_path, capsys):
    capsys.readouterr()
    assert generate(base, tmp_path, "A dog", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["counts"] == {"ok": 1}
    assert printed["images"] == rows_of(tmp_path)


def test_json_of_a_dry_run_has_no_images(base, tmp_path, capsys):
    assert generate(base, tmp_path, "A dog", "--json", "--dry-run") == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(tmp_path), "counts": {}, "images": []}


def test_json_after_a_stop_has_the_finished_images(base, tmp_path, capsys, monkeypatch):
    write = gallery.write_image

    def stop_at_the_cat(image, path, *arguments):
        if "cat" in path.name:
            raise KeyboardInterrupt
        write(image, path, *arguments)

    monkeypatch.setattr(gallery, "write_image", stop_at_the_cat)
    assert generate(base, tmp_path, "A dog", "A cat", "--json") == 130
    printed = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in printed["images"]] == ["a-dog_seed0.png"]


@pytest.mark.parametrize("height", [-8, 70_000])
def test_size_out_of_range_is_refused(base, tmp_path, capsys, height):
    message = refused(capsys, "generate", "A dog", "--base", base, "--out", tmp_path, "--height", height)
    assert f"got {height}" in message


@pytest.mark.integration
def test_previews_are_written_and_removed_at_the_end(base, tmp_path, monkeypatch):
    generator = clipgraft.load(base, device="cpu")
    seen = []
    requests = [image_request("A dog", seed, num_inference_steps=5) for seed in (0, 1)]
    list(
        generator.sample(
            requests, preview_every=2, on_preview=lambda batch, images, step: seen.append((len(images), step))
        )
    )
    assert seen == [(2, 2), (2, 4)]
    write, written = generate_stage.write_image, []

    def see(image, path):
        write(image, path)
        written.append((path, pixels(path).shape))

    monkeypatch.setattr(generate_stage, "write_image", see)
    assert generate(base, tmp_path, "A dog", "A cat", "--steps", 3, "--preview-every", 1) == 0
    assert written == [(tmp_path / "preview.png", (64, 128, 3))] * 2
    assert not (tmp_path / "preview.png").exists()


def test_dry_run_prints_the_count_and_generates_nothing(base, tmp_path, capsys):
    assert generate(base, tmp_path, "A dog", "A cat", "--dry-run") == 0
    assert "2 images, 4 steps" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


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


@pytest.mark.integration
def test_example_in_the_readme_generates(tmp_path, monkeypatch):
    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    example = next(part for part in readme.split("```python\n") if "clipgraft.load(" in part).split("```")[0]
    assert len(example.strip().splitlines()) == 5
    monkeypatch.chdir(tmp_path)
    exec(example)
    assert pixels(tmp_path / "dog.png").std() > 20


def test_each_file_of_a_graft_is_hashed_once(base, tmp_path, monkeypatch):
    folder, hashed = write_graft(tmp_path / "graft", base), []

    def hash_and_note(path):
        hashed.append(path)
        return file_sha256(path)

    monkeypatch.setattr("clipgraft.models.weights.file_sha256", hash_and_note)
    assert [name for name, _ in load_generators({"graft": folder}, device="cpu")] == ["graft"]
    own = [path.name for path in hashed if path.parent == folder]
    assert sorted(own) == sorted({*own} | {"model.safetensors", "base.json"})


def test_grafts_are_verified_first_and_loaded_in_turn(base, tmp_path):
    encoders = {name: write_graft(tmp_path / name, base) for name in ("first", "last")}
    generators = load_generators(encoders, device="cpu")
    assert next(generators)[0] == "first"
    weights = encoders["last"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for begun in (generators, load_generators(encoders, device="cpu")):
        with pytest.raises(CheckpointError, match=r"last/model\.safetensors is damaged"):
            next(begun)
