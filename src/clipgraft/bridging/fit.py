"""Fit a bridge in closed form, then its residual by gradient descent."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from pydantic import Field
from torch import Tensor

from clipgraft.bridging.corpus import Captions, choose_captions, load_captions
from clipgraft.bridging.pairs import BridgeError, LinearFit, Towers, load_models
from clipgraft.config import Recipe, build_recipe, mark_given_clip
from clipgraft.console import print_line, say
from clipgraft.data.batches import StateBatches
from clipgraft.data.dataset import CaptionDataset
from clipgraft.device import put_back, quiet_libraries, seed_everything
from clipgraft.errors import UserError
from clipgraft.models.base import FrozenBase
from clipgraft.models.bridge import BOS, PADDING, Bridge
from clipgraft.models.clip import ClipParts
from clipgraft.models.graft import GraftResult
from clipgraft.models.lineage import Lineage, Stage
from clipgraft.models.token_stats import is_collapsed
from clipgraft.models.weights import tensors_sha256
from clipgraft.runs.run import Run, trackers_of
from clipgraft.section import GIVEN
from clipgraft.settings import BridgeSettings
from clipgraft.training.objectives import BridgeObjective
from clipgraft.training.trainer import FitResult, fit

STATES_NAME = "states.bin"
"""Hidden states of the training captions, kept while training a residual."""


class BridgeResult(GraftResult):
    """Errors of a bridge on held-out captions."""

    stage: str = "bridge"
    linear: BridgeError
    """Of the linear maps alone."""
    residual: BridgeError | None = None
    """With attention blocks and MLP, if any."""
    seconds: float | None = None
    """Training time of the residual."""
    collapsed: tuple[str, ...] = ()
    """Token classes whose embeds hardly differ between captions any more."""
    num_captions: int
    num_held_out_captions: int
    damaged: dict[str, str] = Field(default_factory=dict)
    """Image id -> reason, of photographs that were skipped with their captions."""

    @property
    def error(self) -> BridgeError:
        """Error of the whole bridge."""
        return self.residual or self.linear

    def print(self) -> None:
        """Print the bridge's errors in one line."""
        errors = self.error.relative_error
        figures = ", ".join(f"{name} {errors[name]:.3f}" for name in ("words", "eos", "padding"))
        captions = f"{self.num_held_out_captions} held-out captions"
        print_line(f"state error on {captions}: {figures} (0 is a perfect copy)")


def fit_bridge(
    clip: ClipParts,
    base: FrozenBase,
    captions: Captions | CaptionDataset | Sequence[str],
    *,
    output_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    device: str = "auto",
    settings: BridgeSettings | None = None,
    recipe: Recipe | None = None,
    inputs: Mapping[str, str | Path | None] = MappingProxyType({}),
    **overrides: object,
) -> BridgeResult:
    """Graft a CLIP onto a base with captions alone, no images.

    Args:
        clip: The CLIP.
        base: With tokenizer and text encoder.
        captions: A dataset with train and test captions, or captions, one in ten of them to be held out. At
            least 100 to fit to, unless `allow_few_captions` is true.
        output_dir: Gets `graft/`, `metrics.json`, `recipe.toml` and, with a residual, `log.jsonl` and
            `checkpoints/`; None = nothing is written.
        resume: Continue from the newest checkpoint in `output_dir`.
        overwrite: Replace the run in `output_dir`.
        seed: Seed of everything random.
        device: "auto", "cpu", "cuda" or "mps".
        settings: Settings of the bridge.
        recipe: Settings of a whole run, replacing seed, device and settings; written beside the result.
        inputs: Files by name, forbidden inside `output_dir`.
        **overrides: Fields of `BridgeSettings`, over `settings`.

    Returns:
        Errors on held-out captions, and `.graft`.

    Raises:
        UserError: If there are too few captions, or a setting is unknown or not allowed.
        CheckpointError: If CLIP and base do not fit.
    """
    quiet_libraries()
    if recipe is None:
        data = {"data": captions.origin} if isinstance(captions, CaptionDataset) else {}
        recipe = build_recipe({"seed": seed, "device": device, **data, **origins(clip=clip, base=base)})
    recipe = recipe.model_copy(update={"bridge": (settings or recipe.bridge).updated(overrides)})
    recipe = _without_names(recipe, clip, captions)
    if not isinstance(captions, Captions):
        captions = choose_captions(captions, recipe.bridge)
    lent = clip.model, *base.modules.values()
    with stage_output(output_dir, recipe, "bridge", inputs, resume, overwrite) as folder, put_back(*lent):
        towers = Towers(clip, base, device=recipe.device, mixed_precision=recipe.bridge.mixed_precision)
        result = _fit(towers, captions, recipe, folder, resume)
        stage = _stage(result, recipe)
        result.graft.lineage = Lineage(stages=(*clip.lineage, stage))
        if output_dir is not None:
            result.graft.save_pretrained(folder / "graft")
            result.save(folder)
    return result


def _without_names(
    recipe: Recipe, clip: ClipParts, captions: Captions | CaptionDataset | Sequence[str]
) -> Recipe:
    """Return a recipe that names neither another CLIP nor other captions."""
    if not isinstance(captions, CaptionDataset | Captions):
        recipe = recipe.model_copy(update={"bridge": recipe.bridge.updated({"captions": GIVEN})})
    return mark_given_clip(recipe, clip.origin)


def _stage(result: BridgeResult, recipe: Recipe) -> Stage:
    errors = {"linear": result.linear, **({"residual": result.residual} if result.residual else {})}
    return Stage(
        stage="bridge",
        recipe=recipe,
        figures={name: error.relative_error for name, error in errors.items()},
        counts={"num_captions": result.num_captions, "num_held_out_captions": result.num_held_out_captions},
    )


def bridge_recipe(
    recipe: Recipe,
    output_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    inputs: Mapping[str, str | Path | None] = MappingProxyType({}),
) -> BridgeResult:
    """Fit the bridge of a recipe; see `fit_bridge`."""
    quiet_libraries()
    captions = load_captions(recipe)
    clip, base = load_models(recipe)
    return fit_bridge(
        clip,
        base,
        captions,
        output_dir=output_dir,
        resume=resume,
        overwrite=overwrite,
        recipe=recipe,
        inputs=inputs,
    )


@contextmanager
def stage_output(
    output_dir: str | Path | None,
    recipe: Recipe,
    stage: str,
    inputs: Mapping[str, str | Path | None],
    resume: bool,
    overwrite: bool,
) -> Iterator[Path]:
    """Yield the folder of a stage, a temporary one by default."""
    if output_dir is None:
        if trackers_of(recipe, stage):
            raise UserError("report_to needs an output_dir; name one")
        with TemporaryDirectory(prefix="clipgraft-") as temporary:
            yield Path(temporary)
        return
    place = Path(output_dir).expanduser()
    with Run.begin(place, recipe, stage=stage, inputs=inputs, resume=resume, overwrite=overwrite) as run:
        yield run.path


def origins(**models: ClipParts | FrozenBase) -> dict[str, dict[str, str]]:
    """Return names and commits of loaded models by recipe section."""
    found = {name: model.origin for name, model in models.items()}
    return {
        name: {"name": origin.name, "revision": origin.revision} for name, origin in found.items() if origin
    }


def _fit(towers: Towers, captions: Captions, recipe: Recipe, folder: Path, resume: bool) -> BridgeResult:
    settings = recipe.bridge
    train_ids, held_out_ids = towers.input_ids(captions.train), towers.input_ids(captions.held_out)
    seed_everything(recipe.seed)
    states_file = folder / STATES_NAME if has_residual(towers, settings) else None
    residual, seconds = None, None
    try:
        linear_fit = towers.fit_linear(train_ids, states_file)
        bridge = linear_bridge(towers, linear_fit, settings)
        linear = towers.measure(bridge, held_out_ids, linear_fit.kv_metric_sqrt)
        if bridge.residual is not None:
            fitted = fit_residual(bridge, towers, linear_fit, train_ids, recipe, folder, resume)
            residual = towers.measure(bridge, held_out_ids, linear_fit.kv_metric_sqrt)
            seconds = fitted.seconds
    finally:
        if states_file is not None:
            states_file.unlink(missing_ok=True)
    result = BridgeResult(
        linear=linear,
        residual=residual,
        seconds=seconds,
        collapsed=warn_of_collapse(residual or linear),
        num_captions=len(train_ids),
        num_held_out_captions=len(held_out_ids),
        damaged=dict(captions.damaged),
    )
    result._graft = towers.graft(bridge)
    return result


def has_residual(towers: Towers, settings: BridgeSettings) -> bool:
    """Whether a bridge has a residual: with epochs, and between different towers."""
    return bool(settings.num_epochs) and not towers.are_equal


def linear_bridge(towers: Towers, linear: LinearFit, settings: BridgeSettings) -> Bridge:
    """Return a bridge with solved linear maps and a residual of zero."""
    is_linear = not has_residual(towers, settings)
    bridge = towers.new_bridge(
        hidden_size=0 if is_linear else settings.hidden_size,
        num_attention_blocks=0 if is_linear else settings.num_attention_blocks,
        by_class=settings.by_token_class and not towers.are_equal,
    )
    if towers.are_equal:
        bridge.set_identity()
    else:
        bridge.set_linear(*linear.regression.solve(settings.ridge, by_class=settings.by_token_class))
    return bridge


def fit_residual(
    bridge: Bridge,
    towers: Towers,
    linear: LinearFit,
    input_ids: Tensor,
    recipe: Recipe,
    folder: Path,
    resume: bool,
) -> FitResult:
    """Train a bridge's residual in place, on the states in `linear`."""
    settings, states = recipe.bridge, linear.states
    assert states is not None
    # The linear map is the least-squares optimum already; the residual learns the rest.
    bridge.linear.requires_grad_(False)
    batches = StateBatches(
        states, padding=PADDING, bos=BOS, batch_size=min(settings.batch_size, len(states)), seed=recipe.seed
    )
    objective = BridgeObjective(
        bridge,
        cosine_weight=settings.cosine_weight,
        norm_weight=settings.norm_weight,
        kv_metric_sqrt=linear.kv_metric_sqrt,
        key_value_weight=settings.key_value_weight,
    )
    return fit(
        objective,
        batches,
        settings,
        output_dir=folder,
        device=towers.device,
        data={"captions": tensors_sha256({"input_ids": input_ids}), **towers.checksums()},
        seed=recipe.seed,
        resume=resume,
        description="training the residual bridge",
    )


def warn_of_collapse(error: BridgeError) -> tuple[str, ...]:
    """Warn about collapsed token classes; return them."""
    collapsed = []
    for name in ("words", "eos"):
        ours, theirs = error.diversity.get(name), error.teacher_diversity.get(name)
        if not is_collapsed(ours, theirs):
            continue
        collapsed.append(name)
        say(
            f"the bridge's states of {name} are too much alike: from caption to caption they differ by "
            f"{ours:.3f} (mean cosine distance), the teacher's by {theirs:.3f}. If images leave "
            "out what prompts name, give more captions, or lower bridge.ridge"
        )
    return tuple(collapsed)
