"""Options shared by several commands, and their panels in the help."""

from collections.abc import Iterable
from copy import copy
from inspect import Parameter
from pathlib import Path
from typing import Annotated, get_args

import typer

DataOption = Annotated[str, typer.Option("--data", help="Folder or file with captioned images.")]
OnDamagedOption = Annotated[
    str, typer.Option("--on-damaged", help="Damaged images: stop (default), or skip and name them.")
]
CaptionsOption = Annotated[
    str, typer.Option("--captions", help="Text file with one caption per line, instead of --data.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="TOML file with settings.")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: finetune.learning_rate=3e-5."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue the run in the out folder.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the out folder.")]
ClipOption = Annotated[str, typer.Option("--clip", help="CLIP: folder, hub id or flatland.")]
BaseOption = Annotated[
    str, typer.Option("--base", help="Base: folder, hub id, .safetensors file or flatland.")
]
SafetyCheckerOption = Annotated[
    str, typer.Option("--safety-checker", help="auto (where the base brings one), on or off.")
]
ReportToOption = Annotated[
    str,
    typer.Option(
        "--report-to",
        help="Trackers of figures, with commas: tensorboard, wandb, mlflow, trackio; all, none.",
    ),
]

PANELS = {
    "Prompts": (
        *("from_file", "skip_bad_lines", "from_image", "negative_prompt", "prompt_syntax", "long_prompts"),
        *("dynamic_prompts", "wildcards"),
    ),
    "Sampling": (
        *("seed", "num_images_per_prompt", "num_inference_steps", "guidance_scale", "scheduler"),
        *("height", "width", "clip_skip", "reference"),
    ),
    "Initial image": ("init_image", "mask_image", "strength"),
    "Models": (
        *("graft", "base", "vae", "loras", "lora_dir", "embeddings", "embedding_dir", "controls"),
        *("ip_adapters", "safety_checker"),
    ),
    "Speed and memory": (
        *("engine", "compile", "guidance_interval", "feature_cache", "quantize", "batch_size", "device"),
        "offload",
    ),
    "Output": ("grid", "preview_every", "image_format", "no_metadata", "dry_run", "as_json"),
}
"""Panels of the help of commands that generate -> their parameters."""


def by_panel(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Order the parameters of a command by their panels in the help."""
    panel_of = {name: panel for panel, names in PANELS.items() for name in names}
    order = [*panel_of]

    def placed(parameter: Parameter) -> Parameter:
        kind, option = get_args(parameter.annotation)
        option = copy(option)
        option.rich_help_panel = panel_of[parameter.name]
        return parameter.replace(annotation=Annotated[kind, option])

    found = [placed(each) if each.name in panel_of else each for each in parameters]
    return sorted(found, key=lambda each: order.index(each.name) if each.name in panel_of else -1)
