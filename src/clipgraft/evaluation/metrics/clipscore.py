"""CLIPScore: how near a picture and its prompt lie in the joint space of a CLIP, the scorer."""

from collections.abc import Mapping, Sequence

from torch import Tensor

SCALE = 2.5


def clip_score_raw(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """Return the cosine of each picture and its prompt.

    Papers on drawing from text report its mean, most with ViT-L/14 or ViT-g/14. Scores of two scorers are on
    two scales: never compare them. Preprocessing is the scorer's own: resize (bicubic), centre crop, its
    mean and deviation; no words are put before the prompt. A mean over a handful of prompts is already one;
    its interval says how little it is worth.

    Args:
        image_embeds: (N, P), unit norm.
        text_embeds: (N, P), unit norm; row i is the prompt of picture i.

    Returns:
        (N,) in [-1, 1].
    """
    return (image_embeds.float() * text_embeds.float()).sum(1)


def clip_score_2_5(cosines: Tensor) -> Tensor:
    """Return `2.5 max(cosine, 0)`, in [0, 2.5].

    Source:
        Hessel et al. 2021; theirs also puts "A photo depicts" before the text. torchmetrics has 100 in the
        place of 2.5.
    """
    return SCALE * cosines.clamp(min=0)


def independence_note(
    scorer_sum: str, tower_sums: Mapping[str, str], tuned_from_it: Sequence[str] = ()
) -> str:
    """Say why a scorer is no independent judge of the CLIPs compared; empty where it is one.

    Args:
        scorer_sum: Sum of the scorer's text tower.
        tower_sums: The same of the text towers that are compared, by column.
        tuned_from_it: Columns whose CLIP was tuned from the scorer.
    """
    own = [column for column, value in tower_sums.items() if value == scorer_sum]
    if not own and not tuned_from_it:
        return ""
    whose = f"of {own[0]!r} itself" if own else f"that {tuned_from_it[0]!r} was tuned from"
    return (
        f"The scorer is the CLIP {whose}, so CLIPScore, CMMD and cosines are not independent of "
        "what is measured: pictures that please it may please nobody else. Name another with --scorer."
    )
