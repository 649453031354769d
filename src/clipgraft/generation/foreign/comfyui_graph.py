"""ComfyUI's prompt graph, read from the sampler along its links.

A graph is JSON: nodes by id, each with its `class_type` and `inputs`; an input is a value or a link
`[id, output]`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from clipgraft.errors import DataError
from clipgraft.files import parse_json
from clipgraft.generation.foreign.foreign_settings import ForeignSettings, number

PARTS = ("noise", "guider", "sampler", "sigmas")
"""Inputs of SamplerCustom and SamplerCustomAdvanced whose nodes hold what KSampler holds itself."""
TEXTS = ("text", "text_g", "text_l", "prompt", "string", "value")
CONDITIONINGS = ("conditioning", "conditioning_1", "conditioning_to", "conditioning_from")
NUMBER_INPUTS = ("value", "seed", "noise_seed", "int", "float", "number")
MODEL_FILES = ("ckpt_name", "unet_name", "model_name")
PLAIN_NODES = {
    *(
        "CLIPTextEncode",
        "CLIPTextEncodeSDXL",
        "CLIPSetLastLayer",
        "CheckpointLoaderSimple",
        "CheckpointLoader",
    ),
    *("UNETLoader", "LoraLoader", "LoraLoaderModelOnly", "PrimitiveNode", "String", "ConditioningZeroOut"),
    *("CFGGuider", "BasicGuider"),
}
"""Nodes between a sampler and its texts or model that lose nothing when left out."""


def read_comfyui(texts: Mapping[str, str]) -> ForeignSettings | None:
    """Read a PNG's texts by ComfyUI; None without a prompt graph.

    Raises:
        DataError: If the graph is damaged, or has no sampler with a prompt.
    """
    if "prompt" not in texts:
        if "workflow" not in texts:
            return None
        raise DataError("holds ComfyUI's workflow alone, without the prompt graph that is read")
    graph = _Graph(parse_json(texts["prompt"], "ComfyUI's prompt graph"))
    first = graph.first_sampler()
    settings = ForeignSettings("ComfyUI")
    _add_texts(settings, graph, first)
    _add_numbers(settings, graph, first)
    _add_latent(settings, graph, first)
    _add_model(settings, graph, first)
    if graph.num_samplers > 1:
        settings.unread.append(f"{graph.num_samplers - 1} more samplers (hires fix or another image)")
    settings.unread += [f"node {kind}" for kind in dict.fromkeys(graph.passed) if kind not in PLAIN_NODES]
    return settings


class _Graph:
    """Nodes by id, those that are whole."""

    def __init__(self, nodes: Mapping[str, Any]):
        self.inputs: dict[str, dict[str, Any]] = {}
        self.kinds: dict[str, str] = {}
        for name, node in nodes.items():
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
                self.inputs[name], self.kinds[name] = node["inputs"], str(node.get("class_type", ""))[:60]
        self.num_samplers = 0
        self.passed: list[str] = []
        """Kinds of the nodes on the way to what was read."""

    def first_sampler(self) -> dict[str, Any]:
        """Return the inputs of the sampler that no other one precedes."""
        samplers = {name: inputs for name in self.inputs if _is_sampler(inputs := self._sampler_inputs(name))}
        if not samplers:
            raise DataError("ComfyUI's prompt graph has no sampler with steps and a prompt")
        self.num_samplers = len(samplers)
        for name, inputs in samplers.items():
            if not samplers.keys() & {*self.upstream(inputs["latent_image"])} - {name}:
                return inputs
        return next(iter(samplers.values()))

    def _sampler_inputs(self, name: str) -> dict[str, Any]:
        own = self.inputs[name]
        merged: dict[str, Any] = {}
        for part in PARTS:
            merged |= self.inputs.get(self.target(own.get(part)), {})
        return merged | own

    def target(self, value: Any) -> str:
        """Return the id of a linked node; empty for a value."""
        is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)
        return str(value[0]) if is_link and str(value[0]) in self.inputs else ""

    def upstream(self, link: Any) -> Iterator[str]:
        """Yield the nodes that an image or latents come from, each once."""
        waiting, seen = [self.target(link)], {""}
        while waiting:
            if (name := waiting.pop()) in seen:
                continue
            seen.add(name)
            yield name
            ways = ("latent_image", "samples", "latent", "pixels", "image", "images")
            waiting += [self.target(self.inputs[name].get(way)) for way in reversed(ways)]

    def find(self, value: Any, ways: tuple[str, ...], fits: Callable[[Any], bool]) -> Any:
        """Return the first fitting value along the named inputs, or None."""
        waiting: list[Any] = [value]
        passed: list[str] = []
        seen: set[str] = set()
        while waiting:
            value = waiting.pop()
            if fits(value):
                self.passed += passed
                return value
            if not (name := self.target(value)) or name in seen:
                continue
            seen.add(name)
            passed.append(self.kinds[name])
            if self.kinds[name] == "ConditioningZeroOut":
                return ""
            waiting += [self.inputs[name][way] for way in reversed(ways) if way in self.inputs[name]]
        return None

    def number(self, value: Any) -> int | float | None:
        """Return a number, or that of the node that is linked."""
        return number(self.find(value, NUMBER_INPUTS, lambda each: number(each) is not None))


def _is_sampler(inputs: Mapping[str, Any]) -> bool:
    return {"steps", "latent_image"} <= inputs.keys() and bool({"positive", "conditioning"} & inputs.keys())


def _add_texts(settings: ForeignSettings, graph: _Graph, sampler: Mapping[str, Any]) -> None:
    found = []
    for role in ("positive", "negative"):
        ways = (*TEXTS, role, *CONDITIONINGS)
        link = sampler.get(role, sampler.get("conditioning") if role == "positive" else None)
        text = graph.find(link, ways, lambda each: isinstance(each, str))
        if text is None and link is not None:
            settings.unread.append(f"the {role} prompt, which no known node holds")
        found.append(str(text or ""))
    settings.prompt, negative = found
    if any("(" in text for text in found):
        settings.values["prompt_syntax"] = "weighted"  # of ComfyUI's brackets only the round ones weigh
        settings.prompt, negative = (text.replace("[", r"\[").replace("]", r"\]") for text in found)
    if negative:
        settings.values["negative_prompt"] = negative


def _add_numbers(settings: ForeignSettings, graph: _Graph, sampler: Mapping[str, Any]) -> None:
    names = {"seed": "seed", "noise_seed": "seed", "steps": "num_inference_steps", "cfg": "guidance_scale"}
    for key, name in names.items():
        if key in sampler:
            value = graph.number(sampler[key])
            if value is None:
                settings.unread.append(f"{key}, which no known node holds")
            else:
                settings.values[name] = value
    sampler_name, scheduler = (str(sampler.get(key, "")) for key in ("sampler_name", "scheduler"))
    settings.add_k_sampler(sampler_name, scheduler)
    if number(sampler.get("start_at_step")) or (number(sampler.get("end_at_step")) or 10**4) < 10**4:
        settings.unread.append("a part of the steps alone (start_at_step, end_at_step)")


def _add_latent(settings: ForeignSettings, graph: _Graph, sampler: Mapping[str, Any]) -> None:
    for name in graph.upstream(sampler["latent_image"]):
        inputs = graph.inputs[name]
        if graph.kinds[name].startswith("LoadImage"):
            settings.values["strength"] = number(sampler.get("denoise", 1.0)) or 1.0
            return
        sizes = [graph.number(inputs.get(side)) for side in ("width", "height")]
        if "Latent" in graph.kinds[name] and all(sizes):
            settings.values |= dict(zip(("width", "height"), sizes, strict=True))
            if (number(inputs.get("batch_size")) or 1) > 1:
                settings.unread.append("the image's place in its batch, which shares one seed")
            return
    settings.unread.append("the size")


def _add_model(settings: ForeignSettings, graph: _Graph, sampler: Mapping[str, Any]) -> None:
    waiting, seen = [graph.target(sampler.get("model"))], {""}
    while waiting and (name := waiting.pop()) not in seen:
        seen.add(name)
        inputs = graph.inputs[name]
        graph.passed.append(graph.kinds[name])
        files = [inputs[key] for key in MODEL_FILES if isinstance(inputs.get(key), str)]
        if files:
            settings.add_model(files[0])
        if isinstance(inputs.get("lora_name"), str):
            settings.loras.append((inputs["lora_name"], inputs.get("strength_model")))
        waiting.append(graph.target(inputs.get("model")))
    for inputs in graph.inputs.values():
        layer = number(inputs.get("stop_at_clip_layer"))
        if layer is not None and layer < -1:
            settings.values["clip_skip"] = int(-layer) - 1
