"""InvokeAI's metadata: `invokeai_metadata` since version 3, before `sd-metadata` and `Dream`."""

import re
from collections.abc import Mapping
from typing import Any

from clipgraft.errors import DataError
from clipgraft.files import parse_json
from clipgraft.generation.foreign.foreign_settings import ForeignSettings, number, text_of

NUMBERS = {
    **{"seed": "seed", "steps": "num_inference_steps", "cfg_scale": "guidance_scale"},
    **{"width": "width", "height": "height"},
}
DREAM = {"s": "steps", "S": "seed", "C": "cfg_scale", "W": "width", "H": "height", "A": "sampler"}
"""Options of the command line that `Dream` holds."""
UNREAD = (
    "controlnets",
    "ipAdapters",
    "t2iAdapters",
    "hrf_enabled",
    "vae",
    "cfg_rescale_multiplier",
    "refiner_model",
)
COMPEL = re.compile(r"[\w)]\++(?=[\s,.)]|$)|\)-?\d")
"""Weights in InvokeAI's syntax: `word++`, `(two words)1.3`."""


def read_invokeai(texts: Mapping[str, str]) -> ForeignSettings | None:
    """Read a PNG's texts by InvokeAI; None if it has none.

    Raises:
        DataError: If one is there and damaged.
    """
    if "invokeai_metadata" in texts:
        return _current(parse_json(texts["invokeai_metadata"], "invokeai_metadata"))
    if "sd-metadata" in texts:
        return _second(parse_json(texts["sd-metadata"], "sd-metadata"))
    for key in ("Dream", "dream"):
        if key in texts:
            return _first(texts[key])
    return None


def _current(values: dict[str, Any]) -> ForeignSettings:
    settings = ForeignSettings("InvokeAI", text_of(values.get("positive_prompt")))
    if negative := text_of(values.get("negative_prompt")):
        settings.values["negative_prompt"] = negative
    _add_shared(settings, values, text_of(values.get("scheduler")))
    if skip := number(values.get("clip_skip")):
        settings.values["clip_skip"] = int(skip)
    if (strength := number(values.get("strength"))) is not None:
        settings.values["strength"] = strength
    settings.add_model(_name(values.get("model")))
    loras = values.get("loras")
    for lora in loras if isinstance(loras, list) else ():
        if isinstance(lora, dict):
            settings.loras.append((_name(lora.get("model") or lora.get("lora")), lora.get("weight")))
    settings.unread += [f"{key}: {str(values[key])[:100]}" for key in UNREAD if values.get(key)]
    return settings


def _second(values: dict[str, Any]) -> ForeignSettings:
    image = values.get("image")
    if not isinstance(image, dict):
        raise DataError("sd-metadata holds no image")
    prompts = image.get("prompt")
    parts = prompts if isinstance(prompts, list) else [prompts]
    texts = [text_of(part.get("prompt") if isinstance(part, dict) else part) for part in parts]
    settings = _with_negatives(texts[0] if texts else "")
    settings.unread += [f"a further prompt: {text[:100]}" for text in texts[1:]]
    _add_shared(settings, image, text_of(image.get("sampler")))
    if image.get("type") == "img2img":
        settings.values["strength"] = number(image.get("strength"))
    settings.add_model(text_of(values.get("model_weights")))
    return settings


def _first(text: str) -> ForeignSettings:
    found = re.match(r'"(.*?)"(?=\s|$)', text, re.DOTALL)
    if not found:
        raise DataError('Dream holds no prompt in quotes, such as "a dog" -s 50 -S 1')
    settings = _with_negatives(found[1])
    options = dict(re.findall(r"\s-(\w)\s*([\w.]+)", text[found.end() :]))
    values = {DREAM[key]: value for key, value in options.items() if key in DREAM}
    _add_shared(settings, values, values.get("sampler", ""))
    settings.unread += [f"option -{key} {value}" for key, value in options.items() if key not in DREAM]
    return settings


def _with_negatives(text: str) -> ForeignSettings:
    """Take the parts in brackets, which were negative, out of a prompt."""
    negatives = re.findall(r"\[([^\[\]]*)\]", text)
    settings = ForeignSettings("InvokeAI", re.sub(r"\s*\[[^\[\]]*\]", "", text).strip())
    if negatives:
        settings.values["negative_prompt"] = ", ".join(negatives)
    return settings


def _add_shared(settings: ForeignSettings, values: Mapping[str, Any], scheduler: str) -> None:
    for key, name in NUMBERS.items():
        if (value := number(values.get(key))) is not None:
            settings.values[name] = value
    settings.add_k_sampler(scheduler, "")
    if COMPEL.search(settings.prompt):
        settings.unread.append("weights of the prompt, such as word++ and (words)1.3, which are read as text")


def _name(model: Any) -> str:
    """Return a model's name, whose key differs between versions."""
    if not isinstance(model, dict):
        return text_of(model)
    return next((text_of(model[key]) for key in ("name", "model_name", "key") if model.get(key)), "")
