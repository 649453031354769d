"""Which way of fine-tuning keeps pictures best: four recipes on flatland, three seeds each.

    python benchmarks/bench_recipes.py [--out runs/bench_recipes] [--seeds 0 1 2]

For each: recall on test pictures, drift of token states on validation captions, and prompt fidelity after a
bridge of its own. About half an hour on two cores; a second call goes on where the first stopped. Prints mean
and spread, and writes benchmarks/results/recipes.json.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from clipgraft.bridging.fit import bridge_recipe
from clipgraft.config import Recipe, demo
from clipgraft.device import describe_environment
from clipgraft.evaluation.evaluate import evaluate_recipe
from clipgraft.finetuning.finetune import finetune, load_inputs
from clipgraft.finetuning.wise_ft import interpolate
from clipgraft.models.clip import load_clip

RESULT = Path(__file__).parent / "results" / "recipes.json"
NUM_PROMPTS = 80
RECIPES: dict[str, dict[str, Any]] = {
    "one caption": {},
    "five captions, masked": {"captions_per_image": 5},
    "one caption, preserved": {"distill_weight": 1.0},
    "five captions, preserved": {"captions_per_image": 5, "distill_weight": 1.0},
}
BEFORE, HALFWAY = "before fine-tuning", "one caption, WiSE-FT 0.5"


def recipe_of(seed: int, settings: dict[str, Any]) -> Recipe:
    """The demo's recipe with other fine-tuning settings, and 8,000 captions for each of many bridges."""
    base = demo()
    return base.model_copy(
        update={
            "seed": seed,
            "finetune": base.finetune.model_copy(update=settings),
            "bridge": base.bridge.model_copy(update={"max_captions": 8000}),
            "evaluate": base.evaluate.model_copy(update={"num_prompts": NUM_PROMPTS}),
        }
    )


def metrics_of(folder: Path, stage: Any) -> dict[str, Any]:
    """A stage's metrics; made unless they are there."""
    metrics = folder / "metrics.json"
    if not metrics.is_file():
        stage(folder)
    return json.loads(metrics.read_text(encoding="utf-8"))


def run_seed(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Figures of every recipe with one seed, and of CLIP as it was."""
    found, encoders = {}, {}
    for name, (clip, drift, recall) in tuned_clips(folder, seed).items():
        recipe = recipe_of(seed, {})
        own = recipe.model_copy(update={"clip": recipe.clip.model_copy(update={"name": str(clip)})})
        place = folder / slug(name) / "bridge"
        if not (place / "metrics.json").is_file():
            bridge_recipe(own, place, resume=True)
        encoders[slug(name)] = folder / slug(name) / "bridge" / "graft"
        found[name] = {
            "image_recall@1": recall["text_to_image_recall@1"],
            "text_recall@1": recall["image_to_text_recall@1"],
            "drift_words": drift["drift_words"],
            "drift_padding": drift["drift_padding"],
        }
    evaluation = recipe_of(seed, {})
    scores = metrics_of(folder / "evaluate", lambda out: evaluate_recipe(evaluation, encoders, out))["scores"]
    for name, figures in found.items():
        figures |= {
            "fidelity": scores[slug(name)]["mean"],
            "fidelity_held_out": scores[slug(name)]["held_out"],
        }
    return found


def tune(recipe: Recipe, out: Path) -> None:
    """Fine-tune as a recipe says."""
    finetune(*load_inputs(recipe), output_dir=out, resume=True, recipe=recipe)


def between(recipe: Recipe, after: Path, out: Path) -> None:
    """Write the weights in the middle."""
    clip, data = load_inputs(recipe)
    interpolate(clip, load_clip(after), data, output_dir=out, recipe=recipe)


def tuned_clips(folder: Path, seed: int) -> dict[str, tuple[Path, dict[str, float], dict[str, float]]]:
    """By name each CLIP, its drift on validation captions and its recall on test pictures."""
    found = {}
    for name, settings in RECIPES.items():
        recipe, own = recipe_of(seed, settings), folder / slug(name)
        tuned = metrics_of(own / "finetune", lambda out, recipe=recipe: tune(recipe, out))
        lines = (own / "finetune" / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
        drift = [json.loads(line) for line in lines]
        if not found:
            found[BEFORE] = (Path(recipe.clip.name), drift[0], tuned["before"])
        found[name] = (own / "finetune" / "clip", drift[-1], tuned["after"])
    found[HALFWAY] = halfway(folder / slug(HALFWAY), recipe_of(seed, {}), found["one caption"][0])
    return found


def halfway(folder: Path, recipe: Recipe, clip: Path) -> tuple[Path, dict[str, float], dict[str, float]]:
    """The weights in the middle between before and after."""
    stage = metrics_of(folder / "interpolate", lambda out: between(recipe, clip, out))
    row = next(row for row in stage["rows"] if row["alpha"] == 0.5)
    # Recall on test pictures, as for the others: no step is made, so both measurements are of these weights.
    middle = recipe.model_copy(
        update={
            "clip": recipe.clip.model_copy(update={"name": str(folder / "interpolate" / "clip")}),
            "finetune": recipe.finetune.model_copy(update={"num_epochs": 0}),
        }
    )
    recall = metrics_of(folder / "recall", lambda out: tune(middle, out))["after"]
    return folder / "interpolate" / "clip", row, recall


def slug(name: str) -> str:
    """Folder name of a recipe."""
    return name.replace(", ", "_").replace(" ", "_")


def summarize(values: list[float]) -> dict[str, float]:
    """The mean over seeds, with the spread of several."""
    spread = {"spread": statistics.stdev(values)} if len(values) > 1 else {}
    return {"mean": statistics.mean(values), **spread}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_recipes"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    folder = options.out
    seeds = [run_seed(folder / f"seed{seed}", seed) for seed in options.seeds]
    rows = {
        name: {key: summarize([found[name][key] for found in seeds]) for key in seeds[0][name]}
        for name in seeds[0]
    }
    environment = describe_environment(torch.device("cpu")) | {
        "command": f"python benchmarks/bench_recipes.py --seeds {' '.join(map(str, options.seeds))}"
    }
    result = {
        "num_seeds": len(seeds),
        "seeds": dict(zip(options.seeds, seeds, strict=True)),
        "num_prompts": NUM_PROMPTS,
        "recipes": rows,
        "environment": environment,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    table = Table("", *next(iter(rows.values())), title=f"mean of {len(seeds)} seeds (standard deviation)")
    for name, figures in rows.items():
        cells = (
            f"{value['mean']:.3f}" + (f" ({value['spread']:.3f})" if "spread" in value else "")
            for value in figures.values()
        )
        table.add_row(name, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
