"""Whether a graft and a distilled text encoder keep working under a ControlNet: on flatland.

    python benchmarks/bench_controlnet.py [--graft FOLDER] [--distilled FOLDER] [--prompts 20]

A ControlNet for outlines is trained with the base's own text encoder. Then the base's own text encoder, the
graft and the distilled one draw the same prompts from the same seeds, without it and with the outlines of a
drawing of each prompt's scene. `bench_distill.py --seeds 0 --only words true` makes the default folders.

Prints how images follow the outlines, and the share of named attributes that they show: of all, and of colour
and time, which outlines hardly show. Keeps the ControlNet in WORK/controlnet; writes WORK/sheet.png and
benchmarks/results/controlnet.json.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import ControlNetModel
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor, nn

from clipgraft.bridging.latents import load_latents
from clipgraft.console import print_line, track
from clipgraft.data.batches import ShuffledBatches
from clipgraft.data.buckets import Bucket
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.formats import load_dataset
from clipgraft.data.images import open_image
from clipgraft.data.transforms import tokenize
from clipgraft.device import describe_environment, seed_everything
from clipgraft.evaluation.metrics.intervals import bootstrap_interval
from clipgraft.evaluation.metrics.probe import fidelity_scores, load_probe, read_attributes
from clipgraft.files import write_json
from clipgraft.flatland import ATTRIBUTES, Scene, draw_scene, plain_captions
from clipgraft.flatland.prompts import fidelity_prompts
from clipgraft.flatland.writer import IMAGE_SIZE
from clipgraft.generation.contact_sheet import Sheet, SheetCell, render_png
from clipgraft.generation.generator import ImageGenerator, load_generators
from clipgraft.generation.requests import ImageRequest
from clipgraft.models.base import FrozenBase
from clipgraft.models.hub import embedded_models
from clipgraft.models.weights import module_sha256, write_folder_atomically
from clipgraft.pretraining.autoencoder import reconstruct
from clipgraft.sampling_params import InferenceConfig, SamplingParams
from clipgraft.settings import TrainSettings
from clipgraft.training.checkpoints import checksums_of_images
from clipgraft.training.objectives import DenoisingObjective, Result
from clipgraft.training.trainer import fit
from unseen_words import unseen_word_prompts

RESULT = Path(__file__).parent / "results" / "controlnet.json"
RUN = Path("runs/bench_distill/seed0")
THRESHOLD = 48
"""Of FIND_EDGES, of 255: above JPEG's noise and the VAE's, below the edges of any two colours at night."""
BLUR = 2
"""Pixels by which outlines are blurred before they are compared: a shift by one pixel still counts."""
EMBEDDING = (16, 16, 32, 64)
"""Channels from pixels to latents; diffusers' own (16, 32, 96, 256) are for a wider U-Net."""
CAPTION_DROP = 0.5
"""Share of captions left out, as in Zhang et al. 2023, section 3.3: outlines alone have to say something."""
SNR_GAMMA = 5.0
"""As flatland's U-Net was trained."""
SETTINGS = TrainSettings(
    learning_rate=1e-3,
    lr_schedule="cosine",
    warmup_steps=50,
    batch_size=8,
    num_epochs=4,
    checkpoint_every=120,
)
SAMPLING = {"num_inference_steps": 15, "guidance_scale": 3.0}
BASE, GRAFT, DISTILLED = "base's own", "graft", "distilled"
FIXED, WORDS = "fixed prompts", "kept words"
UNTOLD = frozenset({"colour", "time"})
"""Attributes that outlines hardly show; only stars mean night."""


def outline(image: Image.Image) -> Image.Image:
    """Return white outlines on black: PIL's FIND_EDGES of the grey image, from THRESHOLD on."""
    edges = image.convert("L").filter(ImageFilter.FIND_EDGES)
    edges = ImageOps.expand(ImageOps.crop(edges, 1), 1)  # FIND_EDGES leaves the outermost pixels as they are
    return edges.point(lambda value: 255 * (value >= THRESHOLD))


class ControlNetObjective(DenoisingObjective):
    """Error of the noise that a frozen U-Net predicts under a ControlNet.

    Args:
        controlnet: The ControlNet to train.
        base: With U-Net, text encoder, scheduler and tokenizer.
    """

    def __init__(self, controlnet: ControlNetModel, base: FrozenBase):
        super().__init__(
            base.unet.requires_grad_(False),
            base.text_encoder.requires_grad_(False),
            alphas_cumprod=base.scheduler.alphas_cumprod,
            empty_input_ids=tokenize([""], base.tokenizer, pad_to_context_length=True)[0],
            caption_drop=CAPTION_DROP,
            snr_gamma=SNR_GAMMA,
        )
        self.controlnet = controlnet

    def forward(self, batch: dict[str, Tensor]) -> Result:
        """Return the loss of a batch of `OutlineBatches`."""

        def add_residuals(_unet: nn.Module, inputs: tuple, _options: dict) -> tuple[tuple, dict[str, Any]]:
            down, middle = self.controlnet(*inputs, batch["outlines"], return_dict=False)
            return inputs, {
                "down_block_additional_residuals": down,
                "mid_block_additional_residual": middle,
            }

        with self.unet.register_forward_pre_hook(add_residuals, with_kwargs=True):
            return super().forward(batch)


class OutlineBatches(ShuffledBatches):
    """Latents with outlines and token ids, shuffled in each epoch.

    Args:
        latents: Scaled, (N, 4, h, w).
        outlines: (N, H, W) uint8, 0 or 255.
        input_ids: Padded, (N, L).
        batch_size, seed: See `ShuffledBatches`.
    """

    def __init__(self, latents: Tensor, outlines: Tensor, input_ids: Tensor, *, batch_size: int, seed: int):
        super().__init__(len(latents), batch_size, seed)
        self.latents, self.outlines, self.input_ids = latents, outlines, input_ids

    def epoch(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Yield `latents`, `input_ids`, and `outlines` (B, 3, H, W) in [0, 1], as diffusers gives them."""
        for rows in map(torch.from_numpy, self.rows(self.shuffle(epoch)[1], start)):
            yield {
                "latents": self.latents[rows].float(),
                "outlines": (self.outlines[rows, None] / 255.0).expand(-1, 3, -1, -1),
                "input_ids": self.input_ids[rows],
            }


def build_controlnet(base: FrozenBase) -> ControlNetModel:
    """Return an untrained ControlNet whose layers for outlines begin with weights by He et al. 2015.

    With torch's own, little of the outlines is left after seven layers: nothing was learned in 500 steps,
    with these it was in 120. The last layer is zero, as in diffusers.
    """
    controlnet = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=EMBEDDING)
    hints = controlnet.controlnet_cond_embedding
    for layer in [hints.conv_in, *hints.blocks]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return controlnet


def train(folder: Path, num_images: int, settings: TrainSettings) -> None:
    """Train a ControlNet on flatland8k, and write it with float16 weights."""
    seed_everything(0)
    base, data = FrozenBase.load("flatland"), load_dataset()
    images, plain = data.train.first(num_images), plain_captions(Path(data.root))
    controlnet = build_controlnet(base)
    arrays = load_latents(base, images, (Bucket(IMAGE_SIZE, IMAGE_SIZE),))
    batches = OutlineBatches(
        torch.from_numpy(np.stack([*arrays])),
        _outlines(images),
        tokenize([plain[image.image_id] for image in images], base.tokenizer, pad_to_context_length=True),
        batch_size=settings.batch_size,
        seed=0,
    )
    sums = checksums_of_images({"train": images}) | {"weights of the base": module_sha256(base.unet)}
    fit(
        ControlNetObjective(controlnet, base),
        batches,
        settings,
        output_dir=folder.parent / "training",
        data=sums,
        resume=True,
        description="training the ControlNet",
    )
    with write_folder_atomically(folder) as temporary:
        controlnet.half().save_pretrained(temporary)


def _outlines(images: Sequence[CaptionedImage]) -> Tensor:
    """Return outlines (N, H, W) uint8 of training images."""
    found = torch.empty(len(images), IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    with track("finding outlines", len(images)) as update:
        for index, image in enumerate(images):
            found[index] = torch.from_numpy(np.array(outline(open_image(image.file))))
            update(index + 1, "images")
    return found


class Task(NamedTuple):
    """A prompt, the attributes that it is asked for, and a file of outlines."""

    kind: str
    text: str
    scene: Scene
    named: tuple[str, ...]
    outlines: Path


def write_tasks(folder: Path, num_prompts: int) -> list[Task]:
    """Return so many prompts of each kind; draw each scene's outlines."""
    folder.mkdir(parents=True, exist_ok=True)
    fixed = [(FIXED, each.text, each.scene, tuple(ATTRIBUTES)) for each in fidelity_prompts()[:num_prompts]]
    words = [(WORDS, each.unseen, each.scene, each.named) for each in unseen_word_prompts()[:num_prompts]]
    tasks = [Task(*each, folder / f"{index:03}.png") for index, each in enumerate([*fixed, *words])]
    for task in tasks:
        outline(draw_scene(task.scene)).save(task.outlines)
    return tasks


def draw(generator: ImageGenerator, tasks: Sequence[Task], controlnet: Path | None) -> Tensor:
    """Draw each prompt, with its outlines if there is a ControlNet: (N, 3, H, W) uint8."""
    requests = []
    for seed, task in enumerate(tasks):
        controls = [f"{controlnet}={task.outlines}"] if controlnet else []
        params = SamplingParams.build({"seed": seed, "controls": controls, **SAMPLING})
        requests.append(ImageRequest(task.text, params))
    images = [np.array(each.image) for each in generator.sample(requests, batch_size=16)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def likeness(pixels: Tensor, tasks: Sequence[Task]) -> np.ndarray:
    """Correlate the outlines of images (N, 3, H, W) uint8 with the given ones, both blurred: (N,)."""
    blur = ImageFilter.GaussianBlur(BLUR)
    scores = np.zeros(len(tasks))
    for index, (image, task) in enumerate(zip(pixels, tasks, strict=True)):
        own = outline(Image.fromarray(image.permute(1, 2, 0).numpy()))
        pair = [np.asarray(each.filter(blur), np.float64) for each in (own, Image.open(task.outlines))]
        if all(np.ptp(each) for each in pair):
            scores[index] = np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1]
    return scores


def score(pixels: Tensor, tasks: Sequence[Task]) -> dict[str, np.ndarray]:
    """Score each image, (N,) by metric; NaN where a prompt names none of the attributes."""
    probe = load_probe(embedded_models() / "probe.safetensors")
    read, scenes = read_attributes(probe, pixels), [task.scene for task in tasks]
    asked = {
        "fidelity": [task.named for task in tasks],
        "colour and time": [UNTOLD.intersection(task.named) for task in tasks],
    }
    found = {"likeness": likeness(pixels, tasks)}
    for name, named in asked.items():
        found[name] = fidelity_scores(read, scenes, named=named)["prompt_fidelity"]
    return found


def summarize(
    tasks: Sequence[Task], without: dict[str, np.ndarray], under: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Means by kind of prompt and metric without and with a ControlNet, and of the paired difference."""
    kinds = np.array([task.kind for task in tasks])
    return {
        kind: {
            metric: {
                "without": interval_of(without[metric][kinds == kind]),
                "with": interval_of(under[metric][kinds == kind]),
                "difference": interval_of((under[metric] - without[metric])[kinds == kind]),
            }
            for metric in without
        }
        for kind in dict.fromkeys(kinds.tolist())
    }


def interval_of(values: np.ndarray) -> dict[str, Any]:
    """Return the mean of values that are there, and its interval."""
    there = values[~np.isnan(values)]
    return {"mean": float(there.mean()), "interval": bootstrap_interval(there), "num_prompts": len(there)}


def write_sheet(work: Path, tasks: Sequence[Task], drawn: dict[str, Tensor], rows: Sequence[int]) -> None:
    """Write images of some prompts beside their outlines."""
    folder, cells = work / "images", []
    folder.mkdir(exist_ok=True)
    for row in rows:
        paths = [tasks[row].outlines]
        for column, images in enumerate(drawn.values()):
            paths.append(folder / f"{row:03}-{column}.png")
            Image.fromarray(images[row].permute(1, 2, 0).numpy()).save(paths[-1])
        cells.append([SheetCell(path) for path in paths])
    labels = [tasks[row].text for row in rows]
    sheet = render_png(Sheet("", ["outlines", *drawn], labels, cells))
    sheet.quantize().save(work / "sheet.png", optimize=True)


def print_summary(name: str, summary: dict[str, Any]) -> None:
    """Print a text encoder's figures, one line for each metric."""
    for kind, metrics in summary.items():
        for metric, found in metrics.items():
            low, high = found["difference"]["interval"] or (float("nan"),) * 2
            print_line(
                f"{name:10} {kind:13} {metric:15} {found['without']['mean']:.3f} -> "
                f"{found['with']['mean']:.3f} ({low:+.3f} to {high:+.3f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--graft", type=Path, default=RUN / "bridge" / "graft")
    parser.add_argument("--distilled", type=Path, default=RUN / "distill" / "text_encoder")
    parser.add_argument("--work", type=Path, default=Path("runs/bench_controlnet"))
    parser.add_argument("--prompts", type=int, default=20, help="of each kind")
    parser.add_argument("--images", type=int, default=960, help="to train on")
    options = parser.parse_args()
    controlnet = options.work / "controlnet"
    if not controlnet.is_dir():
        train(controlnet, options.images, SETTINGS)
    tasks = write_tasks(options.work / "outlines", options.prompts)
    encoders = {BASE: None, GRAFT: options.graft, DISTILLED: options.distilled}
    inference = InferenceConfig(engine="torch")  # as under a ControlNet, so that nothing else differs
    drawn: dict[str, Tensor] = {}
    rows: dict[str, Any] = {}
    for name, generator in load_generators(encoders, base="flatland", inference=inference):
        without, under = (draw(generator, tasks, each) for each in (None, controlnet))
        rows[name] = summarize(tasks, score(without, tasks), score(under, tasks))
        drawn |= {name: without, f"{name}, ControlNet": under}
        print_summary(name, rows[name])
    scenes = torch.stack([torch.from_numpy(np.array(draw_scene(task.scene))) for task in tasks])
    decoded = reconstruct(generator.pipeline.vae, scenes.permute(0, 3, 1, 2).contiguous())
    ceiling = summarize(tasks, score(decoded, tasks), score(decoded, tasks))
    print_summary("drawings", ceiling)
    write_sheet(options.work, tasks, drawn, [0, 1, options.prompts, options.prompts + 1])
    size = sum(path.stat().st_size for path in controlnet.glob("*.safetensors"))
    environment = describe_environment(torch.device("cpu"))
    environment |= {"command": "python benchmarks/bench_controlnet.py"}
    result = {"controlnet_bytes": size, "num_prompts": options.prompts, "rows": rows}
    result |= {"drawings": ceiling, "environment": environment}
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
