"""The command line: turns arguments into a recipe, calls a stage, turns an error into one line.

The only reader of argv. Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipgraft import __version__
from clipgraft.cli.ending import Commands, run_to_an_end
from clipgraft.cli.evaluating import add_commands as add_measuring
from clipgraft.cli.generating import add_commands as add_drawing
from clipgraft.cli.options import (
    BaseOption,
    ClipOption,
    DataOption,
    OutOption,
    OverwriteOption,
    RecipeOption,
    ResumeOption,
    SetOption,
    recipe_from_options,
    with_options,
)
from clipgraft.console import print_line
from clipgraft.errors import UserError

if TYPE_CHECKING:
    from clipgraft.config import Recipe

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Fine-tune CLIP on captioned images, graft its text tower onto a frozen diffusion model, draw.",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at captioned images, or draw a set of them.")
app.add_typer(data_app, name="data")


@app.command()
def demo(
    out: OutOption = Path("runs/demo"),
    set_: SetOption = [],  # noqa: B006  (typer copies it)
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Run everything on flatland: draw a data set, fine-tune CLIP, bridge, draw two prompts, report."""
    from clipgraft.config import demo as demo_recipe

    _run_all(with_options(demo_recipe(), set_), out, resume, overwrite)


@app.command()
def run(
    recipe: Annotated[
        str, typer.Argument(help="Named recipe, or TOML file such as the recipe.toml beside any result.")
    ],
    out: OutOption,
    data: DataOption = "",
    set_: SetOption = [],  # noqa: B006
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Run a whole recipe: fine-tune, bridge, refine where it asks for it, generate, report."""
    from clipgraft.config import PRESETS, named_recipe

    settings = with_options(named_recipe(recipe), set_, {"data.source": data})
    _run_all(settings, out, resume, overwrite, recipe_file=recipe if recipe not in PRESETS else "")


@app.command()
def prefetch(
    recipe: Annotated[str, typer.Argument(help="Named recipe or TOML file.")],
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Fetch all that a recipe needs of the model hub, after saying how much that is."""
    from clipgraft.config import named_recipe
    from clipgraft.download import prefetch as stage

    stage(with_options(named_recipe(recipe), set_))


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
    from clipgraft.cli.data import check_data

    check_data(source, include_unsplit=include_unsplit, clip=clip, as_json=as_json)


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
def finetune(
    out: OutOption,
    data: DataOption = "",
    clip: ClipOption = "",
    recipe: RecipeOption = None,
    report_to: Annotated[
        str, typer.Option("--report-to", help="tensorboard: write figures to OUT/tensorboard as well.")
    ] = "",
    set_: SetOption = [],  # noqa: B006
    resume: ResumeOption = False,
    from_step: Annotated[
        int | None, typer.Option("--from-step", help="With --resume: from this step's checkpoint.")
    ] = None,
    allow_changed_data: Annotated[
        bool,
        typer.Option(
            "--allow-changed-data",
            help="With --resume: though photographs, captions or the CLIP it began with changed since.",
        ),
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Fine-tune CLIP on captioned images."""
    from clipgraft.finetuning.finetune import finetune as stage
    from clipgraft.finetuning.finetune import print_result
    from clipgraft.runs.run import stage_folder
    from clipgraft.training.state import Resume

    if not resume and (from_step is not None or allow_changed_data):
        raise UserError("--from-step and --allow-changed-data say how to go on; add --resume")
    given = {"data.source": data, "clip.name": clip, "finetune.report_to": report_to}
    settings = recipe_from_options(recipe, set_, given)
    with stage_folder(
        out,
        settings,
        stage="finetune",
        inputs={"--recipe": recipe},
        resume=resume,
        overwrite=overwrite,
        in_parallel=True,
    ) as folder:
        metrics = stage(settings, folder, resume=resume and Resume(from_step, allow_changed_data))
    if metrics:  # of several processes the first one has them
        print_result(metrics)
        print_line(f"clip: {out / 'clip'}")


@app.command()
def interpolate(
    after: Annotated[str, typer.Option("--after", help="Folder of the fine-tuned CLIP.")],
    out: OutOption,
    before: Annotated[str, typer.Option("--before", help="CLIP before: folder, hub id or flatland.")] = "",
    data: DataOption = "",
    alpha: Annotated[float, typer.Option(help="Share of the fine-tuned weights in what is written.")] = 0.5,
    recipe: RecipeOption = None,
    set_: SetOption = [],  # noqa: B006
    overwrite: OverwriteOption = False,
) -> None:
    """Compare weights between a CLIP before and after fine-tuning; write those at one place."""
    from clipgraft.finetuning.wise_ft import interpolate as stage
    from clipgraft.runs.run import stage_folder

    settings = recipe_from_options(recipe, set_, {"data.source": data, "clip.name": before})
    inputs = {"--recipe": recipe, "--after": after}
    with stage_folder(
        out, settings, stage="interpolate", inputs=inputs, resume=False, overwrite=overwrite
    ) as folder:
        stage(settings, after, folder, alpha=alpha)
    print_line(f"clip: {out / 'clip'}")


@app.command()
def bridge(
    out: OutOption,
    clip: ClipOption = "",
    base: BaseOption = "",
    data: DataOption = "",
    captions: Annotated[
        str, typer.Option("--captions", help="Text file, a caption a line, for --data.")
    ] = "",
    allow_few: Annotated[
        bool, typer.Option("--allow-few-captions", help="Go on with fewer than 100 captions.")
    ] = False,
    recipe: RecipeOption = None,
    set_: SetOption = [],  # noqa: B006
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Fit the bridge from a CLIP's token states to a base's with captions alone, and write the graft."""
    from clipgraft.bridging.fit import bridge as stage
    from clipgraft.bridging.fit import print_result
    from clipgraft.runs.run import stage_folder

    if data and captions:
        raise UserError("--captions takes the place of --data; leave one of them out")
    given = {"data.source": data, "clip.name": clip, "base.name": base, "bridge.captions": captions}
    settings = recipe_from_options(recipe, set_, given | {"bridge.allow_few_captions": allow_few})
    with stage_folder(
        out, settings, stage="bridge", inputs={"--recipe": recipe}, resume=resume, overwrite=overwrite
    ) as folder:
        metrics = stage(settings, folder, resume=resume)
    print_result(metrics)
    print_line(f"graft: {out / 'graft'}")


@app.command()
def refine(
    graft: Annotated[Path, typer.Option("--graft", help="Graft folder to start from; it stays as it is.")],
    out: OutOption,
    data: DataOption = "",
    base: BaseOption = "",
    epochs: Annotated[int, typer.Option(help="Passes over the pictures; 0 = the recipe's, else 1.")] = 0,
    recipe: RecipeOption = None,
    set_: SetOption = [],  # noqa: B006
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Train a graft's bridge on pictures, through the base's frozen U-Net."""
    from clipgraft.bridging.refine import check_start, print_result, with_makings
    from clipgraft.bridging.refine import refine as stage
    from clipgraft.runs.run import stage_folder

    chosen = epochs or (0 if recipe else 1)
    given = {"data.source": data, "base.name": base, "refine.num_epochs": chosen}
    settings = with_makings(recipe_from_options(recipe, set_, given), graft)
    if resume:
        check_start(graft, out)
    inputs = {"--recipe": recipe, "--graft": graft}
    with stage_folder(
        out, settings, stage="refine", inputs=inputs, resume=resume, overwrite=overwrite
    ) as folder:
        metrics = stage(settings, graft, folder, resume=resume)
    print_result(metrics)
    print_line(f"graft: {out / 'graft'}")


@app.command()
def pretrain(
    out: OutOption,
    data: DataOption = "",
    recipe: RecipeOption = None,
    set_: SetOption = [],  # noqa: B006
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Train flatland, the embedded base, from nothing."""
    from clipgraft.pretraining.pretrain import pretrain as stage
    from clipgraft.runs.run import stage_folder

    settings = recipe_from_options(recipe, set_, {"data.source": data})
    with stage_folder(
        out, settings, stage="pretrain", inputs={"--recipe": recipe}, resume=resume, overwrite=overwrite
    ) as folder:
        stage(settings, folder, resume=resume)


add_drawing(app)
add_measuring(app)


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
    from clipgraft.bridging.export import export as stage
    from clipgraft.data.formats import read_lines

    given = [*prompts, *(read_lines(prompts_file, "prompt") if prompts_file else [])]
    stage(graft, out, file_format=file_format, base=base, prompts=given, negative_prompt=negative_prompt)


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


def _run_all(recipe: "Recipe", out: Path, resume: bool, overwrite: bool, recipe_file: str = "") -> None:
    from clipgraft.runs.run import stage_folder
    from clipgraft.whole_run import run_all

    inputs = {"the recipe": recipe_file}
    with stage_folder(out, recipe, inputs=inputs, resume=resume, overwrite=overwrite) as folder:
        run_all(recipe, folder, resume=resume)


def main() -> None:
    """Entry point of the command line; see `cli_ending` for how it ends."""
    # Before it is imported, else transformers advises on torchvision, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    run_to_an_end(app)
