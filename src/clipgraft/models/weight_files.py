"""Which files of a model are needed, by the names they go by: whole or in shards, in full or half precision.

Of the names that diffusers and transformers write:

    model.safetensors        model.safetensors.index.json with model-00001-of-00002.safetensors
    model.fp16.safetensors   model.safetensors.index.fp16.json with model.fp16-00001-of-00002.safetensors
"""

import fnmatch
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

FULL, HALF = "", "fp16"
"""Variants of weights, as diffusers and transformers name them."""
SHARD = re.compile(r"-\d+-of-(\d+)")


class Weights(NamedTuple):
    """Weights of one model."""

    stem: str
    """Path without its endings: `unet/diffusion_pytorch_model`."""
    prefer_half: bool = False
    is_optional: bool = False
    """Whether a model is whole without them."""


@dataclass(frozen=True)
class Needed:
    """Files that a model is loaded from.

    Args:
        texts: Patterns of configurations and vocabularies; these come in several ways, and what is there is
            taken.
        weights: Each must be there that is not optional.
    """

    texts: tuple[str, ...]
    weights: tuple[Weights, ...]

    def choose(self, held: Collection[str], *, full_where_preferred: bool = False) -> list[str]:
        """Return the needed ones of the files held, or none at all where weights are lacking.

        Args:
            held: Paths relative to the model's root.
            full_where_preferred: Do not take half precision in the place of full.
        """
        chosen = self.choose_texts(held)
        for weights in self.weights:
            variants: tuple[str, ...] = (HALF, FULL) if weights.prefer_half else (FULL, HALF)
            if full_where_preferred and not weights.prefer_half:
                variants = (FULL,)
            files, _ = find_weights(held, weights.stem, variants)
            if not files and not weights.is_optional:
                return []
            chosen += files
        return chosen

    def choose_texts(self, held: Collection[str]) -> list[str]:
        """Return the configurations and vocabularies of the files held."""
        return sorted({name for pattern in self.texts for name in fnmatch.filter(held, pattern)})

    def lacking(self, held: Collection[str]) -> str:
        """Name of the first weights that no held file has; empty where nothing lacks."""
        stems = (weights.stem for weights in self.weights if not weights.is_optional)
        return next(
            (f"{stem}.safetensors" for stem in stems if not find_weights(held, stem, (FULL, HALF))[0]), ""
        )


def find_weights(held: Collection[str], stem: str, variants: Sequence[str]) -> tuple[list[str], str]:
    """Find a model's weights among files.

    Args:
        held: Names of files.
        stem: Of the weights.
        variants: Most wanted first.

    Returns:
        The files, index first where they are shards, and their variant; no files where none are whole.
    """
    for variant in variants:
        dotted = f".{variant}" if variant else ""
        whole = f"{stem}{dotted}.safetensors"
        if whole in held:
            return [whole], variant
        index = f"{stem}.safetensors.index{dotted}.json"
        shards = sorted(
            {
                name
                for pattern in (f"{stem}{dotted}-*-of-*.safetensors", f"{stem}-*-of-*{dotted}.safetensors")
                for name in fnmatch.filter(held, pattern)
                if variant or f".{HALF}" not in name
            }
        )
        number = SHARD.search(shards[0]) if shards else None
        if index in held and number and len(shards) == int(number[1]):
            return [index, *shards], variant
    return [], FULL
