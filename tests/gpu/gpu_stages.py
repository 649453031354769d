"""Stages run on a device from equal recipes, and cut short to be resumed."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from clipgraft.bridging.fit import bridge_recipe
from clipgraft.bridging.refine import refine_recipe
from clipgraft.config import Recipe, build_recipe
from clipgraft.distilling.distill import distill_recipe
from clipgraft.finetuning.finetune import finetune, load_inputs


@dataclass(frozen=True)
class World:
    """Folders of a tiny CLIP, base and dataset."""

    clip: Path
    base: Path
    data: Path
    out: Path
    num_train_images: int

    def graft(self) -> Path:
        """Return a graft fitted on the CPU, once."""
        folder = self.out / "bridge"
        if not folder.is_dir():
            bridge_recipe(self.recipe("cpu"), folder)
        return folder / "graft"

    def recipe(self, device: str, stage: str = "bridge", **overrides: object) -> Recipe:
        """Return a recipe in which a stage has the overrides."""
        own = {
            "finetune": {"learning_rate": 1e-3, "num_epochs": 2, "batch_size": 8},
            "bridge": {"allow_few_captions": True, "num_epochs": 0},
            "refine": {"num_epochs": 2, "batch_size": 8},
            "distill": {"new_words": ["kite"], "num_epochs": 2, "batch_size": 8},
        }[stage]
        return build_recipe(
            {
                "device": device,
                "data": {"source": str(self.data)},
                "clip": {"name": str(self.clip)},
                "base": {"name": str(self.base)},
                stage: {"mixed_precision": "no", "warmup_steps": 0} | own | overrides,
            }
        )

    def run(self, stage: str, device: str, out: Path, *, resume: bool = False, **overrides: object) -> object:
        """Run a stage; return its result."""
        recipe = self.recipe(device, stage, **overrides)
        if stage == "finetune":
            return finetune(*load_inputs(recipe), output_dir=out, resume=resume, recipe=recipe)
        run = {"refine": refine_recipe, "distill": distill_recipe}[stage]
        return run(recipe, self.graft(), out, resume=resume)


RESULTS = {"finetune": "clip", "refine": "graft", "distill": "text_encoder"}
"""Folder of a stage's weights."""


def weights_of(stage: str, out: Path) -> dict[str, Tensor]:
    return load_file(out / RESULTS[stage] / "model.safetensors")


def losses_of(out: Path) -> Tensor:
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return torch.tensor([json.loads(line)["loss"] for line in lines])


def cut_back(whole: Path, out: Path, step: int) -> None:
    """Copy a run as if it had been killed after the checkpoint of a step."""
    shutil.copytree(whole, out)
    for checkpoint in (out / "checkpoints").iterdir():
        if checkpoint.name != f"step-{step:08d}":
            shutil.rmtree(checkpoint)
