"""Whether a base learns words from a graft, and keeps what it knew: on flatland, beside today's ways.

    python benchmarks/bench_distill.py [--out runs/bench_distill] [--seeds 0 1 2] [--only PART] [--prompts 60]

For each seed CLIP is fine-tuned as in the demo; a bridge is fitted to all captions without the words that the
base was not trained on (`flatland.words.UNKNOWN_TO_TEACHER`, the true list), or without those that
`clipgraft new-words` finds (auto), and its graft is distilled. Today's ways (`rival_words.py`) train for as
many processor seconds on the same images. All text encoders draw the same prompts from the same seeds: in
kept words, the same in plain words, and fixed ones.

Parts: words, true, auto, rivals, images. Each is kept in OUT/seedN and made once, images once for each text
encoder. Hours on two cores; writes benchmarks/results/distill.json.
"""

import argparse
import copy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from transformers import CLIPTextModel

import rival_words
from clipgraft.bridging.corpus import MAX_HELD_OUT_CAPTIONS, Captions
from clipgraft.bridging.fit import fit_bridge
from clipgraft.bridging.latents import load_latents
from clipgraft.config import BridgeSettings, demo
from clipgraft.console import print_line, print_table
from clipgraft.data.buckets import Bucket
from clipgraft.data.caption_words import holds_any, read_words
from clipgraft.data.dataset import CaptionedImages
from clipgraft.data.formats import load_dataset
from clipgraft.device import describe_environment
from clipgraft.distilling.distill import distill
from clipgraft.distilling.new_words import clip_worths, find_new_words
from clipgraft.evaluation.metrics.image_similarity import ssim
from clipgraft.evaluation.metrics.intervals import bootstrap_interval
from clipgraft.evaluation.metrics.probe import fidelity_scores, load_probe, read_attributes
from clipgraft.exporting.word_embeddings import word_vectors
from clipgraft.files import read_json, write_json
from clipgraft.finetuning.finetune import finetune, load_inputs
from clipgraft.flatland import ATTRIBUTES
from clipgraft.flatland.prompts import fidelity_prompts
from clipgraft.flatland.words import UNKNOWN_TO_TEACHER
from clipgraft.flatland.writer import IMAGE_SIZE
from clipgraft.generation.generator import load_generators
from clipgraft.generation.requests import ImageRequest
from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import ClipParts, load_clip
from clipgraft.models.graft import Graft
from clipgraft.models.hub import embedded_models
from clipgraft.models.text_lora import LinearDifference
from clipgraft.runs.resources import recorded_resources
from clipgraft.runs.run import METRICS_NAME
from clipgraft.sampling_params import SamplingParams
from unseen_words import unseen_word_prompts

RESULT = Path(__file__).parent / "results" / "distill.json"
RATES = {"textual_inversion": (5e-4, 5e-3, 2e-2), "text_encoder": (1e-5, 1e-4, 5e-4)}
"""Learning rates of today's ways to choose from. The scripts' own, 5e-4 and 5e-6, are for wider models."""
SEARCH_SECONDS = 60.0
"""Processor seconds of each, before the noise error on validation images decides."""
SAMPLING = {"num_inference_steps": 15, "guidance_scale": 3.0}
BRIDGE = BridgeSettings(learning_rate=3e-3, num_epochs=8, hidden_size=512)
LORA_RANK = 16
NUM_SCORED = 200
STAGES = ("finetune", "bridge", "distill")
PARTS = ("words", "true", "auto", "rivals", "images")
BASE, GRAFT, DISTILLED, AUTO = "base's own", "graft", "distilled", "distilled, auto"
LORA, LORA_WITH, EMBEDDINGS = "LoRA", "LoRA and embeddings", "embeddings"
"""Exports of the distilled text encoder."""
GRAFTS = {GRAFT: "bridge/graft", DISTILLED: "distill/text_encoder", AUTO: "distill_auto/text_encoder"}
"""Text encoder -> its folder."""
KINDS = WORDS, PLAIN, FIXED = "kept words", "plain words", "fixed prompts"


class Seed:
    """The folder of one seed, and its parts."""

    def __init__(self, out: Path, seed: int, num_prompts: int):
        self.folder, self.seed, self.num_prompts = out / f"seed{seed}", seed, num_prompts
        self.folder.mkdir(parents=True, exist_ok=True)

    def words(self) -> dict[str, Any]:
        """Words found new, beside those held back from the base that CLIP has learned.

        Learned is what CLIP sees by the same rule on captions of validation and test images.
        """
        data, clip = load_dataset(), self.clip()
        base = FrozenBase.load("flatland", components=("vae", "scheduler"))
        (self.folder / "new_words").mkdir(exist_ok=True)
        with recorded_resources(self.folder / "new_words"):
            found = find_new_words(clip, base, data, seed=self.seed)
        found.write_list(self.folder / "new_words.txt")
        images = CaptionedImages((*data.val, *data.test))
        elsewhere, _ = clip_worths(clip, images, seed=self.seed)
        learned = {word for word in UNKNOWN_TO_TEACHER if word in elsewhere and elsewhere[word].is_seen}
        return {
            "found": [each.word for each in found.new],
            "kept_words": sorted(UNKNOWN_TO_TEACHER),
            "learned": sorted(learned),
            "recall": len(found.words & learned) / len(learned),
            "precision": len(found.words & UNKNOWN_TO_TEACHER) / max(1, len(found.words)),
            "resources": read_json(self.folder / "new_words" / "resources.json"),
        }

    def true(self) -> dict[str, Any]:
        """The true list's bridge and distilled text encoder."""
        return self.teach("", UNKNOWN_TO_TEACHER)

    def auto(self) -> dict[str, Any]:
        """The same with the words found."""
        return self.teach("_auto", read_words(self.folder / "new_words.txt"))

    def rivals(self) -> dict[str, Any]:
        """Today's ways, for the processor seconds of fine-tuning, bridging and distilling."""
        seconds = sum(self.resources(stage)["processor_seconds"] for stage in STAGES)
        base, data, limit = FrozenBase.load("flatland"), load_dataset(), demo().data.max_train_images
        train, val = (given_images(base, part) for part in (data.train.first(limit), data.val[:NUM_SCORED]))
        found: dict[str, Any] = {}
        for way, rates in RATES.items():
            errors = {}
            for rate in rates:
                self.train_rival(way, base := FrozenBase.load("flatland"), train, rate, SEARCH_SECONDS)
                errors[rate] = rival_words.noise_error(base, val.with_words(UNKNOWN_TO_TEACHER))
            best = min(errors, key=lambda rate: errors[rate])
            (self.folder / way).mkdir(exist_ok=True)
            with recorded_resources(self.folder / way):
                trained = self.train_rival(way, FrozenBase.load("flatland"), train, best, seconds)
            trained.encoder.save_pretrained(self.folder / way / "text_encoder")
            noise = {str(rate): error for rate, error in errors.items()}
            found[way] = {"num_steps": trained.num_steps, "learning_rate": best, "noise_error_by_rate": noise}
        return found

    def train_rival(
        self, way: str, base: FrozenBase, images: rival_words.Images, rate: float, seconds: float
    ) -> rival_words.Trained:
        """Train one of today's ways for some processor seconds."""
        if way == "textual_inversion":
            return rival_words.textual_inversion(base, images, UNKNOWN_TO_TEACHER, rate, seconds, self.seed)
        return rival_words.text_encoder(base, images, rate, seconds, self.seed)

    def images(self) -> dict[str, Any]:
        """Scores of every prompt with every text encoder, and images like the base's own.

        Those of an encoder are kept, so that only new ones are drawn.
        """
        folder, encoders = self.folder / "images", self.encoders()
        folder.mkdir(exist_ok=True)
        files = {name: folder / f"{name.replace(' ', '_')}.json" for name in encoders}
        missing = [name for name, file in files.items() if not file.is_file()]
        if missing:
            artist = Artist(self.num_prompts)
            own = artist.draw(None)
        for name in missing:
            drawn = artist.draw(encoders[name]) if encoders[name] is not None else own
            scores: dict[str, Any] = {kind: artist.score(kind, drawn[kind]).tolist() for kind in KINDS}
            known = [ssim(drawn[kind], own[kind]).tolist() for kind in (PLAIN, FIXED)]
            scores["ssim"] = [value for part in known for value in part]
            print_line(f"{name}: " + ", ".join(f"{kind} {np.mean(scores[kind]):.3f}" for kind in KINDS))
            write_json(files[name], scores)
        return {name: read_json(file) for name, file in files.items()}

    def encoders(self) -> dict[str, Any]:
        """All text encoders that have been trained, by name; None is the base's own."""
        found: dict[str, Any] = {BASE: None}
        for name, folder in GRAFTS.items():
            if (self.folder / folder).is_dir():
                found[name] = Graft.from_pretrained(self.folder / folder).text_encoder
        if DISTILLED in found:
            before = FrozenBase.load("flatland", components=("text_encoder",)).text_encoder
            difference = LinearDifference(before, found[DISTILLED])
            found[LORA] = difference.applied(difference.lora(LORA_RANK))
            # Each of flatland's new words is one token, so its vector in the table is its embedding.
            found[LORA_WITH] = self.with_embeddings(found[LORA])
            found[EMBEDDINGS] = self.with_embeddings(before)
        for way in RATES:
            if (self.folder / way / "text_encoder").is_dir():
                found[way] = CLIPTextModel.from_pretrained(self.folder / way / "text_encoder").eval()
        return found

    def with_embeddings(self, encoder: CLIPTextModel) -> CLIPTextModel:
        """Return a copy of a text encoder with the distilled one's embeddings of new words."""
        distilled, copied = Graft.from_pretrained(self.folder / GRAFTS[DISTILLED]), copy.deepcopy(encoder)
        table = copied.get_input_embeddings().weight
        for word, vectors in word_vectors(distilled).items():
            [token_id] = distilled.tokenizer(word, add_special_tokens=False).input_ids
            with torch.no_grad():
                table[token_id] = vectors[0]
        return copied

    def teach(self, suffix: str, words: frozenset[str]) -> dict[str, Any]:
        """Fit a bridge without captions that have the words, and distill its graft."""
        data = load_dataset()
        parts = [[text for text in dict.fromkeys(part.iter_captions()) if not holds_any(text, words)]
                 for part in (data.train, data.test)]  # fmt: skip
        bridge, distilled = (self.folder / f"{stage}{suffix}" for stage in ("bridge", "distill"))
        if not (bridge / METRICS_NAME).is_file():
            base = FrozenBase.load("flatland", components=("tokenizer", "text_encoder"))
            captions = Captions(parts[0], parts[1][:MAX_HELD_OUT_CAPTIONS])
            options = {"output_dir": bridge, "resume": bridge.is_dir(), "seed": self.seed, "settings": BRIDGE}
            fit_bridge(self.clip(), base, captions, **options)
        graft = Graft.from_pretrained(bridge / "graft")
        settings = demo().distill.updated(
            {"num_epochs": 2, "batch_size": 128, "new_words": tuple(sorted(words))}
        )
        options = {"output_dir": distilled, "resume": distilled.is_dir(), "seed": self.seed}
        result = distill(graft, data, settings=settings, **options)
        return {
            "num_words": len(words),
            "num_captions_of_bridge": len(parts[0]),
            "before": result.before.model_dump(),
            "after": result.after.model_dump(),
        }

    def clip(self) -> ClipParts:
        """The fine-tuned CLIP, made unless it is there."""
        folder = self.folder / "finetune"
        if not (folder / METRICS_NAME).is_file():
            recipe = demo().model_copy(update={"seed": self.seed})
            finetune(*load_inputs(recipe), output_dir=folder, resume=folder.is_dir(), recipe=recipe)
        return load_clip(folder / "clip")

    def resources(self, stage: str) -> dict[str, float]:
        """Time and memory of a stage."""
        return read_json(self.folder / stage / "resources.json")


def given_images(base: FrozenBase, images: CaptionedImages) -> rival_words.Images:
    """Images as latents, with their captions."""
    arrays = load_latents(base, images, (Bucket(IMAGE_SIZE, IMAGE_SIZE),))
    latents = torch.from_numpy(np.stack([*arrays])).float()
    return rival_words.Images(latents, [image.captions for image in images])


class Artist:
    """Draws prompts of three kinds with any text encoder, and scores them by the probe."""

    def __init__(self, num_prompts: int):
        kept = unseen_word_prompts()[:num_prompts]
        fixed = fidelity_prompts()[:num_prompts]
        self.prompts = {
            WORDS: [(prompt.unseen, prompt.scene, prompt.named) for prompt in kept],
            PLAIN: [(prompt.plain, prompt.scene, prompt.named) for prompt in kept],
            FIXED: [(prompt.text, prompt.scene, tuple(ATTRIBUTES)) for prompt in fixed],
        }
        [(_, self.generator)] = load_generators({BASE: None}, base="flatland")
        self.own = self.generator.pipeline.text_encoder
        self.probe = load_probe(embedded_models() / "probe.safetensors")

    def draw(self, encoder: torch.nn.Module | None) -> dict[str, torch.Tensor]:
        """Draw all prompts: by kind (N, 3, H, W) in [0, 1]."""
        self.generator.prompt_embeds.clear()
        self.generator.pipeline.text_encoder = encoder or self.own
        requests = [
            ImageRequest(text, SamplingParams(seed=number, **SAMPLING))
            for kind in KINDS
            for number, (text, *_) in enumerate(self.prompts[kind])
        ]
        images = [np.asarray(each.image) for each in self.generator.sample(requests, batch_size=16)]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        sizes = [len(self.prompts[kind]) for kind in KINDS]
        return dict(zip(KINDS, pixels.split(sizes), strict=True))

    def score(self, kind: str, pixels: torch.Tensor) -> np.ndarray:
        """Share of named attributes that each image shows, (N,)."""
        _, scenes, named = zip(*self.prompts[kind], strict=True)
        read = read_attributes(self.probe, (pixels * 255).round().to(torch.uint8))
        return fidelity_scores(read, scenes, named=named)["prompt_fidelity"]


def summarize(seeds: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds and prompts, with intervals over prompts of means over seeds."""
    images = [parts["images"] for parts in seeds.values() if "images" in parts]
    names = list(dict.fromkeys(name for each in images for name in each))
    of = {name: [each for each in images if name in each] for name in names}
    rows = {
        name: {kind: interval_of(np.mean([each[name][kind] for each in of[name]], 0)) for kind in KINDS}
        | {"ssim_median": float(np.median([each[name]["ssim"] for each in of[name]]))}
        | {"num_seeds": len(of[name])}
        for name in names
    }
    pairs = [(DISTILLED, GRAFT, WORDS)]
    pairs += [(name, DISTILLED, WORDS) for name in (AUTO, LORA, LORA_WITH, EMBEDDINGS)]
    pairs += [(name, BASE, kind) for name in names if name != BASE for kind in (PLAIN, FIXED)]
    differences = {
        f"{name} - {other}, {kind}": interval_of(
            np.mean([np.array(each[name][kind]) - np.array(each[other][kind]) for each in of[name]], 0)
        )
        for name, other, kind in pairs
        if name in names and other in names
    }
    return {"rows": rows, "differences": differences}


def interval_of(values: np.ndarray) -> dict[str, Any]:
    return {"mean": float(values.mean()), "interval": bootstrap_interval(values)}


def table_of(summary: Mapping[str, Any]) -> Table:
    """The summary as a table."""
    table = Table("text encoder", "seeds", *KINDS, "SSIM, median")
    for name, row in summary["rows"].items():
        cells = []
        for kind in KINDS:
            bounds = row[kind]["interval"]
            reach = f" ({bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else ""
            cells.append(f"{row[kind]['mean']:.3f}{reach}")
        table.add_row(name, str(row["num_seeds"]), *cells, f"{row['ssim_median']:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_distill"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--prompts", type=int, default=60, help="of each kind, at most 120")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        [seed], [part] = options.seeds, options.only
        own = Seed(options.out, seed, options.prompts)
        write_json(own.folder / f"{part}.json", getattr(own, part)())
        return
    for seed in options.seeds:
        for part in options.only:
            if part != "images" and (options.out / f"seed{seed}" / f"{part}.json").is_file():
                continue
            # A process of its own, so that its peak memory is its own too.
            command = [sys.executable, __file__, "--child", "--out", str(options.out), "--seeds", str(seed)]
            command += ["--only", part, "--prompts", str(options.prompts)]
            subprocess.run(command, check=True)
    write_result(options.out)


def write_result(out: Path) -> None:
    """Gather the parts of all seeds, print the table, write the results."""
    seeds: dict[int, dict[str, Any]] = {}
    for folder in sorted(out.glob("seed*")):
        files = {part: folder / f"{part}.json" for part in PARTS}
        parts = {part: read_json(path) for part, path in files.items() if path.is_file()}
        stages = {path.parent.name: read_json(path) for path in sorted(folder.glob("*/resources.json"))}
        seeds[int(folder.name.removeprefix("seed"))] = parts | {"resources": stages}
    result: dict[str, Any] = {"seeds": seeds}
    if any("images" in parts for parts in seeds.values()):
        result["summary"] = summarize(seeds)
        print_table(table_of(result["summary"]))
    environment = describe_environment(torch.device("cpu"))
    result["environment"] = environment | {"command": "python benchmarks/bench_distill.py"}
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
