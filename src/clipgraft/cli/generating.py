"""The commands that draw: generate, grid, compare."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipgraft.errors import UserError

if TYPE_CHECKING:
    from clipgraft.generation.generate import DrawOptions
    from clipgraft.generation.params import Job

OutOption = Annotated[Path, typer.Option("--out", help="Folder for the pictures.")]
GraftOption = Annotated[
    Path | None, typer.Option("--graft", help="Graft folder; without it the base's own text encoder.")
]
BaseOption = Annotated[str, typer.Option("--base", help="Base, where not the one that the graft names.")]
NegativeOption = Annotated[str, typer.Option("--negative-prompt", help="What to lead away from.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of each prompt's first picture.")]
NumImagesOption = Annotated[int, typer.Option("--num-images", help="Pictures a prompt; seeds count up.")]
StepsOption = Annotated[
    int | None, typer.Option("--steps", help="Denoising steps; without it those that suit the base.")
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale", help="Weight of the prompt, 1 = none; without it the one that suits the base."
    ),
]
SchedulerOption = Annotated[
    str, typer.Option("--scheduler", help="dpm++, pndm, ddim, euler, unipc or lcm; gives another picture.")
]
HeightOption = Annotated[int, typer.Option("--height", help="Pixels; 0 = the base's own.")]
WidthOption = Annotated[int, typer.Option("--width", help="Pixels; 0 = the base's own.")]
InitImageOption = Annotated[
    Path | None, typer.Option("--init-image", help="Picture to start from, cut to height and width.")
]
StrengthOption = Annotated[
    float, typer.Option("--strength", help="Share of the steps that change --init-image.")
]
BatchOption = Annotated[
    int, typer.Option("--batch-size", help="Pictures drawn at once; halved where memory does not suffice.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
OffloadOption = Annotated[
    str, typer.Option("--offload", help="For a small CUDA GPU: model, or sequential (slower, least memory).")
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine", help="auto, torch or openvino: what runs the U-Net. The same picture up to rounding."
    ),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile torch's networks first: pays after many pictures.")
]
IntervalOption = Annotated[
    tuple[float, float],
    typer.Option(
        "--guidance-interval", help="Guide between these shares of the steps alone; another picture."
    ),
]
FeatureCacheOption = Annotated[
    int, typer.Option("--feature-cache", help="Run the whole U-Net every N steps alone; another picture.")
]
LoraOption = Annotated[
    str, typer.Option("--lora", help="LoRA for the U-Net, e.g. for few steps; another picture.")
]
NoMetadataOption = Annotated[
    bool, typer.Option("--no-metadata", help="Write nothing into the pictures' files.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say count and time, and draw nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


PromptsArgument = Annotated[
    list[str], typer.Argument(help="What to draw; - reads prompts from standard input.")
]
FromFileOption = Annotated[
    Path | None, typer.Option("--from-file", help="Prompts, one a line, or JSONL with settings of their own.")
]
SkipBadLinesOption = Annotated[
    bool, typer.Option("--skip-bad-lines", help="Go on without lines that cannot be used.")
]
FromImageOption = Annotated[
    Path | None, typer.Option("--from-image", help="Draw a picture of clipgraft's again, to the bit.")
]
GridOption = Annotated[bool, typer.Option("--grid", help="Put all pictures on one sheet, grid.png.")]
ReferenceOption = Annotated[
    bool, typer.Option("--reference", help="Stable Diffusion's own scheduler and steps: pndm, 50.")
]
CompareOption = Annotated[
    bool, typer.Option("--compare", help="Draw with and without what changes the picture; PSNR, SSIM.")
]
PreviewOption = Annotated[
    int, typer.Option("--preview-every", min=0, help="Steps between writes of preview.png; 0 = none.")
]

BESIDE_FROM_IMAGE = {
    *("out", "prompts", "from_image", "graft", "base", "init_image", "engine", "lora", "device", "offload"),
    *("no_metadata", "dry_run", "as_json"),
}
"""Parameters of `generate` that have an effect where the picture says all others."""


def generate(
    ctx: typer.Context,
    out: OutOption,
    prompts: PromptsArgument = [],  # noqa: B006  (typer copies it)
    from_file: FromFileOption = None,
    skip_bad_lines: SkipBadLinesOption = False,
    from_image: FromImageOption = None,
    graft: GraftOption = None,
    base: BaseOption = "",
    negative_prompt: NegativeOption = "",
    seed: SeedOption = 0,
    num_images: NumImagesOption = 1,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    scheduler: SchedulerOption = "dpm++",
    height: HeightOption = 0,
    width: WidthOption = 0,
    init_image: InitImageOption = None,
    strength: StrengthOption = 0.8,
    batch_size: BatchOption = 4,
    grid: GridOption = False,
    reference: ReferenceOption = False,
    engine: EngineOption = "auto",
    compile: CompileOption = False,
    guidance_interval: IntervalOption = (0.0, 1.0),
    feature_cache: FeatureCacheOption = 1,
    lora: LoraOption = "",
    compare: CompareOption = False,
    preview_every: PreviewOption = 0,
    device: DeviceOption = "auto",
    offload: OffloadOption = "none",
    no_metadata: NoMetadataOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw pictures from prompts with a graft, or with a base's own text encoder."""
    from clipgraft.generation.engines.options import SpeedOptions

    if from_image and prompts:
        raise UserError("--from-image takes prompt and settings from the picture; leave prompts out")
    _refuse_without_effect(ctx)
    if reference:
        scheduler, steps = "pndm", 50
    options = _options(base, device, offload, batch_size, no_metadata, dry_run, as_json)
    speed = SpeedOptions(engine, compile, guidance_interval, feature_cache, lora)
    options = replace(options, speed=speed, preview_every=preview_every, with_estimate=dry_run)
    if from_image:
        from clipgraft.generation.reproduce import redraw

        _draw(lambda: redraw(from_image, graft, out, options, init_image), out, as_json)
    else:
        settings = _settings(negative_prompt, steps, guidance_scale, scheduler, height, width)
        settings |= {"seed": seed, "num_images": num_images, "init_image": init_image, "strength": strength}
        jobs = _jobs(prompts, from_file, settings, skip_bad_lines)
        _draw(lambda: _generate(jobs, graft, out, options, grid, compare), out, as_json)


def grid(
    out: OutOption,
    prompts: Annotated[list[str], typer.Argument(help="What to draw; several are an axis.")] = [],  # noqa: B006
    axis: Annotated[
        list[str],
        typer.Option(
            "--axis",
            metavar="NAME=VALUES",
            help="seed=0-7, guidance=1,3,7.5, steps=10,25, scheduler=dpm++,ddim, graft=NAME=FOLDER,teacher, "
            "or prompt=A|B. The first goes across, the second down.",
        ),
    ] = [],  # noqa: B006
    graft: GraftOption = None,
    base: BaseOption = "",
    negative_prompt: NegativeOption = "",
    seed: SeedOption = 0,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    scheduler: SchedulerOption = "dpm++",
    height: HeightOption = 0,
    width: WidthOption = 0,
    batch_size: BatchOption = 4,
    device: DeviceOption = "auto",
    offload: OffloadOption = "none",
    no_metadata: NoMetadataOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw every combination of named axes as a labelled grid; count and time are said first."""
    from clipgraft.generation.grid import Axis, draw_grid, parse_axis

    axes = [parse_axis(text) for text in axis]
    if len(prompts) > 1:
        axes.append(Axis("prompt", tuple(prompts), tuple(prompts)))
    settings = _settings(negative_prompt, steps, guidance_scale, scheduler, height, width) | {"seed": seed}
    if len(prompts) == 1:
        settings["prompt"] = prompts[0]
    options = _options(base, device, offload, batch_size, no_metadata, dry_run, as_json)
    title = prompts[0] if len(prompts) == 1 else "Grid"
    _draw(lambda: draw_grid(axes, settings, out, options, graft=graft, title=title), out, as_json)


def compare(
    prompts: Annotated[list[str], typer.Argument(help="What to draw.")],
    out: OutOption,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Folder of a run: teacher, before, after and refined, as far as there."),
    ] = None,
    graft: Annotated[
        list[str],
        typer.Option("--graft", metavar="NAME=FOLDER", help="One more column; teacher = the base's own."),
    ] = [],  # noqa: B006
    base: BaseOption = "",
    negative_prompt: NegativeOption = "",
    seed: SeedOption = 0,
    num_images: NumImagesOption = 1,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    scheduler: SchedulerOption = "dpm++",
    height: HeightOption = 0,
    width: WidthOption = 0,
    batch_size: BatchOption = 4,
    device: DeviceOption = "auto",
    offload: OffloadOption = "none",
    no_metadata: NoMetadataOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw the same prompts and seeds with several text encoders, side by side on one labelled sheet."""
    from clipgraft.generation.compare import compare as stage
    from clipgraft.generation.compare import encoders_of_run
    from clipgraft.generation.grid import parse_encoders

    encoders = (encoders_of_run(run) if run else {}) | parse_encoders(graft)
    settings = _settings(negative_prompt, steps, guidance_scale, scheduler, height, width)
    options = _options(base, device, offload, batch_size, no_metadata, dry_run, as_json)
    _draw(lambda: stage(prompts, seed, num_images, encoders, settings, out, options), out, as_json)


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this module."""
    for command in (generate, grid, compare):
        app.command()(command)


def _refuse_without_effect(ctx: typer.Context) -> None:
    """Refuse options of `generate` that another one makes idle, rather than leave them out in silence."""
    given = {
        str(parameter.name): parameter.opts[0]
        for parameter in ctx.command.params
        if getattr(ctx.get_parameter_source(str(parameter.name)), "name", "") == "COMMANDLINE"
    }
    idle_beside = {
        "from_image": given.keys() - BESIDE_FROM_IMAGE,
        "reference": {"scheduler", "steps"},
        "compare": {"grid"},
    }
    for flag, idle in idle_beside.items():
        options = [option for name, option in given.items() if name in idle]
        if ctx.params[flag] and options:
            raise UserError(f"without effect beside {given[flag]}: {', '.join(options)}; leave it out")


def _jobs(
    prompts: list[str], from_file: Path | None, settings: dict[str, Any], skip_bad_lines: bool
) -> list["Job"]:
    from clipgraft.console import say
    from clipgraft.generation.params import make_jobs
    from clipgraft.generation.prompt_files import STANDARD_INPUT, read_jobs

    jobs = [job for prompt in prompts if prompt != "-" for job in make_jobs(prompt, **settings)]
    sources = [from_file] if from_file else []
    for source in [*sources, *[STANDARD_INPUT] * ("-" in prompts)]:
        read, skipped = read_jobs(source, settings, skip_bad_lines=skip_bad_lines)
        jobs += read
        for problem in skipped:
            say(f"left out: {problem}")
    if not jobs:
        raise UserError("no prompt to draw; give at least one text, or --from-file")
    return jobs


def _generate(
    jobs: list["Job"],
    graft: Path | None,
    out: Path,
    options: "DrawOptions",
    with_grid: bool,
    with_comparison: bool,
) -> list[dict[str, Any]]:
    from clipgraft.evaluation.shortcuts import compare_shortcuts
    from clipgraft.generation.generate import generate as stage
    from clipgraft.generation.grid import write_grid

    encoders = {"graft" if graft else "teacher": graft}
    if with_comparison:
        return compare_shortcuts(jobs, encoders, out, options)
    rows = stage(jobs, encoders, out, options)
    if with_grid and rows:
        write_grid(jobs, rows, out, options)
    return rows


def _settings(
    negative_prompt: str,
    steps: int | None,
    guidance_scale: float | None,
    scheduler: str,
    height: int,
    width: int,
) -> dict[str, Any]:
    return {
        "negative_prompt": negative_prompt,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "scheduler": scheduler,
        "height": height,
        "width": width,
    }


def _options(
    base: str, device: str, offload: str, batch_size: int, no_metadata: bool, dry_run: bool, as_json: bool
) -> "DrawOptions":
    from clipgraft.generation.generate import DrawOptions

    return DrawOptions(
        base=base,
        device=device,
        offload=offload,
        batch_size=batch_size,
        with_metadata=not no_metadata,
        with_estimate=True,
        is_dry_run=dry_run,
        is_quiet=as_json,
    )


def _draw(draw: Callable[[], list[dict[str, Any]]], out: Path, as_json: bool) -> None:
    """Draw, and print the rows for machines, after Ctrl-C too; exit code 2 where a picture is none."""
    from clipgraft.generation.generate import Stopped

    try:
        rows = draw()
    except KeyboardInterrupt as stop:
        if as_json:
            _print_json(stop.rows if isinstance(stop, Stopped) else [], out)
        raise
    if as_json:
        _print_json(rows, out)
    if any(row["status"] != "ok" for row in rows):
        raise typer.Exit(2)


def _print_json(rows: list[dict[str, Any]], out: Path) -> None:
    """One object, from the first of several processes alone."""
    from collections import Counter

    from clipgraft.files import to_json
    from clipgraft.generation.generate import process_rank

    if process_rank() == 0:
        counts = Counter(row["status"] for row in rows)
        sys.stdout.write(to_json({"out": str(out), "counts": dict(counts), "pictures": rows}) + "\n")
