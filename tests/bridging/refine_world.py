"""Recipes and weights of the tests of refining."""

import json

from safetensors.torch import load_file

from clipgraft.config import Recipe, apply_overrides, parse_overrides


def recipe_of(world, *overrides):
    names = {"clip.name": "clip", "base.name": "base", "data.source": "data"}
    texts = [f"{key}={json.dumps(str(world[name]))}" for key, name in names.items()]
    small = ["bridge.num_epochs=0", "bridge.allow_few_captions=true", "bridge.mixed_precision=no"]
    small += ["refine.num_epochs=2", "refine.batch_size=4", "refine.mixed_precision=no"]
    return apply_overrides(Recipe(), parse_overrides([*texts, *small, "refine.warmup_steps=0", *overrides]))


def weights_of(folder):
    return load_file(folder / "graft" / "model.safetensors")
