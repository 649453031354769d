"""CLIPScore, the cosine of an image's and its prompt's CLIP embeds."""

from collections.abc import Mapping, Sequence

from torch import Tensor

SCALE = 2.5


def clip_score_raw(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """Return the cosine of each image's and its prompt's embeds.

    Text-to-image papers report its mean, mostly with ViT-L/14 or ViT-g/14. Scores of different scorers are
    not comparable. Images are preprocessed by the scorer's own processor; prompts get no prefix.

    Both embeds are (N, P), unit norm. Returns (N,) in [-1, 1].
    """
    return (image_embeds.float() * text_embeds.float()).sum(1)


def clip_score_2_5(cosines: Tensor) -> Tensor:
    """Return `2.5 max(cosine, 0)`, in [0, 2.5].

    Source:
        Hessel et al. 2021; theirs also prefixes "A photo depicts". torchmetrics uses 100 instead of 2.5.
    """
    return SCALE * cosines.clamp(min=0)


def independence_note(
    scorer_checksum: str, tower_checksums: Mapping[str, str], tuned_from_it: Sequence[str] = ()
) -> str:
    """Return a warning if the scorer is not independent, else "".

    Args:
        scorer_checksum: Checksum of the scorer's text tower.
        tower_checksums: Variant -> checksum of its text tower.
        tuned_from_it: Variants whose CLIP was fine-tuned from the scorer.
    """
    own = [variant for variant, value in tower_checksums.items() if value == scorer_checksum]
    if not own and not tuned_from_it:
        return ""
    whose = f"of {own[0]!r} itself" if own else f"that {tuned_from_it[0]!r} was tuned from"
    return (
        f"The scorer is the CLIP {whose}, so CLIPScore, CMMD and cosines are not independent of "
        "what is measured: another scorer may judge the images otherwise. Name one with --scorer."
    )
