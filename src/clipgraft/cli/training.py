"""The training commands: finetune, interpolate, bridge, refine, distill, pretrain, and whole runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipgraft.cli.imports import importing
from clipgraft.cli.options import (
    BaseOption,
    CaptionsOption,
    ClipOption,
    DataOption,
    OnDamagedOption,
    OutOption,
    OverwriteOption,
    RecipeOption,
    ReportToOption,
    ResumeOption,
    SetOption,
)
from clipgraft.console import is_first_process, print_line
from clipgraft.errors import UserError

if TYPE_CHECKING:
    from clipgraft.config import Recipe


NEXT_COMMANDS = """\
Open {out}/report.html in a browser, and go on with:
  clipgraft generate "A cat sitting in the park at night" --graft {out}/bridge/graft --out images/
  clipgraft compare "A girl riding a horse in the snow" --run {out} --out compared/
  clipgraft studio
  clipgraft finetune --data YOUR_IMAGES/ --clip openai/clip-vit-base-patch32 --out runs/tuned"""
"""Printed after the demo."""


def demo(
    out: OutOption = Path("runs/demo"),
    report_to: ReportToOption = "",
    set_: SetOption = [],  # noqa: B006  (typer copies it)
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Run everything on flatland: fine-tune CLIP, bridge, generate two prompts, evaluate, report."""
    from clipgraft.config import demo as demo_recipe
    from clipgraft.config import recipe_with

    _run_all(recipe_with(demo_recipe(), set_, _reporting(report_to)), out, resume, overwrite)
    print_line(NEXT_COMMANDS.format(out=out))


def run(
    recipe: Annotated[
        str, typer.Argument(help="Named recipe, or TOML file such as the recipe.toml beside any result.")
    ],
    out: OutOption,
    data: DataOption = "",
    on_damaged: OnDamagedOption = "",
    report_to: ReportToOption = "",
    set_: SetOption = [],  # noqa: B006
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Run a whole recipe: fine-tune, bridge, refine, distill, generate, evaluate, report."""
    from clipgraft.config import PRESETS, named_recipe, recipe_with

    given = {"data.source": data, "data.on_damaged": on_damaged, **_reporting(report_to)}
    settings = recipe_with(named_recipe(recipe), set_, given)
    _run_all(settings, out, resume, overwrite, recipe_file=recipe if recipe not in PRESETS else "")


def _reporting(report_to: str) -> dict[str, str]:
    """Return `report_to` for every stage of a whole run."""
    return {f"{stage}.report_to": report_to for stage in ("finetune", "bridge", "refine", "distill")}


def prefetch(
    recipe: Annotated[str, typer.Argument(help="Named recipe or TOML file.")],
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Download a recipe's models from the hub; print the size first."""
    from clipgraft.config import named_recipe, recipe_with
    from clipgraft.download import prefetch as stage

    stage(recipe_with(named_recipe(recipe), set_))


def finetune(
    out: OutOption,
    data: DataOption = "",
    on_damaged: OnDamagedOption = "",
    clip: ClipOption = "",
    recipe: RecipeOption = None,
    report_to: ReportToOption = "",
    set_: SetOption = [],  # noqa: B006
    resume: ResumeOption = False,
    from_step: Annotated[
        int | None, typer.Option("--from-step", help="With --resume: from this step's checkpoint.")
    ] = None,
    allow_changed_data: Annotated[
        bool,
        typer.Option(
            "--allow-changed-data",
            help="With --resume: even if images, captions or the initial CLIP have changed.",
        ),
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Fine-tune CLIP on captioned images."""
    from clipgraft.config import recipe_with

    with importing():
        from clipgraft.finetuning.finetune import finetune as stage
        from clipgraft.finetuning.finetune import load_inputs
        from clipgraft.training.trainer import Resume

    if not resume and (from_step is not None or allow_changed_data):
        raise UserError("--from-step and --allow-changed-data have no effect on a new run; add --resume")
    given = {
        "data.source": data,
        "data.on_damaged": on_damaged,
        "clip.name": clip,
        "finetune.report_to": report_to,
    }
    settings = recipe_with(recipe, set_, given)
    result = stage(
        *load_inputs(settings),
        output_dir=out,
        resume=resume and Resume(from_step, allow_changed_data),
        overwrite=overwrite,
        recipe=settings,
        inputs={"--recipe": recipe},
    )
    if is_first_process():
        result.print()
        print_line(f"clip: {out / 'clip'}")


def interpolate(
    after: Annotated[str, typer.Option("--after", help="Folder of the fine-tuned CLIP.")],
    out: OutOption,
    before: Annotated[str, typer.Option("--before", help="CLIP before: folder, hub id or flatland.")] = "",
    data: DataOption = "",
    on_damaged: OnDamagedOption = "",
    alpha: Annotated[
        float, typer.Option(help="Share of the fine-tuned weights in the CLIP that is written.")
    ] = 0.5,
    recipe: RecipeOption = None,
    set_: SetOption = [],  # noqa: B006
    overwrite: OverwriteOption = False,
) -> None:
    """Measure CLIPs interpolated between before and after fine-tuning; write one (WiSE-FT)."""
    from clipgraft.config import recipe_with

    with importing():
        from clipgraft.finetuning.finetune import load_inputs
        from clipgraft.finetuning.wise_ft import interpolate as stage
        from clipgraft.models.clip import load_clip

    settings = recipe_with(
        recipe, set_, {"data.source": data, "data.on_damaged": on_damaged, "clip.name": before}
    )
    clip, dataset = load_inputs(settings)
    result = stage(
        clip,
        load_clip(after),
        dataset,
        alpha=alpha,
        output_dir=out,
        overwrite=overwrite,
        recipe=settings,
        inputs={"--recipe": recipe, "--after": after},
    )
    result.print()
    print_line(f"clip: {out / 'clip'}")


def bridge(
    out: OutOption,
    clip: ClipOption = "",
    base: BaseOption = "",
    data: DataOption = "",
    on_damaged: OnDamagedOption = "",
    captions: CaptionsOption = "",
    allow_few: Annotated[
        bool, typer.Option("--allow-few-captions", help="Accept fewer than 100 captions.")
    ] = False,
    recipe: RecipeOption = None,
    report_to: ReportToOption = "",
    set_: SetOption = [],  # noqa: B006
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Fit a bridge from CLIP to base on captions; write the graft."""
    with importing():
        from clipgraft.bridging.fit import bridge_recipe
    from clipgraft.config import recipe_with

    if data and captions:
        raise UserError("--captions replaces --data; leave one of them out")
    given = {
        "data.source": data,
        "data.on_damaged": on_damaged,
        "clip.name": clip,
        "base.name": base,
        "bridge.captions": captions,
        "bridge.report_to": report_to,
    }
    settings = recipe_with(recipe, set_, given | {"bridge.allow_few_captions": allow_few})
    inputs = {"--recipe": recipe}
    result = bridge_recipe(settings, out, resume=resume, overwrite=overwrite, inputs=inputs)
    result.print()
    print_line(f"graft: {out / 'graft'}")


def refine(
    graft: Annotated[Path, typer.Option("--graft", help="Graft folder to start from; not changed.")],
    out: OutOption,
    data: DataOption = "",
    on_damaged: OnDamagedOption = "",
    base: BaseOption = "",
    epochs: Annotated[int, typer.Option(help="Passes over the images; 0 = the recipe's, else 1.")] = 0,
    recipe: RecipeOption = None,
    report_to: ReportToOption = "",
    set_: SetOption = [],  # noqa: B006
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Train a graft's bridge on images, through the base's frozen U-Net."""
    with importing():
        from clipgraft.bridging.refine import refine_recipe
    from clipgraft.config import recipe_with

    chosen = epochs or (0 if recipe else 1)
    given = {
        "data.source": data,
        "data.on_damaged": on_damaged,
        "refine.num_epochs": chosen,
        "refine.report_to": report_to,
        **_base_of(graft, base, recipe, set_),
    }
    settings = recipe_with(recipe, set_, given)
    inputs = {"--recipe": recipe}
    result = refine_recipe(settings, graft, out, resume=resume, overwrite=overwrite, inputs=inputs)
    result.print()
    print_line(f"graft: {out / 'graft'}")


def new_words(
    clip: ClipOption = "",
    base: BaseOption = "",
    graft: Annotated[
        Path | None,
        typer.Option("--graft", help="Graft folder, instead of --clip and --base: those it names."),
    ] = None,
    data: DataOption = "",
    on_damaged: OnDamagedOption = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="Text file to write the new words to, for `distill`.")
    ] = None,
    recipe: RecipeOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Find words seen by CLIP in images and unused by the base."""
    from clipgraft.config import ModelSettings, recipe_with

    with importing():
        from clipgraft.distilling.new_words import clip_of, find_recipe_words
        from clipgraft.models.graft import Graft

    if graft and (clip or base):
        raise UserError("--graft names CLIP and base; leave --clip and --base out")
    given = {
        "data.source": data,
        "data.on_damaged": on_damaged,
        "clip.name": clip,
        "base.name": base,
    }
    settings = recipe_with(recipe, set_, given)
    if graft:
        made = Graft.from_pretrained(graft)
        base_of = ModelSettings(name=made.base.name, revision=made.base.revision)
        settings = settings.model_copy(update={"clip": clip_of(made), "base": base_of})
    found = find_recipe_words(settings)
    found.print()
    if out:
        found.write_list(out)
        print_line(f"new words: {out}")


def distill(
    graft: Annotated[Path, typer.Option("--graft", help="Graft folder to learn from; not changed.")],
    out: OutOption,
    data: DataOption = "",
    on_damaged: OnDamagedOption = "",
    base: BaseOption = "",
    captions: CaptionsOption = "",
    new_words: Annotated[
        str,
        typer.Option(
            "--new-words", help="Words that the base is to learn: a text file with one per line, or auto."
        ),
    ] = "",
    hold: Annotated[
        str, typer.Option("--hold", help="Text file with further captions whose states are to stay.")
    ] = "",
    epochs: Annotated[int, typer.Option(help="Passes over the captions; 0 = the recipe's, else 2.")] = 0,
    recipe: RecipeOption = None,
    report_to: ReportToOption = "",
    set_: SetOption = [],  # noqa: B006
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Teach the base's own text encoder a graft's new words, on captions."""
    from clipgraft.config import recipe_with

    with importing():
        from clipgraft.distilling.distill import DEFAULT_EPOCHS, distill_recipe

    if data and captions:
        raise UserError("--captions replaces --data; leave one of them out")
    given = {
        "data.source": data,
        "data.on_damaged": on_damaged,
        "distill.captions": captions,
        "distill.new_words": new_words,
        "distill.hold": hold,
        "distill.report_to": report_to,
        "distill.num_epochs": epochs or (0 if recipe else DEFAULT_EPOCHS),
        **_base_of(graft, base, recipe, set_),
    }
    settings = recipe_with(recipe, set_, given)
    inputs = {"--recipe": recipe}
    result = distill_recipe(settings, graft, out, resume=resume, overwrite=overwrite, inputs=inputs)
    result.print()
    print_line(f"text encoder: {out / 'text_encoder'}")


def _base_of(graft: Path, base: str, recipe: Path | None, set_: list[str]) -> dict[str, str]:
    """Return the named base, else the one that the graft names."""
    from clipgraft.models.graft import read_base_record

    is_named = base or recipe or any(text.startswith("base.") for text in set_)
    record = None if is_named else read_base_record(graft)
    return {"base.name": record.name, "base.revision": record.revision} if record else {"base.name": base}


def pretrain(
    out: OutOption,
    data: DataOption = "",
    on_damaged: OnDamagedOption = "",
    recipe: RecipeOption = None,
    set_: SetOption = [],  # noqa: B006
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Train flatland, the embedded base, from scratch."""
    from clipgraft.config import recipe_with

    with importing():
        from clipgraft.pretraining.pretrain import pretrain as stage
    from clipgraft.runs.run import Run

    settings = recipe_with(recipe, set_, {"data.source": data, "data.on_damaged": on_damaged})
    with Run.begin(
        out, settings, stage="pretrain", inputs={"--recipe": recipe}, resume=resume, overwrite=overwrite
    ) as run:
        stage(settings, run.path, resume=resume)


def _run_all(recipe: "Recipe", out: Path, resume: bool, overwrite: bool, recipe_file: str = "") -> None:
    from clipgraft.runs.run import Run

    with importing():
        from clipgraft.whole_run import run_all

    inputs = {"the recipe": recipe_file}
    with Run.begin(out, recipe, inputs=inputs, resume=resume, overwrite=overwrite):
        run_all(recipe, out, resume=resume)


def add_commands(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (demo, run, prefetch, finetune, interpolate, bridge, refine, new_words, distill, pretrain):
        app.command(rich_help_panel="Train")(command)
