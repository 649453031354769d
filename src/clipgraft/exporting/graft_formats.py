"""A graft for other tools: diffusers folder, prompt embeds, bridge."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from clipgraft.console import say
from clipgraft.files import write_json
from clipgraft.generation.pipeline import build_pipeline, prompt_input_ids
from clipgraft.models.defaults import FILE_NAME as DEFAULTS_NAME
from clipgraft.models.graft import Graft
from clipgraft.models.tokenizer import prompt_notes
from clipgraft.reporting.model_card import public_name

ENCODE_BATCH_SIZE = 32


def write_graft_pipeline(graft: Graft, base: str, folder: Path) -> None:
    """Write a pipeline in diffusers layout.

    Args:
        graft: Its text encoder.
        base: Present location of the base; empty = the recorded one.
        folder: An empty one.
    """
    frozen = graft.load_base(base)
    build_pipeline(frozen, graft.text_encoder).save_pretrained(folder)
    write_json(folder / DEFAULTS_NAME, asdict(frozen.defaults))
    remove_local_paths(folder)


def remove_local_paths(folder: Path) -> None:
    """Remove the places on this machine that libraries write into configurations."""
    for config in folder.rglob("*.json"):
        values = json.loads(config.read_text(encoding="utf-8"))
        place = str(values.get("_name_or_path", "")) if isinstance(values, dict) else ""
        if public_name(place) != place:
            write_json(config, {key: value for key, value in values.items() if key != "_name_or_path"})


@torch.no_grad()
def write_prompt_embeds(graft: Graft, prompts: Sequence[str], negative_prompt: str, folder: Path) -> None:
    """Write prompts, their embeds, and those of a negative prompt."""

    def encode(texts: Sequence[str]) -> torch.Tensor:
        batches = prompt_input_ids(texts, graft.tokenizer).split(ENCODE_BATCH_SIZE)
        return torch.cat([graft.text_encoder(batch).last_hidden_state for batch in batches])

    for prompt in prompts:
        for note in prompt_notes(prompt, graft.tokenizer):
            say(f"{prompt[:60]!r}: {note}")
    embeds = {
        "prompt_embeds": encode(prompts),
        "negative_prompt_embeds": encode([negative_prompt]).repeat(len(prompts), 1, 1),
    }
    save_file(embeds, folder / "prompt_embeds.safetensors")
    write_json(folder / "prompts.json", {"prompts": list(prompts), "negative_prompt": negative_prompt})


def write_bridge(graft: Graft, folder: Path) -> None:
    """Write the bridge's weights and sizes."""
    encoder = graft.grafted
    weights = {name: weight.contiguous() for name, weight in encoder.bridge.state_dict().items()}
    save_file({**weights, "empty_states": encoder.empty_states}, folder / "bridge.safetensors")
    config = {"bridge": encoder.bridge.config, "eos_token_id": encoder.config.eos_token_id}
    write_json(folder / "config.json", config)
