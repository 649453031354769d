"""Images of grafts, teacher and floors from equal prompts and seeds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from torch import nn

from clipgraft.config import DataSettings, EvaluateSettings
from clipgraft.data.dataset import CaptionDataset, CaptionedImage
from clipgraft.data.formats import load_dataset
from clipgraft.data.image_file import ImageFile
from clipgraft.evaluation.features import generator_fingerprint, image_key
from clipgraft.evaluation.metrics.token_drift import caption_errors
from clipgraft.evaluation.prompt_sets import EvaluationPrompt, build_prompts
from clipgraft.evaluation.results import (
    CHANCE,
    EMPTY,
    RANDOM,
    REAL,
    SHUFFLED,
    TEACHER,
    BaseWeights,
    Data,
    ScoredImage,
    Settings,
)
from clipgraft.evaluation.scores import Paths, Scores
from clipgraft.files import fingerprint
from clipgraft.flatland import draw_scene
from clipgraft.flatland.writer import DRAWING_VERSION, IMAGE_SIZE
from clipgraft.generation.generator import ImageGenerator
from clipgraft.generation.image_encoding import write_image
from clipgraft.generation.image_folder import ImageFolder, Slot
from clipgraft.generation.pipeline import image_size, prompt_input_ids
from clipgraft.generation.requests import ImageRequest, image_file_name
from clipgraft.generation.schedulers import build_scheduler
from clipgraft.models.bridge import Bridge, token_classes
from clipgraft.models.clip import text_hidden_states
from clipgraft.models.graft import GraftedTextEncoder
from clipgraft.models.weights import module_sha256
from clipgraft.sampling_params import SamplingParams

TITLES = {
    TEACHER: "the base with its own text encoder",
    "before": "the graft of CLIP before fine-tuning",
    "after": "the graft of CLIP after fine-tuning",
    "refined": "the refined graft",
    "distilled": "the base's own text encoder, distilled from the graft",
    REAL: "the photographs described by the prompts; for flatland's prompts, newly drawn scenes",
    EMPTY: "the same seeds without a prompt",
    SHUFFLED: "each image against the next image's prompt",
    RANDOM: "an untrained map instead of the bridge",
    CHANCE: "random embeds",
}
FOLDER = "variants"
RANDOM_BRIDGE_SEED = 0
ENCODE_BATCH_SIZE = 32


class Images(NamedTuple):
    """Captioned images of a data set, by use."""

    test: tuple[CaptionedImage, ...] = ()
    train: tuple[CaptionedImage, ...] = ()
    record: Data = Data()


class Variants:
    """Variants of an evaluation, with their generated images and settings.

    Args:
        variants: Name -> None for the base's own text encoder, which comes first, or a graft.
        data: A data set, or settings that name one; None = flatland8k for a base of its size, else nothing.
        folder: Receives `variants/<name>/`.
        processes: Share the generation.
    """

    def __init__(
        self,
        variants: Mapping[str, object],
        settings: EvaluateSettings,
        data: CaptionDataset | DataSettings | None,
        folder: Path,
        processes: PartialState,
    ):
        self.settings, self.data, self.folder = settings, data, folder
        self.store = ImageFolder(folder, processes=processes, with_metadata=False)
        self.grafts = tuple(name for name, own in variants.items() if own is not None)
        self.last = list(variants)[-1]
        """The variant whose images are also compared with other prompts."""
        self.prompts: list[EvaluationPrompt] = []
        self.images = Images()
        self.paths: dict[str, Paths] = {}
        self.rows: list[ScoredImage] = []
        """All images, without scores."""
        self.encoder_checksums: dict[str, str] = {}
        self.tower_checksums: dict[str, str] = {}
        """Checksums of the compared text towers, the teacher's last."""
        self.state_errors: Scores = {}
        self.sampling = Settings()
        """Settings resolved for the base."""

    def generate(self, generators: Iterator[tuple[str, ImageGenerator]]) -> None:
        """Generate the images of all text encoders and floors."""
        teacher: nn.Module | None = None
        bridged: ImageGenerator | None = None
        for name, generator in generators:
            is_first, is_graft = not self.paths, name in self.grafts
            if is_first:
                self._prepare(generator)
            encoder = generator.pipeline.text_encoder
            if not is_graft:
                teacher = encoder
            self._add(name, generator, self.settings)
            if is_first:
                # Guidance between equal predictions has no effect; without it, the floor costs half.
                self._add(EMPTY, generator, self.settings.model_copy(update={"guidance_scale": 1.0}))
            self._compare_states(name, generator, teacher)
            if isinstance(encoder, GraftedTextEncoder):
                self.tower_checksums[name] = module_sha256(encoder.text_model)
                bridged = generator
            elif is_graft:
                self.tower_checksums[name] = self.encoder_checksums[name]
        if bridged:
            with _untrained_bridge(bridged):
                self._add(RANDOM, bridged, self.settings)
                self._compare_states(RANDOM, bridged, teacher)
        if TEACHER in self.encoder_checksums:
            self.tower_checksums[TEACHER] = self.encoder_checksums[TEACHER]

    def _prepare(self, generator: ImageGenerator) -> None:
        pipeline = generator.pipeline
        size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        is_flatland = size == IMAGE_SIZE
        self.images = load_images(self.data, is_flatland=is_flatland)
        self.prompts = build_prompts(self.settings, self.images.test, draws_flatland=is_flatland)
        [example] = generator.resolve([_request("", 0, self.settings)])
        height, width = image_size(pipeline, example)
        scheduler = build_scheduler(example.params.scheduler, generator.base_scheduler)
        models = generator.models
        self.sampling = Settings(
            **self.settings.model_dump(
                include={"num_prompts", "num_images_per_prompt", "seed", "batch_size", "force"}
            ),
            num_inference_steps=example.params.num_inference_steps,
            guidance_scale=example.params.guidance_scale,
            base=BaseWeights(
                name=models["base"], unet_sha256=models["unet_sha256"], vae_sha256=models["vae_sha256"]
            ),
            scheduler=", ".join([type(scheduler).__name__, *_solver(scheduler.config)]),
            height=height,
            width=width,
            dtype=models["dtype"],
            text_encoder_dtype=str(pipeline.text_encoder.dtype).removeprefix("torch."),
        )

    def _add(self, name: str, generator: ImageGenerator, settings: EvaluateSettings) -> None:
        num_seeds = settings.num_images_per_prompt
        requests = generator.resolve(
            _request(
                "" if name == EMPTY else prompt.text, settings.seed + prompt.number * num_seeds + k, settings
            )
            for prompt in self.prompts
            for k in range(num_seeds)
        )
        whole = generator_fingerprint(generator)
        slots = [
            Slot(
                f"{FOLDER}/{name}/{index // num_seeds:04d}-"
                f"{image_file_name(request.prompt, request.seed)}.png",
                request,
                image_key(whole, generator, request),
            )
            for index, request in enumerate(requests)
        ]
        rows = self.store.complete(name, generator, slots, batch_size=settings.batch_size)
        found: list[ImageFile | None] = [
            self.folder / row.file if row.status == "ok" else None for row in rows
        ]
        self.paths[name] = [found[start : start + num_seeds] for start in range(0, len(found), num_seeds)]
        self.rows += [
            ScoredImage(
                variant=name,
                prompt_id=index // num_seeds,
                seed=requests[index].seed,
                file=row.file,
                status=row.status,
            )
            for index, row in enumerate(rows)
        ]
        self.encoder_checksums[name] = module_sha256(generator.pipeline.text_encoder)

    @torch.no_grad()
    def _compare_states(self, name: str, generator: ImageGenerator, teacher: nn.Module | None) -> None:
        """Record the error of a graft's hidden states by prompt."""
        pipeline = generator.pipeline
        encoder = pipeline.text_encoder
        if teacher is None or encoder is teacher:
            return
        teacher.to(pipeline.device)
        ids = prompt_input_ids([prompt.text for prompt in self.prompts], pipeline.tokenizer)
        parts = []
        for batch in ids.split(ENCODE_BATCH_SIZE):
            on_device = batch.to(pipeline.device)
            ours, theirs = (text_hidden_states(tower, on_device).cpu() for tower in (encoder, teacher))
            parts.append(caption_errors(ours, theirs, token_classes(batch, pipeline.tokenizer.eos_token_id)))
        for token_class in ("words", "eos", "padding"):
            values = torch.cat([part[token_class] for part in parts])[:, None].numpy()
            self.state_errors.setdefault(f"state_error_{token_class}", {})[name] = values


def _request(prompt: str, seed: int, settings: EvaluateSettings) -> ImageRequest:
    return ImageRequest(prompt, SamplingParams.of(settings, seed=seed, num_images_per_prompt=1))


def _solver(config: Mapping[str, Any]) -> list[str]:
    named = {"algorithm_type": "{}", "solver_order": "order {}"}
    words = [text.format(config[name]) for name, text in named.items() if name in config]
    kinds = [kind for kind in ("Karras", "exponential") if config.get(f"use_{kind.lower()}_sigmas")]
    return words + [f"{kind} sigmas" for kind in kinds]


@contextmanager
def _untrained_bridge(generator: ImageGenerator) -> Iterator[None]:
    """Replace a graft's bridge by a linear map with torch's initial weights."""
    encoder: Any = generator.pipeline.text_encoder
    trained = encoder.bridge
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_BRIDGE_SEED)
        untrained = Bridge(trained.config["input_size"], trained.config["output_size"])
    encoder.bridge = untrained.to(encoder.device, encoder.dtype)
    generator.prompt_embeds.clear()
    try:
        yield
    finally:
        encoder.bridge = trained
        generator.prompt_embeds.clear()


def real_images(prompts: Sequence[EvaluationPrompt], folder: Path, processes: PartialState) -> Paths:
    """Return each prompt's photograph, or a drawing of its known scene.

    File names depend on the scene and the drawing's version, so a drawing is reused only if both are equal.
    """
    paths: Paths = []
    for prompt in prompts:
        path = prompt.image.file if prompt.image else None
        if prompt.scene:
            fresh = replace(prompt.scene, look=f"{prompt.scene.look}/fresh")
            name = fingerprint(DRAWING_VERSION, version("pillow"), asdict(fresh))[:32]
            path = folder / FOLDER / REAL / f"{name}.png"
            if processes.is_main_process and not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(draw_scene(fresh), path)
        paths.append([path])
    processes.wait_for_everyone()
    return paths


def load_images(data: CaptionDataset | DataSettings | None, *, is_flatland: bool) -> Images:
    """Load test and train images, by default flatland8k for its base."""
    settings = data if isinstance(data, DataSettings) else DataSettings()
    if isinstance(data, CaptionDataset):
        dataset = data
    elif settings.source or settings.sources or is_flatland:
        dataset = load_dataset(settings)
    else:
        return Images()
    test = dataset.test[: settings.max_test_images or None]
    train = dataset.hold_train(settings.max_train_images)
    record = Data(
        source=Path(dataset.root).name,
        format=dataset.format,
        fingerprint=dataset.fingerprint,
        split="test",
        num_images=len(test),
        num_train_images=len(train),
        damaged=dict(dataset.damaged),
    )
    return Images(test, train, record)
