"""Engines for U-Net and VAE decoder: torch, and OpenVINO on x86.

An engine makes the same image up to rounding.
"""

import platform
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from clipgraft.device import cpu_gains_from_bf16, inference_dtype, is_x86
from clipgraft.errors import UserError
from clipgraft.generation.engines.networks import Run
from clipgraft.sampling_params import InferenceConfig

OPENVINO_GAIN = "1.5 to 2 times"
"""Over the torch engine on a CPU with AVX512-BF16 (benchmarks/bench_generation.py); 0.94 with AMX."""


class Engine(Protocol):
    """Runs networks in a dtype of its own."""

    name: str
    device: torch.device
    dtype: torch.dtype

    def prepare(self, name: str, network: nn.Module, examples: Sequence[Tensor]) -> Run:
        """Prepare a network; the engine owns it from there on.

        Args:
            name: For messages.
            network: Tensors in, a tuple of tensors out.
            examples: Float32 inputs of one row.
        """

    def prepare_unet(self, name: str, network: nn.Module, examples: Sequence[Tensor]) -> Run:
        """Prepare a network of a U-Net, as `prepare`; may quantize it."""


class TorchEngine:
    """Torch in channels-last layout, eager or compiled at the first run."""

    name = "torch"

    def __init__(self, device: torch.device, dtype: torch.dtype, *, is_compiled: bool = False) -> None:
        self.device, self.dtype, self.is_compiled = device, dtype, is_compiled

    def prepare(self, name: str, network: nn.Module, examples: Sequence[Tensor]) -> Run:
        """As `Engine.prepare`."""
        network = network.to(self.device, self.dtype).eval()
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        forward: Callable[..., tuple[Tensor, ...]] = network
        if self.is_compiled:
            forward = torch.compile(
                network, mode="reduce-overhead" if self.device.type == "cuda" else "default"
            )

        @torch.no_grad()
        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(output.float() for output in forward(*map(self._in_layout, tensors)))

        return run

    def prepare_unet(self, name: str, network: nn.Module, examples: Sequence[Tensor]) -> Run:
        """As `Engine.prepare_unet`."""
        return self.prepare(name, network, examples)

    def _in_layout(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def engines_at_hand(inference: InferenceConfig, device: torch.device, cache_folder: Path) -> list[Engine]:
    """Return the named engine; for `auto` all here, OpenVINO first.

    Args:
        inference: Names the engine; compiling is torch's.
        device: Where the pipeline works.
        cache_folder: For OpenVINO's converted networks.

    Raises:
        UserError: If the named one cannot run here; says why.
    """
    name = inference.engine
    missing = why_no_openvino(device)
    if inference.quantize != "none":
        return [_int8_engine(inference, missing, cache_folder)]
    if name == "openvino" and inference.compile:
        raise UserError("compile is for torch's engine; leave it out, or use engine 'torch'")
    if name == "openvino" and missing:
        raise UserError(f"engine 'openvino' cannot run here: {missing}; use engine 'torch' or 'auto'")
    engines: list[Engine] = []
    if name != "torch" and not missing and not inference.compile:
        from clipgraft.generation.engines.openvino import OpenVinoEngine

        engines.append(
            OpenVinoEngine(openvino_dtype(), cache_folder, min_compiled=_num_shapes_in_turn(inference))
        )
    if name != "openvino":
        engines.append(TorchEngine(device, inference_dtype(device), is_compiled=inference.compile))
    return engines


def _int8_engine(inference: InferenceConfig, missing: str, cache_folder: Path) -> Engine:
    if inference.engine == "torch" or inference.compile:
        raise UserError("quantize 'int8' runs on OpenVINO; leave out engine 'torch' and compile, or quantize")
    missing = missing or why_no_int8()
    if missing:
        raise UserError(f"quantize 'int8' cannot run here: {missing}; leave it out")
    from clipgraft.generation.engines.int8 import Int8Engine

    return Int8Engine(openvino_dtype(), cache_folder, min_compiled=_num_shapes_in_turn(inference))


def _num_shapes_in_turn(inference: InferenceConfig) -> int:
    """Return 2 where guided and unguided steps take turns, else 1."""
    return 1 if inference.guidance_interval == (0, 1) else 2


def approximations(inference: InferenceConfig) -> list[str]:
    """Name what changes the image to save time."""
    start, stop = inference.guidance_interval
    named = {
        f"guidance from {start:.0%} to {stop:.0%} of the steps alone": (start, stop) != (0, 1),
        f"the whole U-Net once in {inference.feature_cache} steps": inference.feature_cache > 1,
        "the U-Net in INT8": inference.quantize != "none",
    }
    return [name for name, is_used in named.items() if is_used]


def describe_inference(inference: InferenceConfig, engine: Engine) -> dict[str, Any]:
    """Record the engine and approximations that decide an image's bits."""
    record = inference.model_dump(exclude={"safety_checker", "vae"})
    if inference.quantize == "none":
        del record["quantize"]  # as in the records of images made before it could be chosen
    record |= {"engine": engine.name, "dtype": str(engine.dtype).removeprefix("torch.")}
    record["guidance_interval"] = list(inference.guidance_interval)
    return record


def openvino_dtype() -> torch.dtype:
    """Return bfloat16 if the CPU has instructions for it, else float32."""
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def why_no_openvino(device: torch.device) -> str:
    """Return why OpenVINO does not run here; empty if it does."""
    if device.type != "cpu":
        return f"it is for CPUs, the device is {device.type}"
    if not is_x86():
        return f"it runs on x86 CPUs only, this is {platform.machine()}"
    if find_spec("openvino") is None:
        return "it is not installed (pip install 'clipgraft[openvino]')"
    return ""


def why_no_int8() -> str:
    """Return why INT8 gains nothing on this CPU; empty if it does."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    if torch.cpu._is_vnni_supported() or capabilities.get("avx_vnni"):  # a CPU with AMX has both
        return ""
    return "this CPU has no VNNI or AMX instructions, without which INT8 is no faster"


def openvino_advice(device: torch.device) -> str:
    """Advise to install OpenVINO; empty if installed or of no use."""
    if "not installed" not in why_no_openvino(device) or torch.cpu._is_amx_tile_supported():
        return ""
    how_much = OPENVINO_GAIN if cpu_gains_from_bf16() else "some"
    return f"pip install 'clipgraft[openvino]' makes generation {how_much} faster on this CPU"
