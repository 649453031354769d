"""NovelAI's `Comment` in a PNG; its copy in the alpha channel is unread."""

import re
from collections.abc import Mapping

from clipgraft.files import parse_json
from clipgraft.generation.foreign.foreign_settings import ForeignSettings, number, text_of

NUMBERS = {
    **{"seed": "seed", "steps": "num_inference_steps", "scale": "guidance_scale"},
    **{"width": "width", "height": "height"},
}
UNREAD = {
    "sm": "SMEA",
    "sm_dyn": "SMEA DYN",
    "cfg_rescale": "cfg_rescale",
    "dynamic_thresholding": "decrisper",
}
STRENGTHEN, WEAKEN = 1.05, 1 / 1.05
"""Weights of `{word}` and `[word]`."""


def read_novelai(texts: Mapping[str, str]) -> ForeignSettings | None:
    """Read a PNG's texts by NovelAI; None if they are not.

    Raises:
        DataError: If its comment is damaged.
    """
    if texts.get("Software") != "NovelAI" or "Comment" not in texts:
        return None
    values = parse_json(texts["Comment"], "NovelAI's comment")
    settings = ForeignSettings("NovelAI", text_of(values.get("prompt")) or texts.get("Description", ""))
    negative = text_of(values.get("uc"))
    for key, name in NUMBERS.items():
        if (value := number(values.get(key))) is not None:
            settings.values[name] = value
    settings.add_k_sampler(text_of(values.get("sampler")), text_of(values.get("noise_schedule")))
    if re.search(r"[{}\[\]]", settings.prompt + negative):
        if _is_balanced(settings.prompt) and _is_balanced(negative):
            settings.prompt, negative = map(_weighted, (settings.prompt, negative))
            settings.values["prompt_syntax"] = "weighted"
        else:
            settings.unread.append("weights of the prompt, whose brackets have no partner")
    if negative:
        settings.values["negative_prompt"] = negative
    if values.get("request_type") not in (None, "PromptGenerateRequest"):
        settings.values["strength"] = number(values.get("strength"))
    settings.add_model(texts.get("Source"))
    settings.unread += [f"{name}: {values[key]}" for key, name in UNREAD.items() if values.get(key)]
    v4 = values.get("v4_prompt")
    caption = v4.get("caption") if isinstance(v4, dict) else None
    if isinstance(caption, dict) and caption.get("char_captions"):
        settings.unread.append("prompts of single characters")
    return settings


def _is_balanced(text: str) -> bool:
    """Whether every bracket has its partner."""
    opened = []
    for bracket in re.findall(r"[{}\[\]]", text):
        if bracket in "{[":
            opened.append(bracket)
        elif not opened or opened.pop() + bracket not in ("{}", "[]"):
            return False
    return not opened


def _weighted(text: str) -> str:
    """Write NovelAI's brackets as A1111's weights."""
    replaced = {"{": "(", "[": "(", "}": f":{STRENGTHEN:g})", "]": f":{WEAKEN:.4f})", "(": r"\(", ")": r"\)"}
    return "".join(replaced.get(character, character) for character in text)
