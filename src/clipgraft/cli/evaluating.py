"""The commands evaluate and report."""

from pathlib import Path
from typing import Annotated

import typer

from clipgraft.cli.imports import importing
from clipgraft.cli.options import DataOption, OnDamagedOption, RecipeOption, SetOption
from clipgraft.console import print_line
from clipgraft.errors import UserError


def evaluate(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Folder of a run or of a bridge stage.")
    ] = None,
    graft: Annotated[
        list[Path], typer.Option("--graft", help="Graft folder instead of a run; several are compared.")
    ] = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the results; default of a run: its evaluate/.")
    ] = None,
    data: DataOption = "",
    on_damaged: OnDamagedOption = "",
    base: Annotated[str, typer.Option("--base", help="Base in place of the one the graft names.")] = "",
    prompts: Annotated[str, typer.Option("--prompts", help="Text file with one prompt per line.")] = "",
    num_prompts: Annotated[int | None, typer.Option("--num-prompts", help="Prompts of each set.")] = None,
    scorer: Annotated[str, typer.Option("--scorer", help="CLIP that scores: folder, hub id, flatland.")] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Compute CMMD, KID and FID from too few images too.")
    ] = False,
    recipe: RecipeOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Generate from held-out captions and measure the images, between floors and ceilings."""
    from clipgraft.config import parse_overrides, recipe_with

    with importing():
        from clipgraft.evaluation.evaluate import evaluate_grafts, evaluate_run

    if num_prompts is not None and num_prompts < 1:
        raise UserError(f"--num-prompts must be 1 or more; got {num_prompts}")
    given = {
        "data.source": data,
        "data.on_damaged": on_damaged,
        "evaluate.prompts": prompts,
        "evaluate.scorer": scorer,
        "evaluate.num_prompts": num_prompts,
        "evaluate.force": force,
    }
    if run_dir and not graft and not recipe and not base:
        named = {key: value for key, value in given.items() if value}
        evaluate_run(run_dir, named | parse_overrides(set_), out=out)
        return
    if run_dir or not out:
        raise UserError(
            "evaluate takes the folder of a run, which has its own recipe, or --graft, --base and --recipe "
            "with --out"
        )
    given["evaluate.num_prompts"] = num_prompts or recipe_with(recipe, set_).evaluate.num_prompts or 240
    settings = recipe_with(recipe, set_, given)
    evaluate_grafts(settings, graft, out, base=base)


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs; several are compared.")
    ],
    watch: Annotated[bool, typer.Option("--watch", help="Refresh the page until the run ends.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for a comparison of several runs; default: the current one."),
    ] = None,
) -> None:
    """Write a run's page, report.json, figures and model card, or a comparison."""
    from clipgraft.reporting import report as stage

    if len(runs) > 1:
        if watch:
            raise UserError("--watch shows one run; name one folder")
        page = stage.compare(runs, out or Path())
    else:
        if out:
            raise UserError("--out is for a comparison of several runs; the page of one lies in its folder")
        page = stage.watch(runs[0]) if watch else stage.report(runs[0])
    print_line(f"report: {page}")


def add_commands(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (evaluate, report):
        app.command(rich_help_panel="Measure")(command)
