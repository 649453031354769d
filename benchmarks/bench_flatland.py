"""How good flatland is: each figure beside the least that it should reach, from the shipped weights.

    python benchmarks/bench_flatland.py [--out runs/bench_flatland]

Fine-tunes on all of flatland8k and draws the 240 fixed prompts with three text encoders: a quarter of an hour
on two cores, and a second call goes on where the first stopped. Prints a row for each figure, shortfalls too,
and writes benchmarks/results/flatland.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from clipgraft.config import BridgeSettings, DataSettings, EvaluateSettings, FinetuneSettings, Recipe
from clipgraft.data.batches import load_pixels
from clipgraft.data.formats import load_dataset
from clipgraft.device import describe_environment
from clipgraft.flatland.writer import IMAGE_SIZE
from clipgraft.models.hub import embedded_models
from clipgraft.pretraining.autoencoder import reconstruction_psnr
from clipgraft.runs.run import Run
from clipgraft.whole_run import run_all

RESULT = Path(__file__).parent / "results" / "flatland.json"
NUM_TEST_IMAGES = 1000


def recipe() -> Recipe:
    """The demo's settings with all pictures and prompts, and all captions for a bridge trained for longer."""
    return Recipe(
        data=DataSettings(max_test_images=NUM_TEST_IMAGES),
        finetune=FinetuneSettings(learning_rate=3e-4, checkpoint_every=100),
        bridge=BridgeSettings(learning_rate=3e-3, num_epochs=8, hidden_size=512),
        evaluate=EvaluateSettings(num_prompts=240),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_flatland"))
    folder = parser.parse_args().out
    with Run.begin(folder, recipe(), resume=True):
        run_all(recipe(), folder, resume=True)
    finetuned, evaluated = (
        json.loads((folder / stage / "metrics.json").read_text()) for stage in ("finetune", "evaluate")
    )
    test = load_dataset().test[: NUM_TEST_IMAGES or None]
    vae = AutoencoderKL.from_pretrained(embedded_models() / "base" / "vae").float()
    scores = evaluated["scores"]
    losses = finetuned["epoch_mean_loss"]
    before, after = (finetuned[when]["text_to_image_recall@1"] for when in ("before", "after"))
    rows: list[dict[str, Any]] = [
        row(
            "VAE, mean PSNR of test pictures, dB", reconstruction_psnr(vae, load_pixels(test, IMAGE_SIZE)), 32
        ),
        row("prompt fidelity of the teacher", scores["teacher"]["mean"], 0.96),
        row("the same, held-out combinations", scores["teacher"]["held_out"], 0.93),
        row("the same, all at once", scores["teacher"]["all_at_once"], 0.82),
        row(
            "graft after fine-tuning over teacher", scores["after"]["mean"] / scores["teacher"]["mean"], 0.97
        ),
        row("text_to_image_recall@1 gained by fine-tuning", after - before, 0.15),
        row("first epoch's mean loss over the ninth's", losses[0] / losses[-1], 1 / 0.35),
        row("probe, worst attribute's accuracy", min(evaluated["probe_accuracy"].values()), 0.99),
    ]
    for each in rows:
        mark = "ok   " if each["reached"] else "SHORT"
        print(f"{mark} {each['figure']:7.3f} of {each['aim']:6.3f}  {each['name']}")
    result = {
        "rows": rows,
        "finetune": finetuned,
        "scores": scores,
        "probe_accuracy": evaluated["probe_accuracy"],
        "environment": describe_environment(torch.device("cpu"))
        | {"command": "python benchmarks/bench_flatland.py"},
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def row(name: str, figure: float, aim: float) -> dict[str, Any]:
    return {"name": name, "figure": figure, "aim": aim, "reached": figure >= aim}


if __name__ == "__main__":
    main()
