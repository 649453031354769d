"""Which files a model is loaded from, and which are refused by name."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel
from transformers.utils import logging as transformers_logging

import tiny
from clipgraft.errors import CheckpointError
from clipgraft.models import loading
from clipgraft.models import single_file as sd15
from clipgraft.models.base import FrozenBase
from clipgraft.models.bridge import Bridge
from clipgraft.models.clip import load_clip
from clipgraft.models.configs import (
    BaseRecord,
    ClipConfig,
    ProcessorConfig,
    SchedulerConfig,
    TokenizerConfig,
    UnetConfig,
    VaeConfig,
    read_config,
)
from clipgraft.models.cross_attention import read_cross_attention
from clipgraft.models.graft import Graft, GraftedTextEncoder
from clipgraft.models.weights import write_folder_atomically

INDEX = "model.safetensors.index.json"
SCRIPT = Path(__file__).resolve().parents[3] / "shared" / "cases" / "models" / "make_index_bin.py"


@pytest.fixture
def clip_copy(clip_dir, copy):
    """A CLIP without a manifest, as it comes from the hub."""
    folder = copy(clip_dir)
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture
def graft_copy(clip, tmp_path):
    encoder = GraftedTextEncoder.graft(
        clip.model.text_model, Bridge(16, 24), torch.zeros(77, 24), clip.tokenizer.eos_token_id
    )
    record = BaseRecord(name="base", sums={})
    Graft(encoder, clip.tokenizer, record).save_pretrained(tmp_path / "graft")
    return tmp_path / "graft"


def name_in_index(folder: Path, stem: str, name: object) -> None:
    """Take whole weights away, and write an index that names a file for all of them."""
    weights = folder / f"{stem}.safetensors"
    listed = dict.fromkeys(load_file(weights), name)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))


def no_pickles(monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(torch, "load", refuse)


STRANGERS = (
    "weights.bin", "../outside.safetensors", "/tmp/outside.safetensors", "sub/x.safetensors", "..", "", 3,
    ".safetensors", "C:\\x.safetensors", "a.safetensors/../../b.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
def test_an_index_may_name_safetensors_of_its_folder_alone(clip_copy, base_dir, copy, monkeypatch, name):
    no_pickles(monkeypatch)
    (clip_copy / "weights.bin").write_bytes((clip_copy / "model.safetensors").read_bytes())
    (clip_copy.parent / "outside.safetensors").write_bytes((clip_copy / "model.safetensors").read_bytes())
    name_in_index(clip_copy, "model", name)
    (clip_copy / "model.safetensors").rename(clip_copy / "decoy.safetensors")
    with pytest.raises(CheckpointError, match=rf"{INDEX} names .*; only \.safetensors files in that very"):
        load_clip(clip_copy)
    base = copy(base_dir)
    name_in_index(base / "unet", "diffusion_pytorch_model", name)
    (base / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    for load in (
        lambda: FrozenBase.load(str(base), components=("unet",)),
        lambda: read_cross_attention(base),
    ):
        with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors\.index\.json names"):
            load()


def test_loading_shows_no_progress_bar_of_transformers(tmp_path, capfd):
    tiny.write_clip(tmp_path / "clip")
    transformers_logging.enable_progress_bar()
    capfd.readouterr()
    load_clip(tmp_path / "clip")
    assert capfd.readouterr().err == ""


def test_plain_from_pretrained_checks_an_index_too(graft_copy):
    name_in_index(graft_copy, "model", "../outside.safetensors")
    (graft_copy / "model.safetensors").rename(graft_copy.parent / "outside.safetensors")
    with pytest.raises(CheckpointError, match=rf"{INDEX} names '\.\./outside\.safetensors'"):
        GraftedTextEncoder.from_pretrained(graft_copy)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": []}', '{"weight_map": {}}', "{}"])
def test_a_damaged_index_is_named(clip_copy, content):
    (clip_copy / "model.safetensors").unlink()
    (clip_copy / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=INDEX):
        load_clip(clip_copy)


def test_a_weight_in_two_shards_is_refused(clip_copy):
    tiny.shard(clip_copy, "model")
    load_clip(clip_copy)
    first, second = (clip_copy / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    save_file(load_file(first) | load_file(second), second)
    with pytest.raises(CheckpointError, match=r"00002\.safetensors holds .*, and another shard does too"):
        load_clip(clip_copy)


def test_an_index_beside_whole_weights_is_not_read(clip, clip_copy):
    name_in_index(clip_copy, "model", "../outside.safetensors")
    assert torch.equal(load_clip(clip_copy).model.logit_scale, clip.model.logit_scale)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_weights_is_refused_by_name(clip_copy, graft_copy, base_dir, copy, name):
    base = copy(base_dir)
    for folder in (clip_copy, graft_copy, base / "text_encoder"):
        (folder / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"clip/{name} is an adapter, .*merge_and_unload"):
        load_clip(clip_copy)
    with pytest.raises(CheckpointError, match=rf"graft/{name} is not listed in manifest\.json"):
        Graft.from_pretrained(graft_copy)
    with pytest.raises(CheckpointError, match=rf"graft/{name} is an adapter"):
        GraftedTextEncoder.from_pretrained(graft_copy)
    with pytest.raises(CheckpointError, match=rf"text_encoder/{name} is an adapter"):
        FrozenBase.load(str(base), components=("text_encoder",))


@pytest.mark.parametrize(
    "name", [INDEX, "more.safetensors", "pytorch_model.BIN", "added_tokens.json", "merges.txt", "vocab.json"]
)
def test_a_file_that_decides_must_be_listed_in_the_manifest(clip_dir, graft_copy, copy, name):
    clip_dir = copy(clip_dir)
    for folder, load in ((clip_dir, load_clip), (graft_copy, Graft.from_pretrained)):
        (folder / "README.md").write_text("notes")
        load(folder)
        (folder / name).write_text("{}")
        with pytest.raises(CheckpointError, match=rf"{folder.name}/{name} is not listed in manifest\.json"):
            load(folder)


def test_a_manifest_without_weights_is_refused(graft_copy):
    (graft_copy / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(CheckpointError, match=r"is not listed in manifest\.json"):
        Graft.from_pretrained(graft_copy)
    for path in graft_copy.iterdir():
        if path.name != "base.json":
            path.unlink()
    with write_folder_atomically(graft_copy.parent / "bare") as bare:
        shutil.copy(graft_copy / "base.json", bare)
    with pytest.raises(CheckpointError, match=r"bare/manifest\.json lists no weights"):
        Graft.from_pretrained(graft_copy.parent / "bare")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_links_out_of_a_model_are_refused(clip_copy, graft_copy, tmp_path, file):
    for folder, load in ((clip_copy, load_clip), (graft_copy, Graft.from_pretrained)):
        outside = tmp_path / f"outside {folder.name}"
        (folder / file).rename(outside)
        (folder / file).symlink_to(outside)
        with pytest.raises(CheckpointError, match=rf"{folder.name}/{file} is a link to .*, out of the model"):
            load(folder)


@pytest.mark.parametrize(
    "name", ["unet", "unet/config.json", "scheduler/scheduler_config.json", "generation_config.json"]
)
def test_links_out_of_a_base_are_refused(base_dir, copy, tmp_path, name):
    base = copy(base_dir)
    (base / "generation_config.json").write_text("{}")
    (base / name).rename(tmp_path / "outside")
    (base / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=rf"base/{name} is a link to"):
        FrozenBase.load(str(base))


def test_links_within_a_model_and_to_it_are_followed(clip, base_dir, clip_copy, copy, tmp_path):
    (clip_copy / "model.safetensors").rename(clip_copy / "weights")
    (clip_copy / "model.safetensors").symlink_to("weights")
    (tmp_path / "link").symlink_to(clip_copy)
    assert torch.equal(load_clip(tmp_path / "link").model.logit_scale, clip.model.logit_scale)
    base = copy(base_dir)
    (base / "unet").rename(base / "elsewhere")
    (base / "unet").symlink_to("elsewhere")
    FrozenBase.load(str(base), components=("unet",))


def test_the_hubs_cache_links_to_its_own_blobs_alone(clip_copy, tmp_path):
    repository = tmp_path / "models--owner--clip"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for path in clip_copy.iterdir():
        path.rename(repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    load_clip(snapshot)
    (repository / "blobs" / "config.json").rename(tmp_path / "config.json")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json is a link to"):
        load_clip(snapshot)


def test_a_link_that_goes_round_in_a_circle_is_refused(clip_copy):
    (clip_copy / "model.safetensors").unlink()
    (clip_copy / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(CheckpointError, match=r"clip/model\.safetensors is damaged"):
        load_clip(clip_copy)


def test_weights_are_those_that_transformers_loads(clip_copy):
    plain = CLIPModel.from_pretrained(clip_copy, dtype=torch.float32)
    loaded = load_clip(clip_copy).model
    assert loaded.state_dict().keys() == plain.state_dict().keys()
    for name, weight in plain.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    assert torch.equal(
        loaded.vision_model.embeddings.position_ids, plain.vision_model.embeddings.position_ids
    )


def test_older_names_of_a_safety_checkers_weights_are_known(tmp_path):
    folder = tiny.write_checked_base(tmp_path / "base", 0.5)
    path = folder / "safety_checker" / "model.safetensors"
    weights = load_file(path)
    older = {name.replace("vision_model.", "vision_model.vision_model."): w for name, w in weights.items()}
    older["vision_model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(older, path, metadata={"format": "pt"})
    checker = FrozenBase.load(str(folder), components=("safety_checker",)).safety_checker
    for name, weight in checker.state_dict().items():
        assert torch.equal(weight, weights[name])


def test_the_image_processor_that_transformers_5_writes_is_read(clip, clip_copy):
    config = json.loads((clip_copy / "preprocessor_config.json").read_text())
    (clip_copy / "preprocessor_config.json").unlink()
    (clip_copy / "processor_config.json").write_text(json.dumps({"image_processor": config}))
    assert load_clip(clip_copy).image_processor.to_dict() == clip.image_processor.to_dict()
    (clip_copy / "processor_config.json").write_text(json.dumps({"image_processor": config | {"size": 0}}))
    with pytest.raises(CheckpointError, match=r"processor_config\.json is damaged .*: image_processor\.size"):
        load_clip(clip_copy)
    (clip_copy / "processor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json: no such file"):
        load_clip(clip_copy)


def test_images_of_another_size_than_the_tower_sees_are_refused(clip_copy):
    path = clip_copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"crop_size": 48}))
    with pytest.raises(CheckpointError, match=r"cut to 48 x 48 pixels .*, the vision tower sees 32 x 32"):
        load_clip(clip_copy)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"layers_per_block": [2, "x"]}, "layers_per_block.1 is 'x', should be a valid integer"),
        ({"cross_attention_dim": 10**9}, "cross_attention_dim is '1000000000', should be less than or equal"),
        ({"sample_size": None}, "sample_size is 'None', should be"),
    ],
)
def test_a_wrong_value_is_said_with_key_and_range(base_dir, tmp_path, value, said):
    config = json.loads((base_dir / "unet" / "config.json").read_text()) | value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        read_config(tmp_path / "config.json", UnetConfig)
    assert f"config.json is damaged or of another model: {said}" in str(caught.value)


def test_the_largest_config_costs_no_memory_and_little_time(base_dir, copy):
    folder = copy(base_dir)
    path = folder / "text_encoder" / "config.json"
    largest = {"num_hidden_layers": 256, "hidden_size": 1 << 16, "intermediate_size": 1 << 16}
    path.write_text(json.dumps(json.loads(path.read_text()) | largest))
    unet = folder / "unet" / "config.json"
    unet.write_text(json.dumps(json.loads(unet.read_text()) | {"cross_attention_dim": 1 << 16}))
    began = time.process_time()
    with pytest.raises(CheckpointError, match="text_encoder lacks"):
        FrozenBase.load(str(folder), components=("text_encoder",))
    assert time.process_time() - began < 60


def test_a_configuration_of_absurd_size_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(64_000_001)
    with pytest.raises(
        CheckpointError, match=r"config\.json has 64,000,001 bytes; at most 64,000,000 are read"
    ):
        read_config(tmp_path / "config.json", UnetConfig)


@pytest.mark.parametrize("steps", [1, 100_000])
def test_schedules_of_any_sensible_length_are_read(tmp_path, steps):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({"num_train_timesteps": steps}))
    assert read_config(path, SchedulerConfig)["num_train_timesteps"] == steps


def test_published_sd15_and_clip_configurations_are_taken(tmp_path):
    """Keys of the published files that today's libraries do not write."""
    published = {
        "text_config": {"hidden_size": 512, "bos_token_id": 0, "eos_token_id": 2, "torch_dtype": None},
        "text_config_dict": None,
        "vision_config": {"hidden_size": 768, "patch_size": 32, "bad_words_ids": None, "dropout": 0.0},
        "vision_config_dict": None,
        "id2label": {"0": "LABEL_0"},
        "logit_scale_init_value": 2.6592,
        "torch_dtype": "float32",
    }
    for name, config, kind in (
        ("clip.json", published, ClipConfig),
        (
            "processor.json",
            {"crop_size": 224, "size": 224, "resample": 3, "do_resize": True},
            ProcessorConfig,
        ),
        (
            "tokenizer.json",
            {"model_max_length": 77, "bos_token": {"content": "<|startoftext|>"}},
            TokenizerConfig,
        ),
        ("vae.json", sd15.VAE_CONFIG, VaeConfig),
        ("unet.json", sd15.UNET_CONFIG | {"mid_block_scale_factor": 1, "freq_shift": 0}, UnetConfig),
        ("scheduler.json", sd15.SCHEDULER_CONFIG | {"trained_betas": None}, SchedulerConfig),
    ):
        (tmp_path / name).write_text(json.dumps(config))
        assert read_config(tmp_path / name, kind) == config


@pytest.mark.integration
def test_a_pickle_named_by_an_index_is_never_opened(tmp_path):
    if not SCRIPT.is_file():
        pytest.skip(f"the script that makes such a folder is not there: {SCRIPT}")
    folder = tmp_path / "made"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, SCRIPT, folder], check=True, env=environment)
    with pytest.raises(CheckpointError, match=rf"{INDEX} names 'weights\.bin'"):
        load_clip(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's mappings")
def test_weights_leave_memory_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "PIECE_BYTES", 4 * 1000)
    path = tmp_path / "model.safetensors"
    stored = {f"layer{number}": torch.full((1000,), float(number)) for number in range(3)}
    save_file(stored, path)

    def num_mappings() -> int:
        return Path("/proc/self/maps").read_text().count(str(path))

    weights = loading.read_weights([path])
    assert weights.keys() == stored.keys()
    assert all(torch.equal(weights[name], stored[name]) for name in stored)
    assert num_mappings() == 3
    del weights["layer0"]
    assert num_mappings() == 2
    model = torch.nn.ParameterDict({name: torch.empty(1000, device="meta") for name in ("layer1", "layer2")})
    loading.set_weights(model, weights, torch.bfloat16)
    assert num_mappings() == 0
    assert model["layer2"].dtype == torch.bfloat16
    assert float(model["layer2"].detach().mean()) == 2
