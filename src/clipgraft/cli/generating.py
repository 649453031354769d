"""The commands generate, grid and compare."""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipgraft.cli.imports import importing
from clipgraft.cli.options import SafetyCheckerOption, by_panel
from clipgraft.errors import UserError

if TYPE_CHECKING:
    from clipgraft.generation.generate import GenerateOptions
    from clipgraft.generation.image_folder import ImageRow
    from clipgraft.generation.requests import ImageRequest
    from clipgraft.sampling_params import SamplingParams

SAMPLING: dict[str, tuple[Any, str, str]] = {
    "negative_prompt": (str, "--negative-prompt", "What the images are not to show."),
    "seed": (str, "--seed", "Seed of each prompt's first image; -1 or random: any."),
    "num_images_per_prompt": (int, "--num-images", "Images per prompt; seeds count up."),
    "num_inference_steps": (int, "--steps", "Denoising steps; default: the base's own."),
    "guidance_scale": (float, "--guidance-scale", "Guidance scale (CFG), 1 = off; default: the base's own."),
    "scheduler": (
        str,
        "--scheduler",
        "dpm++, euler-a, ... or A1111's name of a sampler (docs/generation.md).",
    ),
    "height": (int, "--height", "Pixels; default: the base's own."),
    "width": (int, "--width", "Pixels; default: the base's own."),
    "prompt_syntax": (str, "--prompt-syntax", r"plain, or weighted: (word:1.3), \[word], BREAK."),
    "long_prompts": (str, "--long-prompts", "Beyond 77 tokens: chunk (encoded apart) or cut."),
    "clip_skip": (int, "--clip-skip", "Last layers left out of a base's own text encoder."),
    "embeddings": (list[str], "--embedding", "Textual inversion file; prompts name its word; repeatable."),
    "init_image": (Path, "--init-image", "Image to start from, cropped to height and width."),
    "mask_image": (Path, "--mask", "Mask of the same size: white is repainted, black is kept."),
    "strength": (float, "--strength", "Share of the steps that change --init-image."),
    "controls": (
        list[str],
        "--control",
        "ControlNet: MODEL=IMAGE, with @SCALE or @SCALE:START-END; repeatable.",
    ),
    "ip_adapters": (list[str], "--ip-adapter", "IP-Adapter: MODEL=IMAGE, with @SCALE if not 1; repeatable."),
    "loras": (list[str], "--lora", "LoRA: FILE[:STRENGTH[:TEXT_STRENGTH]]; repeatable."),
    "lora_dir": (Path, "--lora-dir", "Folder of the LoRAs that weighted prompts name: <lora:NAME:0.8>."),
    "embedding_dir": (Path, "--embedding-dir", "Folder of the embeddings that prompts name by file name."),
    "dynamic_prompts": (bool, "--dynamic-prompts", "Draw one of {a|b} in each prompt, by its seed."),
    "wildcards": (Path, "--wildcards", "Folder: __name__ is a line of its name.txt; also draws {a|b}."),
}
"""Type, flag and help for each field of `SamplingParams`, which has the defaults."""
EXECUTION: dict[str, tuple[Any, str, str, Any]] = {
    "base": (str, "--base", "Base, if not the one that the graft names.", ""),
    "vae": (str, "--vae", "VAE in place of the base's: file, folder or hub id; TAESD too.", ""),
    "batch_size": (int, "--batch-size", "Images at once; halved if memory does not suffice.", 4),
    "device": (str, "--device", "auto, cpu, cuda or mps.", "auto"),
    "offload": (str, "--offload", "For a small CUDA GPU: model, or sequential (least memory).", "none"),
    "image_format": (str, "--format", "png, jpeg, or webp (without loss), with the settings inside.", "png"),
    "no_metadata": (bool, "--no-metadata", "Write no metadata into the images.", False),
    "dry_run": (bool, "--dry-run", "Print the number of images and steps, generate nothing.", False),
    "as_json": (bool, "--json", "Print one JSON object for machines.", False),
}
"""Type, flag, help and default of execution options."""

OutOption = Annotated[Path, typer.Option("--out", help="Folder for the images.")]
FromFileOption = Annotated[
    Path | None,
    typer.Option("--from-file", help="Prompts: text, JSON, CSV or TSV, with parameters of their own."),
]
EngineOption = Annotated[
    str, typer.Option("--engine", help="auto (the faster), torch or openvino. Same image up to rounding.")
]
QuantizeOption = Annotated[
    str, typer.Option("--quantize", help="int8: the U-Net in INT8, calibrated on the first prompts.")
]
GraftOption = Annotated[
    Path | None, typer.Option("--graft", help="Graft folder; without it the base's own text encoder.")
]
Command = Callable[..., None]


def sampling_options(*, without: str = "") -> Callable[[Command], Command]:
    """Add sampling and execution options to a command.

    The command takes `params: SamplingParams` and `options: GenerateOptions`; the command line has an option
    for each field but `without`.
    """
    sampling = {name: option for name, option in SAMPLING.items() if name != without}

    def decorate(command: Command) -> Command:
        def run(**given: Any) -> None:
            from clipgraft.sampling_params import SamplingParams

            chosen = {name: given.pop(name) for name in sampling}
            params = {name: value for name, value in chosen.items() if value is not None}
            if "seed" in params and re.fullmatch(r"-?\d+", params["seed"]):
                params["seed"] = int(params["seed"])
            execution = {name: given.pop(name) for name in EXECUTION}
            command(params=SamplingParams.build(params), options=_options(**execution), **given)

        own = inspect.signature(command).parameters.values()
        parameters = [each for each in own if each.name not in ("params", "options")]
        parameters += [
            _parameter(name, kind | None, flag, help_, None) for name, (kind, flag, help_) in sampling.items()
        ]
        parameters += [_parameter(name, *option) for name, option in EXECUTION.items()]
        keyword = by_panel(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters)
        run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in keyword}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _parameter(name: str, kind: Any, flag: str, help_: str, default: Any) -> inspect.Parameter:
    annotation = Annotated[kind, typer.Option(flag, help=help_)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


BESIDE_FROM_IMAGE = {
    *("out", "prompts", "from_image", "graft", "base", "vae", "engine", "device", "offload"),
    *("init_image", "mask_image", "controls", "ip_adapters", "safety_checker"),
    *("loras", "lora_dir", "embeddings", "embedding_dir", "no_metadata", "dry_run", "as_json"),
}
"""Parameters of `generate` with an effect beside --from-image."""


@sampling_options()
def generate(
    ctx: typer.Context,
    out: OutOption,
    params: "SamplingParams",
    options: "GenerateOptions",
    prompts: Annotated[
        list[str], typer.Argument(help="What to generate; - reads prompts from standard input.")
    ] = [],  # noqa: B006  (typer copies it)
    from_file: FromFileOption = None,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Go on without lines that cannot be used.")
    ] = False,
    from_image: Annotated[
        Path | None,
        typer.Option("--from-image", help="Image to reproduce: clipgraft's to the bit, other tools' nearly."),
    ] = None,
    graft: GraftOption = None,
    grid: Annotated[bool, typer.Option("--grid", help="Put all images on one sheet, grid.png.")] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Stable Diffusion's own scheduler and steps: pndm, 50.")
    ] = False,
    engine: EngineOption = "auto",
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile torch's networks first: pays after many images.")
    ] = False,
    guidance_interval: Annotated[
        tuple[float, float],
        typer.Option("--guidance-interval", help="Guide only between these shares of the steps."),
    ] = (0.0, 1.0),
    feature_cache: Annotated[
        int, typer.Option("--feature-cache", help="Run the whole U-Net only every N steps.")
    ] = 1,
    quantize: QuantizeOption = "none",
    safety_checker: SafetyCheckerOption = "auto",
    preview_every: Annotated[
        int, typer.Option("--preview-every", min=0, help="Steps between writes of preview.png; 0 = none.")
    ] = 0,
) -> None:
    """Generate images from prompts, with a graft or the base's encoder."""
    from dataclasses import replace

    from clipgraft.sampling_params import SamplingParams

    if from_image and prompts:
        raise UserError("--from-image takes prompt and parameters from the image; leave prompts out")
    _refuse_without_effect(ctx)
    if reference:
        params = SamplingParams.of(params, scheduler="pndm", num_inference_steps=50)
    given = {"engine": engine, "compile": compile, "guidance_interval": guidance_interval}
    given |= {"feature_cache": feature_cache, "quantize": quantize, "safety_checker": safety_checker}
    own = options.inference.updated(given)
    options = replace(options, inference=own, preview_every=preview_every, with_count=options.is_dry_run)
    if from_image:
        from clipgraft.generation.from_image import generate_from_image

        _run(lambda: generate_from_image(from_image, graft, out, options, params), out, options)
    else:
        requests = _requests(prompts, from_file, params, skip_bad_lines)
        _run(lambda: _generate(requests, graft, out, options, grid), out, options)


@sampling_options(without="num_images_per_prompt")
def grid(
    out: OutOption,
    params: "SamplingParams",
    options: "GenerateOptions",
    prompts: Annotated[list[str], typer.Argument(help="What to generate; several are an axis.")] = [],  # noqa: B006
    axis: Annotated[
        list[str],
        typer.Option(
            "--axis",
            metavar="NAME=VALUES",
            help="seed=0-7, guidance=1,3,7.5, steps=10,25, scheduler=dpm++,ddim, lora=none,FILE:0.5, "
            "graft=NAME=FOLDER,teacher, or prompt=A|B. The first goes across, the second down.",
        ),
    ] = [],  # noqa: B006
    graft: GraftOption = None,
) -> None:
    """Generate every combination of named axes as a labelled grid."""
    from clipgraft.generation.grid import Axis, generate_grid, parse_axis

    axes = [parse_axis(text) for text in axis]
    if len(prompts) > 1:
        axes.append(Axis("prompt", tuple(prompts), tuple(prompts)))
    prompt = prompts[0] if len(prompts) == 1 else None
    title = prompt or "Grid"
    _run(
        lambda: generate_grid(axes, params, out, options, prompt=prompt, graft=graft, title=title),
        out,
        options,
    )


@sampling_options()
def compare(
    prompts: Annotated[list[str], typer.Argument(help="What to generate.")],
    out: OutOption,
    params: "SamplingParams",
    options: "GenerateOptions",
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", help="Folder of a run: teacher, before, after, refined and distilled, if there."
        ),
    ] = None,
    graft: Annotated[
        list[str],
        typer.Option("--graft", metavar="NAME=FOLDER", help="One more variant; teacher = the base's own."),
    ] = [],  # noqa: B006
) -> None:
    """Compare text encoders on the same prompts and seeds, on one sheet."""
    from clipgraft.generation.grid import compare as generate_comparison
    from clipgraft.generation.grid import parse_encoders
    from clipgraft.runs.run import Run

    encoders = (Run.open(run).variants() if run else {}) | parse_encoders(graft)
    _run(lambda: generate_comparison(prompts, params, encoders, out, options), out, options)


def add_commands(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (generate, grid, compare):
        app.command(rich_help_panel="Generate")(command)


def _options(*, vae: str, no_metadata: bool, dry_run: bool, as_json: bool, **same: Any) -> "GenerateOptions":
    """Make options of `EXECUTION`; those in `same` have the names of the fields."""
    with importing():
        from clipgraft.generation.generate import GenerateOptions
    from clipgraft.sampling_params import InferenceConfig

    return GenerateOptions(
        **same,
        inference=InferenceConfig.build({"vae": vae}),
        with_metadata=not no_metadata,
        with_count=True,
        is_dry_run=dry_run,
        is_quiet=as_json,
    )


def _refuse_without_effect(ctx: typer.Context) -> None:
    """Refuse options of `generate` made ineffective by another one."""
    given = {
        str(parameter.name): parameter.opts[0]
        for parameter in ctx.command.params
        if getattr(ctx.get_parameter_source(str(parameter.name)), "name", "") == "COMMANDLINE"
    }
    idle_beside = {
        "from_image": given.keys() - BESIDE_FROM_IMAGE,
        "reference": {"scheduler", "num_inference_steps"},
    }
    for flag, idle in idle_beside.items():
        options = [option for name, option in given.items() if name in idle]
        if ctx.params[flag] and options:
            raise UserError(f"without effect beside {given[flag]}: {', '.join(options)}; leave it out")


def _requests(
    prompts: list[str], from_file: Path | None, params: "SamplingParams", skip_bad_lines: bool
) -> list["ImageRequest"]:
    from clipgraft.console import say
    from clipgraft.generation.prompt_files import STANDARD_INPUT, read_requests
    from clipgraft.generation.requests import image_requests

    requests = image_requests([prompt for prompt in prompts if prompt != "-"], params)
    sources = [from_file] if from_file else []
    for source in [*sources, *[STANDARD_INPUT] * ("-" in prompts)]:
        read, skipped = read_requests(source, params, skip_bad_lines=skip_bad_lines)
        requests += read
        for problem in skipped:
            say(f"skipped: {problem}")
    if not requests:
        raise UserError("no prompt; give at least one text, or --from-file")
    return requests


def _generate(
    requests: list["ImageRequest"], graft: Path | None, out: Path, options: "GenerateOptions", with_grid: bool
) -> list["ImageRow"]:
    from clipgraft.generation.generate import generate as generate_images
    from clipgraft.generation.grid import write_grid

    rows = generate_images(requests, {"graft" if graft else "teacher": graft}, out, options)
    if with_grid and rows:
        write_grid(rows, out, options)
    return rows


def _run(work: Callable[[], list["ImageRow"]], out: Path, options: "GenerateOptions") -> None:
    """Generate, print JSON if asked; exit code 2 if an image failed."""
    from clipgraft.generation.generate import Stopped

    try:
        rows = work()
    except KeyboardInterrupt as stop:
        if options.is_quiet:
            _print_json(stop.rows if isinstance(stop, Stopped) else [], out)
        raise
    if options.is_quiet:
        _print_json(rows, out)
    if any(row.status != "ok" for row in rows):
        raise typer.Exit(2)


def _print_json(rows: list["ImageRow"], out: Path) -> None:
    """Print one object, only in the first of several processes."""
    from collections import Counter

    from clipgraft.console import is_first_process
    from clipgraft.files import to_json

    if is_first_process():
        counts = dict(Counter(row.status for row in rows))
        images = [row.model_dump(exclude_none=True) for row in rows]
        sys.stdout.write(to_json({"out": str(out), "counts": counts, "images": images}) + "\n")
