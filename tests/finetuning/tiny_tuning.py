"""Fine-tuning of a tiny CLIP on tiny images, for tests."""

import json

from clipgraft.config import build_recipe
from clipgraft.finetuning.finetune import finetune, load_inputs
from clipgraft.models.clip import load_clip


def recipe_of(world, **finetune_settings):
    defaults = {
        "batch_size": 8,
        "num_epochs": 2,
        "learning_rate": 1e-3,
        "mixed_precision": "no",
        "num_workers": 0,  # two forked processes a run take seconds
    }
    return build_recipe(
        {
            "device": "cpu",
            "data": {"source": str(world / "data")},
            "clip": {"name": str(world / "clip")},
            "finetune": defaults | finetune_settings,
        }
    )


def run(recipe, out, *, resume=False):
    return finetune(*load_inputs(recipe), output_dir=out, resume=resume, recipe=recipe)


def tune(world, out, *, resume=False, **settings):
    result = run(recipe_of(world, **settings), out, resume=resume)
    return result, load_clip(out / "clip").model


def with_source(recipe, source):
    return recipe.model_copy(update={"data": recipe.data.updated({"source": str(source)})})


def weights(model, prefix):
    return {name: p.detach() for name, p in model.named_parameters() if name.startswith(prefix)}


def evaluations(out):
    return [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]
