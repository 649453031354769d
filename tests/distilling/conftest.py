"""A tiny graft, its base, and captions, some of them with the new word `kite`."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import tiny
from clipgraft.bridging.fit import bridge_recipe
from clipgraft.config import Recipe, apply_overrides, parse_overrides

NEW_WORD = "kite"
WIDTH = 128
"""Of the base: only what is wider than the empty prompt's 77 positions is trained beside the tokens."""


@pytest.fixture(scope="session")
def distill_world(tmp_path_factory) -> SimpleNamespace:
    """Folders of CLIP, base and graft, a file of 150 captions and one with a new word."""
    folder = tmp_path_factory.mktemp("distill")
    captions, words = folder / "captions.txt", folder / "words.txt"
    captions.write_text(
        "\n".join(f"{tiny.CAPTIONS[(index + index // 5) % 5]} {index}" for index in range(150)) + "\n"
    )
    words.write_text(f"# learned from CLIP\n{NEW_WORD}\n")
    world = SimpleNamespace(
        clip=tiny.write_clip(folder / "clip"),
        base=tiny.write_base(folder / "base", width=WIDTH),
        captions=captions,
        words=words,
        graft=folder / "bridge" / "graft",
    )
    bridge_recipe(recipe_of(world, f"bridge.captions={_text(captions)}"), folder / "bridge")
    return world


@pytest.fixture(scope="session")
def recipe_for():
    """Return the recipe of a world with overrides `section.key=value`."""
    return recipe_of


def recipe_of(world: SimpleNamespace, *overrides: str) -> Recipe:
    paths = {
        "clip.name": world.clip,
        "base.name": world.base,
        "distill.captions": world.captions,
        "distill.new_words": world.words,
    }
    small = ["bridge.num_epochs=0", "bridge.mixed_precision=no", "distill.mixed_precision=no"]
    small += ["distill.num_epochs=2", "distill.batch_size=16", "distill.warmup_steps=0"]
    named = [f"{key}={_text(path)}" for key, path in paths.items()]
    return apply_overrides(Recipe(), parse_overrides([*named, *small, *overrides]))


def _text(path: Path) -> str:
    return json.dumps(str(path))
