"""Strict loading of a model's own safetensors, chosen by name.

The libraries' `from_pretrained` would follow an index anywhere, read pickles, and silently inject adapters.
So files are chosen and read here, and the libraries get tensors.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from clipgraft.data.containers import content_name, is_named
from clipgraft.device import quiet_libraries
from clipgraft.errors import CheckpointError, some_of
from clipgraft.files import read_json
from clipgraft.models.configs import Checked, loading, read_config
from clipgraft.models.weights import FULL, HALF, find_weights

SHOWN_KEYS = 5
"""Weights named in an error; a wrong checkpoint lacks hundreds."""
DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
"""Names of weights, without endings."""
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")
"""Files that transformers injects into a model if peft is installed."""
PIECE_BYTES = 2**28
"""Bytes of a file that are mapped together: a piece leaves memory when all of its tensors have."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHARD_NAME = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)
OLDER_TOWER = re.compile(r"(vision_model|text_model)\.(?=\1\.)|^text_model\.(?=embeddings|encoder|final)")
"""Level in the names of a tower's weights, dropped in transformers 5."""


def load_strictly(
    model_class: Any, folder: Path, kind: type[Checked], *, dtype: torch.dtype | None = None, **kwargs: Any
) -> Any:
    """Load a transformers or diffusers model without missing or extra weights.

    Args:
        model_class: Class of the model.
        folder: With `config.json` and `*.safetensors`, whole or sharded, in full precision or `fp16`,
            whichever is nearer to `dtype`.
        kind: Model of `config.json`.
        dtype: Of the weights; None = as stored, whatever the config says.
        **kwargs: For a transformers model's `from_pretrained`.

    Returns:
        The model, in eval mode.

    Raises:
        CheckpointError: If the folder holds no safetensors, another model, or weights that do not fit or are
            not finite floating-point numbers; names the file.
    """
    refuse_adapters(folder)
    path = folder / "config.json"
    config = read_config(path, kind)
    is_transformers = issubclass(model_class, PreTrainedModel)
    stem = TRANSFORMERS_STEM if is_transformers else DIFFUSERS_STEM
    is_half = dtype in (torch.float16, torch.bfloat16)
    paths = weight_paths(folder, stem, (HALF, FULL) if is_half else (FULL, HALF))
    # On the meta device, so that a huge configuration costs nothing before its comparison with the weights.
    with loading(path, model_class.__name__), torch.device("meta"):
        described = model_class.config_class.from_dict(config) if is_transformers else config
        model = model_class(described) if is_transformers else model_class.from_config(described)
    weights = _renamed(read_weights(paths), model)
    refuse_misfits(folder, model, weights)
    quiet_libraries()
    with loading(folder, model_class.__name__):
        if not is_transformers:
            return set_weights(model, weights, dtype)
        model = model_class.from_pretrained(
            None, config=described, state_dict=weights, dtype=dtype or _dtype_of(weights), **kwargs
        )
    return model.eval()


def _dtype_of(weights: Mapping[str, Tensor]) -> torch.dtype:
    return next(iter(weights.values())).dtype


def set_weights(model: Any, weights: dict[str, Tensor], dtype: torch.dtype | None) -> Any:
    """Move weights, as stored or in a dtype, into a meta model."""
    converted = {}
    for name in list(weights):  # each leaves memory as it is converted
        weight = weights.pop(name)
        converted[name] = weight.to(dtype or weight.dtype)
    model.load_state_dict(converted, assign=True)
    return model.eval()


def weight_paths(folder: Path, stem: str, variants: Collection[str]) -> list[Path]:
    """Return the files of a model's weights in the first complete variant.

    Raises:
        CheckpointError: If there are none, or an index names other files than the folder's safetensors.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    files = find_weights(names, stem, tuple(variants))
    indices = [f"{stem}.safetensors.index{'.' if variant else ''}{variant}.json" for variant in variants]
    # An incomplete index is read too, for an error that names the missing shard.
    index = files[0] if files else next((name for name in indices if name in names), "")
    if index.endswith(".json"):
        return _listed_shards(folder / index)
    if files:
        return [folder / files[0]]
    refuse_pickles(folder)
    raise CheckpointError(f"{folder} holds no weights: it has no {stem}.safetensors; fetch it again, whole")


def _listed_shards(index: Path) -> list[Path]:
    """Return the safetensors files named by an index, all beside it."""
    listed = read_json(index, error=CheckpointError).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index} is damaged: it has no weight_map with names of files; fetch it again")
    files = {name for name in listed.values() if isinstance(name, str)}
    for name in listed.values():
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise CheckpointError(
                f"{index} names {str(name)[:80]!r}; only .safetensors files in that very folder are read: "
                "take another copy of the model"
            )
    paths = [index.parent / name for name in sorted(files)]
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, and {index.name} names it; fetch it again")
    return paths


@contextmanager
def opened_weights(path: Path) -> Iterator[Any]:
    """Open a safetensors file; CheckpointError if it is damaged."""
    try:
        with loading(path, "safetensors"), safe_open(path, framework="pt") as file:
            yield file
    except CheckpointError as error:
        reason = str(error).partition("as safetensors: ")[2]
        if not reason:  # of what is done with the file
            raise
        reason = reason.removeprefix("SafetensorError: ").removeprefix("Error while deserializing header: ")
        raise CheckpointError(
            f"{path} is damaged or no safetensors file: {_content_of(path) or reason}; fetch it again"
        ) from error


def _content_of(path: Path) -> str:
    """Return what was fetched in place of weights, or ""."""
    try:
        with path.open("rb") as file:
            content = file.read(64)
    except OSError:  # such as a link that goes round in a circle
        return ""
    if not content:
        return "it is empty (0 bytes)"
    return f"it is {content_name(content)}" if is_named(content) else ""


def read_weights(
    paths: Iterable[Path],
    wanted: Callable[[str], bool] = lambda _: True,
    *,
    may_be_whole: Callable[[str], bool] = lambda _: False,
) -> dict[str, Tensor]:
    """Read tensors of safetensors files, except position ids of older libraries.

    Args:
        paths: The files.
        wanted: Whether to read the tensor of a name.
        may_be_whole: Whether the tensor of a name may hold integers.

    Returns:
        Tensors by name, mapped from the files.

    Raises:
        CheckpointError: If a file is damaged, or a tensor is in two files or not of finite floating-point
            numbers; names file and tensor.
    """
    weights: dict[str, Tensor] = {}
    for path in paths:
        for found in _pieces(path, wanted):
            for name, tensor in found.items():
                _check_values(path, name, tensor, may_be_whole(name))
            if twice := weights.keys() & found:
                raise CheckpointError(
                    f"{path} holds {min(twice)}, and another shard does too; fetch both again"
                )
            weights |= found
    return weights


def _pieces(path: Path, wanted: Callable[[str], bool]) -> Iterator[dict[str, Tensor]]:
    """Yield a file's tensors, each piece with a mapping of its own."""
    left: list[str] | None = None
    while left is None or left:
        found: dict[str, Tensor] = {}
        num_bytes = 0
        with opened_weights(path) as file:
            if left is None:
                left = [name for name in file.keys() if wanted(name) and not name.endswith("position_ids")]  # noqa: SIM118
            while left and num_bytes < PIECE_BYTES:
                name = left.pop(0)
                found[name] = file.get_tensor(name)
                num_bytes += found[name].nbytes
        yield found


def _check_values(path: Path, name: str, tensor: Tensor, may_be_whole: bool) -> None:
    if tensor.dtype not in FLOATS:
        if may_be_whole:
            return
        raise CheckpointError(
            f"{path}: {name} holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers; "
            "it is damaged, or quantized: take a copy in float32, float16 or bfloat16"
        )
    # One pass without a copy, in a hundredth of the time of `isfinite`; any NaN becomes both extremes.
    if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
        raise CheckpointError(
            f"{path}: {name} holds NaN or infinity; it is damaged, or its training failed: take another copy"
        )


def _renamed(weights: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Rename weights to the names of present library versions."""
    if isinstance(model, PreTrainedModel):
        own = model.state_dict().keys()
        return {
            name if name in own else OLDER_TOWER.sub("", name): weight for name, weight in weights.items()
        }
    model._fix_state_dict_keys_on_load(weights)  # the VAE's attention as `query`, `key`, `value`
    return weights


def refuse_misfits(path: Path, model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Compare names and shapes of weights with those of a model.

    Raises:
        CheckpointError: If weights are missing, unknown or of another shape; names them.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    refuse_other_weights(path, missing=expected.keys() - found, unexpected=found.keys() - expected)
    for name, shape in found.items():
        if shape != expected[name]:
            raise CheckpointError(
                f"{path} is of another model: {name} has shape {shape}, not {expected[name]}; name the right "
                "one"
            )


def refuse_other_weights(path: Path, *, missing: Any, unexpected: Any) -> None:
    """Raise CheckpointError naming the first missing or unknown weights."""
    for what, keys in (("lacks", sorted(missing)), ("has unknown", sorted(unexpected))):
        if keys:
            raise CheckpointError(
                f"{path} {what} {len(keys)} weights: {some_of(keys, SHOWN_KEYS)}; it is of another model: "
                "name the right one"
            )


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder with only pickled weights: pickles can run code.

    Raises:
        CheckpointError: Names the file.
    """
    kinds = {path.name: path.suffix.lower() for path in folder.iterdir()}
    pickles = sorted(name for name, suffix in kinds.items() if suffix in PICKLE_SUFFIXES)
    if ".safetensors" in kinds.values() or not pickles:
        return
    raise CheckpointError(
        f"{folder} holds pickled weights alone ({pickles[0]}), which can run code when opened; if you trust "
        "them, load them with the library they come from and write them again with its save_pretrained(DIR)"
    )


def refuse_pickled_file(file: Path, what: str) -> None:
    """Refuse a pickled file of a named kind by its ending.

    Raises:
        CheckpointError: Says which files are read.
    """
    if file.suffix.lower() in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{file} is pickled, and may run code when opened; take the {what} as a .safetensors file"
        )


def refuse_adapters(folder: Path) -> None:
    """Refuse an adapter beside a model's weights: it would change the model.

    Raises:
        CheckpointError: Names the file.
    """
    for name in ADAPTERS:
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder / name} is an adapter, which is not applied to a model in silence: merge it with "
                "peft's merge_and_unload() and write the model again, or take the file away"
            )


def refuse_links_out(root: Path, folders: Iterable[Path]) -> None:
    """Refuse links out of a model's folder.

    Args:
        root: Folder of the model; may itself be a link.
        folders: Folders in `root` whose files are read.

    Raises:
        CheckpointError: If a file links out of `root`, or in the hub's cache out of the repository's folder.
    """
    allowed = _repository(Path(os.path.realpath(root)))
    for folder in folders:
        inner = folder.iterdir() if folder.is_dir() else ()
        for path in (folder, *inner):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(allowed):
                raise CheckpointError(
                    f"{path} is a link to {os.path.realpath(path)}, out of the model's folder; put the file "
                    "itself in its place"
                )


def _repository(root: Path) -> Path:
    """Return a snapshot's repository folder (`models--owner--name`), else `root`."""
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            return folder.parent.parent
    return root
