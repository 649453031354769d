"""A distilled text encoder in its base's diffusers folder.

Plain diffusers of any version loads it. All other files are the base's own, byte for byte, but for paths of
this machine and half-precision dtypes in configurations. Weights of the text encoder have the names of
published files: transformers 5 leaves out `text_model.`, without which older versions start from random
weights.
"""

import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import CLIPTextModel

from clipgraft.exporting.graft_formats import remove_local_paths
from clipgraft.files import read_json, write_json
from clipgraft.models.base import COMPONENTS, FrozenBase, needed_files
from clipgraft.models.defaults import FILE_NAME as DEFAULTS_NAME
from clipgraft.models.graft import ALL_COMPONENTS, Graft
from clipgraft.models.loading import refuse_misfits
from clipgraft.models.weights import HALF, write_tensors

INDEX_NAME = "model_index.json"
TEXT_ENCODER = "text_encoder"
SAFETY_CHECKER = "safety_checker"


def load_distilled_base(
    distilled: Graft, base: str, components: Collection[str], dtype: torch.dtype | None = torch.float32
) -> FrozenBase:
    """Load the base of a distilled text encoder, both encoders being alike.

    Raises:
        CheckpointError: If it is another base, or its text encoder has another shape.
    """
    frozen = distilled.load_base(base, components=components, dtype=dtype)
    refuse_misfits(frozen.origin.path, distilled.text_encoder, frozen.text_encoder.state_dict())
    return frozen


def write_plain_pipeline(distilled: Graft, base: str, folder: Path) -> None:
    """Write the base's pipeline with another text encoder.

    Args:
        distilled: With a plain `CLIPTextModel`, written in the dtype of the base's own.
        base: Present location of the base; empty = the recorded one.
        folder: An empty one.
    """
    frozen = load_distilled_base(distilled, base, ALL_COMPONENTS, None)
    if frozen.origin.path.is_dir():
        _copy_base(frozen, folder)
    else:
        frozen.pipeline().save_pretrained(folder)
        _write_vocabulary(frozen, folder / "tokenizer")
    if not (folder / DEFAULTS_NAME).is_file():
        write_json(folder / DEFAULTS_NAME, asdict(frozen.defaults))
    remove_local_paths(folder)
    _write_text_encoder(distilled.text_encoder, frozen.text_encoder.dtype, folder / TEXT_ENCODER)
    for name, model in ((TEXT_ENCODER, frozen.text_encoder), (SAFETY_CHECKER, frozen.safety_checker)):
        if model is not None:
            _name_float32(folder / name / "config.json", model.dtype)


def _write_text_encoder(text_encoder: CLIPTextModel, dtype: torch.dtype, folder: Path) -> None:
    """Replace the weights in a text encoder's folder, under published names."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    state = text_encoder.state_dict()
    weights = {f"text_model.{name}": weight.to(dtype) for name, weight in state.items()}
    write_tensors(folder / "model.safetensors", weights, {"format": "pt"})


def _name_float32(path: Path, dtype: torch.dtype) -> None:
    """Name float32 as the dtype to load in.

    transformers 5 takes the dtype of a configuration, else of the weights; diffusers takes float32.
    """
    config = read_json(path)
    if config.get("dtype", config.get("torch_dtype", str(dtype).removeprefix("torch."))) != "float32":
        write_json(path, {**config, "dtype": "float32"})


def _write_vocabulary(frozen: FrozenBase, folder: Path) -> None:
    """Write a tokenizer as `vocab.json` and `merges.txt` too, which transformers before 5 reads."""
    frozen.tokenizer.backend_tokenizer.model.save(str(folder))


def _copy_base(frozen: FrozenBase, folder: Path) -> None:
    """Copy a base's files, of two precisions the full one."""
    source = frozen.origin.path
    held = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    components = [*COMPONENTS, SAFETY_CHECKER] if frozen.safety_checker else COMPONENTS
    for name in needed_files(components, None).choose(held):
        # The library looks for files without a variant's name first.
        path = folder / name.replace(f".{HALF}", "")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, path)
        if path.name.endswith(".index.json"):
            path.write_text(path.read_text(encoding="utf-8").replace(f".{HALF}", ""), encoding="utf-8")
    if not (folder / INDEX_NAME).is_file():
        frozen.pipeline().save_config(folder)
    index = read_json(folder / INDEX_NAME)
    missing = [name for name, entry in index.items() if isinstance(entry, list) and any(entry)]
    missing = [name for name in missing if not (folder / name).is_dir()]
    if missing:
        write_json(folder / INDEX_NAME, {**index, **{name: [None, None] for name in missing}})
