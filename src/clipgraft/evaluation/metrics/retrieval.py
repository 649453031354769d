"""Image-text retrieval in both directions: recall@k, median rank, mAP.

M captions, N images, C most captions of an image, P joint dimension. The gallery holds each image once; merge
copies of a file with `merge_duplicates` first. Scores are computed in float32, a chunk of queries at a time,
so memory does not grow with their number.
"""

import torch
from torch import Tensor

from clipgraft.errors import UserError

RECALL_AT = (1, 5, 10)
SCORES_PER_CHUNK = 2**22
"""Scores per chunk: 16 MiB of float32, and as much again to compare them."""


def retrieval_metrics(
    text_embeds: Tensor, image_embeds: Tensor, image_index: Tensor
) -> dict[str, float | int]:
    """Measure recall@1, 5 and 10, median rank and mAP in both directions.

    Recall@k is the share of queries with a correct answer among their k closest candidates. A caption has
    one, its image; an image has several, its captions, and any counts. Ties rank by lower index.

    Args:
        text_embeds: Captions, shape (M, P), unit L2 norm.
        image_embeds: Images, each once, shape (N, P), unit L2 norm.
        image_index: Row of each caption's image, shape (M,), integer, in any order.

    Returns:
        `text_to_image_recall@k` over M queries and `image_to_text_recall@k` over N queries, in [0, 1] for
        k = 1, 5, 10; `..._median_rank` of the first correct answer, 1 = best; `..._map`, the mean average
        precision; `num_images` and `num_captions`. text_to_image_recall@k is k / N by chance, so galleries of
        different sizes are not comparable.

    Raises:
        UserError: If shapes disagree, an embedding is not finite, or an image has no caption.

    Source:
        Hodosh et al. 2013 (ranking protocol of Flickr8k); agrees with a naive sort in tests.
    """
    ranks = retrieval_ranks(text_embeds, image_embeds, image_index)
    figures: dict[str, float | int] = {}
    for direction, found in ranks.items():
        first = found[:, 0]
        figures |= {f"{direction}_recall@{k}": (first < k).float().mean().item() for k in RECALL_AT}
        figures[f"{direction}_median_rank"] = 1 + first.double().quantile(0.5).item()
        figures[f"{direction}_map"] = average_precision(found).mean().item()
    return {**figures, "num_images": len(image_embeds), "num_captions": len(text_embeds)}


def retrieval_ranks(text_embeds: Tensor, image_embeds: Tensor, image_index: Tensor) -> dict[str, Tensor]:
    """Rank every correct answer of every query; arguments as in `retrieval_metrics`.

    Returns:
        `text_to_image` (M, 1) and `image_to_text` (N, C) int64: candidates before each correct answer, 0 =
        best, ascending; -1 pads images with fewer captions.
    """
    _check(text_embeds, image_embeds, image_index)
    text_embeds, image_embeds, image_index = text_embeds.float(), image_embeds.float(), image_index.long()
    return {
        "text_to_image": text_to_image_ranks(text_embeds, image_embeds, image_index)[:, None],
        "image_to_text": caption_ranks(text_embeds, image_embeds, image_index),
    }


def average_precision(ranks: Tensor) -> Tensor:
    """Average precision (Q,) float64 in (0, 1] of ranks (Q, C)."""
    found = 1 + torch.arange(ranks.shape[1], device=ranks.device)
    precision = torch.where(ranks >= 0, found / (ranks + 1).double(), 0.0)
    return precision.sum(1) / (ranks >= 0).sum(1)


def paired_recall(text_embeds: Tensor, image_embeds: Tensor, image_index: Tensor) -> dict[str, float]:
    """Recall@1 of caption-image pairs, as in open_clip's training loop.

    For comparison only; arguments as in `retrieval_metrics`. It repeats an image for each caption and accepts
    only the caption of the same row: with five captions per image, perfect embeddings reach a recall@1 of 0.2
    in both directions.

    Returns:
        `paired_text_to_image_recall@1` and `paired_image_to_text_recall@1`, in [0, 1].
    """
    repeated, own = image_embeds.float()[image_index], torch.arange(len(text_embeds))
    ranks = {
        "text_to_image": text_to_image_ranks(text_embeds.float(), repeated, own),
        "image_to_text": image_to_text_ranks(text_embeds.float(), repeated, own),
    }
    return {f"paired_{name}_recall@1": (found == 0).float().mean().item() for name, found in ranks.items()}


def text_to_image_ranks(text_embeds: Tensor, image_embeds: Tensor, image_index: Tensor) -> Tensor:
    """Rank each caption's image among all images; arguments as in `retrieval_metrics`.

    Returns:
        Number of images ranked before the correct one, shape (M,), int64; 0 = best.
    """
    size = _chunk_size(len(image_embeds))
    ranks = [
        _ranks(texts @ image_embeds.T, targets[:, None])[:, 0]  # of scores (chunk, N)
        for texts, targets in zip(text_embeds.split(size), image_index.split(size), strict=True)
    ]
    return torch.cat(ranks)


def image_to_text_ranks(text_embeds: Tensor, image_embeds: Tensor, image_index: Tensor) -> Tensor:
    """Rank each image's best caption among all; arguments as in `retrieval_metrics`.

    Returns:
        Number of captions ranked before the first correct one, shape (N,), int64; 0 = best.
    """
    return caption_ranks(text_embeds, image_embeds, image_index)[:, 0]


def caption_ranks(text_embeds: Tensor, image_embeds: Tensor, image_index: Tensor) -> Tensor:
    """Rank each image's captions among all; arguments as in `retrieval_metrics`.

    Returns:
        Number of captions ranked before each correct one, (N, C) int64, ascending; -1 pads.
    """
    own = _captions_of_images(image_index, len(image_embeds))  # (N, C)
    size = _chunk_size(len(text_embeds))
    ranks = [
        _ranks(images @ text_embeds.T, targets)  # of scores (chunk, M)
        for images, targets in zip(image_embeds.split(size), own.split(size), strict=True)
    ]
    found = torch.cat(ranks)
    unused = len(text_embeds)
    rising = found.masked_fill(own < 0, unused).sort(1).values
    return rising.masked_fill(rising == unused, -1)


def _captions_of_images(image_index: Tensor, num_images: int) -> Tensor:
    """Rows of each image's captions, (N, C) int64; -1 pads."""
    counts = torch.bincount(image_index, minlength=num_images)
    order = image_index.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    images = image_index[order]
    own = torch.full((num_images, int(counts.max())), -1, device=image_index.device)
    own[images, torch.arange(len(order), device=order.device) - starts[images]] = order
    return own


def _ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Candidates ranked before each target: higher scores, and ties of lower index.

    Args:
        scores: (Q, candidates) float32, fewer than 2^24 candidates.
        targets: (Q, C) int64; the rank of -1 is undefined.
    """
    assert scores.shape[1] < 2**24, "float32 counts no further"
    ranks = torch.empty_like(targets)
    # Comparing into floats and summing these takes a quarter of the time of summing booleans.
    compared = torch.empty_like(scores)
    for column in range(targets.shape[1]):
        rows = (targets[:, column] >= 0).nonzero()[:, 0]
        is_whole = len(rows) == len(scores)
        chosen, out = (scores, compared) if is_whole else (scores[rows], compared[: len(rows)])
        target = targets[rows, column, None]
        own = chosen.gather(1, target)
        before = torch.gt(chosen, own, out=out).sum(1).long()
        tied = (torch.ge(chosen, own, out=out).sum(1).long() - before > 1).nonzero()[:, 0]
        if len(tied):
            positions = torch.arange(scores.shape[1], device=scores.device)
            before[tied] += ((chosen[tied] == own[tied]) & (positions < target[tied])).sum(1)
        ranks[rows, column] = before
    return ranks


def _chunk_size(num_candidates: int) -> int:
    return max(1, SCORES_PER_CHUNK // num_candidates)


def _check(text_embeds: Tensor, image_embeds: Tensor, image_index: Tensor) -> None:
    shapes = f"text_embeds {tuple(text_embeds.shape)}, image_embeds {tuple(image_embeds.shape)}"
    if text_embeds.ndim != 2 or image_embeds.ndim != 2 or text_embeds.shape[1] != image_embeds.shape[1]:
        raise UserError(f"text and image embeddings must be (M, P) and (N, P) with the same P; got {shapes}")
    if image_index.shape != text_embeds.shape[:1]:
        raise UserError(
            f"image_index must name one image for each of {len(text_embeds)} captions; "
            f"got shape {tuple(image_index.shape)}"
        )
    for name, embeds in (("text_embeds", text_embeds), ("image_embeds", image_embeds)):
        if not embeds.isfinite().all():
            row = int((~embeds.isfinite()).any(dim=1).nonzero()[0])
            raise UserError(f"{name} row {row} is not finite; the model gave NaN or infinity for it")
    _check_index(image_index, len(image_embeds))


def _check_index(image_index: Tensor, num_images: int) -> None:
    if image_index.is_floating_point() or image_index.dtype == torch.bool:
        raise UserError(f"image_index must hold integers; got {image_index.dtype}")
    if num_images == 0:
        raise UserError("there is no image to rank; give at least one image with a caption")
    outside = image_index[(image_index < 0) | (image_index >= num_images)]
    if len(outside):
        raise UserError(f"image_index must lie in 0..{num_images - 1}; got {int(outside[0])}")
    num_captions = torch.bincount(image_index, minlength=num_images)
    if not num_captions.all():
        raise UserError(f"image {int((num_captions == 0).nonzero()[0])} has no caption; leave it out")
