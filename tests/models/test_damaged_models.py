"""Every kind of model folder, each of its files, each kind of damage: one line that names the file."""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import tiny
from clipgraft.errors import CheckpointError, MissingFileError
from clipgraft.evaluation.metrics.probe import Probe, load_probe, save_probe
from clipgraft.generation.lora_files import fuse_lora, read_lora
from clipgraft.models import single_file as sd15
from clipgraft.models.base import FrozenBase
from clipgraft.models.bridge import Bridge
from clipgraft.models.clip import load_clip
from clipgraft.models.configs import BaseRecord
from clipgraft.models.graft import Graft, GraftedTextEncoder
from real_size import write_single_file

SUMS = {"cross_attention": "00" * 256}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of each kind; the CLIP without a manifest, as it comes from the hub."""
    folder = tmp_path_factory.mktemp("damage")
    clip = tiny.build_clip()
    graft = GraftedTextEncoder.graft(
        clip.model.text_model,
        Bridge(tiny.TEXT_WIDTH, tiny.TEACHER_WIDTH, 20, num_maps=3, num_positions=77, num_attention_blocks=1),
        torch.randn(77, tiny.TEACHER_WIDTH),
        clip.tokenizer.eos_token_id,
    )
    Graft(graft, clip.tokenizer, BaseRecord(name="base", revision="", sums=SUMS)).save_pretrained(
        folder / "graft"
    )
    tiny.write_clip(folder / "clip")
    (folder / "clip" / "manifest.json").unlink()
    base = tiny.write_checked_base(folder / "base", 0.5)
    (folder / "single").mkdir()
    write_single_file(base, folder / "single" / "base.safetensors")
    (folder / "probe").mkdir()
    save_probe(Probe(), folder / "probe" / "probe.safetensors")
    unet = deepcopy(pipeline().unet)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(
        folder / "lora", unet_lora_layers=get_peft_model_state_dict(unet)
    )
    return folder


@functools.cache
def pipeline() -> StableDiffusionPipeline:
    return tiny.build_pipeline()


def load_part(folder: Path, file: str) -> FrozenBase:
    """Load the part of a base that a file is of, and what is compared with it."""
    parts = {"scheduler": ("scheduler",), "vae": ("vae",), "text_encoder": ("text_encoder", "unet")}
    parts["tokenizer"] = ("tokenizer", "text_encoder")
    first = Path(file).parts[0]
    components = parts.get(first, ("unet", "text_encoder", "safety_checker"))
    return FrozenBase.load(str(folder), components=components)


def fused_unet(folder: Path) -> Any:
    unet = deepcopy(pipeline().unet)
    fuse_lora(unet, read_lora(folder), 1.0, "unet")
    return unet


LOADERS: dict[str, Callable[[Path, str], Any]] = {
    "clip": lambda folder, _: load_clip(folder),
    "graft": lambda folder, _: Graft.from_pretrained(folder),
    "base": load_part,
    "single": lambda folder, file: FrozenBase.load(str(folder / file), tokenizer=pipeline().tokenizer),
    "probe": lambda folder, file: load_probe(folder / file),
    "lora": lambda folder, _: fused_unet(folder),
}
CONFIGS = {
    "clip": ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"),
    "graft": ("config.json", "tokenizer.json", "tokenizer_config.json", "base.json"),
    "base": (
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
        "safety_checker/config.json",
        "feature_extractor/preprocessor_config.json",
    ),
}
WEIGHTS = {
    "clip": ("model.safetensors",),
    "graft": ("model.safetensors",),
    "base": (
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "safety_checker/model.safetensors",
    ),
    "single": ("base.safetensors",),
    "probe": ("probe.safetensors",),
    "lora": ("pytorch_lora_weights.safetensors",),
}


@pytest.fixture
def refused(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Damage one file of a copy, load it, and return the line that is said."""
    for name, part in (("UNET", "unet"), ("VAE", "vae"), ("TEXT", "text_encoder")):
        config = json.loads((models / "base" / part / "config.json").read_text())
        monkeypatch.setattr(sd15, f"{name}_CONFIG", config)

    def refuse(kind: str, file: str, damage: Callable[[Path], None]) -> str:
        folder = tmp_path / kind
        shutil.copytree(models / kind, folder, copy_function=os.link)
        path = folder / file
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        damage(path)
        if kind == "graft":  # whoever hands a folder on can write its manifest too
            entry = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["files"][file] = entry
            (folder / "manifest.json").unlink()
            (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises((CheckpointError, MissingFileError)) as caught:
            LOADERS[kind](folder, file)
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 700
        return message

    return refuse


def of(files: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(kind, file) for kind, names in files.items() for file in names]


JSON_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda content: content[: len(content) // 2],
    "list": lambda content: b"[%s]" % content,
    "null": lambda _: b"null",
    "deep": lambda _: b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "utf-16": lambda content: content.decode().encode("utf-16"),
    "long number": lambda _: b'{"a": %s}' % (b"9" * 5000),
}


@pytest.mark.parametrize(("kind", "file"), of(CONFIGS))
def test_undamaged_folders_are_loaded(models, kind, file):
    assert LOADERS[kind](models / kind, file) is not None


@pytest.mark.parametrize("damage", JSON_DAMAGE)
@pytest.mark.parametrize(("kind", "file"), of(CONFIGS))
def test_a_damaged_json_file_is_named(refused, kind, file, damage):
    change = JSON_DAMAGE[damage]
    assert file in refused(kind, file, lambda path: path.write_bytes(change(path.read_bytes())))


@pytest.mark.parametrize("damage", ["empty", "cut header", "cut", "huge header", "zeros", "pickle"])
@pytest.mark.parametrize(("kind", "file"), of(WEIGHTS))
def test_a_damaged_weights_file_is_named(refused, kind, file, damage):
    changes: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda _: b"",
        "cut header": lambda content: content[:100],
        "cut": lambda content: content[:-1],
        "huge header": lambda content: (1 << 60).to_bytes(8, "little") + content[8:],
        "zeros": lambda content: bytes(len(content)),
        "pickle": lambda _: b"PK\3\4" + bytes(100),
    }
    change = changes[damage]
    message = refused(kind, file, lambda path: path.write_bytes(change(path.read_bytes())))
    assert f"{file} is damaged or no safetensors file" in message


def largest_changed(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(path)
    name = max(weights, key=lambda name: weights[name].numel())
    save_file(weights | {name: change(weights[name])}, path)


def one_set(weight: torch.Tensor, value: float) -> torch.Tensor:
    weight = weight.clone()
    weight.flatten()[-1] = value
    return weight


VALUES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "nan": (lambda weight: one_set(weight, float("nan")), "holds NaN or infinity"),
    "inf": (lambda weight: one_set(weight, -float("inf")), "holds NaN or infinity"),
    "int64": (lambda weight: weight.long(), "holds int64, not floating-point numbers"),
    "half named int16": (lambda weight: weight.half().view(torch.int16), "holds int16, not floating-point"),
    "float8": (lambda weight: weight.to(torch.float8_e4m3fn), "holds float8_e4m3fn, not floating-point"),
}


@pytest.mark.parametrize("damage", VALUES)
@pytest.mark.parametrize(("kind", "file"), of(WEIGHTS))
def test_weights_that_are_no_finite_floats_are_named(refused, kind, file, damage):
    change, said = VALUES[damage]
    message = refused(kind, file, lambda path: largest_changed(path, change))
    assert file in message
    assert said in message


@pytest.mark.parametrize(("kind", "file"), of(WEIGHTS))
def test_weights_of_another_shape_are_refused(refused, kind, file):
    message = refused(kind, file, lambda path: largest_changed(path, lambda weight: weight[..., :-1].clone()))
    assert "shape" in message


@pytest.mark.parametrize(
    ("kind", "file"), [pair for pair in of(WEIGHTS) if pair[0] not in ("lora", "single")]
)
def test_an_additional_weight_is_refused(refused, kind, file):
    def add(path: Path) -> None:
        save_file(load_file(path) | {"more": torch.zeros(2)}, path)

    assert "has unknown 1 weights: more" in refused(kind, file, add)


BAD_SIZES = ("abc", 0, 10**9)
TOWER = [
    ("hidden_size", (*BAD_SIZES, -1, 1e9, True, None, [4])),
    ("num_attention_heads", BAD_SIZES),
    ("num_hidden_layers", BAD_SIZES),
    ("intermediate_size", BAD_SIZES),
    ("hidden_act", (7, "no such function")),
    ("layer_norm_eps", ("x", -1, 0)),
]
TEXT = [*TOWER, ("vocab_size", (*BAD_SIZES, 17)), ("max_position_embeddings", (*BAD_SIZES, 2))]
CODE = [
    ("quantization_config", ({"quant_method": "bitsandbytes"}, 1)),
    ("auto_map", ({"AutoModel": "code.Model"},)),
    ("custom_pipeline", ("pipeline.py",)),
    ("attn_implementation", ("kernels-community/flash-attn",)),
    ("_attn_implementation", ("kernels-community/flash-attn",)),
    ("transformers_weights", ("other.safetensors",)),
]
UNET = [
    ("sample_size", BAD_SIZES),
    ("cross_attention_dim", BAD_SIZES),
    ("layers_per_block", ("2", 0, -1, 10**7, None)),
    ("transformer_layers_per_block", ("2", 0, 10**7, [10**7, 1])),
    ("attention_head_dim", ("8", 0, -1, 3, None)),
    ("block_out_channels", ("abc", [], [0, 16], [8], [10**9, 16], [8] * 10_000)),
    ("down_block_types", ("abc", [], ["DownBlock2D"] * 17, ["NoBlock", "DownBlock2D"], [1, 2])),
    ("norm_num_groups", (0, -1, 3, "x")),
    ("norm_eps", ("x", 0, -1)),
    ("act_fn", (1, "no such function")),
    ("in_channels", (*BAD_SIZES, 5, 8)),
]
VAE = [
    ("sample_size", (None, 0, "x")),
    ("scaling_factor", ("0.18", 0, -1, None, [1.0])),
    ("layers_per_block", ("2", 0, -1, 10**7, None)),
    ("latent_channels", BAD_SIZES),
    ("block_out_channels", ("abc", [], [0, 8, 8, 8], [10**9, 8, 8, 8])),
    ("up_block_types", ("abc", [], ["NoBlock"] * 4)),
]
SCHEDULER = [
    ("num_train_timesteps", (0, -1, 10**11, "1000", 1.5, None)),
    ("beta_start", ("x", 0, -1, 1, None)),
    ("beta_end", ("x", 0, 7)),
    ("beta_schedule", ("no such schedule", 3)),
    ("trained_betas", ("x", ["a"], [2.0])),
    ("prediction_type", ("flow", None, 3)),
    ("timestep_spacing", ("x", None)),
    ("steps_offset", ("x", -1, 10**9)),
    ("_class_name", ("CLIPTextModel", None, 3, "FlaxDDIMScheduler")),
]
PROCESSOR = [
    ("size", ("x", 0, -1, 10**9, {"shortest_edge": 0}, {"width": 32}, {"shortest_edge": "x"})),
    ("crop_size", ("x", 0, 10**9, {"height": 32}, {"height": 32, "width": 10**6})),
    ("image_mean", ("x", [0.5], ["a", "b", "c"], 1)),
    ("image_std", ("x", [0.5], [0.5, 0.5, 0], [0.5, 0.5, -1])),
    ("resample", ("x", -1, 99)),
    ("rescale_factor", ("x", 0, -1)),
    ("do_resize", ("yes", 7)),
]
TOKENIZER = [
    ("model_max_length", ("x", 0, -1, 2, 1.5)),
    ("bos_token", (7, [1])),
    ("eos_token", (7, {})),
    ("auto_map", ({"AutoTokenizer": "code.Tokenizer"},)),
]
BRIDGE = [
    ("hidden_size", BAD_SIZES),
    ("bridge_hidden_size", ("x", -1, 0, 10**9)),
    ("bridge_num_maps", (2, 0, "3", None)),
    ("bridge_num_positions", (0, 2, "x", 10**9)),
    ("bridge_num_attention_blocks", (-1, 10**8, "x")),
    ("eos_token_id", (-1, "x", 10**9, 3)),
    ("text_config", (None, [], 3, {})),
]
BASE_RECORD = [
    ("name", (None, 3, "")),
    ("revision", (None, 3)),
    ("sums", (None, [], "x", {"cross_attention": 3}, {"cross_attention": "abc"})),
]


def keyed(table: list, *places: str) -> list[tuple[str, Any]]:
    return [(f"{place}{key}", value) for place in places for key, values in table for value in values]


EDITS = [
    (kind, file, key, value)
    for kind, file, cases in (
        ("clip", "config.json", keyed(TEXT, "text_config.")),
        ("clip", "config.json", keyed([*TOWER, ("patch_size", BAD_SIZES)], "vision_config.")),
        ("clip", "config.json", keyed([("image_size", BAD_SIZES)], "vision_config.")),
        ("clip", "config.json", keyed([("projection_dim", BAD_SIZES), *CODE], "")),
        ("clip", "config.json", keyed(CODE, "text_config.")),
        ("clip", "config.json", [("model_type", "bert"), ("text_config_dict", {"num_hidden_layers": 10**9})]),
        ("clip", "tokenizer_config.json", keyed(TOKENIZER, "")),
        ("clip", "preprocessor_config.json", keyed(PROCESSOR, "")),
        ("graft", "config.json", keyed([*BRIDGE, *CODE], "")),
        ("graft", "config.json", keyed(TEXT[1:4], "text_config.")),
        ("graft", "base.json", keyed(BASE_RECORD, "")),
        ("base", "unet/config.json", keyed([*UNET, *CODE[:2]], "")),
        ("base", "vae/config.json", keyed([*VAE, *CODE[:2]], "")),
        ("base", "text_encoder/config.json", keyed([*TEXT[-3:], *CODE], "")),
        ("base", "scheduler/scheduler_config.json", keyed([*SCHEDULER, *CODE[1:3]], "")),
        ("base", "safety_checker/config.json", keyed(TOWER[:2], "vision_config.")),
        ("base", "feature_extractor/preprocessor_config.json", keyed(PROCESSOR[:2], "")),
        ("base", "model_index.json", [("safety_checker", 3), ("safety_checker", {"a": 1})]),
    )
    for key, value in cases
]


def set_key(path: Path, key: str, value: Any) -> None:
    config = json.loads(path.read_text())
    *outer, last = key.split(".")
    inner = config
    for name in outer:
        inner = inner[name]
    inner[last] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(("kind", "file", "key", "value"), EDITS)
def test_a_wrong_value_of_a_configuration_is_refused(refused, kind, file, key, value):
    message = refused(kind, file, lambda path: set_key(path, key, value))
    assert str((kind / Path(file)).parent) in message


def tokenizer_changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content["model"])
        path.write_text(json.dumps(content))

    return damage


TOKENIZERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "id beyond the vocabulary": lambda model: model["vocab"].update({"a": 10**6}),
    "negative id": lambda model: model["vocab"].update({"a": -1}),
    "id as text": lambda model: model["vocab"].update({"a": "5"}),
    "id twice": lambda model: model["vocab"].update({"a": model["vocab"]["b"]}),
    "token lost": lambda model: model["vocab"].pop("a"),
    "vocabulary a list": lambda model: model.update(vocab=[1]),
    "no vocabulary": lambda model: model.pop("vocab"),
    "merge of strangers": lambda model: model["merges"].append(["zzz", "yyy"]),
    "merge of one": lambda model: model["merges"].append(["a"]),
    "merge as number": lambda model: model["merges"].append(5),
    "merges a text": lambda model: model.update(merges="a b"),
    "another kind": lambda model: model.update(type="Unigram"),
}


@pytest.mark.parametrize("damage", TOKENIZERS)
@pytest.mark.parametrize(
    ("kind", "file"),
    [("clip", "tokenizer.json"), ("graft", "tokenizer.json"), ("base", "tokenizer/tokenizer.json")],
)
def test_a_tokenizer_that_does_not_fit_itself_is_named(refused, kind, file, damage):
    assert file in refused(kind, file, tokenizer_changed(TOKENIZERS[damage]))
