"""Write a graft in forms that other tools load: a diffusers folder, prompt embeds, or the bridge alone."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from clipgraft.bridging.refine import START_NAME, read_start
from clipgraft.config import Recipe, build_recipe, load_recipe, to_toml
from clipgraft.console import print_line, say
from clipgraft.device import quiet_libraries
from clipgraft.errors import UserError
from clipgraft.files import read_json, write_json
from clipgraft.generation.generator import load_base
from clipgraft.generation.pipeline import build_pipeline
from clipgraft.generation.prompt_embeds import prompt_input_ids
from clipgraft.models.defaults import FILE_NAME as DEFAULTS_NAME
from clipgraft.models.graft import Graft
from clipgraft.models.tokenizer import prompt_notes
from clipgraft.models.weights import write_folder_atomically
from clipgraft.reporting.export_card import Facts, model_card, public_recipe
from clipgraft.runs.folder import RECIPE_NAME, refuse_inputs_within

FORMATS = ("diffusers", "prompt-embeds", "bridge")
ENCODE_BATCH_SIZE = 32

DIFFUSERS_CONTENT = """\
A pipeline in diffusers layout. It loads where `clipgraft` is installed:

    import clipgraft
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained("THIS FOLDER")"""
PROMPT_EMBEDS_CONTENT = """\
`prompt_embeds.safetensors`: `prompt_embeds` and `negative_prompt_embeds`, each (prompts, 77, width) float32,
for the prompts in `prompts.json`, in order. Any stock pipeline of the base takes them, without `clipgraft`:

    from safetensors.torch import load_file

    embeds = load_file("prompt_embeds.safetensors")
    pictures = pipeline(**{name: rows[:1] for name, rows in embeds.items()}).images"""
BRIDGE_CONTENT = """\
`bridge.safetensors` and `config.json`: the map from CLIP's token states (after its final layer norm) to those
of the base's text encoder, `clipgraft.models.bridge.Bridge`, without CLIP. `empty_states` (77, width) are the
base's own states of the empty prompt and take their place; their first row is that of every prompt."""


def export(
    graft: Path,
    out_dir: Path,
    *,
    file_format: str = "diffusers",
    base: str = "",
    prompts: Sequence[str] = (),
    negative_prompt: str = "",
) -> None:
    """Write a graft for other tools, with a model card.

    Args:
        graft: Folder that `bridge` or `refine` wrote; recipe and figures are looked for beside it.
        out_dir: Gets the files, whole or not at all.
        file_format: One of FORMATS.
        base: Where not empty, where the base is now; for diffusers alone.
        prompts: For prompt-embeds alone.
        negative_prompt: For prompt-embeds alone.

    Raises:
        ValueError: If the folder holds something already, or prompts are missing or too many.
        CheckpointError: If the graft or its base is not what it should be.
    """
    if file_format not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}; got {file_format!r}")
    if bool(prompts) != (file_format == "prompt-embeds"):
        raise UserError(
            "prompt-embeds needs prompts, as arguments or in a --prompts-file"
            if not prompts
            else f"prompts are for --format prompt-embeds; {file_format} encodes none"
        )
    refuse_inputs_within(out_dir, {"the graft": graft, "--base": base})
    if out_dir.exists() and any(out_dir.iterdir()):
        raise UserError(f"{out_dir} already holds files; name an empty or new folder with --out")
    quiet_libraries()
    loaded = Graft.from_pretrained(graft)
    writers: dict[str, tuple[Callable[[Path], None], str]] = {
        "diffusers": (lambda folder: _write_pipeline(loaded, base, folder), DIFFUSERS_CONTENT),
        "prompt-embeds": (
            lambda folder: _write_prompt_embeds(loaded, prompts, negative_prompt, folder),
            PROMPT_EMBEDS_CONTENT,
        ),
        "bridge": (lambda folder: _write_bridge(loaded, folder), BRIDGE_CONTENT),
    }
    write, content = writers[file_format]
    with write_folder_atomically(out_dir) as folder:
        write(folder)
        _write_card(graft, loaded, content, folder)
    print_line(f"{file_format}: {out_dir}")


def _write_pipeline(graft: Graft, base: str, folder: Path) -> None:
    frozen = load_base([graft], base, torch.float32, with_teacher=False)
    build_pipeline(frozen, graft.text_encoder).save_pretrained(folder)
    write_json(folder / DEFAULTS_NAME, asdict(frozen.defaults))
    for config in folder.rglob("*.json"):
        values = json.loads(config.read_text(encoding="utf-8"))
        if isinstance(values, dict) and "_name_or_path" in values:  # a folder of this machine
            write_json(config, {key: value for key, value in values.items() if key != "_name_or_path"})


@torch.no_grad()
def _write_prompt_embeds(graft: Graft, prompts: Sequence[str], negative_prompt: str, folder: Path) -> None:
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


def _write_bridge(graft: Graft, folder: Path) -> None:
    encoder = graft.text_encoder
    weights = {name: weight.contiguous() for name, weight in encoder.bridge.state_dict().items()}
    save_file({**weights, "empty_states": encoder.empty_states}, folder / "bridge.safetensors")
    config = {"bridge": encoder.bridge.config, "eos_token_id": encoder.config.eos_token_id}
    write_json(folder / "config.json", config)


def _write_card(graft_dir: Path, graft: Graft, content: str, folder: Path) -> None:
    """Write the card from what lies beside the graft, what it was refined from, and its fine-tuned CLIP."""
    own, bridged = graft_dir.parent, _bridged_in(graft_dir.parent)
    recipe, made = _read_recipe(own), _read_recipe(bridged)
    tuned = _tuned_in(made)
    tuned_by = _read_recipe(tuned)
    is_refined = own != bridged
    facts = Facts(
        content,
        graft.base.model_dump(),
        recipe=made.model_dump() if made else {},
        metrics=_read_metrics(bridged),
        refine_recipe=recipe.model_dump() if recipe and is_refined else {},
        refine_metrics=_read_metrics(own) if is_refined else {},
        finetuned_from=tuned_by.clip.name if tuned_by else "",
        finetune_metrics=_read_metrics(tuned) if tuned_by else {},
        has_safety_checker=(folder / "safety_checker").is_dir(),
    )
    (folder / "README.md").write_text(model_card(facts), encoding="utf-8")
    if recipe:
        shown = to_toml(build_recipe(public_recipe(recipe.model_dump())))
        (folder / RECIPE_NAME).write_text(shown, encoding="utf-8")


def _bridged_in(folder: Path) -> Path | None:
    """Folder that a graft was bridged in, before it was refined; None where that is not to be found."""
    while (folder / START_NAME).is_file():
        start = read_start(folder)
        if start is None:
            return None
        folder = start.parent
    return folder


def _tuned_in(recipe: Recipe | None) -> Path | None:
    """Folder that holds a bridge's CLIP; None where that is no folder."""
    if recipe is None or recipe.clip.name == "flatland" or not Path(recipe.clip.name).is_dir():
        return None
    return Path(recipe.clip.name).parent


def _read_recipe(folder: Path | None) -> Recipe | None:
    path = folder / RECIPE_NAME if folder else None
    return load_recipe(path) if path and path.is_file() else None


def _read_metrics(folder: Path | None) -> dict[str, Any]:
    path = folder / "metrics.json" if folder else None
    return read_json(path) if path and path.is_file() else {}
