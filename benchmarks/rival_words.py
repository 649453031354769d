"""The ways people use today to teach a base words from captioned images, both through its frozen U-Net.

`textual_inversion`: diffusers' script of that name: the rows of new words in the table of embeddings are
trained, all others are put back after each step. Two changes in its favour: all words are trained at once, in
the images' own captions in place of templates such as "a photo of a hound".
`text_encoder`: DreamBooth's `--train_text_encoder`: all weights of the text encoder are trained, here with
the captions of all images and the U-Net frozen.

Both minimise the squared error of the predicted noise with AdamW at a constant learning rate, as the scripts.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from clipgraft.data.caption_words import holds_any
from clipgraft.data.transforms import tokenize
from clipgraft.models.base import FrozenBase

BATCH_SIZE = 16
"""Of both scripts: 4, accumulated over 4 steps."""
WEIGHT_DECAY = 1e-2
"""Of both scripts."""
SCORED_TIMESTEPS = (200, 400, 600, 800)


class Images(NamedTuple):
    """Images as latents, each with its captions."""

    latents: Tensor
    """Scaled, (N, 4, h, w)."""
    captions: Sequence[Sequence[str]]

    def with_words(self, words: frozenset[str]) -> "Images":
        """Keep captions with some of the words, and the images that have one."""
        kept = [[text for text in texts if holds_any(text, words)] for texts in self.captions]
        rows = [row for row, texts in enumerate(kept) if texts]
        return Images(self.latents[rows], [kept[row] for row in rows])


class Trained(NamedTuple):
    """A trained text encoder and what it took."""

    encoder: CLIPTextModel
    num_steps: int
    processor_seconds: float


def textual_inversion(
    base: FrozenBase, images: Images, words: frozenset[str], learning_rate: float, seconds: float, seed: int
) -> Trained:
    """Train the token embeddings of words for some processor seconds."""
    encoder = base.text_encoder
    table = encoder.get_input_embeddings().weight
    encoder.requires_grad_(False)
    table.requires_grad_(True)
    is_new = torch.zeros(len(table), dtype=torch.bool)
    is_new[word_rows(base.tokenizer, words)] = True
    before = table.detach().clone()

    @torch.no_grad()
    def put_back() -> None:
        table[~is_new] = before[~is_new]

    found = _train(base, images.with_words(words), [table], learning_rate, seconds, seed, put_back)
    assert torch.equal(table[~is_new], before[~is_new])
    return found


def text_encoder(
    base: FrozenBase, images: Images, learning_rate: float, seconds: float, seed: int
) -> Trained:
    """Train the whole text encoder for some processor seconds."""
    encoder = base.text_encoder.requires_grad_(True)
    return _train(base, images, list(encoder.parameters()), learning_rate, seconds, seed, lambda: None)


def word_rows(tokenizer: CLIPTokenizer, words: frozenset[str]) -> list[int]:
    """Rows of words in the table of embeddings, each one token."""
    pieces = [tokenizer(word, add_special_tokens=False).input_ids for word in sorted(words)]
    assert all(len(piece) == 1 for piece in pieces)
    return [piece[0] for piece in pieces]


@torch.no_grad()
def noise_error(base: FrozenBase, images: Images) -> float:
    """Mean squared error of the predicted noise with each image's first caption, with fixed noise."""
    generator, errors = torch.Generator().manual_seed(0), []
    for timestep in SCORED_TIMESTEPS:
        noise = torch.randn(images.latents.shape, generator=generator)
        for rows in torch.arange(len(noise)).split(64):
            captions = [images.captions[row][0] for row in rows]
            times = torch.full((len(rows),), timestep)
            errors.append(_errors(base, images.latents[rows], captions, noise[rows], times))
    return float(torch.cat(errors).mean())


def _train(
    base: FrozenBase,
    images: Images,
    parameters: list[Tensor],
    learning_rate: float,
    seconds: float,
    seed: int,
    after_step: Callable[[], None],
) -> Trained:
    base.text_encoder.train()
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    begun, num_steps = time.process_time(), 0
    while time.process_time() - begun < seconds:
        rows = draw(len(images.latents), BATCH_SIZE)
        captions = [images.captions[row][draw(len(images.captions[row]), 1)] for row in rows]
        latents = images.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        times = draw(len(base.scheduler.alphas_cumprod), BATCH_SIZE)
        loss = _errors(base, latents, captions, noise, times).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        after_step()
        num_steps += 1
    return Trained(base.text_encoder.eval().requires_grad_(False), num_steps, time.process_time() - begun)


def _errors(
    base: FrozenBase, latents: Tensor, captions: Sequence[str], noise: Tensor, timesteps: Tensor
) -> Tensor:
    """Squared error of each image's predicted noise, (B,)."""
    unet: UNet2DConditionModel = base.unet
    ids = tokenize(captions, base.tokenizer, pad_to_context_length=True)
    states = base.text_encoder(ids).last_hidden_state
    noisy = base.scheduler.add_noise(latents, noise, timesteps)
    return F.mse_loss(unet(noisy, timesteps, states).sample, noise, reduction="none").mean((1, 2, 3))
