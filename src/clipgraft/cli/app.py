"""The command line. Nothing heavy is imported before a command runs, so `--help` answers at once."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from clipgraft import __version__
from clipgraft.cli.ending import Commands, run_to_an_end
from clipgraft.cli.evaluating import add_commands as add_measuring
from clipgraft.cli.generating import add_commands as add_drawing
from clipgraft.cli.options import OutOption
from clipgraft.cli.training import add_commands as add_training
from clipgraft.console import print_line
from clipgraft.errors import UserError

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Fine-tune CLIP on captioned images, graft its text tower onto a frozen diffusion model, draw.",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at captioned images, or draw a set of them.")
app.add_typer(data_app, name="data")

add_training(app)
add_drawing(app)
add_measuring(app)


@data_app.command("check")
def data_check(
    source: Annotated[Path, typer.Argument(help="Folder or file with captioned images.")],
    include_unsplit: Annotated[
        bool, typer.Option("--include-unsplit", help="Images outside every split go to train.")
    ] = False,
    clip: Annotated[str, typer.Option("--clip", help="CLIP whose tokenizer counts tokens.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Count every image and caption in, or out with a reason; show samples and caption lengths."""
    from clipgraft.data.check import check_dataset, render, to_json
    from clipgraft.data.formats import load_dataset
    from clipgraft.device import quiet_libraries
    from clipgraft.models.clip import load_clip

    dataset = load_dataset(source, include_unsplit=include_unsplit)
    quiet_libraries()
    check = check_dataset(dataset, tokenizer=load_clip(clip).tokenizer if clip else None)
    if as_json:
        typer.echo(to_json(check))
    else:
        Console().print(render(check))


@data_app.command("draw")
def data_draw(
    out: OutOption,
    seed: Annotated[int, typer.Option(help="Seed of the whole set.")] = 0,
    num_images: Annotated[int, typer.Option(min=8, help="Three quarters go to train.")] = 8000,
) -> None:
    """Draw flatland8k: pictures with five captions each, in Flickr8k's own layout."""
    from clipgraft.data.formats import draw_data

    draw_data(out, seed=seed, num_images=num_images)


@app.command()
def export(
    graft: Annotated[Path, typer.Argument(help="Graft folder.")],
    out: OutOption,
    prompts: Annotated[list[str], typer.Argument(help="For prompt-embeds.")] = [],  # noqa: B006
    file_format: Annotated[
        str, typer.Option("--format", help="diffusers, prompt-embeds or bridge.")
    ] = "diffusers",
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts-file", help="Text file with a prompt a line.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="For prompt-embeds.")] = "",
    base: Annotated[str, typer.Option("--base", help="Base, where not the one that the graft names.")] = "",
) -> None:
    """Write a graft for other tools: a folder for diffusers, prompt embeds, or the bridge alone."""
    from clipgraft.bridging.export import export as export_graft
    from clipgraft.data.formats import read_lines

    given = [*prompts, *(read_lines(prompts_file, "prompt") if prompts_file else [])]
    export_graft(
        graft, out, file_format=file_format, base=base, prompts=given, negative_prompt=negative_prompt
    )
    print_line(f"{file_format}: {out}")


@app.command()
def studio(
    runs: Annotated[Path, typer.Argument(help="Folder of runs to draw with and to look at.")] = Path("runs"),
    out: Annotated[Path | None, typer.Option("--out", help="Queue and pictures; else RUNS/studio.")] = None,
    host: Annotated[str, typer.Option(help="Address; any other than loopback needs --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 = a free one.")] = 8080,
    token: Annotated[bool, typer.Option("--token", help="Ask for a token, which is shown once.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    public_url: Annotated[
        str, typer.Option(help="Address that a proxy with TLS gives it, as https://studio.example.org.")
    ] = "",
) -> None:
    """Draw, compare and look at runs in the browser, and from other programs over HTTP."""
    try:
        from clipgraft.studio.server import serve
    except ModuleNotFoundError as error:
        raise UserError(f"the studio needs {error.name}; pip install 'clipgraft[app]'") from error
    home = out or runs / "studio"
    serve(runs, home, host=host, port=port, with_token=token, device=device, public_url=public_url)


@app.command()
def doctor() -> None:
    """Say what this machine has for clipgraft, with the fix for what it lacks."""
    from clipgraft.cli.doctor import doctor as stage

    stage()


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"clipgraft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the command line; see `cli_ending` for how it ends."""
    # Before it is imported, else transformers advises on torchvision, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    run_to_an_end(app)
