"""What each part of a bridge is worth on flatland, from a random map to the teacher.

    python benchmarks/ablation_bridge.py --out DIR [--seeds 3] [--set KEY=VALUE ...]

CLIP is fine-tuned once on all five captions of each image, synonyms included. The bridges are fitted to the
captions whose every word the teacher was trained on, some two thirds, and refined with a teacher whose weight
falls to nothing. DIR gets `finetune/`, a folder for each seed with one for each variant, `metrics.json`,
`ablation.png` and `ablation.svg`; variants that are there already are not made again. Some twenty processor
minutes a seed; writes benchmarks/results/ladder.json.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MultipleLocator, StrMethodFormatter
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from clipgraft.bridging.corpus import load_captions
from clipgraft.bridging.fit import STATES_NAME, fit_residual, linear_bridge
from clipgraft.bridging.latents import LatentImages, encode_images
from clipgraft.bridging.pairs import LinearFit, Towers, load_towers
from clipgraft.bridging.refine import refine_recipe
from clipgraft.config import (
    BridgeSettings,
    DataSettings,
    EvaluateSettings,
    FinetuneSettings,
    ModelSettings,
    Recipe,
    RefineSettings,
    apply_overrides,
    parse_overrides,
)
from clipgraft.console import track
from clipgraft.data.formats import load_dataset
from clipgraft.device import choose_device, describe_environment, seed_everything
from clipgraft.errors import CheckpointError
from clipgraft.evaluation.metrics.noise_error import noise_pred_errors
from clipgraft.evaluation.metrics.probe import fidelity_scores, load_probe, read_attributes
from clipgraft.files import read_json, write_bytes, write_json
from clipgraft.finetuning.finetune import finetune, load_inputs
from clipgraft.flatland import Scene, fidelity_prompts, is_known_to_teacher
from clipgraft.generation.generator import ImageGenerator, load_generators
from clipgraft.generation.requests import ImageRequest
from clipgraft.models.base import FrozenBase
from clipgraft.models.bridge import Bridge
from clipgraft.models.graft import Graft
from clipgraft.models.hub import embedded_models
from clipgraft.models.weights import write_tensors
from clipgraft.reporting.plots import FONT_POINTS, LIGHT, render_figure, style_axes
from clipgraft.runs.run import METRICS_NAME
from clipgraft.sampling_params import SamplingParams
from unseen_words import unseen_word_prompts

RESULT = Path(__file__).parent / "results" / "ladder.json"
TEACHER = "teacher"
VARIANTS = (
    "random map",
    "zero padding",
    "one linear map",
    "map per class",
    "+ attention and MLP",
    "+ key/value loss",
    "+ refinement",
    TEACHER,
)
FIGURES_NAME = "figures.json"
"""Of a variant; not `metrics.json`, which refining writes there before the variant is measured."""
NUM_MEASURED_IMAGES = 64
NUM_PROMPTS = 40
"""The first n of flatland's 240 fixed prompts."""
NUM_KEPT_WORD_PROMPTS = 20
"""The first n of 120 prompts with words that the teacher never read."""
SEEDS_APART = 1000
"""Between the image seeds of two seeds of training: more than there are prompts."""
LINES = (
    ("fidelity", "prompt fidelity", LIGHT.batch, "o"),
    ("fidelity_kept_words", "with words kept from the teacher", LIGHT.mean, "s"),
    ("fidelity_plain_words", "the same in plain words", LIGHT.text, "D"),
)

Figures = dict[str, dict[str, Any]]
"""By figure its `mean`, `spread` (standard deviation over seeds) and `values`."""


def ablation_recipe() -> Recipe:
    """Return the settings that the figures in docs/bridge.md were made with."""
    return Recipe(
        finetune=FinetuneSettings(
            learning_rate=3e-4, lr_schedule="cosine", num_epochs=6, captions_per_image=5
        ),
        data=DataSettings(max_train_images=3000, max_val_images=100, max_test_images=200),
        bridge=BridgeSettings(num_epochs=5, hidden_size=512, max_captions=18_000),
        refine=RefineSettings(num_epochs=1, teacher_end=0.0, snr_gamma=5.0),
        evaluate=EvaluateSettings(num_inference_steps=20),
    )


def run_ablation(recipe: Recipe, folder: Path, *, num_seeds: int = 3, **sizes: int) -> dict[str, Figures]:
    """Make and measure all variants with each seed; return figures by variant.

    Args:
        recipe: CLIP is fine-tuned first, once for all seeds, where epochs of it are asked for.
        folder: For all results; see this file's first lines.
        num_seeds: From `recipe.seed` on.
        sizes: Of `Ablation`.
    """
    clip = recipe.clip
    if recipe.finetune.num_epochs:
        tuned = folder / "finetune"
        if not (tuned / METRICS_NAME).is_file():
            finetune(*load_inputs(recipe), output_dir=tuned, resume=True, recipe=recipe)
        clip = ModelSettings(name=str(tuned / "clip"))
    found = []
    for seed in range(recipe.seed, recipe.seed + num_seeds):
        own = recipe.model_copy(update={"clip": clip, "seed": seed})
        ablation = Ablation(own, folder / f"seed{seed}", **sizes)
        found.append({name: ablation.figures(name) for name in (TEACHER, *VARIANTS[:-1])})
        (ablation.folder / STATES_NAME).unlink(missing_ok=True)
    variants = summarize(found)
    write_json(folder / METRICS_NAME, {"variants": variants, "recipe": recipe.model_dump(mode="json")})
    plot(variants, folder)
    for table in tables(variants):
        Console(width=100).print(table)
    return variants


class Ablation:
    """All variants with one seed.

    Args:
        recipe: With the CLIP to graft and the seed.
        folder: Gets a folder for each variant with `figures.json` and, but for the teacher, `graft/`.
        num_prompts: The first n of flatland's fixed prompts.
        num_kept_word_prompts: The first n of those with words that the teacher never read.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        num_prompts: int = NUM_PROMPTS,
        num_kept_word_prompts: int = NUM_KEPT_WORD_PROMPTS,
    ):
        self.recipe, self.folder = recipe, folder
        self.num_prompts, self.num_kept_word_prompts = num_prompts, num_kept_word_prompts
        self.device = choose_device(recipe.device)

    def figures(self, name: str) -> dict[str, float]:
        """Return a variant's figures; measured unless they are there."""
        folder = self.folder / slug(name)
        path = folder / FIGURES_NAME
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            seed_everything(self.recipe.seed)
            if name != TEACHER and not (folder / "graft").is_dir():
                self._make(name, folder)
            write_json(path, self._measure(None if name == TEACHER else folder / "graft", folder))
        return read_json(path, error=CheckpointError)

    @cached_property
    def towers(self) -> Towers:
        """CLIP's text tower and the teacher."""
        return load_towers(self.recipe)

    @cached_property
    def train_ids(self) -> Tensor:
        """Of the training captions, (N, 77)."""
        return self._input_ids(load_captions(self.recipe).train)

    @cached_property
    def linear(self) -> LinearFit:
        """What the bridges are fitted to."""
        # A generator of its own: a resumed ablation may need it first for another variant.
        generator = torch.Generator().manual_seed(self.recipe.seed)
        return self.towers.fit_linear(self.train_ids, self.folder / STATES_NAME, generator)

    @cached_property
    def base(self) -> FrozenBase:
        """The base, in float32."""
        base = FrozenBase.load(self.recipe.base.name, revision=self.recipe.base.revision or None)
        for module in base.modules.values():
            module.to(self.device)
        return base

    @cached_property
    def pictures(self) -> LatentImages:
        """Latents of training and test pictures."""
        data = self.recipe.data
        return encode_images(load_dataset(data.source), self.base, data, NUM_MEASURED_IMAGES)

    def _input_ids(self, captions: Sequence[str]) -> Tensor:
        """Of captions that the teacher understands: of a word that it never read its states say nothing."""
        return self.towers.input_ids([caption for caption in captions if is_known_to_teacher(caption)])

    def _make(self, name: str, folder: Path) -> None:
        if name == "+ refinement":
            graft = self.folder / slug("+ key/value loss") / "graft"
            refine_recipe(self.recipe, graft, folder, resume=True)
            return
        self.towers.graft(self._bridge(name, folder)).save_pretrained(folder / "graft")

    def _bridge(self, name: str, folder: Path) -> Bridge:
        if name == "random map":
            return self.towers.new_bridge(by_class=False)
        if name == "zero padding":
            padded = self.towers.new_bridge(by_class=False)
            sizes = padded.config["output_size"], padded.config["input_size"]
            padded.set_linear(torch.eye(*sizes)[None], torch.zeros(1, 1, sizes[0]))
            return padded
        update: dict[str, Any] = {"by_token_class": name != "one linear map"}
        if not name.startswith("+"):
            update["num_epochs"] = 0
        if name == "+ attention and MLP":
            update["key_value_weight"] = 0.0
        settings = self.recipe.bridge.model_copy(update=update)
        fitted = linear_bridge(self.towers, self.linear, settings)
        if fitted.residual is not None:
            own = self.recipe.model_copy(update={"bridge": settings})
            fit_residual(fitted, self.towers, self.linear, self.train_ids, own, folder, True)
        return fitted

    def _measure(self, graft: Path | None, folder: Path) -> dict[str, float]:
        figures = self._state_figures(graft) | self._picture_figures(graft, folder)
        return {name: float(value) for name, value in figures.items()}

    def _state_figures(self, graft: Path | None) -> dict[str, float]:
        """Errors of states, of keys and values, of predicted noise; the teacher has none by definition."""
        encoder = Graft.from_pretrained(graft).text_encoder.to(self.device) if graft else None
        captions = [image.captions[0] for image in self.pictures.test]
        noise = noise_pred_errors(
            self.base.unet,
            encoder or self.base.text_encoder,  # type: ignore[arg-type]
            self.base.text_encoder,  # type: ignore[arg-type]
            self.base.scheduler.alphas_cumprod,  # type: ignore[union-attr]
            self.pictures.test_latents,
            self.towers.input_ids(captions),
        )
        figures = {f"noise_error_{timestep}": error for timestep, error in noise.items()}
        classes = ("words", "eos", "padding")
        if encoder is None:
            return figures | {
                f"{kind}_{name}": 0.0 for kind in ("state_error", "key_value_error") for name in classes
            }
        held_out = self._input_ids(load_captions(self.recipe).held_out)
        measured = self.towers.measure(encoder.bridge, held_out, self.linear.kv_metric_sqrt)
        for name in classes:
            figures[f"state_error_{name}"] = measured.relative_error[name]
            figures[f"key_value_error_{name}"] = measured.key_value_error[name]
        return figures

    def _picture_figures(self, graft: Path | None, folder: Path) -> dict[str, float]:
        """Prompt fidelity, with plain words and with those kept from the teacher; likeness to its own."""
        prompts = fidelity_prompts()[: self.num_prompts]
        words = unseen_word_prompts()[: self.num_kept_word_prompts]
        texts = [prompt.text for prompt in prompts]
        texts += [text for prompt in words for text in (prompt.unseen, prompt.plain)]
        encoders = {folder.name: graft}
        [(_, generator)] = load_generators(encoders, base=self.recipe.base.name, device=self.device.type)
        pixels = self._draw(generator, texts, folder.name)
        if graft is None:
            write_tensors(folder / "pictures.safetensors", {"pixels": pixels})
        teachers = load_file(self.folder / slug(TEACHER) / "pictures.safetensors")["pixels"]
        probe = load_probe(embedded_models() / "probe.safetensors")
        read, own = read_attributes(probe, pixels), read_attributes(probe, teachers)
        count = len(prompts)
        fidelity = fidelity_scores(read[:count], [prompt.scene for prompt in prompts])["prompt_fidelity"]
        is_held_out = np.array([prompt.scene.is_held_out for prompt in prompts])
        scenes: list[Scene] = [prompt.scene for prompt in words]
        named = [prompt.named for prompt in words]
        kept, plain = (
            fidelity_scores(read[count + place :: 2], scenes, named=named)["prompt_fidelity"]
            for place in (0, 1)
        )
        return {
            "fidelity": fidelity.mean(),
            "fidelity_seen": fidelity[~is_held_out].mean(),
            "fidelity_held_out": fidelity[is_held_out].mean(),
            "fidelity_kept_words": kept.mean(),
            "fidelity_plain_words": plain.mean(),
            "pixel_difference": float((pixels[:count].float() - teachers[:count].float()).abs().mean()),
            "agreement": float((read[:count] == own[:count]).double().mean()),
        }

    def _draw(self, generator: ImageGenerator, texts: Sequence[str], name: str) -> Tensor:
        """Pictures of the texts, (N, 3, 128, 128) uint8."""
        settings, first = self.recipe.evaluate, self.recipe.seed * SEEDS_APART
        jobs = generator.resolve(
            ImageRequest(text, SamplingParams.of(settings, seed=first + index, num_images_per_prompt=1))
            for index, text in enumerate(texts)
        )
        with track(f"drawing for {name}", sum(job.num_steps for job in jobs)) as update:
            pictures = generator.sample(
                jobs,
                batch_size=settings.batch_size,
                on_step=lambda done, _total: update(done, "steps"),
            )
            arrays = [np.asarray(picture.image).transpose(2, 0, 1) for picture in pictures]
        return torch.from_numpy(np.ascontiguousarray(np.stack(arrays)))


def slug(name: str) -> str:
    """Folder name of a variant."""
    return name.replace("+ ", "").replace("/", "_").replace(" ", "_").lower()


def summarize(found: Sequence[dict[str, dict[str, float]]]) -> dict[str, Figures]:
    """Put seeds together: figures by variant."""
    variants: dict[str, Figures] = {}
    for name in VARIANTS:
        variants[name] = {}
        for figure in found[0][name]:
            values = [one[name][figure] for one in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            variants[name][figure] = {"mean": statistics.mean(values), "spread": spread, "values": values}
    return variants


def tables(variants: dict[str, Figures]) -> tuple[Table, Table, Table]:
    """Errors of states and of predicted noise, and what pictures show; means over seeds."""

    def table(title: str, columns: dict[str, str], show: Callable[[dict[str, Any]], str]) -> Table:
        grid = Table("", *columns.values(), title=title)
        for name, figures in variants.items():
            grid.add_row(name, *(show(figures[key]) for key in columns))
        return grid

    def plain(value: dict[str, Any]) -> str:
        return f"{value['mean']:.3f}"

    def both(value: dict[str, Any]) -> str:
        return f"{value['mean']:.3f} ±{value['spread']:.3f}"

    classes = ("words", "eos", "padding")
    states = {f"state_error_{name}": name for name in classes}
    states |= {f"key_value_error_{name}": f"k/v {name}" for name in classes}
    figures = next(iter(variants.values()))
    noise = {key: key.rpartition("_")[2] for key in figures if key.startswith("noise_error")}
    likeness = {"pixel_difference": "pixels apart", "agreement": "agreement"}
    fidelity = {
        "fidelity": "fidelity",
        "fidelity_seen": "seen",
        "fidelity_held_out": "held out",
        "fidelity_kept_words": "kept words",
        "fidelity_plain_words": "plain words",
    }
    return (
        table("relative error of token states, and of keys and values", states, plain),
        table(
            "error of predicted noise by timestep (no text: 1); likeness of pictures", noise | likeness, plain
        ),
        table("prompt fidelity: mean and standard deviation over seeds", fidelity, both),
    )


def plot(variants: dict[str, Figures], folder: Path) -> None:
    """Plot prompt fidelity by variant, with the range over seeds, as ablation.png and ablation.svg."""
    for image_format in ("png", "svg"):
        content = render_figure(lambda axes: _plot_fidelity(axes, variants), image_format)
        write_bytes(folder / f"ablation.{image_format}", content)


def _plot_fidelity(axes: Axes, variants: dict[str, Figures]) -> None:
    style_axes(axes, "", x_label="share of what prompts name that images show")
    places = np.arange(len(variants))[::-1]
    for key, label, color, marker in LINES:
        means = [figures[key]["mean"] for figures in variants.values()]
        axes.plot(means, places, color=color, marker=marker, markersize=5, linewidth=1.2, label=label)
        for place, figures in zip(places, variants.values(), strict=True):
            values = figures[key]["values"]
            axes.plot([min(values), max(values)], [place, place], color=color, linewidth=3, alpha=0.3)
    axes.yaxis.set_major_locator(FixedLocator(places.tolist()))
    axes.set_yticklabels(list(variants))
    axes.set_xlim(0, 1.02)  # markers at 1 stay whole
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.1f}"))
    axes.legend(loc="upper right", frameon=False, labelcolor=LIGHT.text, fontsize=FONT_POINTS - 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    recipe = apply_overrides(ablation_recipe(), parse_overrides(options.set))
    options.out.mkdir(parents=True, exist_ok=True)
    run_ablation(recipe, options.out, num_seeds=options.seeds)
    command = f"python benchmarks/ablation_bridge.py --seeds {options.seeds}"
    environment = describe_environment(choose_device(recipe.device)) | {"command": command}
    write_json(RESULT, read_json(options.out / METRICS_NAME) | {"environment": environment})


if __name__ == "__main__":
    main()
