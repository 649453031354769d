"""A distilled text encoder of the tiny base, whose sizes take the place of Stable Diffusion's."""

import copy
import json
from pathlib import Path

import pytest
import torch

from clipgraft.config import build_recipe
from clipgraft.models import single_file as sd15
from clipgraft.models.base import FrozenBase
from clipgraft.models.graft import Graft
from clipgraft.models.lineage import Lineage, Stage
from tiny import build_tokenizer

WORDS = {"kite": 16, "sunset": 16}
PROMPTS = ["A dog runs on the beach .", "Two children play with a kite at sunset ."]


def distilled_from(base: Path) -> Graft:
    """A text encoder whose linear layers differ from the base's own by matrices of rank 2."""
    own = FrozenBase.load(str(base), tokenizer=build_tokenizer())
    encoder = copy.deepcopy(own.text_encoder)
    torch.manual_seed(3)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.Linear):
                size = module.weight.shape
                module.weight += torch.randn(size[0], 2) @ torch.randn(2, size[1]) / 20
    figures = {"new words": {"words": 0.25}, "held": {"words": 0.125}}
    stage = Stage(stage="distill", recipe=build_recipe({}), words=WORDS, figures=figures)
    return Graft(encoder, own.tokenizer, own.record(), Lineage(stages=(stage,)))


def take_sizes(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a base's sizes be those of Stable Diffusion v1."""
    for name, constant in (("unet", "UNET_CONFIG"), ("vae", "VAE_CONFIG"), ("text_encoder", "TEXT_CONFIG")):
        monkeypatch.setattr(sd15, constant, json.loads((base / name / "config.json").read_text()))


def states(encoder, tokenizer, prompts=PROMPTS):
    """The states of prompts as diffusers' pipeline has them."""
    ids = tokenizer(list(prompts), padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder(ids)[0]
