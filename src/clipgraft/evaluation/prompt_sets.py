"""What an evaluation draws: held-out captions, and prompts outside what CLIP was tuned on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clipgraft.config import EvaluateSettings
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.formats import read_lines
from clipgraft.errors import UserError
from clipgraft.flatland import Scene, fidelity_prompts

HELD_OUT, PLAIN, FROM_FILE, TEST_SPLIT = "held_out", "plain", "prompts_file", "test"


class EvaluationPrompt(NamedTuple):
    """One prompt; its pictures' seeds count up within its own set, so that sets share the empty prompt's."""

    text: str
    number: int
    """Within its set, from 0."""
    sets: tuple[str, ...]
    """Its set, then the parts of it that it belongs to."""
    image: CaptionedImage | None = None
    """The photograph that it describes."""
    scene: Scene | None = None
    """What it names, where that is known."""


class PromptSet(NamedTuple):
    """A set of prompts, or a part of one."""

    name: str
    title: str
    domain: str
    part_of: str | None = None


PROMPT_SETS = (
    PromptSet(HELD_OUT, "held-out captions of the test split", "in"),
    PromptSet(PLAIN, "flatland's fixed prompts in plain words", "out"),
    PromptSet("plain/held_out_combinations", "of these, combinations that train never shows", "out", PLAIN),
    PromptSet("plain/seen_combinations", "of these, combinations that train may show", "out", PLAIN),
    PromptSet("plain/no_subject", "of these, scenes without a subject", "out", PLAIN),
    PromptSet(FROM_FILE, "prompts of the file", "out"),
)


def build_prompts(
    settings: EvaluateSettings, images: Sequence[CaptionedImage], *, draws_flatland: bool
) -> list[EvaluationPrompt]:
    """Bring the prompts of all sets together.

    Args:
        settings: Their number, and the file of further ones.
        images: The test split. Each of its first `num_prompts` gives one caption, in turn its first, second
            and so on, so that every writer has a say.
        draws_flatland: Whether flatland's fixed prompts can be drawn.

    Raises:
        FileNotFoundError: If the file of prompts is not there.
        ValueError: If it holds none, or there is nothing to draw at all.
    """
    num = settings.num_prompts
    prompts = [
        EvaluationPrompt(image.captions[number % len(image.captions)], number, (HELD_OUT,), image=image)
        for number, image in enumerate(images[:num])
    ]
    if draws_flatland:
        prompts += [
            EvaluationPrompt(prompt.text, number, (PLAIN, *_parts(prompt.scene)), scene=prompt.scene)
            for number, prompt in enumerate(fidelity_prompts()[:num])
        ]
    if settings.prompts:
        texts = read_lines(Path(settings.prompts), "prompt")[:num]
        prompts += [EvaluationPrompt(text, number, (FROM_FILE,)) for number, text in enumerate(texts)]
    if not prompts:
        raise UserError(
            "nothing to draw: the source has no test split; name captioned images with --data, or a file "
            "with a prompt a line with --prompts"
        )
    return prompts


def describe_sets(prompts: Sequence[EvaluationPrompt]) -> list[dict[str, Any]]:
    """Rows of `prompt_sets` in evaluation.json, of the sets that have a prompt."""
    rows = [each._asdict() | {"num_prompts": len(members(prompts, each.name))} for each in PROMPT_SETS]
    return [row for row in rows if row["num_prompts"]]


def members(prompts: Sequence[EvaluationPrompt], prompt_set: str) -> list[int]:
    """Return the ids of the prompts of a set."""
    return [index for index, prompt in enumerate(prompts) if prompt_set in prompt.sets]


def next_prompts(prompts: Sequence[EvaluationPrompt]) -> list[int]:
    """For each prompt the id of the next one in its set, the first one after the last: captions shuffled."""
    following = list(range(len(prompts)))
    for name in dict.fromkeys(prompt.sets[0] for prompt in prompts):
        ids = members(prompts, name)
        for own, other in zip(ids, ids[1:] + ids[:1], strict=True):
            following[own] = other
    return following


def _parts(scene: Scene) -> tuple[str, ...]:
    kind = "held_out_combinations" if scene.is_held_out else "seen_combinations"
    return (f"plain/{kind}", *([] if scene.subject else ["plain/no_subject"]))
