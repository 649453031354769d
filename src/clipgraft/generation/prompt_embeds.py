"""Prompt embeds of any length and with weighted words.

B prompts, W width of the embeds, L = 77 positions times the number of chunks.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from clipgraft.data.transforms import pad_input_ids
from clipgraft.errors import UserError
from clipgraft.generation.embedding_files import Embeddings
from clipgraft.generation.prompt_syntax import Span, parse_prompt
from clipgraft.generation.request_files import file_checksum
from clipgraft.models.tokenizer import prompt_notes
from clipgraft.sampling_params import EncodeParams, PromptParams

MAX_CACHED_PROMPTS = 256
"""Prompts whose embeds stay in memory; SD v1.5's take 0.24 MB each."""
MAX_CHUNKS = 32
"""2,400 tokens; the U-Net's cross-attention grows with each (a guess at what is meant)."""
COMMA = ",</w>"
LEAST_MEAN = 0.01
"""Of the standard deviation; a trained encoder's mean is far more (a guess)."""
COMMA_TOKENS = 20
"""A chunk ends at a comma within its last tokens, rather than within a phrase (A1111's default)."""


class Chunk(NamedTuple):
    """Tokens without BOS and EOS, at most 75, and their weights."""

    tokens: list[int]
    weights: list[float]


class PromptEmbedCache:
    """Cache of prompt embeds by a pipeline's tokenizer and text encoder.

    A prompt is encoded by itself, so that its neighbours in a batch do not change its rounding.
    """

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self.pipeline = pipeline
        self._embeds: OrderedDict[Hashable, Tensor] = OrderedDict()

    def pair(self, prompt: str, negative_prompt: str, params: PromptParams) -> tuple[Tensor, Tensor]:
        """Return the embeds (1, L, W) of both prompts, equally long.

        The shorter one is filled up with empty chunks.

        Raises:
            UserError: If the syntax is wrong, `clip_skip` is more than the encoder has, or an embedding is no
            file, or for another encoder.
        """
        both = [self(prompt, params), self(negative_prompt, params)]
        length = max(embeds.shape[1] for embeds in both)
        empty = self("", params)
        positive, negative = (
            torch.cat([embeds, empty.repeat(1, (length - embeds.shape[1]) // empty.shape[1], 1)], 1)
            for embeds in both
        )
        return positive, negative

    @torch.no_grad()
    def __call__(self, prompt: str, params: PromptParams) -> Tensor:
        """Return the embeds of a prompt (1, L, W); raises as `pair`."""
        params = EncodeParams.of(params)
        key = prompt, params, tuple(file_checksum(Path(each.file)) for each in params.embeddings)
        if key not in self._embeds:
            embeddings = Embeddings(params.embeddings)
            chunks = split_prompt(prompt, self.pipeline.tokenizer, params)
            states = [self._encode(chunk, embeddings, params.clip_skip) for chunk in chunks]
            self._embeds[key] = torch.cat(states, 1)
            if len(self._embeds) > MAX_CACHED_PROMPTS:
                self._embeds.popitem(last=False)
        self._embeds.move_to_end(key)
        return self._embeds[key]

    def clear(self) -> None:
        """Forget all embeds, after the text encoder's weights have changed."""
        self._embeds.clear()

    def _encode(self, chunk: Chunk, embeddings: Embeddings, clip_skip: int) -> Tensor:
        text_encoder, tokenizer = self.pipeline.text_encoder, self.pipeline.tokenizer
        ids = [tokenizer.bos_token_id, *chunk.tokens, tokenizer.eos_token_id]
        input_ids = pad_input_ids([ids], tokenizer.eos_token_id, tokenizer.model_max_length)
        input_ids = input_ids.to(self.pipeline._execution_device)
        with embeddings.in_place(text_encoder, input_ids) as readable_ids:
            states = _hidden_states(text_encoder, readable_ids, clip_skip)
        return states if set(chunk.weights) <= {1.0} else weigh(states, chunk.weights).to(states.dtype)


def _hidden_states(text_encoder: torch.nn.Module, input_ids: Tensor, clip_skip: int) -> Tensor:
    if not clip_skip:
        states: Tensor = text_encoder(input_ids)[0]
        return states
    if not isinstance(text_encoder, CLIPTextModel):
        raise UserError("clip_skip is for a base's own text encoder; a graft has no such layers: set it to 0")
    layers = text_encoder(input_ids, output_hidden_states=True).hidden_states
    if clip_skip > len(layers) - 2:
        raise UserError(f"clip_skip must be from 0 to {len(layers) - 2} with this encoder; got {clip_skip}")
    skipped: Tensor = text_encoder.final_layer_norm(layers[-1 - clip_skip])
    return skipped


def weigh(states: Tensor, weights: Sequence[float]) -> Tensor:
    """Multiply the states of weighted tokens; restore their mean.

    As A1111 does, whose images depend on it. A mean of rounding errors alone is not restored: its sign would
    be chance.

    Args:
        states: (1, 77, W), of BOS, the tokens, EOS and padding.
        weights: Of the tokens.
    """
    factors = torch.ones(states.shape[1])
    factors[1 : 1 + len(weights)] = torch.tensor(weights)
    states = states.float()
    weighted, mean = states * factors[:, None].to(states.device), states.mean()
    return weighted * (mean / weighted.mean()) if mean.abs() > LEAST_MEAN * states.std() else weighted


def split_prompt(prompt: str, tokenizer: CLIPTokenizer, params: PromptParams) -> list[Chunk]:
    """Return a prompt's chunks, at least one; with `long_prompts="cut"` only one.

    Raises:
        UserError: See `parse_prompt`.
    """
    parts = parse_prompt(prompt, params.prompt_syntax)
    embeddings = Embeddings(EncodeParams.of(params).embeddings)
    chunks = [chunk for part in parts for chunk in _chunks(part, tokenizer, embeddings)]
    if params.long_prompts == "cut":
        length = tokenizer.model_max_length - 2
        tokens = [token for chunk in chunks for token in chunk.tokens]
        weights = [weight for chunk in chunks for weight in chunk.weights]
        return [Chunk(tokens[:length], weights[:length])]
    if len(chunks) > MAX_CHUNKS:
        raise UserError(
            f"prompt {prompt[:40]!r}... takes {len(chunks)} chunks, and {MAX_CHUNKS} are allowed; shorten "
            "it, or set long_prompts to cut"
        )
    return chunks


def text_of(prompt: str, params: PromptParams) -> str:
    """Return the text of a prompt without its syntax."""
    return " ".join(
        "".join(span.text for span in part) for part in parse_prompt(prompt, params.prompt_syntax)
    )


def request_notes(prompt: str, tokenizer: CLIPTokenizer, params: PromptParams) -> list[str]:
    """Report a prompt's chunks, its cut-off end and unknown words."""
    chunks = split_prompt(prompt, tokenizer, params)
    text = text_of(prompt, params)
    embeddings = Embeddings(EncodeParams.of(params).embeddings)
    known = embeddings.without_words(text) if embeddings.ids else text
    notes = prompt_notes(known or text, tokenizer, is_cut=params.long_prompts == "cut")
    if len(chunks) > 1:
        notes.append(f"encoded in {len(chunks)} chunks of up to {tokenizer.model_max_length - 2} tokens")
    return notes


def _chunks(spans: Sequence[Span], tokenizer: CLIPTokenizer, embeddings: Embeddings) -> list[Chunk]:
    """Fill chunks with the spans' tokens, each span tokenized by itself."""
    comma, length = tokenizer.convert_tokens_to_ids(COMMA), tokenizer.model_max_length - 2
    chunks, after_comma = [Chunk([], [])], 0
    for text, weight in spans:
        for group in _groups(text, tokenizer, embeddings):
            last = chunks[-1]
            if len(last.tokens) + len(group) > length:
                is_near = after_comma and group != [comma] and length - after_comma < COMMA_TOKENS
                start = after_comma if is_near and len(group) == 1 else len(last.tokens)
                chunks.append(Chunk(last.tokens[start:], last.weights[start:]))
                del last.tokens[start:], last.weights[start:]
                last, after_comma = chunks[-1], 0
            last.tokens.extend(group)
            last.weights.extend([weight] * len(group))
            after_comma = len(last.tokens) if group == [comma] else after_comma
    return chunks


def _groups(text: str, tokenizer: CLIPTokenizer, embeddings: Embeddings) -> Iterator[list[int]]:
    """Yield tokens that stay together: an embedding's, else one by one."""
    for part in embeddings.split(text) if embeddings.ids else [text]:
        if isinstance(part, str):
            yield from ([token] for token in _tokens(part, tokenizer))
        else:
            yield part


def _tokens(text: str, tokenizer: CLIPTokenizer) -> list[int]:
    # Split `<|endoftext|>` in a prompt like other text: as EOS it would end the prompt there.
    found: list[int] = tokenizer(
        text, add_special_tokens=False, truncation=False, verbose=False, split_special_tokens=True
    )["input_ids"]
    return found
