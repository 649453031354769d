"""Release of a pretraining: float16 weights, card, recipe, figures, log, checksums."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from clipgraft.config import Recipe, to_toml
from clipgraft.evaluation.metrics.probe import Probe, save_probe
from clipgraft.files import write_json
from clipgraft.models.clip import ClipParts, save_clip
from clipgraft.models.defaults import FILE_NAME as DEFAULTS_NAME
from clipgraft.models.flatland_config import SAMPLING_DEFAULTS, build_scheduler
from clipgraft.models.weights import write_folder_atomically
from clipgraft.reporting.model_card import model_card
from clipgraft.runs.run import StageResult

PARTS = ("vae", "unet", "clip", "probe")


def write_asset(
    folder: Path,
    recipe: Recipe,
    result: StageResult,
    *,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    teacher: CLIPTextModel,
    clip: ClipParts,
    probe: Probe,
) -> None:
    """Write `folder/flatland` atomically, as it lies in the package."""
    with write_folder_atomically(folder / "flatland") as asset:
        StableDiffusionPipeline(
            vae=_half(vae),
            unet=_half(unet),
            text_encoder=_half(teacher),
            tokenizer=clip.tokenizer,
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(asset / "base")
        write_json(asset / "base" / DEFAULTS_NAME, asdict(SAMPLING_DEFAULTS))
        save_clip(ClipParts(_half(clip.model), clip.tokenizer, clip.image_processor), asset / "clip")
        for config in asset.rglob("config.json"):
            _forget_source(config)
        save_probe(probe, asset / "probe.safetensors")
        result.save(asset)
        (asset / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")
        rows = [json.dumps(row) + "\n" for part in PARTS for row in _epochs(part, folder)]
        (asset / "log.jsonl").write_text("".join(rows), encoding="utf-8")
        sizes = {
            "VAE": vae,
            "U-Net": unet,
            "text encoder (the teacher)": teacher,
            "CLIP before fine-tuning": clip.model,
            "probe": probe,
        }
        (asset / "README.md").write_text(_card(sizes, result.model_dump()), encoding="utf-8")


def _half(module: Any) -> Any:
    """Return a float16 copy."""
    return deepcopy(module).cpu().half()


def _forget_source(config: Path) -> None:
    """Remove `_name_or_path`, a folder of the training machine."""
    values = json.loads(config.read_text(encoding="utf-8"))
    values.pop("_name_or_path", None)
    write_json(config, values)


def _epochs(part: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the means over each epoch of a part's log."""
    epochs: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in (folder / part / "log.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        epochs[row["epoch"]].append(row)
    for epoch, rows in sorted(epochs.items()):
        names = [name for name in rows[0] if name not in ("step", "epoch")]
        means = {name: math.fsum(row[name] or 0.0 for row in rows) / len(rows) for name in names}
        yield {"part": part, "epoch": epoch, "steps": rows[-1]["step"], **means}


def _card(modules: dict[str, nn.Module], metrics: dict[str, Any]) -> str:
    sizes = "\n".join(
        f"| {name} | {sum(p.numel() for p in module.parameters()) / 1e6:.1f} M |"
        for name, module in modules.items()
    )
    accuracy = ", ".join(f"{name} {share:.3f}" for name, share in metrics["probe_accuracy"].items())
    return model_card(
        "flatland",
        [
            f"""\
A latent diffusion model, a CLIP and a probe that know one drawn world: Stable Diffusion v1.5 in small, the
same in every convention (epsilon prediction, its betas, 77 positions, EOS as padding, a causal mask).

| part | parameters |
| --- | --- |
{sizes}

Trained from scratch by `clipgraft pretrain` with `recipe.toml`; `log.jsonl` has the means of each epoch. The
U-Net and its text encoder saw {metrics["num_images"]:,} drawn images {metrics["num_samples"]:,} times in all,
none of them in flatland8k, which `clipgraft data draw` draws; only CLIP was trained on flatland8k's train
split. The teacher never read the words that `flatland/words.py` holds out, nor saw the combinations that
`flatland/world.py` holds out; this CLIP read plain captions alone. Weights are float16, and `manifest.json`
has the sha256 of every file.

- VAE: {metrics["vae_psnr_db"]:.2f} dB mean PSNR of test images encoded and decoded.
- Probe: accuracy on drawn images that it was not trained on: {accuracy}.

It generates 128 x 128 images of that world and nothing else, and knows the words of its captions. It is for
tests, demonstrations and measurements. Licence: clipgraft's (Apache-2.0), drawings and captions included."""
        ],
        "flatland",
    )
