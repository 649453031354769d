"""The commands export and push."""

from pathlib import Path
from typing import Annotated

import typer

from clipgraft.cli.imports import importing
from clipgraft.console import print_line


def export(
    graft: Annotated[Path, typer.Argument(help="Graft folder, or the folder that distill wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder; for checkpoint and lora a .safetensors file.")],
    prompts: Annotated[
        list[str], typer.Argument(help="For prompt-embeds; for lora, to measure its error on.")
    ] = [],  # noqa: B006
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="diffusers, prompt-embeds; of a graft also bridge; of distill's folder "
            "checkpoint, lora, embeddings.",
        ),
    ] = "diffusers",
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts-file", help="Text file with one prompt per line.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="For prompt-embeds.")] = "",
    dtype: Annotated[
        str, typer.Option(help="fp16 or float32, for checkpoint and lora; default: the base's own.")
    ] = "",
    rank: Annotated[int, typer.Option(help="Rank of the LoRA; 0 = 16.")] = 0,
    base: Annotated[str, typer.Option("--base", help="Base in place of the one the graft names.")] = "",
) -> None:
    """Export for other tools: diffusers folder, checkpoint, LoRA, embeddings, bridge."""
    with importing():
        from clipgraft.exporting.export import export as stage
    from clipgraft.generation.prompt_files import read_prompts

    given = [*prompts, *(read_prompts(prompts_file) if prompts_file else [])]
    stage(
        graft,
        out,
        file_format=file_format,
        base=base,
        prompts=given,
        negative_prompt=negative_prompt,
        dtype=dtype,
        rank=rank,
    )
    print_line(f"{file_format}: {out}")


def push(
    exported: Annotated[Path, typer.Argument(help="Folder or .safetensors file that export wrote.")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Model repository; made if missing.")],
    public: Annotated[bool, typer.Option("--public", help="Make it public; default: private.")] = False,
) -> None:
    """Upload an export to the model hub, with the token in HF_TOKEN."""
    from clipgraft.exporting.push import push as stage

    print_line(f"pushed: {stage(exported, name, public=public)}")


def add_commands(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (export, push):
        app.command(rich_help_panel="Use elsewhere")(command)
