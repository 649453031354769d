"""Options shared by several commands."""

from pathlib import Path
from typing import Annotated

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
