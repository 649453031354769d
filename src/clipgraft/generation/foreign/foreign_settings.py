"""Settings of another tool: what could be read, and what not."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipgraft.errors import DataError, UserError
from clipgraft.generation.request_adapters import find_lora
from clipgraft.generation.requests import ImageRequest
from clipgraft.sampling_params import Lora, SamplingParams
from clipgraft.scheduler_recipes import scheduler_name

MAX_PROMPT_CHARACTERS = 32_000
"""Of a prompt in a file; some 100 chunks of 75 tokens (a guess)."""
LORA_TAG = re.compile(r"\s?<(?:lora|lyco):([^:<>]{1,200})(?::([^<>]{0,200}))?>")
A1111_SAMPLERS = {
    **{"euler": "Euler", "euler_a": "Euler a", "euler_ancestral": "Euler a", "heun": "Heun", "lms": "LMS"},
    **{"dpm_2": "DPM2", "dpm_2_a": "DPM2 a", "dpm_2_ancestral": "DPM2 a"},
    **{"kdpm_2": "DPM2", "kdpm_2_a": "DPM2 a"},
    **{"dpmpp_2m": "DPM++ 2M", "dpmpp_2": "DPM++ 2M", "dpmpp_2s": "DPM++ 2S"},
    **{"dpmpp_2s_ancestral": "DPM++ 2S a", "dpmpp_2_a": "DPM++ 2S a"},
    **{"dpmpp_sde": "DPM++ SDE", "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_3m_sde": "DPM++ 3M SDE"},
    **{"ddim": "DDIM", "ddpm": "DDPM", "plms": "PLMS", "pndm": "PLMS", "deis": "DEIS"},
    **{"uni_pc": "UniPC", "uni_pc_bh2": "UniPC", "unipc": "UniPC", "lcm": "LCM", "tcd": "TCD"},
}
"""A1111's names of the samplers that ComfyUI, InvokeAI and NovelAI name after k-diffusion and diffusers."""
SCHEDULES = {"karras": "Karras", "exponential": "Exponential", "normal": "", "native": "", "": ""}
"""Their schedule types by A1111's names; others do not exist here."""


@dataclass
class ForeignSettings:
    """A prompt and parameters, and a line for each unread setting."""

    tool: str
    prompt: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    """Fields of `SamplingParams`, not checked yet."""
    unread: list[str] = field(default_factory=list)
    loras: list[tuple[str, Any]] = field(default_factory=list)
    """Names or file names, and strengths."""

    def add_sampler(self, sampler: str, schedule: str) -> None:
        """Add a sampler and its schedule type, under A1111's names."""
        name = scheduler_of(f"{sampler} {schedule}".strip())
        if name is None and schedule:
            name = scheduler_of(sampler)
            self.unread += [f"schedule type {schedule}"] if name else []
        if name:
            self.values["scheduler"] = name
        elif sampler:
            self.unread.append(f"sampler {f'{sampler} {schedule}'.strip()}")

    def add_k_sampler(self, name: str, schedule: str) -> None:
        """Add a sampler under k-diffusion's or diffusers' name."""
        short = name.removeprefix("k_").removesuffix("_gpu").removesuffix("_v3")
        is_karras = short.endswith("_k")
        schedule = "karras" if is_karras else schedule
        sampler = A1111_SAMPLERS.get(short.removesuffix("_k"), name)
        self.add_sampler(sampler, SCHEDULES.get(schedule, schedule))

    def add_model(self, name: Any) -> None:
        """Add the name of a model, which a base replaces here."""
        if name:
            self.unread.append(f"model {name}")

    def take_loras(self) -> None:
        """Take A1111's LoRA tags out of the prompt."""
        self.loras += [(name, weight) for name, weight in LORA_TAG.findall(self.prompt)]
        self.prompt = LORA_TAG.sub("", self.prompt)

    def _find_loras(self, folder: str) -> tuple[Lora, ...]:
        """Find the LoRAs in a folder; missing ones become unread."""
        found = []
        for name, weight in self.loras:
            file_name = name.replace("\\", "/").rpartition("/")[2].removesuffix(".safetensors")
            strength = number(str(weight).partition(":")[0])
            try:
                file = find_lora(Path(folder), file_name)
                found.append(Lora.build({"file": file, "strength": 1.0 if strength is None else strength}))
            except UserError as error:
                self.unread.append(str(error))
        return tuple(found)

    def request(self, given: SamplingParams) -> ImageRequest:
        """Return a request; values that are not allowed become `unread`.

        Args:
            given: Hold where nothing was read, and name files such as `init_image`.

        Raises:
            DataError: If the prompt is too long.
        """
        length = len(self.prompt) + len(str(self.values.get("negative_prompt", "")))
        if length > MAX_PROMPT_CHARACTERS:
            most = MAX_PROMPT_CHARACTERS
            raise DataError(f"the image's prompt has {length:,} characters; at most {most:,} are read")
        if "strength" in self.values and not given.init_image:
            self.unread.append(
                f"the image that it was started from (strength {self.values.pop('strength')}); name it with "
                "--init-image"
            )
        params = given
        if given.lora_dir:
            params = SamplingParams.of(given, loras=(*given.loras, *self._find_loras(given.lora_dir)))
        elif self.loras:
            named = ", ".join(f"{name} at {weight}" if weight else name for name, weight in self.loras)
            self.unread.append(f"LoRA {named}; name their folder with --lora-dir")
        for name, value in list(self.values.items()):
            try:
                params = SamplingParams.of(params, **{name: value})
            except UserError as error:
                del self.values[name]
                self.unread.append(str(error))
        try:
            return ImageRequest(self.prompt, params)
        except UserError as error:
            if params.prompt_syntax == "plain" or not str(error).startswith("prompt"):
                raise
            self.unread.append(f"weights of the prompt, which is read as plain text ({error})")
            self.values["prompt_syntax"] = "plain"
            return ImageRequest(self.prompt, SamplingParams.of(params, prompt_syntax="plain"))


def scheduler_of(a1111_name: str) -> str | None:
    """Return the scheduler with A1111's name, if there is one."""
    try:
        return scheduler_name(a1111_name)
    except UserError:
        return None


def number(value: Any) -> int | float | None:
    """Return a finite number, also out of a text; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
        if not math.isfinite(found):
            return None
        return int(value) if found.is_integer() and "." not in str(value) else found
    except (ValueError, OverflowError):
        return None


def text_of(value: Any) -> str:
    """Return a value that is a text; else ""."""
    return value if isinstance(value, str) else ""
