"""Worth of a caption's words to CLIP, and to a base.

Both ways, as words repeat each other and need each other: alone, against no text, and left out of a caption,
against the whole. To CLIP a word is worth cosine with the caption's image; to the base it spares error of the
noise that the U-Net predicts with the base's own text encoder. Worths are shares of a whole caption's.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from clipgraft.bridging.latents import load_latents
from clipgraft.bridging.refine import check_prediction
from clipgraft.cache import cache_dir
from clipgraft.console import track
from clipgraft.data.buckets import Bucket
from clipgraft.data.caption_words import without_word, words_of
from clipgraft.data.dataset import CaptionedImage
from clipgraft.errors import UserError
from clipgraft.evaluation.features import ClipFeatures, FeatureStore
from clipgraft.evaluation.metrics.intervals import t_quantile
from clipgraft.generation.generator import load_generators
from clipgraft.generation.pipeline import prompt_input_ids
from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import ClipParts
from clipgraft.training.objectives import add_noise

TIMESTEPS = (500, 800)
"""Where captions decide places and subjects; at lower ones the noisy image shows them itself."""
BATCH_SIZE = 64
CAPTIONS_FOR_SCALE = 256
"""Captions compared with the empty prompt, the unit of a word's use."""
NAME_WORDS = "name the new words in a file (--new-words FILE)"


class Use(NamedTuple):
    """A caption with a certain word, and the row of its image."""

    row: int
    caption: str


class Estimate(NamedTuple):
    """Mean with its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Estimate":
        """Estimate the mean of two or more values."""
        mean = float(values.mean())
        reach = t_quantile(len(values) - 1) * float(values.std(ddof=1)) / len(values) ** 0.5
        return cls(mean, mean - reach, mean + reach)


def find_uses(
    images: Sequence[CaptionedImage], *, at_least: int, at_most: int, seed: int
) -> dict[str, list[Use]]:
    """Return uses of all words in captions of `at_least` images, `at_most` of each.

    Images come in a random order, the same for all words, so that words share captions, and each gives a word
    one caption.
    """
    found: dict[str, list[Use]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for row in torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist():
        captions = {word: text for text in images[row].captions for word in words_of(text)}
        for word, caption in captions.items():
            counts[word] += 1
            if counts[word] <= at_most:
                found[word].append(Use(row, caption))
    return {word: found[word] for word in sorted(found) if counts[word] >= at_least}


class NoWordsError(UserError):
    """No word's worth can be measured."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason


class ClipCosines:
    """Cosines of a CLIP between images and texts.

    Args:
        clip: On its device.
        images: Their rows are those of uses.
        uses: By word.
    """

    def __init__(self, clip: ClipParts, images: Sequence[CaptionedImage], uses: Mapping[str, Sequence[Use]]):
        shared = FeatureStore(cache_dir() / "features", PartialState())
        self.features, self.uses = ClipFeatures(clip, "CLIP", shared, shared), uses
        rows = sorted({use.row for each in uses.values() for use in each})
        self.places = {row: place for place, row in enumerate(rows)}
        self.image_embeds = self.features.of_images([images[row] for row in rows])
        whole = sorted({use for each in uses.values() for use in each})
        self.worth = float((self._of(whole) - self._of([Use(use.row, "") for use in whole])).mean())
        if not self.worth > 0:  # nor if it is no number
            raise NoWordsError(
                "CLIP finds images no nearer to their captions than to no text, so it sees no word in them",
                "fine-tune it on them first (`clipgraft finetune`)",
            )

    def alone(self) -> dict[str, np.ndarray]:
        """Return how much nearer each word alone is to its images.

        Nearer than other words are to that image, and than the word is to other images: a single word has a
        cosine of its own with each image.
        """
        words = list(self.uses)
        cosines = (self.image_embeds @ self.features.of_texts(words).T).numpy()
        cosines = cosines - cosines.mean(1, keepdims=True)
        found = {}
        for word, column in zip(words, cosines.T, strict=True):
            own = [self.places[use.row] for use in self.uses[word]]
            others = np.delete(column, own)
            found[word] = (column[own] - (others.mean() if len(others) else 0)) / self.worth
        return found

    def left_out(self) -> dict[str, np.ndarray]:
        """Return how far the cosine falls without each word, use by use."""
        less = [Use(u.row, without_word(u.caption, word)) for word, each in self.uses.items() for u in each]
        falls = self._of([use for each in self.uses.values() for use in each]) - self._of(less)
        return split_by_word(self.uses, falls / self.worth)

    def _of(self, uses: Sequence[Use]) -> np.ndarray:
        """Cosine of each use's image and caption."""
        texts = sorted({use.caption for use in uses})
        embeds = self.features.of_texts(texts)
        rows = {text: row for row, text in enumerate(texts)}
        ours = self.image_embeds[[self.places[use.row] for use in uses]]
        return (ours * embeds[[rows[use.caption] for use in uses]]).sum(1).numpy()


def split_by_word(uses: Mapping[str, Sequence[Use]], values: np.ndarray) -> dict[str, np.ndarray]:
    """Split values of all uses in order by their words."""
    ends = np.cumsum([len(each) for each in uses.values()])[:-1]
    return dict(zip(uses, np.split(values, ends), strict=True))


class BaseErrors:
    """Errors of a base's noise prediction, each measured once.

    Args:
        base: With its VAE and scheduler.
        images: Their rows are those of uses.
        device: Of the U-Net.
    """

    def __init__(self, base: FrozenBase, images: Sequence[CaptionedImage], device: str):
        check_prediction(base)
        self.base, self.images = base, images
        name, revision, _ = base.origin
        [(_, generator)] = load_generators({"own": None}, base=name, revision=revision, device=device)
        self.pipeline = generator.pipeline
        self.size = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        self.alphas = base.scheduler.alphas_cumprod
        self.worth = np.ones(len(TIMESTEPS))
        self._latents: dict[int, Tensor] = {}
        self.known: dict[Use, np.ndarray] = {}
        """Errors measured so far, (timesteps,) each."""

    def set_scale(self, uses: Iterable[Use]) -> None:
        """Measure what whole captions are worth, at each timestep."""
        whole = sorted(set(uses))[:CAPTIONS_FOR_SCALE]
        self.worth = self._falls([Use(use.row, "") for use in whole], whole, "without text").mean(0)
        if not self.worth.all():
            raise NoWordsError("the base predicts the same noise with and without text", NAME_WORDS)

    def alone(self, uses: Mapping[str, Sequence[Use]]) -> dict[str, np.ndarray]:
        """Return how far the error falls from no text to each word."""
        pairs = [(Use(u.row, ""), Use(u.row, word)) for word, each in uses.items() for u in each]
        return self._shares(uses, pairs, "words alone")

    def left_out(self, uses: Mapping[str, Sequence[Use]]) -> dict[str, np.ndarray]:
        """Return how far the error rises without each word, use by use."""
        pairs = [(Use(u.row, without_word(u.caption, word)), u) for word, each in uses.items() for u in each]
        return self._shares(uses, pairs, "captions without a word")

    def _shares(
        self, uses: Mapping[str, Sequence[Use]], pairs: Sequence[tuple[Use, Use]], description: str
    ) -> dict[str, np.ndarray]:
        if not pairs:
            return {}
        less, more = zip(*pairs, strict=True)
        return split_by_word(uses, (self._falls(less, more, description) / self.worth).mean(1))

    def _falls(self, less: Sequence[Use], more: Sequence[Use], description: str) -> np.ndarray:
        missing = sorted({*less, *more} - self.known.keys())
        self._encode(sorted({use.row for use in missing} - self._latents.keys()))
        with track(f"the base reads {description}", len(missing)) as update:
            for start in range(0, len(missing), BATCH_SIZE):
                part = missing[start : start + BATCH_SIZE]
                self.known |= zip(part, self._measure(part).numpy(), strict=True)
                update(start + len(part), "captions")
        before, after = (np.stack([self.known[use] for use in part]) for part in (less, more))
        if not np.isfinite([before, after]).all():
            raise NoWordsError("the base predicts noise that is no finite number", NAME_WORDS)
        return before - after

    def _encode(self, rows: Sequence[int]) -> None:
        if rows:
            square = (Bucket(self.size, self.size),)
            latents = load_latents(self.base, [self.images[row] for row in rows], square)
            self._latents |= {
                row: torch.from_numpy(each).float() for row, each in zip(rows, latents, strict=True)
            }

    @torch.no_grad()
    def _measure(self, uses: Sequence[Use]) -> Tensor:
        device = self.pipeline._execution_device
        ids = prompt_input_ids([use.caption for use in uses], self.pipeline.tokenizer).to(device)
        embeds = self.pipeline.text_encoder(ids)[0]
        latents = torch.stack([self._latents[use.row] for use in uses])
        errors = []
        for timestep in TIMESTEPS:
            noise = torch.stack([_noise(use.row, timestep, latents.shape[1:]) for use in uses])
            noisy = add_noise(latents, noise, self.alphas, torch.full((len(uses),), timestep))
            predicted = self.pipeline.unet(noisy.to(device), timestep, embeds)[0].float().cpu()
            errors.append((predicted - noise).square().mean((1, 2, 3)))
        return torch.stack(errors, 1)


def _noise(row: int, timestep: int, shape: Sequence[int]) -> Tensor:
    """Draw the noise of one image, the same with every caption."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(row * 1000 + timestep))
