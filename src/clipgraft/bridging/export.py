"""Export a graft as diffusers folder, prompt embeds, or the bridge alone."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from clipgraft.config import to_toml
from clipgraft.console import say
from clipgraft.device import quiet_libraries
from clipgraft.errors import UserError
from clipgraft.files import write_json
from clipgraft.generation.pipeline import build_pipeline, prompt_input_ids
from clipgraft.models.defaults import FILE_NAME as DEFAULTS_NAME
from clipgraft.models.graft import Graft
from clipgraft.models.tokenizer import prompt_notes
from clipgraft.models.weights import write_folder_atomically
from clipgraft.reporting.model_card import graft_card, public_recipe
from clipgraft.runs.folder import RECIPE_NAME, refuse_inputs_within

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
    images = pipeline(**{name: rows[:1] for name, rows in embeds.items()}).images"""
BRIDGE_CONTENT = """\
`bridge.safetensors` and `config.json`: the map from CLIP's hidden states (after its final layer norm) to the
base's prompt embeds, `clipgraft.models.bridge.Bridge`, without CLIP. `empty_states` (77, width) are the
base's own embeds of the empty prompt and replace the mapped ones; their first row is that of every prompt."""
CONTENTS = {
    "diffusers": DIFFUSERS_CONTENT,
    "prompt-embeds": PROMPT_EMBEDS_CONTENT,
    "bridge": BRIDGE_CONTENT,
}
"""Format -> description of the folder in the model card."""
FORMATS = tuple(CONTENTS)


def export(
    graft: Graft | str | Path,
    output_dir: str | Path,
    *,
    file_format: str = "diffusers",
    base: str = "",
    prompts: Sequence[str] = (),
    negative_prompt: str = "",
) -> Path:
    """Write a graft for other tools, with a model card.

    Args:
        graft: The graft or its folder.
        output_dir: Gets all files or none; also returned.
        file_format: One of FORMATS.
        base: Present location of the base, for diffusers; empty = the recorded one.
        prompts: For prompt-embeds.
        negative_prompt: For prompt-embeds.

    Raises:
        UserError: If the folder holds files already, or prompts are missing or not allowed.
        CheckpointError: If the graft or its base is damaged, or the base is another one.
    """
    if file_format not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}; got {file_format!r}")
    if bool(prompts) != (file_format == "prompt-embeds"):
        raise UserError(
            "prompt-embeds needs prompts, as arguments or in a --prompts-file"
            if not prompts
            else f"prompts are for --format prompt-embeds; {file_format} encodes none"
        )
    out = Path(output_dir)
    refuse_inputs_within(out, {"the graft": None if isinstance(graft, Graft) else graft, "--base": base})
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} already holds files; name an empty or new folder with --out")
    quiet_libraries()
    if not isinstance(graft, Graft):
        graft = Graft.from_pretrained(graft)
    with write_folder_atomically(out) as folder:
        if file_format == "diffusers":
            _write_pipeline(graft, base, folder)
        elif file_format == "prompt-embeds":
            _write_prompt_embeds(graft, prompts, negative_prompt, folder)
        else:
            _write_bridge(graft, folder)
        _write_card(graft, CONTENTS[file_format], folder)
    return out


def _write_pipeline(graft: Graft, base: str, folder: Path) -> None:
    frozen = graft.load_base(base)
    build_pipeline(frozen, graft.text_encoder).save_pretrained(folder)
    write_json(folder / DEFAULTS_NAME, asdict(frozen.defaults))
    for config in folder.rglob("*.json"):
        values = json.loads(config.read_text(encoding="utf-8"))
        if isinstance(values, dict) and "_name_or_path" in values:  # a local path
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
    encoder = graft.grafted
    weights = {name: weight.contiguous() for name, weight in encoder.bridge.state_dict().items()}
    save_file({**weights, "empty_states": encoder.empty_states}, folder / "bridge.safetensors")
    config = {"bridge": encoder.bridge.config, "eos_token_id": encoder.config.eos_token_id}
    write_json(folder / "config.json", config)


def _write_card(graft: Graft, content: str, folder: Path) -> None:
    has_safety_checker = (folder / "safety_checker").is_dir()
    card = graft_card(content, graft.base, graft.lineage, has_safety_checker=has_safety_checker)
    (folder / "README.md").write_text(card, encoding="utf-8")
    last = graft.lineage.find("refine") or graft.lineage.find("bridge")
    if last and last.recipe:
        # Not as a Recipe, which would turn bare names into local paths again.
        shown = public_recipe(last.recipe.model_dump(exclude_none=True))
        (folder / RECIPE_NAME).write_text(to_toml(shown), encoding="utf-8")
