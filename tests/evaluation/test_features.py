"""What is kept is found by all that decided it: bytes, settings, versions; what is damaged is made anew."""

from importlib.metadata import version

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image

import tiny
from clipgraft import cached_arrays
from clipgraft.bridging import latents
from clipgraft.data.buckets import Bucket
from clipgraft.data.dataset import CaptionedImage
from clipgraft.errors import is_user_error, one_line
from clipgraft.evaluation import features as own
from clipgraft.evaluation.features import ClipFeatures, FeatureStore, ProbeFeatures, generator_fingerprint
from clipgraft.evaluation.metrics.probe import fidelity_scores, load_probe
from clipgraft.evaluation.prompt_sets import EvaluationPrompt
from clipgraft.evaluation.results import PLAIN
from clipgraft.evaluation.scores import score_fidelity
from clipgraft.flatland import draw_scene, fidelity_prompts
from clipgraft.generation.adapters import Adapters
from clipgraft.generation.generator import ImageGenerator
from clipgraft.generation.image_encoding import write_image
from clipgraft.generation.pipeline import PromptEmbedCache, build_pipeline
from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import load_clip
from clipgraft.models.hub import embedded_models
from clipgraft.models.tokenizer import train_tokenizer
from helpers import files_of_at_most

GOLDEN_PICTURE = [
    [[38, 42, 74], [75, 78, 99], [33, 36, 70], [31, 35, 68]],
    [[62, 76, 105], [59, 71, 106], [73, 82, 118], [58, 74, 107]],
    [[151, 151, 127], [157, 170, 157], [163, 164, 135], [131, 125, 109]],
    [[74, 80, 102], [113, 118, 131], [103, 102, 116], [83, 80, 96]],
]
"""Means of RGB over 32 x 32 pixels."""
GOLDEN_FEATURES = [
    [0.0152, 0.0849, -0.0056, 0.0502],
    [0.0142, -0.047, -0.139, 0.0141],
    [0.1625, 0.3281, 0.2526, 0.1587],
]
"""First four of CLIP's of a picture and of a caption, and of the probe's."""


@pytest.fixture
def processes() -> PartialState:
    return PartialState(cpu=True)


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    return tiny.write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def base(base_dir) -> FrozenBase:
    return FrozenBase.load(str(base_dir))


def generator_of(base: FrozenBase) -> ImageGenerator:
    """In float32 on any machine, without an engine."""
    pipeline = build_pipeline(base, base.text_encoder)
    return ImageGenerator(
        pipeline, base.scheduler, {}, Adapters(PromptEmbedCache(pipeline), None), base.defaults
    )


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def clip_with(**changes):
    clip = tiny.build_clip()
    clip.model.eval()
    if "tokenizer" in changes:
        clip = clip._replace(tokenizer=changes.pop("tokenizer"))
    for name, value in changes.items():
        setattr(clip.image_processor, name, value)
    return clip


CHANGES = {
    "mean": {"image_mean": [0.5, 0.5, 0.5]},
    "deviation": {"image_std": [0.9, 0.2, 0.2]},
    "size": {"size": {"shortest_edge": 40}},
    "filter": {"resample": 2},
    "scale": {"rescale_factor": 1 / 128},
    "tokenizer": {"tokenizer": train_tokenizer(["dog beach " * 9, "zebra quiz"] * 2, vocab_size=700)},
}


@pytest.mark.parametrize("changed", CHANGES)
def test_features_are_not_taken_for_those_of_other_settings(tmp_path, processes, picture, changed):
    """The same weights: what is kept for the first CLIP must not be given for the second."""
    store = FeatureStore(tmp_path / "kept", processes)
    first, second = (
        ClipFeatures(clip, "scorer", store, store) for clip in (clip_with(), clip_with(**CHANGES[changed]))
    )
    assert first.checksum == second.checksum
    for features in (first, second):
        fresh = FeatureStore(tmp_path / "fresh" / str(features is first), processes)
        alone = ClipFeatures(features.clip, "scorer", fresh, fresh)
        torch.testing.assert_close(features.of_files([picture]), alone.of_files([picture]))
        torch.testing.assert_close(features.of_texts(["a dog runs"]), alone.of_texts(["a dog runs"]))
    of_one = [first.of_files([picture]), first.of_texts(["a dog runs"])]
    of_other = [second.of_files([picture]), second.of_texts(["a dog runs"])]
    assert [torch.equal(a, b) for a, b in zip(of_one, of_other, strict=True)].count(False) == 1


def test_another_activation_gives_other_features(tmp_path, processes, picture):
    store = FeatureStore(tmp_path / "kept", processes)
    clip = clip_with()
    config = clip.model.config
    config.vision_config.hidden_act = "relu"
    other = type(clip.model)(config).eval()
    other.load_state_dict(clip.model.state_dict())
    first = ClipFeatures(clip_with(), "", store, store).of_files([picture])
    second = ClipFeatures(clip._replace(model=other), "", store, store).of_files([picture])
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("changed", ["nothing", "data", "features", "pixels", "pillow", "transformers"])
def test_feature_is_made_again_where_data_or_a_version_changed(tmp_path, monkeypatch, processes, changed):
    store, made = FeatureStore(tmp_path, processes), []

    def extract(items):
        made.extend(items)
        return torch.ones(len(items), 2)

    store.features("", "extractor", ["a", "b"], ["sum of a", "sum of b"], extract)
    if changed in ("features", "pixels"):
        monkeypatch.setattr(own, f"{changed.upper()}_VERSION", 0)
    monkeypatch.setattr(own, "version", lambda name: "another" if name == changed else version(name))
    sums = ["sum of a", "another" if changed == "data" else "sum of b"]
    store.features("", "extractor", ["a", "b"], sums, extract)
    assert len(made) == (2 if changed == "nothing" else 4)


def test_damaged_features_are_made_anew_and_said(tmp_path, processes, caplog):
    store = FeatureStore(tmp_path, processes)

    def features():
        return store.features(
            "", "extractor", ["a", "b"], ["a", "b"], lambda items: torch.ones(len(items), 2)
        )

    features()
    path = next(tmp_path.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4])
    assert features().tolist() == [[1, 1], [1, 1]]
    assert f"{path} is damaged" in caplog.text
    assert "features are made anew" in caplog.text


def test_latents_are_kept_by_scale_and_versions_of_readers(base, picture, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = [CaptionedImage("picture.png", picture, ("a",), "train")]
    buckets = (Bucket(32, 32),)
    first = torch.from_numpy(latents.load_latents(base, images, buckets)[0])
    base.vae.register_to_config(scaling_factor=2 * base.vae.config.scaling_factor)
    second = torch.from_numpy(latents.load_latents(base, images, buckets)[0])
    torch.testing.assert_close(second, 2 * first, rtol=1e-2, atol=1e-3)
    monkeypatch.setattr(own, "PIXELS_VERSION", 0)
    latents.load_latents(base, images, buckets)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3


def test_pictures_are_known_by_all_that_decides_them(base, monkeypatch):
    generator = generator_of(base)
    pipeline, found = generator.pipeline, [generator_fingerprint(generator)]
    assert generator_fingerprint(generator) == found[0]
    pipeline.unet.register_to_config(norm_eps=0.1)
    found.append(generator_fingerprint(generator))
    pipeline.text_encoder.config.hidden_act = "relu"
    found.append(generator_fingerprint(generator))
    pipeline.scheduler.register_to_config(steps_offset=7)
    found.append(generator_fingerprint(generator))
    pipeline.scheduler = type("OtherScheduler", (type(pipeline.scheduler),), {}).from_config(
        pipeline.scheduler.config
    )
    found.append(generator_fingerprint(generator))
    next(pipeline.text_encoder.parameters()).data += 1
    found.append(generator_fingerprint(generator))
    monkeypatch.setattr(own, "GENERATION_VERSION", 0)
    found.append(generator_fingerprint(generator))
    assert len(set(found)) == len(found)


def test_shuffled_floor_pairs_images_with_the_next_prompt(tmp_path, processes):
    """As CLIP's: pictures stay in their place, prompts move up; the last has the first one's."""
    prompts = [
        EvaluationPrompt(each.text, i, (PLAIN,), scene=each.scene)
        for i, each in enumerate(fidelity_prompts()[:5])
    ]
    paths = []
    for number, prompt in enumerate(prompts):
        paths.append([tmp_path / f"{number}.png"])
        write_image(draw_scene(prompt.scene), paths[-1][0])
    probe = ProbeFeatures(
        load_probe(embedded_models() / "probe.safetensors"), FeatureStore(tmp_path, processes)
    )
    scores = score_fidelity(probe, prompts, {"after": paths}, "after")
    read = probe.read([own[0] for own in paths])
    for number, prompt in enumerate(prompts):
        before = read[number - 1 : number] if number else read[-1:]
        expected = fidelity_scores(before, [prompt.scene])["prompt_fidelity"]
        assert scores["prompt_fidelity"]["shuffled_captions"][number - 1] == expected


def test_drawing_is_as_the_version_of_files_says():
    """flatland's own text encoder, four steps, in float32; another CPU rounds otherwise by less than 2."""
    generator = generator_of(FrozenBase.load("flatland"))
    image = generator.generate("A dog on the beach", seed=0, num_inference_steps=4, guidance_scale=3)[0].image
    found = np.asarray(image, dtype=float).reshape(4, 32, 4, 32, 3).mean((1, 3)).round().astype(int)
    difference = np.abs(found - np.array(GOLDEN_PICTURE)).max()
    assert difference <= 2, (
        "the drawing has changed: raise GENERATION_VERSION in evaluation/features.py, or pictures of the old "
        f"one are taken for the new one's; the new numbers: {found.tolist()}"
    )
    assert own.GENERATION_VERSION == 2


def test_features_are_as_their_version_says(tmp_path, processes):
    store = FeatureStore(tmp_path / "kept", processes)
    path = tmp_path / "picture.png"
    write_image(draw_scene(fidelity_prompts()[0].scene), path)
    clip = ClipFeatures(load_clip("flatland"), "", store, store)
    clip.clip.model.eval()
    probe = ProbeFeatures(load_probe(embedded_models() / "probe.safetensors"), store)
    rows = [clip.of_files([path]), clip.of_texts(["a dog on the beach"]), probe.of_files([path])]
    found = [[round(float(value), 4) for value in row[0, :4]] for row in rows]
    difference = np.abs(np.array(found) - np.array(GOLDEN_FEATURES)).max()
    assert difference <= 1e-3, (
        "features have changed: raise FEATURES_VERSION in evaluation/features.py, or what is kept of the old "
        f"ones is taken for the new ones; the new numbers: {found}"
    )
    assert own.FEATURES_VERSION == 2


def test_features_on_a_full_disk_are_a_user_error(tmp_path):
    store = FeatureStore(tmp_path, PartialState(cpu=True))
    with files_of_at_most(100), pytest.raises(OSError, match="File too large") as raised:
        store.features("", "extractor", ["a"], ["sum"], lambda items: torch.ones(len(items), 64))
    assert is_user_error(raised.value)
    assert one_line(raised.value).startswith("no space left on the disk")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_features_lost_meanwhile_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cached_arrays, "SEGMENT_SECONDS", 0)  # each in a file of its own

    def extract(items):
        for path in tmp_path.rglob("*.safetensors"):
            path.unlink()
        return torch.tensor([[float(item)] for item in items])

    names = [str(number) for number in range(own.ITEMS_PER_ENTRY + 1)]
    features = FeatureStore(tmp_path, PartialState(cpu=True)).features("", "extractor", names, names, extract)
    assert features[:, 0].tolist() == [float(name) for name in names]
