"""OpenVINO with the U-Net in INT8, calibrated on the first prompts.

Convolutions and linear layers multiply in INT8: activations with one scale per tensor, weights with one per
output channel, both symmetric. Attention's products stay in the engine's precision: in INT8 they would make
a step of Stable Diffusion v1.5's shape only 1.05 times as fast. So do the layers in KEPT, which take no time.
"""

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from torch import Tensor, nn

from clipgraft.generation.engines.networks import Run
from clipgraft.generation.engines.openvino import OpenVinoEngine, Template, num_bytes, ov

ops = ov.opset13

LAYERS = ("Convolution", "MatMul")
KEPT = re.compile(r"\b(conv_in|conv_out|time_embedding|time_emb_proj)\b")
MOVES = ("Reshape", "Transpose")
"""Change no values, so that what is before them is quantized, with fewer passes."""
MAX_INT8 = 127
MARGIN = 1.15
"""Times the largest magnitude found, which other prompts exceed: on flatland, calibrated on two prompts, the
worst of 64 images came from an SSIM of 0.86 to 0.92."""


class Int8Engine(OpenVinoEngine):
    """OpenVINO, with the U-Net in INT8."""

    def prepare_unet(self, name: str, network: nn.Module, examples: Sequence[Tensor]) -> Run:
        """As `Engine.prepare_unet`; returns an `Int8Run`."""
        name_in_int8 = f"{name} in INT8"
        key = self.key(name_in_int8 + inspect.getsource(sys.modules[__name__]), network)
        kept = self.found(name_in_int8, self.cache_folder / key, "calibrated")
        return Int8Run(
            kept or self.template(name, self.key(name, network), network, examples),
            partial(self.runner, num_bytes=num_bytes(network)),
            partial(self.kept_in, self.cache_folder / key, name_in_int8, made="calibrated"),
            key=key,
            is_calibrated=kept is not None,
        )


class Int8Run:
    """A network in INT8; until calibrated, as converted.

    Until then it notes the ranges of the activations to quantize.

    Args:
        template: Gives the network: in INT8 if it is calibrated.
        runner: Returns what runs it, compiled once for a `key`.
        keep: Keeps it on disk.
        key: Covers the network, but for its calibration.
    """

    def __init__(
        self,
        template: Template,
        runner: Callable[..., Run],
        keep: Callable[[ov.Model], Template],
        *,
        key: str,
        is_calibrated: bool,
    ) -> None:
        self._template, self._runner, self._keep, self._key = template, runner, keep, key
        self.calibration = ""
        """Checksum of the ranges; empty until it is calibrated."""
        if is_calibrated:
            self._use(template)
            return
        model = template()
        self._num_outputs = len(model.outputs)
        add_ranges(model)
        self._ranges = np.zeros(len(model.outputs) - self._num_outputs)
        self._run = runner(model.clone)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the network; note the ranges if it is not calibrated."""
        outputs = self._run(*tensors)
        if self.calibration:
            return outputs
        self._ranges = np.fmax(self._ranges, [float(largest) for largest in outputs[self._num_outputs :]])
        return outputs[: self._num_outputs]

    def finish(self) -> None:
        """Quantize by the ranges noted, and keep the network."""
        del self._run  # first, so that memory holds one network at a time
        model = self._template()
        quantize(model, self._ranges.tolist())
        self._use(self._keep(model))

    def _use(self, template: Template) -> None:
        self.calibration = hashlib.sha256(str(ranges_of(template())).encode()).hexdigest()[:16]
        self._run = self._runner(template, key=f"{self._key} {self.calibration}")


def add_ranges(model: ov.Model) -> None:
    """Add an output for each activation to quantize: its largest magnitude."""
    outputs = []
    for activation in _by_activation(model):
        axes = np.arange(len(activation.get_partial_shape()))
        outputs.append(ops.reduce_max(ops.abs(activation), ops.constant(axes), keep_dims=False).output(0))
    model.add_outputs(outputs)


def quantize(model: ov.Model, ranges: Sequence[float]) -> None:
    """Quantize a network's layers.

    Args:
        model: A converted network.
        ranges: Largest magnitude of each activation, in the order of `add_ranges`.
    """
    for (activation, layers), largest in zip(_by_activation(model).items(), ranges, strict=True):
        is_usable = 0 < largest < np.inf  # not of a network that gives zeros or NaN
        high = np.float32(MARGIN * largest if is_usable else 1)
        low = -high * np.float32((MAX_INT8 + 1) / MAX_INT8)  # 256 levels with a zero among them
        bounds = [ops.constant(bound) for bound in (low, high, low, high)]
        quantized = ops.fake_quantize(activation, *bounds, levels=2 * (MAX_INT8 + 1))
        quantized.set_friendly_name(f"{activation.get_node().get_friendly_name()}/int8")
        for layer in layers:
            _entry(layer).replace_source_output(quantized.output(0))
            layer.input(1).replace_source_output(_in_int8(layer))
    model.validate_nodes_and_infer_types()


def ranges_of(model: ov.Model) -> list[float]:
    """Return the ranges that a network was quantized with, from the least."""
    quantized = [node for node in model.get_ops() if node.get_type_name() == "FakeQuantize"]
    return sorted(float(node.input_value(2).get_node().get_data()) for node in quantized)


def _by_activation(model: ov.Model) -> dict[ov.Output, list[ov.Node]]:
    """Layers to quantize, by the activations that they share."""
    found: dict[ov.Output, list[ov.Node]] = {}
    for node in model.get_ordered_ops():
        is_layer = node.get_type_name() in LAYERS and _weight(node) is not None
        if is_layer and not KEPT.search(node.get_friendly_name()):
            found.setdefault(_entry(node).get_source_output(), []).append(node)
    return found


def _entry(layer: ov.Node) -> ov.Input:
    """Return the input at which a layer's activation is quantized."""
    entry = layer.input(0)
    while True:
        before = entry.get_source_output().get_node()
        is_alone = before.get_output_size() == 1 and len(before.output(0).get_target_inputs()) == 1
        if before.get_type_name() not in MOVES or not is_alone:
            return entry
        entry = before.input(0)


def _weight(layer: ov.Node) -> ov.Node | None:
    """Constant weight of a layer; None if it multiplies two activations."""
    node = layer.input_value(1).get_node()
    if node.get_type_name() == "Convert":  # of weights kept in half precision
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def _in_int8(layer: ov.Node) -> ov.Output:
    """Weight of a layer in INT8, times a scale per output channel."""
    weight = _weight(layer)
    assert weight is not None
    values = weight.get_data().astype(np.float32)
    channels = 0 if layer.get_type_name() == "Convolution" or layer.get_attributes()["transpose_b"] else 1
    others = tuple(axis for axis in range(values.ndim) if axis != channels)
    scale = np.maximum(values.max(axis=others, keepdims=True), -values.min(axis=others, keepdims=True))
    scale = np.where(scale > 0, scale, 1) / np.float32(MAX_INT8)
    values /= scale
    rounded = ops.constant(np.rint(values, out=values).astype(np.int8))
    return ops.multiply(ops.convert(rounded, np.float32), ops.constant(scale)).output(0)
