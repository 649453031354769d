"""Prompts of an evaluation: held-out captions and out-of-domain prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clipgraft.config import EvaluateSettings
from clipgraft.data.dataset import CaptionedImage
from clipgraft.errors import UserError
from clipgraft.evaluation.results import COMPOSED, FIXED, PLAIN, PromptSet
from clipgraft.flatland import Prompt, Scene, composed_prompts, fidelity_prompts
from clipgraft.generation.prompt_files import read_prompts

HELD_OUT, FROM_FILE, TEST_SPLIT = "held_out", "prompts_file", "test"


class EvaluationPrompt(NamedTuple):
    """One prompt of an evaluation."""

    text: str
    number: int
    """Within its set, from 0; seeds follow it, so that all sets share the empty prompt's images."""
    sets: tuple[str, ...]
    """The set whose seeds and R-precision it shares, then parts and the whole of that set."""
    image: CaptionedImage | None = None
    """The photograph described."""
    scene: Scene | None = None
    """The scene described, if known."""


def _set(name: str, title: str, domain: str, part_of: str | None = None) -> PromptSet:
    return PromptSet(name=name, title=title, domain=domain, part_of=part_of)


KINDS = {
    "relation": "what somebody does with something",
    "two": "two beside each other",
    "number": "two or three of a kind",
    "side": "left or right",
    "size": "little or big",
    "weather": "clouds, rain or fog",
}
PROMPT_SETS = (
    _set(HELD_OUT, "held-out captions of the test split", "in"),
    _set(FIXED, "flatland's fixed prompts, simple and composed", "out"),
    _set(PLAIN, "simple prompts", "out", FIXED),
    _set(f"{PLAIN}/held_out_combinations", "simple: combinations absent from training", "out", PLAIN),
    _set(f"{PLAIN}/seen_combinations", "simple: combinations present in training", "out", PLAIN),
    _set(f"{PLAIN}/no_subject", "simple: scenes without a subject", "out", PLAIN),
    _set(COMPOSED, "composed prompts", "out", FIXED),
    *(_set(f"{COMPOSED}/{kind}", f"composed: {what}", "out", COMPOSED) for kind, what in KINDS.items()),
    _set(f"{COMPOSED}/held_out_combinations", "composed: combinations absent from training", "out", COMPOSED),
    _set(f"{COMPOSED}/seen_combinations", "composed: combinations present in training", "out", COMPOSED),
    _set(FROM_FILE, "prompts from the file", "out"),
)


def build_prompts(
    settings: EvaluateSettings, images: Sequence[CaptionedImage], *, draws_flatland: bool
) -> list[EvaluationPrompt]:
    """Collect the prompts of all sets.

    Args:
        settings: Number of prompts per set, and the file with further prompts.
        images: The test split. The first `num_prompts` give one caption each: the first image's first, the
            second image's second and so on, so that all annotators are represented.
        draws_flatland: Whether the base can generate flatland's fixed prompts.

    Raises:
        UserError: If the file of prompts is missing or empty, or there are no prompts.
    """
    num = settings.num_prompts
    prompts = [
        EvaluationPrompt(image.captions[number % len(image.captions)], number, (HELD_OUT,), image=image)
        for number, image in enumerate(images[:num])
    ]
    if draws_flatland:
        prompts += [
            EvaluationPrompt(prompt.text, number, _sets(prompt), scene=prompt.scene)
            for fixed in (fidelity_prompts()[:num], composed_prompts()[: num // 2])
            for number, prompt in enumerate(fixed)
        ]
    if settings.prompts:
        texts = read_prompts(Path(settings.prompts))[:num]
        prompts += [EvaluationPrompt(text, number, (FROM_FILE,)) for number, text in enumerate(texts)]
    if not prompts:
        raise UserError(
            "no prompts: the data has no test split; name captioned images with --data, or a file with one "
            "prompt per line with --prompts"
        )
    return prompts


def describe_sets(prompts: Sequence[EvaluationPrompt]) -> list[PromptSet]:
    """Return the non-empty sets, with their numbers of prompts."""
    sets = [each.model_copy(update={"num_prompts": len(members(prompts, each.name))}) for each in PROMPT_SETS]
    return [each for each in sets if each.num_prompts]


def members(prompts: Sequence[EvaluationPrompt], prompt_set: str) -> list[int]:
    """Return the indices of a set's prompts."""
    return [index for index, prompt in enumerate(prompts) if prompt_set in prompt.sets]


def next_prompts(prompts: Sequence[EvaluationPrompt]) -> list[int]:
    """Return the index of each prompt's successor in its set, cyclically."""
    following = list(range(len(prompts)))
    for name in dict.fromkeys(prompt.sets[0] for prompt in prompts):
        ids = members(prompts, name)
        for own, other in zip(ids, ids[1:] + ids[:1], strict=True):
            following[own] = other
    return following


def _sets(prompt: Prompt) -> tuple[str, ...]:
    whole = COMPOSED if prompt.kind else PLAIN
    part = prompt.kind or ("" if prompt.scene.subject else "no_subject")
    combination = "held_out_combinations" if prompt.scene.is_held_out else "seen_combinations"
    return (whole, *(f"{whole}/{each}" for each in (combination, part) if each), FIXED)
