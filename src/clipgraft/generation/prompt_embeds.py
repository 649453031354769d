"""Prompts' token states, each encoded once, negative prompts too (class A); and what of them is not read."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from clipgraft.data.transforms import tokenize
from clipgraft.models.tokenizer import prompt_notes

MAX_KEPT = 256
"""Prompts whose states stay in memory; SD v1.5's take 0.24 MB each."""


class PromptStates:
    """Encodes prompts with a pipeline's text encoder.

    A prompt is encoded by itself, so that its neighbours in a batch do not change its rounding.

    Args:
        pipeline: Its tokenizer and text encoder are used.
    """

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self.pipeline = pipeline
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Return states (B, L, W) of B prompts."""
        return torch.cat([self._of(prompt) for prompt in prompts])

    def forget(self) -> None:
        """Encode anew: the text encoder has other weights."""
        self._kept.clear()

    @torch.no_grad()
    def _of(self, prompt: str) -> Tensor:
        if prompt not in self._kept:
            input_ids = prompt_input_ids([prompt], self.pipeline.tokenizer)
            self._kept[prompt] = self.pipeline.text_encoder(input_ids.to(self.pipeline._execution_device))[0]
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(prompt)
        return self._kept[prompt]


def prompt_input_ids(prompts: Sequence[str], tokenizer: CLIPTokenizer) -> Tensor:
    """Return ids (B, L) int64 that prompts are drawn from, padded to the tokenizer's length."""
    length = tokenizer.model_max_length
    return tokenize(prompts, tokenizer, context_length=length, pad_to_context_length=True).input_ids


def all_notes(prompt: str, negative_prompt: str, tokenizer: CLIPTokenizer) -> list[str]:
    """Say what a base cannot read of a picture's prompts; an empty negative prompt is none."""
    notes = prompt_notes(prompt, tokenizer)
    if negative_prompt.strip():
        notes += [f"negative prompt: {note}" for note in prompt_notes(negative_prompt, tokenizer)]
    return notes
