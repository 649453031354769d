"""Distill a graft into the base's own text encoder, on captions."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType

import torch
from pydantic import BaseModel
from torch import Tensor
from transformers import CLIPTextModel

from clipgraft.bridging.corpus import read_captions
from clipgraft.bridging.fit import origins, stage_output
from clipgraft.bridging.pairs import ByClass
from clipgraft.config import Recipe, build_recipe
from clipgraft.console import print_line
from clipgraft.data.batches import CaptionBatches
from clipgraft.data.dataset import CaptionDataset
from clipgraft.data.formats import load_dataset
from clipgraft.data.transforms import tokenize
from clipgraft.device import choose_device, put_back, quiet_libraries, seed_everything
from clipgraft.distilling.distill_objective import DistillObjective
from clipgraft.distilling.held_captions import DistillCaptions, mark_captions, new_words
from clipgraft.distilling.new_words import words_for
from clipgraft.distilling.null_space import NullSpace
from clipgraft.errors import UserError
from clipgraft.models.base import FrozenBase, check_vocabularies
from clipgraft.models.bridge import position_weights, token_classes
from clipgraft.models.clip import empty_prompt_ids, text_hidden_states
from clipgraft.models.cross_attention import kv_metric_sqrt, read_cross_attention
from clipgraft.models.graft import Graft, GraftResult
from clipgraft.models.lineage import Lineage, Stage
from clipgraft.models.token_stats import EmbedError
from clipgraft.models.weights import module_sha256, tensors_sha256
from clipgraft.section import GIVEN
from clipgraft.settings import DistillSettings
from clipgraft.training.optim import check_last_layers, merge_lora, train_last_layers
from clipgraft.training.trainer import fit

DEFAULT_EPOCHS = 2
ENCODE_BATCH_SIZE = 128
"""Captions encoded at once, to bound the memory."""
NUM_METRIC_CAPTIONS = 1024
"""Captions for the power of keys and values, a matrix of the embeds' width squared (a guess)."""


class StateErrors(BaseModel):
    """Relative errors of states on held-out captions, by token class."""

    new_words: ByClass
    """Of captions with new words, against the graft's states."""
    held: ByClass
    """Of all others, against the base's own."""


class EmptyPromptError(BaseModel):
    """Change of the empty prompt's states, over their root mean square."""

    root_mean_square: float
    largest: float


class DistillResult(GraftResult):
    """Errors of a distilled text encoder on held-out captions."""

    stage: str = "distill"
    word_counts: dict[str, int]
    """New words, with their numbers of training captions."""
    before: StateErrors
    """Of the base's own text encoder."""
    after: StateErrors
    empty_prompt: EmptyPromptError
    num_steps: int
    seconds: float
    epoch_mean_loss: list[float | None]
    num_captions: int
    num_captions_with_new_words: int
    mixed_precision: str

    def print(self) -> None:
        """Print errors and numbers of captions."""
        before, after, moved = self.before, self.after, self.empty_prompt.root_mean_square
        num_words = sum(count > 0 for count in self.word_counts.values())
        in_captions = f"{self.num_captions_with_new_words:,} of {self.num_captions:,} captions"
        print_line(f"{num_words} new word(s) in {in_captions}")
        print_line(
            f"state error of words: with new words, against the graft's {before.new_words['words']:.3f} -> "
            f"{after.new_words['words']:.3f}; without, against the base's own {after.held['words']:.3f} "
            f"(0 is a perfect copy); the empty prompt's states moved by {moved:.1e}"
        )


def distill(
    graft: Graft,
    data: CaptionDataset | Sequence[str],
    *,
    base: FrozenBase | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    device: str = "auto",
    settings: DistillSettings | None = None,
    recipe: Recipe | None = None,
    inputs: Mapping[str, str | Path | None] = MappingProxyType({}),
    started_from: str = "",
    **overrides: object,
) -> DistillResult:
    """Teach the base's own text encoder words that only the graft knows.

    A copy is trained to give the graft's states for captions with new words and its own for all others; the
    empty prompt's stay as they are. Arguments not listed are those of `fit_bridge`.

    Args:
        graft: A graft, or a text encoder distilled earlier.
        data: A dataset with train and test captions, or captions, one in ten of them to be held out.
        base: The graft's, with tokenizer and text encoder; None = loaded by the name in the graft.
        output_dir: Gets `text_encoder/`, `metrics.json`, `recipe.toml`, `log.jsonl` and `checkpoints/`.
        started_from: Folder of the graft, for the lineage.
        **overrides: Fields of `DistillSettings`, over `settings`; `new_words` is needed: words, a file, or
            "auto" with a dataset and a graft that says which CLIP it was made of.

    Returns:
        Errors before and after, and `.graft`, whose text encoder is a plain `CLIPTextModel`.

    Raises:
        UserError: If no caption has a new word, or all have; or a setting is unknown or not allowed.
        CheckpointError: If the base is not the graft's, or a resumed run had another graft, base or captions.
    """
    quiet_libraries()
    base = base or load_teacher(graft, graft.base.name, graft.base.revision)
    if recipe is None:
        named = {"data": data.origin} if isinstance(data, CaptionDataset) else {}
        recipe = build_recipe({"seed": seed, "device": device, **named, **origins(base=base)})
        settings = settings or DistillSettings(num_epochs=DEFAULT_EPOCHS)
    settings = (settings or recipe.distill).updated(overrides)
    check_settings(settings)
    base.check_record(graft.base)
    check_vocabularies(graft.tokenizer, base)
    settings = _resolved(settings, graft, data, recipe)
    captions = mark_captions(data, settings)
    recipe = recipe.model_copy(update={"distill": settings})
    lent = graft.text_encoder, *base.modules.values()
    with stage_output(output_dir, recipe, "distill", inputs, resume, overwrite) as folder, put_back(*lent):
        result = _distill(graft, base, captions, recipe, folder, resume)
        stage = _describe(result, recipe, started_from)
        result.graft.lineage = Lineage(stages=(*graft.lineage.stages, stage))
        if output_dir is not None:
            result.graft.save_pretrained(folder / "text_encoder")
            result.save(folder)
    return result


def _resolved(
    settings: DistillSettings, graft: Graft, data: CaptionDataset | Sequence[str], recipe: Recipe
) -> DistillSettings:
    """Name the new words found, and captions that no file holds."""
    named: dict[str, object] = {}
    if settings.new_words == "auto":
        named["new_words"] = words_for(graft, data, recipe)
    if not isinstance(data, CaptionDataset) and not settings.captions:
        named["captions"] = GIVEN
    return settings.model_copy(update=named)


def distill_recipe(
    recipe: Recipe,
    graft_dir: Path,
    output_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    inputs: Mapping[str, str | Path | None] = MappingProxyType({}),
) -> DistillResult:
    """Distill a graft with a recipe's base and captions; see `distill`."""
    quiet_libraries()
    check_settings(recipe.distill)
    graft, words = Graft.from_pretrained(graft_dir), recipe.distill.new_words
    return distill(
        graft,
        _load_data(recipe),
        base=load_teacher(graft, recipe.base.name, recipe.base.revision),
        output_dir=output_dir,
        resume=resume,
        overwrite=overwrite,
        recipe=recipe,
        inputs={**inputs, "--graft": graft_dir, "--new-words": words if isinstance(words, str) else None},
        started_from=str(graft_dir.absolute()),
    )


def _describe(result: DistillResult, recipe: Recipe, started_from: str) -> Stage:
    return Stage(
        stage="distill",
        recipe=recipe,
        started_from=started_from,
        figures={"new words": result.after.new_words, "held": result.after.held},
        counts={"num_captions": result.num_captions},
        words=result.word_counts,
    )


def load_marked_captions(recipe: Recipe) -> DistillCaptions:
    """Read a recipe's captions, marked by its new words; raises as `distill`."""
    check_settings(recipe.distill)
    return mark_captions(_load_data(recipe), recipe.distill)


def _load_data(recipe: Recipe) -> CaptionDataset | list[str]:
    captions = recipe.distill.captions
    return read_captions(captions) if captions else load_dataset(recipe.data)


def check_settings(settings: DistillSettings) -> None:
    """Refuse settings with nothing to train or to learn."""
    if not settings.num_epochs:
        raise UserError("distill.num_epochs is 0: nothing would be trained; set it to 1 or more")
    if settings.new_words != "auto":
        new_words(settings)


def load_teacher(graft: Graft, name: str, revision: str) -> FrozenBase:
    """Load a base's tokenizer and text encoder."""
    return FrozenBase.load(
        name,
        revision=revision,
        components=("tokenizer", "text_encoder"),
        tokenizer=graft.tokenizer,
    )


def _distill(
    graft: Graft, base: FrozenBase, captions: DistillCaptions, recipe: Recipe, folder: Path, resume: bool
) -> DistillResult:
    settings, train = recipe.distill, captions.train
    device = choose_device(recipe.device)
    seed_everything(recipe.seed)
    input_ids = tokenize(train.captions, graft.tokenizer, pad_to_context_length=True).int()
    marks = torch.tensor(train.has_new_word)
    data = {
        "captions": tensors_sha256({"input_ids": input_ids, "has_new_word": marks}),
        "weights of the graft": module_sha256(graft.text_encoder),
        "weights of the base": _checksum_of(base),
    }
    objective = build_objective(graft, base, input_ids, settings, device)
    held_out = {
        is_new: tokenize(texts, graft.tokenizer, pad_to_context_length=True)
        for is_new, texts in captions.held_out.items()
    }
    before = measure_states(objective, held_out)
    size = min(settings.batch_size, len(train.captions))
    fitted = fit(
        objective,
        CaptionBatches(
            input_ids,
            marks,
            eos_token_id=graft.tokenizer.eos_token_id,
            batch_size=size,
            seed=recipe.seed,
        ),
        settings,
        output_dir=folder,
        device=device,
        data=data,
        seed=recipe.seed,
        resume=resume,
        description="distilling the text encoder",
    )
    if settings.lora_rank:
        merge_lora(objective.encoder)
    result = DistillResult(
        word_counts=captions.word_counts,
        before=before,
        after=measure_states(objective, held_out),
        empty_prompt=empty_prompt_error(objective.encoder, base),
        num_steps=fitted.num_steps,
        seconds=fitted.seconds,
        epoch_mean_loss=[*fitted.epoch_mean_loss],
        num_captions=len(marks),
        num_captions_with_new_words=int(marks.sum()),
        mixed_precision=fitted.mixed_precision,
    )
    result._graft = Graft(objective.encoder.cpu().eval(), base.tokenizer, base.record())
    return result


def _checksum_of(base: FrozenBase) -> str:
    return module_sha256(base.text_encoder) + tensors_sha256(read_cross_attention(base.origin.path))


def build_objective(
    graft: Graft, base: FrozenBase, input_ids: Tensor, settings: DistillSettings, device: torch.device
) -> DistillObjective:
    """Prepare a copy of the base's text encoder; return the objective."""
    teacher = base.text_encoder.to(device)
    encoder = deepcopy(teacher)
    choose_trained(encoder, settings)
    encoder.to(device)
    null_space = NullSpace(encoder, teacher, empty_prompt_ids(base.tokenizer).to(device))
    null_space.project()
    metric = None
    if settings.key_value_weight:
        moment = _moment(teacher, input_ids[:NUM_METRIC_CAPTIONS], base.tokenizer.eos_token_id)
        metric = kv_metric_sqrt(read_cross_attention(base.origin.path).values(), moment)
    return DistillObjective(
        encoder,
        graft.text_encoder.to(device).eval(),
        teacher,
        null_space,
        eos_token_id=base.tokenizer.eos_token_id,
        kv_metric_sqrt=metric,
        key_value_weight=settings.key_value_weight,
    ).to(device)


def choose_trained(encoder: CLIPTextModel, settings: DistillSettings) -> None:
    """Let gradients through the parts of an encoder that settings train.

    Raises:
        UserError: If it has fewer layers, or peft is needed and not installed.
    """
    depth = len(encoder.encoder.layers)
    check_last_layers(settings.text_layers, depth)
    if settings.text_layers or settings.lora_rank:
        train_last_layers(encoder, settings.text_layers or depth, settings.lora_rank)
    else:
        encoder.requires_grad_(True)
    if settings.gradient_checkpointing:
        encoder.activation_checkpointing_enable()


@torch.no_grad()
def _moment(teacher: CLIPTextModel, input_ids: Tensor, eos_token_id: int) -> Tensor:
    """Return the weighted sum of `t t^T` over embeds t, (W, W)."""
    width = teacher.config.hidden_size
    moment = torch.zeros(width, width, dtype=torch.float64)
    for batch in input_ids.long().split(ENCODE_BATCH_SIZE):
        weights = position_weights(token_classes(batch, eos_token_id)).flatten()
        states = text_hidden_states(teacher, batch.to(teacher.device)).flatten(0, 1).cpu()
        moment += (states.T @ (states * weights[:, None])).double()
    return moment


@torch.no_grad()
def measure_states(objective: DistillObjective, held_out: Mapping[bool, Tensor]) -> StateErrors:
    """Measure an encoder's states on captions (N, 77) with (True) and without new words."""
    found = {}
    objective.eval()
    for is_new, input_ids in held_out.items():
        error = EmbedError()
        for batch in input_ids.split(ENCODE_BATCH_SIZE):
            on_device = batch.to(objective.encoder.device)
            target = objective.target(on_device, torch.full((len(batch),), is_new, device=on_device.device))
            states = text_hidden_states(objective.encoder, on_device)
            error.add(states.float(), target, token_classes(batch, objective.eos_token_id))
        found[is_new] = error.relative_error()
    return StateErrors(new_words=found[True], held=found[False])


@torch.no_grad()
def empty_prompt_error(encoder: CLIPTextModel, base: FrozenBase) -> EmptyPromptError:
    """Measure how far the empty prompt's states, BOS among them, have moved."""
    input_ids = empty_prompt_ids(base.tokenizer).to(encoder.device)
    ours, own = (text_hidden_states(model, input_ids) for model in (encoder, base.text_encoder))
    moved = (ours - own) / own.square().mean().sqrt()
    return EmptyPromptError(
        root_mean_square=float(moved.square().mean().sqrt()), largest=float(moved.abs().max())
    )
