"""OpenVINO on x86: networks converted once, compiled for each shape.

Tracing with odd sizes leaves height, width and rows open, so one file serves all sizes and batches.
"""

import gc
import hashlib
import inspect
import os
import shutil
import sys
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipgraft.console import say, track
from clipgraft.errors import CheckpointError
from clipgraft.generation.engines.compiled_networks import MAX_WEIGHT_BYTES, compiled_once
from clipgraft.generation.engines.networks import Run
from clipgraft.generation.engines.signal_stack import kept_signal_stack
from clipgraft.memory import release_files
from clipgraft.models.weights import module_sha256, verify_folder, write_folder_atomically

# OpenVINO's converter sends telemetry unless this package cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino as ov  # noqa: E402

FILE_NAME, WEIGHTS_NAME = "network.xml", "network.bin"
KEYED_VERSIONS = ("openvino", "torch", "diffusers")
"""Another version may trace, convert or read otherwise."""
MAX_COMPILED = 8
"""Shapes of a small network that stay compiled: the studio's batches of 1, 2, 4 and 8, with guidance and
without."""
MAX_COMPILED_BYTES = 2**30
"""Of their weights. SD v1.5's U-Net has 1.7 GB, and is compiled anew in about the time of a guided step."""

Template = Callable[[], ov.Model]
"""Gives a network whose rows, height and width are open."""


class OpenVinoEngine:
    """Compiles networks for static shapes, in float32 or bfloat16."""

    name = "openvino"
    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype, cache_folder: Path, *, min_compiled: int = 1) -> None:
        self.dtype, self.cache_folder, self.min_compiled = dtype, cache_folder, min_compiled
        self._core = ov.Core()

    def prepare(self, name: str, network: nn.Module, examples: Sequence[Tensor]) -> Run:
        """As `Engine.prepare`."""
        key = self.key(name, network)
        template = self.template(name, key, network, examples)
        is_kept = (self.cache_folder / key).is_dir()
        return self.runner(template, num_bytes(network), key if is_kept else "")

    def prepare_unet(self, name: str, network: nn.Module, examples: Sequence[Tensor]) -> Run:
        """As `Engine.prepare_unet`."""
        return self.prepare(name, network, examples)

    def runner(self, template: Template, num_bytes: int, key: str = "") -> Run:
        """Return a function that compiles a network for each shape that comes.

        Args:
            template: Gives the network.
            num_bytes: Of its weights.
            key: Covers the network; small ones with a key are compiled once for all processes.
        """
        compiled: OrderedDict[tuple, _Compiled] = OrderedDict()
        key = key if num_bytes <= MAX_WEIGHT_BYTES else ""
        max_compiled = min(MAX_COMPILED, max(self.min_compiled, MAX_COMPILED_BYTES // max(1, num_bytes)))

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            shapes = tuple(tuple(tensor.shape) for tensor in tensors)
            if shapes not in compiled:
                while len(compiled) >= max_compiled:
                    compiled.popitem(last=False)
                compiled[shapes] = self._compile(template, shapes, key)
            compiled.move_to_end(shapes)
            inputs = [tensor.float().contiguous().numpy() for tensor in tensors]
            outputs = compiled[shapes](inputs)
            return tuple(torch.from_numpy(outputs[index]) for index in range(len(outputs)))

        return run

    def _compile(self, template: Template, shapes: Sequence[Sequence[int]], key: str) -> "_Compiled":
        """Compile a network; with a key once for all processes."""
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.dtype == torch.bfloat16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }

        def compile_network() -> ov.CompiledModel:
            model = template()
            model.reshape({port: list(shape) for port, shape in zip(model.inputs, shapes, strict=True)})
            return self._core.compile_model(model, "CPU", settings)

        with kept_signal_stack():
            if key:
                return _Compiled(compiled_once(self._core, [key, shapes], settings, compile_network))
            compiled = _Compiled(compile_network())
        release_files(self.cache_folder)  # compiled, SD v1.5's U-Net has 1.7 GB of weights of its own
        return compiled

    def template(self, name: str, key: str, network: nn.Module, examples: Sequence[Tensor]) -> Template:
        """Return a network's template, converted once; `key` is its key."""
        folder = self.cache_folder / key
        if kept := self.found(name, folder, "converted"):
            return kept
        with track(f"converting {name} for OpenVINO, once for this base", 2) as update:
            model = convert(network, examples)
            update(1, "converted")
            kept = self.kept_in(folder, name, model, "converted")
            update(2, "kept on disk")
        return kept

    def found(self, name: str, folder: Path, made: str) -> Template | None:
        """Return a network on disk; remove a damaged one, to be `made` again."""
        if not os.path.lexists(folder):
            return None
        try:
            return self._kept(folder)
        except (CheckpointError, OSError, RuntimeError) as error:
            say(f"{name} kept for OpenVINO is damaged and is {made} again ({error})")
            _remove(folder)
            return None

    def kept_in(self, folder: Path, name: str, model: ov.Model, made: str) -> Template:
        """Write a network that was `made`, if possible."""
        try:
            self._keep(model, folder)
            return self._kept(folder)
        except (CheckpointError, OSError, RuntimeError) as error:  # of a full disk OpenVINO's own is the last
            say(f"{made} {name} cannot be kept for the next time in {self.cache_folder}: {error}")
            return model.clone

    def _kept(self, folder: Path) -> Template:
        """A network on disk, verified."""
        if not {FILE_NAME, WEIGHTS_NAME} <= verify_folder(folder):
            raise CheckpointError(f"{folder} lists no {FILE_NAME} with {WEIGHTS_NAME}")
        self._core.read_model(folder / FILE_NAME)
        return lambda: self._core.read_model(folder / FILE_NAME)

    def _keep(self, model: ov.Model, folder: Path) -> None:
        """Write a network; of several processes the first one's stays."""
        own = folder.with_name(f"{folder.name}-{os.getpid()}")
        with write_folder_atomically(own) as temporary:
            ov.save_model(model, temporary / FILE_NAME, compress_to_fp16=self.dtype != torch.float32)
        try:
            own.rename(folder)
        except OSError:
            shutil.rmtree(own)
            verify_folder(folder)

    def key(self, name: str, network: nn.Module) -> str:
        """Return the checksum of a network and all that decides its conversion."""
        parts = [
            name,
            repr(network),
            inspect.getsource(type(network)),
            str(self.dtype),
            module_sha256(network),
        ]
        parts += [version(package) for package in KEYED_VERSIONS]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


class _Compiled:
    """A compiled network that leaves the thread's signal stack alone."""

    def __init__(self, model: ov.CompiledModel) -> None:
        self._held = [model]
        weakref.finalize(self, _free, self._held)  # also at the end of Python, while modules still work

    def __call__(self, inputs: list[Any]) -> Any:
        with kept_signal_stack():
            return self._held[0](inputs, share_inputs=True)


def _free(held: list[ov.CompiledModel]) -> None:
    with kept_signal_stack():
        held.clear()


def num_bytes(network: nn.Module) -> int:
    """Return the bytes of a network's weights."""
    return sum(weight.numel() * weight.element_size() for weight in network.parameters())


def _remove(path: Path) -> None:
    """Delete a damaged network, if possible."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def convert(network: nn.Module, examples: Sequence[Tensor]) -> ov.Model:
    """Convert a network to float32 with open batch, height and width.

    Args:
        network: Tensors in, a tuple of tensors out.
        examples: One row of inputs; height and width must be odd, so that upsampling is traced by size.
    """
    network = network.float().eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        model = ov.convert_model(network, example_input=tuple(examples))
    model.reshape({port: _open_shape(example) for port, example in zip(model.inputs, examples, strict=True)})
    gc.collect()
    return model


def _open_shape(example: Tensor) -> list[int]:
    """Shape with open dimensions: all but channels and t_proj's."""
    if example.ndim == 2:
        return list(example.shape)
    return [-1, *example.shape[1:]] if example.ndim == 3 else [-1, example.shape[1], -1, -1]
