"""Retrieval between images and their captions: recall@k in both directions.

M captions, N images, P joint dimension. The gallery holds each image once, however many captions it has.
Scores are computed in float32, some queries at a time, so memory does not grow with the number of queries.
"""

import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)
SCORES_PER_CHUNK = 2**22
"""Scores held at once: 16 MiB of float32, and three masks of a quarter of that."""


def retrieval_metrics(
    text_embeds: Tensor, image_embeds: Tensor, image_index: Tensor
) -> dict[str, float | int]:
    """Measure recall at 1, 5 and 10 of images by text and of texts by image.

    Recall@k is the share of queries with a right answer among their k closest candidates. A caption has one
    right answer, its image; an image has several, its captions, and any of them counts. Equal scores rank by
    lower index. Where the gallery holds k candidates or fewer, all of them are looked at and recall@k is 1.

    Args:
        text_embeds: Captions, shape (M, P), unit L2 norm.
        image_embeds: Images, each once, shape (N, P), unit L2 norm.
        image_index: Row of each caption's image, shape (M,), integer: five captions an image give
            [0, 0, 0, 0, 0, 1, ...], in any order.

    Returns:
        `text_to_image_recall@k` over M queries and `image_to_text_recall@k` over N queries, fractions in
        [0, 1] for k = 1, 5, 10, with `num_images` and `num_captions`. By chance, text_to_image_recall@k is
        k / N: figures of galleries of another size cannot be compared.

    Raises:
        ValueError: If shapes disagree, an embedding is not finite, or an image has no caption.

    Source:
        Hodosh et al. 2013 (ranking protocol of Flickr8k); agrees with a naive sort in tests.
    """
    _check(text_embeds, image_embeds, image_index)
    text_embeds, image_embeds = text_embeds.float(), image_embeds.float()
    ranks = {
        "text_to_image": text_to_image_ranks(text_embeds, image_embeds, image_index),
        "image_to_text": image_to_text_ranks(text_embeds, image_embeds, image_index),
    }
    recalls = {
        f"{direction}_recall@{k}": (found < k).float().mean().item()
        for direction, found in ranks.items()
        for k in RECALL_AT
    }
    return {**recalls, "num_images": len(image_embeds), "num_captions": len(text_embeds)}


def paired_recall(text_embeds: Tensor, image_embeds: Tensor, image_index: Tensor) -> dict[str, float]:
    """What a metric of caption-image pairs would say, so that its figures can be told from the true ones.

    open_clip's training loop repeats an image for each of its captions and takes the caption of its own row
    as the one right answer. Of five equal images four then come before or beside the right one: with perfect
    embeddings recall@1 is 0.2 in both directions.

    Args:
        text_embeds: Shape (M, P), unit norm.
        image_embeds: Shape (N, P), unit norm.
        image_index: Shape (M,), integer.

    Returns:
        `paired_text_to_image_recall@1` and `paired_image_to_text_recall@1`, in [0, 1]; equal scores rank by
        index.
    """
    repeated, own = image_embeds.float()[image_index], torch.arange(len(text_embeds))
    ranks = {
        "text_to_image": text_to_image_ranks(text_embeds.float(), repeated, own),
        "image_to_text": image_to_text_ranks(text_embeds.float(), repeated, own),
    }
    return {f"paired_{name}_recall@1": (found == 0).float().mean().item() for name, found in ranks.items()}


def text_to_image_ranks(text_embeds: Tensor, image_embeds: Tensor, image_index: Tensor) -> Tensor:
    """Rank each caption's image among all images.

    Args:
        text_embeds: Shape (M, P), float32.
        image_embeds: Shape (N, P), float32.
        image_index: Shape (M,), integer.

    Returns:
        Number of images that come before the right one, shape (M,), int64; 0 is the best.
    """
    num_images = len(image_embeds)
    positions = torch.arange(num_images, device=image_embeds.device)
    ranks = []
    for texts, targets in zip(
        text_embeds.split(_chunk_size(num_images)), image_index.split(_chunk_size(num_images)), strict=True
    ):
        scores = texts @ image_embeds.T  # (chunk, N)
        ranks.append(_rank(scores, positions, targets[:, None]))
    return torch.cat(ranks)


def image_to_text_ranks(text_embeds: Tensor, image_embeds: Tensor, image_index: Tensor) -> Tensor:
    """Rank the best of each image's captions among all captions.

    Args:
        text_embeds: Shape (M, P), float32.
        image_embeds: Shape (N, P), float32.
        image_index: Shape (M,), integer; every image is in it.

    Returns:
        Number of captions that come before the first right one, shape (N,), int64; 0 is the best.
    """
    num_captions = len(text_embeds)
    positions = torch.arange(num_captions, device=text_embeds.device)
    ranks = []
    for rows in torch.arange(len(image_embeds), device=image_embeds.device).split(_chunk_size(num_captions)):
        scores = image_embeds[rows] @ text_embeds.T  # (chunk, M)
        # argmax does not promise the first of equal scores, so the lowest position is looked for by itself.
        own_scores = scores.masked_fill(image_index[None, :] != rows[:, None], -torch.inf)
        is_best = own_scores == own_scores.amax(dim=1, keepdim=True)
        best = torch.where(is_best, positions, num_captions).amin(dim=1, keepdim=True)
        ranks.append(_rank(scores, positions, best))
    return torch.cat(ranks)


def _rank(scores: Tensor, positions: Tensor, target: Tensor) -> Tensor:
    """Candidates before the target (chunk, 1): those with more, and equal ones of lower position."""
    target_score = scores.gather(1, target)
    comes_before = (scores > target_score) | ((scores == target_score) & (positions < target))
    return comes_before.sum(dim=1)


def _chunk_size(num_candidates: int) -> int:
    return max(1, SCORES_PER_CHUNK // num_candidates)


def _check(text_embeds: Tensor, image_embeds: Tensor, image_index: Tensor) -> None:
    shapes = f"text_embeds {tuple(text_embeds.shape)}, image_embeds {tuple(image_embeds.shape)}"
    if text_embeds.ndim != 2 or image_embeds.ndim != 2 or text_embeds.shape[1] != image_embeds.shape[1]:
        raise ValueError(f"text and image embeddings must be (M, P) and (N, P) with the same P; got {shapes}")
    if image_index.shape != text_embeds.shape[:1]:
        raise ValueError(
            f"image_index must name one image for each of {len(text_embeds)} captions; "
            f"got shape {tuple(image_index.shape)}"
        )
    for name, embeds in (("text_embeds", text_embeds), ("image_embeds", image_embeds)):
        if not embeds.isfinite().all():
            row = int((~embeds.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"{name} row {row} is not finite; the model gave NaN or infinity for it")
    _check_index(image_index, len(image_embeds))


def _check_index(image_index: Tensor, num_images: int) -> None:
    if image_index.is_floating_point() or image_index.dtype == torch.bool:
        raise ValueError(f"image_index must hold integers; got {image_index.dtype}")
    if num_images == 0:
        raise ValueError("there is no image to rank; give at least one image with a caption")
    outside = image_index[(image_index < 0) | (image_index >= num_images)]
    if len(outside):
        raise ValueError(f"image_index must lie in 0..{num_images - 1}; got {int(outside[0])}")
    num_captions = torch.bincount(image_index, minlength=num_images)
    if not num_captions.all():
        raise ValueError(f"image {int((num_captions == 0).nonzero()[0])} has no caption; leave it out")
