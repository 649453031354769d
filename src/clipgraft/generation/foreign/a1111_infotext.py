"""A1111's and Forge's `parameters`: prompts and a line of settings."""

import re

from clipgraft.generation.foreign.foreign_settings import ForeignSettings, number

PAIR = re.compile(r'\s*(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""As in A1111's modules/infotext_utils.py, with a bound for keys, which keeps it linear."""
NEGATIVE = "Negative prompt:"
MIN_PAIRS = 3
"""Of a line of settings; below, A1111 takes it for a part of the prompt."""
NUMBERS = {"Steps": "num_inference_steps", "Seed": "seed", "CFG scale": "guidance_scale"}
READ = {*NUMBERS, "Size", "Sampler", "Schedule type", "Clip skip", "Denoising strength", "Model"}
SILENT = {"Model hash", "VAE hash", "Lora hashes", "Hashes", "TI hashes", "Version", "Template", "RNG"}
"""Keys that say what others say, or nothing of the image."""


def read_infotext(text: str) -> ForeignSettings | None:
    """Read a `parameters` text; None if it has no line of settings."""
    *lines, last = text.strip().split("\n")
    pairs = {key.strip(): value.strip().strip('"') for key, value in PAIR.findall(last)}
    if len(pairs) < MIN_PAIRS or "Steps" not in pairs:
        return None
    prompt, negative = _prompts(lines)
    settings = ForeignSettings("A1111 or Forge", prompt, {"prompt_syntax": "weighted"})
    if negative:
        settings.values["negative_prompt"] = negative
    unusable = []
    for key, name in NUMBERS.items():
        if (found := number(pairs.get(key))) is not None:
            settings.values[name] = found
        elif key in pairs:
            unusable.append(key)
    if size := re.fullmatch(r"(\d{1,6})x(\d{1,6})", pairs.get("Size", "")):
        settings.values |= {"width": int(size[1]), "height": int(size[2])}
    elif "Size" in pairs:
        unusable.append("Size")
    settings.add_sampler(pairs.get("Sampler", ""), pairs.get("Schedule type", ""))
    if skip := number(pairs.get("Clip skip")):
        settings.values["clip_skip"] = int(skip) - 1
    has_hires = any(key.startswith("Hires ") for key in pairs)
    if "Denoising strength" in pairs and not has_hires:
        settings.values["strength"] = number(pairs["Denoising strength"])
    settings.add_model(pairs.get("Model") or pairs.get("Model hash"))
    settings.take_loras()
    if has_hires:
        settings.unread.append("hires fix: the image is generated at its first size")
    unread = [key for key in pairs if key not in READ | SILENT and not key.startswith("Hires ")]
    settings.unread += [f"{key}: {pairs[key][:100]}" for key in unusable + unread]
    return settings


def _prompts(lines: list[str]) -> tuple[str, str]:
    """Split the lines above the settings into prompt and negative prompt."""
    for index, line in enumerate(lines):
        if line.strip().startswith(NEGATIVE):
            first = line.strip().removeprefix(NEGATIVE).strip()
            return "\n".join(lines[:index]).strip(), "\n".join([first, *lines[index + 1 :]]).strip()
    return "\n".join(lines).strip(), ""
