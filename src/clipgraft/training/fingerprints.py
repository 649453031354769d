"""What decides a run's steps: sums of what it reads, and those settings that change its result.

A name or a path never stands for a content: photographs under the same names may be others.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import CLIPTokenizer

from clipgraft.cache import content_sums
from clipgraft.data.dataset import CaptionedImage
from clipgraft.files import fingerprint
from clipgraft.models.clip import ClipParts
from clipgraft.models.weights import module_sha256
from clipgraft.runs.run import NO_RESULT
from clipgraft.settings import TrainSettings

WITHOUT_EFFECT = {*NO_RESULT, "preview_steps", "preview_graft", "allow_few_captions"}
"""Settings that leave the weights as they are."""
KNOWN_OTHERWISE = {"num_epochs", "mixed_precision", "captions", "max_captions"}
"""Settings of which a checkpoint knows what became of them: steps planned, precision, captions' sum."""


def deciding_settings(settings: TrainSettings, seed: int) -> dict[str, Any]:
    """Return the seed and the settings that change a training's result, by name."""
    return {"seed": seed, **settings.model_dump(mode="json", exclude=WITHOUT_EFFECT | KNOWN_OTHERWISE)}


def sums_of_images(images: Mapping[str, Sequence[CaptionedImage]]) -> dict[str, str]:
    """Return a sum of all `photographs`' bytes and one of all `captions`.

    Args:
        images: By what they are for, in the order that they are read in. Names and places do not enter, so a
            copy elsewhere is the same.
    """
    paths = {role: [image.path for image in found] for role, found in images.items()}
    return {
        "photographs": fingerprint({role: content_sums(found) for role, found in paths.items()}),
        "captions": fingerprint(
            {role: [image.captions for image in found] for role, found in images.items()}
        ),
    }


def sum_of_clip(clip: ClipParts) -> str:
    """Return a sum of a CLIP's weights, and of what prepares its input."""
    processor = clip.image_processor.to_dict()
    return fingerprint(
        module_sha256(clip.model), sum_of_tokenizer(clip.tokenizer), str(sorted(processor.items()))
    )


def sum_of_tokenizer(tokenizer: CLIPTokenizer) -> str:
    """Return a sum of a tokenizer's vocabulary and rules; the last call's padding is not among them."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return fingerprint({name: rule for name, rule in rules.items() if name not in ("padding", "truncation")})
