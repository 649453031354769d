"""Images drawn while a model trains: which, from where, and in what batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from clipgraft.data.batches import to_uint8
from clipgraft.data.transforms import encode_captions, pad_input_ids
from clipgraft.flatland import draw_scene, is_known_to_teacher, sample_scene
from clipgraft.models.tokenizer import train_tokenizer
from clipgraft.pretraining.drawing import Drawing, DrawnImages, captions_for_teacher, draw_arrays
from clipgraft.pretraining.drawn_batches import DrawnCrops, DrawnLabels, DrawnLatents

SCENES = [sample_scene(7, index, "train") for index in range(24)]
COMMON = {"passes": 2, "batch_size": 6, "seed": 3, "device": torch.device("cpu")}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer((text for scene in SCENES for text in captions_for_teacher(scene)), vocab_size=900)


@pytest.fixture
def drawn(tokenizer, tmp_path):
    drawing = Drawing(7, "train", tokenizer.backend_tokenizer.to_str(), marks_subject=True)
    images = DrawnImages(drawing, 8, num_epochs=3, folder=tmp_path / "drawn", num_workers=1)
    yield images
    images.close()
    assert not (tmp_path / "drawn").exists()


def latents_of(pixels: torch.Tensor) -> torch.Tensor:
    """Means of pixels, which tell images apart."""
    return pixels.float().mean((1, 2, 3))[:, None, None, None].expand(-1, 4, 2, 2)


def test_epochs_show_the_scenes_of_their_numbers(drawn):
    for epoch in (0, 1, 2, 1):
        shown = np.concatenate([load_file(path)["pixels"] for path in drawn.epoch(epoch)])
        expected = [np.asarray(draw_scene(scene)) for scene in SCENES[8 * epoch : 8 * epoch + 8]]
        assert np.array_equal(shown, np.stack(expected).transpose(0, 3, 1, 2))


def test_token_ids_are_those_of_the_models_tokenizer(tokenizer):
    drawing = Drawing(7, "train", tokenizer.backend_tokenizer.to_str())
    ids = torch.from_numpy(draw_arrays(drawing, range(24))["input_ids"])
    for scene, rows in zip(SCENES, ids, strict=True):
        captions = captions_for_teacher(scene)
        assert all(map(is_known_to_teacher, captions))
        expected = pad_input_ids(encode_captions(captions, tokenizer)[0], tokenizer.eos_token_id, 77)
        assert torch.equal(rows.long(), expected)


def test_subject_is_where_its_colour_changes_pixels():
    scenes = [(index, scene) for index, scene in enumerate(SCENES) if scene.subject and not scene.companion]
    for index, scene in scenes[:4]:
        marked = draw_arrays(Drawing(7, "train", marks_subject=True), range(index, index + 1))["is_subject"][
            0
        ]
        colour = "red" if scene.colour != "red" else "blue"
        painted, other = (np.asarray(draw_scene(each)) for each in (scene, replace(scene, colour=colour)))
        changed = (painted != other).any(2)
        assert changed.any()
        assert not (changed & ~marked).any()
        assert marked.mean() < 0.5


@pytest.mark.parametrize("kind", ["crops", "latents", "labels"])
def test_epoch_from_a_position_equals_the_unbroken_epoch(kind, drawn):
    batches = {
        "crops": lambda: DrawnCrops(drawn, crop_size=64, **COMMON),
        "latents": lambda: DrawnLatents(drawn, encode=latents_of, **COMMON),
        "labels": lambda: DrawnLabels(drawn, change=lambda pixels: pixels, **COMMON),
    }[kind]()
    whole, rest = list(batches.epoch(1, 0)), list(batches.epoch(1, 1))
    assert len(whole) == len(batches) == 2
    assert whole[0].keys() == rest[0].keys()
    for name, tensor in rest[0].items():
        assert torch.equal(tensor, whole[1][name])


def test_caption_and_labels_stay_with_their_image(drawn, tokenizer):
    arrays = draw_arrays(drawn.drawing, range(8, 16))
    means = latents_of(torch.from_numpy(arrays["pixels"]))[:, 0, 0, 0].tolist()
    for batch in DrawnLatents(drawn, encode=latents_of, **COMMON).epoch(1, 0):
        for latents, ids in zip(batch["latents"], batch["input_ids"], strict=True):
            own = arrays["input_ids"][means.index(latents[0, 0, 0].item())]
            assert ids.tolist() in own.tolist()
    for batch in DrawnLabels(drawn, change=lambda pixels: pixels, **COMMON).epoch(1, 0):
        for mean, labels in zip(latents_of(to_uint8(batch["pixels"])), batch["labels"], strict=True):
            assert labels.tolist() == arrays["labels"][means.index(mean[0, 0, 0].item())].tolist()


def test_crop_is_a_piece_of_its_image_and_its_subject(drawn):
    arrays = draw_arrays(drawn.drawing, range(8))
    batch = next(iter(DrawnCrops(drawn, crop_size=64, **COMMON).epoch(0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(arrays["pixels"], (64, 64), (2, 3))
    crop, marked = to_uint8(batch["vae_pixel_values"])[0].numpy(), batch["is_subject"][0].numpy()
    places = np.argwhere((windows[:, 0, ..., ::9, ::9] == crop[0, ::9, ::9]).all((-1, -2)))
    image, top, left = next(at for at in places if np.array_equal(windows[at[0], :, at[1], at[2]], crop))
    assert np.array_equal(arrays["is_subject"][image, top : top + 64, left : left + 64], marked)


def test_another_seed_or_tokenizer_has_another_fingerprint(tokenizer):
    words = tokenizer.backend_tokenizer.to_str()
    drawings = [Drawing(7, "train"), Drawing(8, "train"), Drawing(7, "train", words)]
    assert len({drawing.fingerprint for drawing in drawings}) == 3
    assert Drawing(7, "train").fingerprint == drawings[0].fingerprint
