"""Fit the bridge from CLIP's token states to a base's, in closed form, then by gradient; write the graft."""

from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from clipgraft.bridging.corpus import load_captions
from clipgraft.bridging.pairs import LinearFit, Towers
from clipgraft.config import BridgeSettings, Recipe
from clipgraft.console import print_line
from clipgraft.data.batches import StateBatches
from clipgraft.device import seed_everything
from clipgraft.files import write_json
from clipgraft.models.bridge import BOS, PADDING, Bridge
from clipgraft.models.lineage import Figures, Lineage, Stage
from clipgraft.models.token_stats import COLLAPSED_SHARE, collapsed_classes
from clipgraft.models.weights import tensors_sha256
from clipgraft.training.objectives import BridgeObjective
from clipgraft.training.trainer import FitResult, fit

STATES_NAME = "states.bin"
"""Token states of the training captions, kept while a residual MLP is trained on them."""


def bridge(recipe: Recipe, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Graft `recipe.clip` onto `recipe.base` with captions: text alone, no image is read.

    Args:
        recipe: Its seed, device, data, clip, base and bridge settings are read.
        folder: Gets `graft/`, `metrics.json`, and `log.jsonl` where a residual MLP is trained.
        resume: Go on from the newest checkpoint there.

    Returns:
        The metrics that were written: errors on held-out captions, by token class.

    Raises:
        ValueError: If there are too few captions.
        CheckpointError: If CLIP and base do not fit.
    """
    captions = load_captions(recipe)
    towers = Towers(recipe)
    train_ids, held_out_ids = towers.input_ids(captions.train), towers.input_ids(captions.held_out)
    seed_everything(recipe.seed)
    states_file = folder / STATES_NAME if has_residual(towers, recipe.bridge) else None
    try:
        linear = towers.fit_linear(train_ids, states_file)
        fitted = linear_bridge(towers, linear, recipe.bridge)
        metrics: dict[str, Any] = {"linear": towers.measure(fitted, held_out_ids, linear.key_value_root)}
        if fitted.residual is not None:
            result = fit_residual(fitted, towers, linear, train_ids, recipe, folder, resume)
            metrics["residual"] = towers.measure(fitted, held_out_ids, linear.key_value_root)
            metrics["seconds"] = result.seconds
    finally:
        if states_file is not None:
            states_file.unlink(missing_ok=True)
    measured = metrics.get("residual", metrics["linear"])
    metrics["collapsed"] = say_collapse(measured["spread"], measured["teacher_spread"])
    counts = {"num_captions": len(train_ids), "num_held_out_captions": len(held_out_ids)}
    parts = [name for name in ("linear", "residual") if name in metrics]
    errors: Figures = {name: metrics[name]["relative_error"] for name in parts}
    stage = Stage(stage="bridge", recipe=recipe, figures=errors, counts=counts)
    lineage = Lineage(stages=(*towers.lineage, stage))
    towers.graft(fitted, lineage).save_pretrained(folder / "graft")
    metrics |= counts
    write_json(folder / "metrics.json", metrics)
    return metrics


def print_result(metrics: dict[str, Any]) -> None:
    """Print in one line how near the bridge comes to the teacher's states."""
    errors = metrics.get("residual", metrics["linear"])["relative_error"]
    figures = ", ".join(f"{name} {errors[name]:.3f}" for name in ("words", "eos", "padding"))
    captions = f"{metrics['num_held_out_captions']} held-out captions"
    print_line(f"state error on {captions}: {figures} (0 is a perfect copy)")


def has_residual(towers: Towers, settings: BridgeSettings) -> bool:
    """Whether a bridge gets what is not linear: not between a tower and itself, nor without epochs."""
    return bool(settings.num_epochs) and not towers.are_equal


def linear_bridge(towers: Towers, linear: LinearFit, settings: BridgeSettings) -> Bridge:
    """Return a bridge with its linear maps solved for; its residual MLP, if any, adds nothing yet."""
    is_linear = not has_residual(towers, settings)
    fitted = towers.new_bridge(
        hidden_size=0 if is_linear else settings.hidden_size,
        num_attention_blocks=0 if is_linear else settings.num_attention_blocks,
        by_class=settings.by_token_class and not towers.are_equal,
    )
    if towers.are_equal:
        fitted.set_identity()
    else:
        fitted.set_linear(*linear.regression.solve(settings.ridge, by_class=settings.by_token_class))
    return fitted


def fit_residual(
    fitted: Bridge,
    towers: Towers,
    linear: LinearFit,
    input_ids: Tensor,
    recipe: Recipe,
    folder: Path,
    resume: bool,
) -> FitResult:
    """Train what is not linear of a bridge.

    Args:
        fitted: Changed in place.
        towers: What it lies between.
        linear: What its linear maps were solved from, with the states of the training captions.
        input_ids: (N, 77) of the training captions.
        recipe: Its seed and bridge settings are read.
        folder: Gets `log.jsonl` and `checkpoints/`.
        resume: Go on from the newest checkpoint there.
    """
    settings, states = recipe.bridge, linear.states
    assert states is not None
    # The linear map is the least-squares optimum already; only what it leaves is learned.
    fitted.linear.requires_grad_(False)
    batches = StateBatches(
        states, padding=PADDING, bos=BOS, batch_size=min(settings.batch_size, len(states)), seed=recipe.seed
    )
    objective = BridgeObjective(
        fitted,
        cosine_weight=settings.cosine_weight,
        norm_weight=settings.norm_weight,
        key_value_root=linear.key_value_root,
        key_value_weight=settings.key_value_weight,
    )
    return fit(
        objective,
        batches,
        settings,
        output_dir=folder,
        device=towers.device,
        data={"captions": tensors_sha256({"input_ids": input_ids}), **towers.sums()},
        seed=recipe.seed,
        resume=resume,
        description="training the residual bridge",
    )


def say_collapse(spread: dict[str, float], teacher_spread: dict[str, float]) -> list[str]:
    """Say aloud where bridged states have lost what tells captions apart; return the token classes."""
    collapsed = collapsed_classes(spread, teacher_spread)
    for name in collapsed:
        Console(stderr=True).print(
            f"warning: the bridge has collapsed: its states of {name} differ by {spread[name]:.3f} from "
            f"caption to caption (mean cosine distance), the teacher's by {teacher_spread[name]:.3f}; less "
            f"than {COLLAPSED_SHARE:.0%} of it is kept. Give more captions, or lower bridge.ridge",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return collapsed
