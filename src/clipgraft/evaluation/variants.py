"""What an evaluation sets side by side: grafts, the teacher above them, floors below, from equal seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from torch import nn

from clipgraft.config import EvaluateSettings, Recipe
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.formats import load_dataset
from clipgraft.evaluation.metrics.token_drift import caption_errors
from clipgraft.evaluation.prompt_sets import EvaluationPrompt, build_prompts
from clipgraft.evaluation.scores import Paths, Scores
from clipgraft.evaluation.stores import PictureStore, Task
from clipgraft.files import fingerprint
from clipgraft.flatland import draw_scene
from clipgraft.flatland.writer import DRAWING_VERSION, IMAGE_SIZE
from clipgraft.generation.generator import ImageGenerator, load_generators
from clipgraft.generation.metadata import save_png
from clipgraft.generation.params import Job
from clipgraft.generation.prompt_embeds import prompt_input_ids
from clipgraft.models.bridge import Bridge, token_classes
from clipgraft.models.clip import text_hidden_states
from clipgraft.models.weights import module_sha256

TEACHER, REAL, EMPTY, SHUFFLED, RANDOM, CHANCE = (
    "teacher",
    "real_pictures",
    "empty_prompt",
    "shuffled_captions",
    "random_bridge",
    "chance",
)
TITLES = {
    TEACHER: "the base with its own text encoder",
    "before": "the graft of CLIP before fine-tuning",
    "after": "the graft of CLIP after fine-tuning",
    "refined": "the refined graft",
    REAL: "the photographs whose captions are drawn; of flatland's prompts, fresh drawings",
    EMPTY: "the same seeds without a prompt",
    SHUFFLED: "each picture against the next one's prompt",
    RANDOM: "an untrained map in the place of the bridge",
    CHANCE: "embeds that know nothing",
}
RANDOM_BRIDGE_SEED = 0
STATES_BATCH_SIZE = 32


class Images(NamedTuple):
    """Photographs of a source, by what they are for."""

    test: tuple[CaptionedImage, ...] = ()
    train: tuple[CaptionedImage, ...] = ()
    record: Mapping[str, Any] = {}
    """`data` of evaluation.json."""


class Drawn(NamedTuple):
    """Every column's pictures, and what they were drawn from."""

    prompts: list[EvaluationPrompt]
    paths: dict[str, Paths]
    """By column."""
    rows: list[dict[str, Any]]
    """`pictures` of evaluation.json, without scores."""
    encoder_sums: dict[str, str]
    tower_sums: dict[str, str]
    """Of the text towers that are compared, the teacher's last: which of them the scorer has too."""
    state_errors: Scores
    measured: tuple[str, ...]
    """Columns of grafts."""
    last: str
    """The column whose floors are measured."""
    folder: Path
    images: Images
    drawing: dict[str, Any]
    """Settings of drawing that the pipeline has."""


def draw_all(
    recipe: Recipe,
    encoders: Mapping[str, Path | None],
    folder: Path,
    base: str,
    device: torch.device,
    processes: PartialState,
) -> Drawn:
    """Every column's pictures; the random bridge takes the place of the last graft's when that has drawn."""
    settings, store = recipe.evaluate, PictureStore(folder, processes)
    grafts = tuple(column for column, graft in encoders.items() if graft)
    drawn = Drawn([], {}, [], {}, {}, {}, grafts, list(encoders)[-1], folder, Images(), {})
    teacher: nn.Module | None = None
    for column, generator in load_generators(encoders, base=base, device=device.type):
        if not drawn.prompts:
            drawn = _prepare(drawn, recipe, generator)
        encoder = generator.pipeline.text_encoder
        if encoders[column] is None:
            teacher = encoder
        columns = [(column, settings)]
        if not drawn.paths:
            # Guidance between two equal predictions does nothing, so the floor does without and costs half.
            columns.append((EMPTY, settings.model_copy(update={"guidance_scale": 1.0})))
        for name, how in columns:
            _draw_column(drawn, name, generator, store, how)
        _compare_states(drawn, column, generator, teacher)
        if encoders[column]:
            drawn.tower_sums[column] = module_sha256(encoder.text_model)
        if column == drawn.last and encoders[column]:
            _randomize(encoder)
            generator.states.forget()
            _draw_column(drawn, RANDOM, generator, store, settings)
            _compare_states(drawn, RANDOM, generator, teacher)
    if TEACHER in drawn.encoder_sums:
        drawn.tower_sums[TEACHER] = drawn.encoder_sums[TEACHER]
    return drawn


def _prepare(drawn: Drawn, recipe: Recipe, generator: ImageGenerator) -> Drawn:
    pipeline = generator.pipeline
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    draws_flatland = size == IMAGE_SIZE
    images = _images(recipe) if recipe.data.source or draws_flatland else Images()
    scheduler = pipeline.scheduler.config
    [example] = generator.resolve([_job("", 0, recipe.evaluate)])
    drawing = {
        "num_inference_steps": example.num_inference_steps,
        "guidance_scale": example.guidance_scale,
        "base": {
            "name": generator.models["base"],
            **{key: generator.models[key] for key in ("unet_sha256", "vae_sha256")},
        },
        "scheduler": f"{type(pipeline.scheduler).__name__}, {scheduler.algorithm_type}, order "
        f"{scheduler.solver_order}" + (", Karras sigmas" if scheduler.use_karras_sigmas else ""),
        "height": size,
        "width": size,
        "dtype": generator.models["dtype"],
        "text_encoder_dtype": str(pipeline.text_encoder.dtype).removeprefix("torch."),
    }
    prompts = build_prompts(recipe.evaluate, images.test, draws_flatland=draws_flatland)
    return drawn._replace(prompts=prompts, images=images, drawing=drawing)


def _draw_column(
    drawn: Drawn,
    column: str,
    generator: ImageGenerator,
    store: PictureStore,
    settings: EvaluateSettings,
) -> None:
    num_seeds = settings.num_images_per_prompt
    jobs = generator.resolve(
        _job("" if column == EMPTY else prompt.text, settings.seed + prompt.number * num_seeds + k, settings)
        for prompt in drawn.prompts
        for k in range(num_seeds)
    )
    tasks = [Task(place // num_seeds, job) for place, job in enumerate(jobs)]
    rows = store.draw(column, generator, tasks, settings.batch_size)
    found = [store.folder / row["file"] if row["status"] == "ok" else None for row in rows]
    drawn.paths[column] = [found[start : start + num_seeds] for start in range(0, len(found), num_seeds)]
    drawn.rows.extend(rows)
    drawn.encoder_sums[column] = module_sha256(generator.pipeline.text_encoder)


def _job(prompt: str, seed: int, settings: EvaluateSettings) -> Job:
    return Job(
        prompt,
        seed,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
    )


@torch.no_grad()
def _compare_states(drawn: Drawn, column: str, generator: ImageGenerator, teacher: nn.Module | None) -> None:
    """How far a graft's token states are from the teacher's, prompt by prompt."""
    pipeline = generator.pipeline
    encoder = pipeline.text_encoder
    if teacher is None or encoder is teacher:
        return
    teacher.to(pipeline.device)
    texts = [prompt.text for prompt in drawn.prompts]
    ids = prompt_input_ids(texts, pipeline.tokenizer)
    parts = []
    for batch in ids.split(STATES_BATCH_SIZE):
        on_device = batch.to(pipeline.device)
        ours, theirs = (text_hidden_states(tower, on_device).cpu() for tower in (encoder, teacher))
        parts.append(caption_errors(ours, theirs, token_classes(batch, pipeline.tokenizer.eos_token_id)))
    for name in ("words", "eos", "padding"):
        values = torch.cat([part[name] for part in parts])[:, None].numpy()
        drawn.state_errors.setdefault(f"state_error_{name}", {})[column] = values


def _randomize(encoder: Any) -> None:
    """Put an untrained linear map, as torch makes it, in the place of a graft's bridge."""
    sizes = encoder.bridge.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_BRIDGE_SEED)
        untrained = Bridge(sizes["input_size"], sizes["output_size"])
    encoder.bridge = untrained.to(encoder.device, encoder.dtype)


def real_pictures(prompts: Sequence[EvaluationPrompt], folder: Path, processes: PartialState) -> Paths:
    """The photograph that each prompt describes; of a known scene a drawing that is in no data set.

    A drawing's file is named by its scene and the drawing's version, so that none is taken for another's.
    """
    paths: Paths = []
    for prompt in prompts:
        path = prompt.image.path if prompt.image else None
        if prompt.scene:
            fresh = replace(prompt.scene, look=f"{prompt.scene.look}/fresh")
            name = fingerprint(DRAWING_VERSION, version("pillow"), asdict(fresh))[:32]
            path = folder / "pictures" / REAL / f"{name}.png"
            if processes.is_main_process and not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                save_png(draw_scene(fresh), path, None)
        paths.append([path])
    processes.wait_for_everyone()
    return paths


def _images(recipe: Recipe) -> Images:
    dataset = load_dataset(recipe.data.source, include_unsplit=recipe.data.include_unsplit)
    test = dataset.test[: recipe.data.max_test_images or None]
    train = dataset.train[: recipe.data.max_train_images or None]
    record = {
        "source": dataset.root.name,
        "format": dataset.format,
        "fingerprint": dataset.fingerprint,
        "split": "test",
        "num_images": len(test),
        "num_train_images": len(train),
    }
    return Images(test, train, record)
