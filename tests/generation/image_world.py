"""The generate command on a tiny base, and its results."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tiny
from clipgraft.generation.schedulers import build_scheduler
from clipgraft.models.base import FrozenBase
from clipgraft.models.bridge import Bridge
from clipgraft.models.configs import BaseRecord
from clipgraft.models.graft import Graft, GraftedTextEncoder
from helpers import call


def write_graft(folder: Path, base: Path, *, width: int = tiny.TEACHER_WIDTH, clip=None) -> Path:
    torch.manual_seed(3)
    clip = clip or tiny.build_clip()
    encoder = GraftedTextEncoder.graft(
        clip.model.text_model,
        Bridge(tiny.TEXT_WIDTH, width),
        torch.randn(77, width),
        clip.tokenizer.eos_token_id,
    )
    Graft(encoder, clip.tokenizer, BaseRecord(name=str(base), sums={})).save_pretrained(folder)
    return folder


def generate(base: Path, out: Path, *arguments: object) -> int:
    """Call `clipgraft generate` with torch: OpenVINO would compile for a quarter of a second per shape."""
    return call("generate", "--base", base, "--steps", 2, "--engine", "torch", "--out", out, *arguments)


def rows_of(out: Path) -> list[dict]:
    return json.loads((out / "images.json").read_text())


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def stock_parts(base: FrozenBase) -> dict:
    """Components of diffusers' own pipelines, with the scheduler dpm++."""
    return {
        "vae": base.vae,
        "unet": base.unet,
        "text_encoder": base.text_encoder,
        "tokenizer": base.tokenizer,
        "scheduler": build_scheduler("dpm++", base.scheduler),
        "safety_checker": None,
        "requires_safety_checker": False,
    }
