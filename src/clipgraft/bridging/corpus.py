"""Which captions a bridge is fitted to, and on which it is measured."""

from pathlib import Path
from typing import NamedTuple

from clipgraft.config import Recipe
from clipgraft.console import say
from clipgraft.data.formats import load_dataset, read_lines
from clipgraft.errors import UserError

FEWEST_CAPTIONS = 100
MAX_HELD_OUT_CAPTIONS = 1000
WORD_ERRORS = {25: 1.02, 100: 0.77, 1000: 0.70}
"""Of the linear bridge on flatland, by number of captions (bench_bridge.py --only few_captions)."""
HELD_OUT_EVERY = 10
"""Of a text file, which has no splits, every tenth caption is held out."""


class Captions(NamedTuple):
    """Captions of a bridge, each once."""

    train: list[str]
    held_out: list[str]
    """At most 1,000; the training ones where there are no others."""


def load_captions(recipe: Recipe) -> Captions:
    """Read the captions that `recipe.bridge.captions` or else `recipe.data` names.

    Raises:
        FileNotFoundError: If there is no such file or source.
        DataError: If the text file holds no caption.
        ValueError: If there are fewer than 100, unless the settings say to go on.
    """
    settings = recipe.bridge
    if settings.captions:
        lines = list(dict.fromkeys(read_lines(Path(settings.captions), "caption")))
        held_out = lines[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
        train = [line for index, line in enumerate(lines) if (index + 1) % HELD_OUT_EVERY]
    else:
        dataset = load_dataset(recipe.data.source, include_unsplit=recipe.data.include_unsplit)
        train, held_out = (list(dict.fromkeys(part.captions)) for part in (dataset.train, dataset.test))
    train = train[: settings.max_captions or None]
    name = settings.captions or recipe.data.source or "flatland8k"
    of = f", of which one in {HELD_OUT_EVERY} lines is held out" if settings.captions else ""
    _check_number(len(train), f"{name}{of}", settings.allow_few_captions)
    return Captions(train, (held_out or train)[:MAX_HELD_OUT_CAPTIONS])


def _check_number(count: int, name: str, allow_few: bool) -> None:
    if count >= FEWEST_CAPTIONS:
        return
    if count == 0:
        raise UserError(f"no training caption in {name} to fit the bridge on; name a source with captions")
    what = f"{count} different captions to fit the bridge on ({name}); {expected_quality()}"
    if not allow_few:
        raise UserError(
            f"only {what}; give {FEWEST_CAPTIONS} or more, or go on with --allow-few-captions "
            "(bridge.allow_few_captions=true)"
        )
    say(f"only {what}")


def expected_quality() -> str:
    """Say what a bridge from few captions was worth where it was measured."""
    errors = ", ".join(f"{error} from {count:,}" for count, error in WORD_ERRORS.items())
    return f"on flatland the relative error of held-out words was {errors} (1: no better than nothing)"
