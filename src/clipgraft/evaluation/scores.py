"""Scores of every image.

P prompts, K images per prompt, D features. Scores are arrays (P, K), or (P, 1) for one score per prompt;
NaN = no score.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.image_file import ImageFile
from clipgraft.data.images import open_image
from clipgraft.evaluation.features import ClipFeatures, ProbeFeatures
from clipgraft.evaluation.metrics.clipscore import clip_score_2_5, clip_score_raw
from clipgraft.evaluation.metrics.image_similarity import nearest_images, psnr, seed_diversity, ssim
from clipgraft.evaluation.metrics.probe import fidelity_scores
from clipgraft.evaluation.prompt_sets import EvaluationPrompt, members, next_prompts
from clipgraft.evaluation.results import SHUFFLED, TEACHER
from clipgraft.flatland import ATTRIBUTES

MAX_PSNR = 100.0
"""Caps the infinite PSNR of equal images; 8-bit images that differ stay below 96 dB."""

Paths = list[list[ImageFile | None]]
"""Image files by prompt; None where an image failed."""
Scores = dict[str, dict[str, np.ndarray]]
"""Metric -> variant -> (P, K)."""


def score_by_clip(
    scorer: ClipFeatures,
    prompts: Sequence[EvaluationPrompt],
    paths: dict[str, Paths],
    train_images: Sequence[CaptionedImage],
    last: str,
) -> tuple[Scores, dict[str, Tensor], dict[str, np.ndarray]]:
    """Score images by a CLIP.

    Args:
        paths: Variant -> images.
        train_images: Searched for each image's nearest neighbour; empty = not measured.
        last: Variant whose images are also scored against the next prompts, as the floor `SHUFFLED`.

    Returns:
        Scores; variant -> embeds (P, K, D), NaN where an image failed; variant -> rows (P, K) of the nearest
        training images.
    """
    scores: Scores = defaultdict(dict)
    texts = scorer.of_texts([prompt.text for prompt in prompts])
    embeds = {name: _features(scorer.of_files, own, texts.shape[1]) for name, own in paths.items()}
    train = scorer.of_images(train_images) if train_images else None
    nearest: dict[str, np.ndarray] = {}
    judged = {name: (own, texts) for name, own in embeds.items()}
    judged[SHUFFLED] = (embeds[last], texts[next_prompts(prompts)])
    for name, (own, wanted) in judged.items():
        cosines = clip_score_raw(own.flatten(0, 1), wanted.repeat_interleave(own.shape[1], 0)).view(
            own.shape[:2]
        )
        scores["clip_score_raw"][name] = cosines.numpy()
        scores["clip_score_2.5"][name] = clip_score_2_5(cosines).numpy()
        scores["clip_r_precision"][name] = _own_is_nearest(own, wanted, texts, prompts)
    for name, own in embeds.items():
        if own.shape[1] > 1:
            scores["seed_diversity"][name] = seed_diversity(own)[:, None].numpy()
        if train is not None:
            cosine, rows = nearest_images(own.flatten(0, 1).nan_to_num(), train)
            is_there = ~own[..., 0].isnan()
            scores["nearest_training_cosine"][name] = torch.where(
                is_there, cosine.view(own.shape[:2]), torch.nan
            ).numpy()
            nearest[name] = rows.view(own.shape[:2]).numpy()
    return scores, embeds, nearest


def score_likeness(
    prompts: Sequence[EvaluationPrompt],
    paths: dict[str, Paths],
    embeds: dict[str, Tensor],
    names: Sequence[str],
) -> Scores:
    """Compare images with the teacher's by pixels and by embeds.

    The floor `SHUFFLED` is the teacher's own images of the next prompts.

    Args:
        paths: Variant -> images.
        embeds: Variant -> (P, K, D).
        names: Variants to compare.
    """
    scores: Scores = defaultdict(dict)
    following = next_prompts(prompts)
    teacher, teacher_embeds = paths[TEACHER], embeds[TEACHER]
    others = {name: (paths[name], embeds[name]) for name in names}
    others[SHUFFLED] = ([teacher[index] for index in following], teacher_embeds[following])
    for name, (own, own_embeds) in others.items():
        cosines = (own_embeds * teacher_embeds).sum(-1).numpy()
        scores["same_seed_cosine"][name] = cosines
        for metric in ("same_seed_psnr", "same_seed_ssim"):
            scores[metric][name] = np.full(cosines.shape, np.nan)
        for place in np.argwhere(np.isfinite(cosines)):
            row, seed = (int(number) for number in place)
            pair = [load_pixels([each]) for each in (own[row][seed], teacher[row][seed]) if each]
            scores["same_seed_psnr"][name][row, seed] = min(float(psnr(*pair)), MAX_PSNR)
            scores["same_seed_ssim"][name][row, seed] = float(ssim(*pair))
    return scores


def score_fidelity(
    probe: ProbeFeatures,
    prompts: Sequence[EvaluationPrompt],
    paths: dict[str, Paths],
    last: str,
) -> Scores:
    """Score whether the probe finds in images what their prompts name.

    Only prompts with a known scene are scored; arguments as in `score_by_clip`.
    """
    scores: Scores = defaultdict(dict)
    known = [index for index, prompt in enumerate(prompts) if prompt.scene]
    following = next_prompts(prompts)
    read = {
        name: _features(probe.read, [own[index] for index in known], len(ATTRIBUTES)).nan_to_num(-1).long()
        for name, own in paths.items()
    }
    read[SHUFFLED] = read[last]
    for name, labels in read.items():
        num_seeds = labels.shape[1]
        named = [prompts[following[index] if name == SHUFFLED else index].scene for index in known]
        each = [scene for scene in named if scene for _ in range(num_seeds)]
        for metric, values in fidelity_scores(labels.flatten(0, 1), each).items():
            scores[metric][name] = np.full((len(prompts), num_seeds), np.nan)
            scores[metric][name][known] = values.reshape(-1, num_seeds)
    return scores


def load_pixels(paths: Sequence[ImageFile]) -> Tensor:
    """Load same-size images as (N, 3, H, W) float32 in [0, 1]."""
    arrays = [np.asarray(open_image(path)) for path in paths]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def image_features(extract: Callable[[Sequence[ImageFile]], Tensor], paths: Paths, size: int) -> list[Tensor]:
    """Return image features (k, size) of each prompt, without failed images."""
    return [own[~own[:, 0].isnan()] for own in _features(extract, paths, size)]


def _features(extract: Callable[[Sequence[ImageFile]], Tensor], paths: Paths, size: int) -> Tensor:
    """Features (P, K, size) of images, NaN where one failed."""
    flat = [path for own in paths for path in own]
    is_there = torch.tensor([path is not None for path in flat])
    whole = torch.full((len(flat), size), torch.nan)
    if is_there.any():
        whole[is_there] = extract([path for path in flat if path]).float()
    return whole.view(len(paths), -1, size)


def _own_is_nearest(
    own: Tensor, wanted: Tensor, texts: Tensor, prompts: Sequence[EvaluationPrompt]
) -> np.ndarray:
    """1 where an image's own prompt is nearest (or tied), (P, K)."""
    found = np.full(own.shape[:2], np.nan)
    for name in dict.fromkeys(prompt.sets[0] for prompt in prompts):
        ids = members(prompts, name)
        best = (own[ids] @ texts[ids].T).amax(-1)  # (p, K)
        cosines = (own[ids] * wanted[ids][:, None]).sum(-1)
        # The tolerance covers the different rounding of a matrix product and a sum.
        found[ids] = torch.where(best.isnan(), torch.nan, (cosines >= best - 1e-6).float()).numpy()
    return found
