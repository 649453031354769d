"""The command line and its exit codes.

Commands import heavy modules themselves, so that `--help` answers at once.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from clipgraft import __version__
from clipgraft.cli.evaluating import add_commands as add_measuring
from clipgraft.cli.exporting import add_commands as add_exporting
from clipgraft.cli.generating import add_commands as add_drawing
from clipgraft.cli.imports import importing
from clipgraft.cli.options import OnDamagedOption, OutOption, SafetyCheckerOption, SetOption
from clipgraft.cli.training import add_commands as add_training
from clipgraft.console import forgiving_output, print_line, print_table, say
from clipgraft.errors import UserError, is_user_error, one_line, printable

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit codes by the shell's convention; typer also uses the first."""
STOPPED = {INTERRUPTED: "stopped by Ctrl-C", TERMINATED: "stopped by SIGTERM"}


class Commands(TyperGroup):
    """Mends two things of typer's.

    It takes our EOFError for the end of input, and shows a flag with `<bool>`, as if it took a value.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError(f"unexpected end of a file: {error}") from error

    def get_params(self, ctx: Any) -> Any:
        return _without_types_of_flags(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command:
            _without_types_of_flags(command.get_params(ctx))
        return command


def _without_types_of_flags(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Fine-tune CLIP on captioned images and graft its text tower onto a frozen diffusion model.",
)
data_app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Check captioned images, pack them into shards, or draw the flatland8k dataset.",
)
app.add_typer(data_app, name="data", rich_help_panel="Data and this machine")

add_training(app)
add_drawing(app)
add_measuring(app)
add_exporting(app)


@data_app.command("check")
def data_check(
    source: Annotated[
        str, typer.Argument(help="Folder, file, pattern or URL of captioned images; none with data.sources.")
    ] = "",
    include_unsplit: Annotated[
        bool, typer.Option("--include-unsplit", help="Put images outside every split into train.")
    ] = False,
    on_damaged: OnDamagedOption = "",
    clip: Annotated[str, typer.Option("--clip", help="CLIP whose tokenizer counts tokens.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="FILE.html", help="Page of samples and findings.")
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option("--fix", metavar="OUT", help="New folder for a cleaned copy and a list of its changes."),
    ] = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Count images and captions; say what is odd, with its effect."""
    from clipgraft.config import recipe_with
    from clipgraft.data.check import check_with_progress
    from clipgraft.data.check_table import render
    from clipgraft.data.clean import refuse_place, write_cleaned
    from clipgraft.data.formats import load_dataset

    given = {
        "data.source": source,
        "data.include_unsplit": include_unsplit,
        "data.on_damaged": on_damaged,
    }
    data = recipe_with(None, set_, given).data
    if not (data.source or data.sources):
        raise UserError("name the folder, file or URL to check, or several with --set data.sources=[...]")
    dataset = load_dataset(data)
    if fix:
        refuse_place(fix, dataset)
    num_samples = None
    if sheet:
        from clipgraft.reporting.dataset_page import NUM_SAMPLES, check_place, write_page

        check_place(sheet)
        num_samples = NUM_SAMPLES
    check = check_with_progress(dataset, _load_tokenizer(clip) if clip else None, num_samples=num_samples)
    if as_json:
        typer.echo(check.to_json())
    else:
        print_table(render(check))
    if sheet:
        write_page(check, sheet)
        say(f"samples and findings: {sheet}")
    if fix:
        cleaned = write_cleaned(dataset, check, fix)
        say(f"{fix}: {cleaned}")


def _load_tokenizer(clip: str) -> Any:
    from clipgraft.device import quiet_libraries
    from clipgraft.models.clip import load_clip  # needs torch

    quiet_libraries()
    return load_clip(clip).tokenizer


@data_app.command("pack")
def data_pack(
    source: Annotated[str, typer.Argument(help="Folder, file, pattern or URL of captioned images.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    shard_size: Annotated[int, typer.Option(min=1, help="Most images of a shard.")] = 10_000,
    max_mb: Annotated[int, typer.Option(min=0, help="Megabytes after which a shard is full; 0 = any.")] = 0,
    on_damaged: OnDamagedOption = "",
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Pack captioned images into shards, with their captions and splits."""
    from clipgraft.config import recipe_with
    from clipgraft.data.pack import pack

    data = recipe_with(None, set_, {"data.source": source, "data.on_damaged": on_damaged}).data
    counts = pack(data, out, shard_size=shard_size, max_mb=max_mb)
    told = ", ".join(f"{number:,} {split}" for split, number in counts.items())
    print_line(f"{told} images in {len(list(out.glob('*.tar'))):,} shards: {out}")


@data_app.command("draw")
def data_draw(
    out: OutOption,
    seed: Annotated[int, typer.Option(help="Seed of the whole set.")] = 0,
    num_images: Annotated[int, typer.Option(min=8, help="Three quarters go to train.")] = 8000,
) -> None:
    """Draw flatland8k: images with five captions each, in Flickr8k's layout."""
    from clipgraft.data.formats import draw_data

    draw_data(out, seed=seed, num_images=num_images)


@app.command(rich_help_panel="Generate")
def studio(
    runs: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"),
    out: Annotated[Path | None, typer.Option("--out", help="Queue and images; default RUNS/studio.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of data sets that may be trained on from the page.")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option("--models", help="Folder with loras/, controlnets/, ip_adapters/ and embeddings/."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address; any but loopback needs --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 = a free one.")] = 8080,
    token: Annotated[bool, typer.Option("--token", help="Require a token, which is printed once.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    vae: Annotated[
        str, typer.Option("--vae", help="VAE in place of each base's own: file, folder or hub id.")
    ] = "",
    safety_checker: SafetyCheckerOption = "auto",
    public_url: Annotated[str, typer.Option(help="Its address behind a TLS proxy: https://HOST.")] = "",
) -> None:
    """Generate images and inspect runs in the browser or over HTTP."""
    from clipgraft.sampling_params import InferenceConfig

    try:
        with importing():
            from clipgraft.studio.server import serve
    except ModuleNotFoundError as error:
        raise UserError(f"the studio needs {error.name}; pip install 'clipgraft[app]'") from error
    home = out or runs / "studio"
    serve(
        runs,
        home,
        host=host,
        port=port,
        with_token=token,
        device=device,
        public_url=public_url,
        data_dir=data,
        models_dir=models,
        inference=InferenceConfig.build({"safety_checker": safety_checker, "vae": vae}),
    )


@app.command(rich_help_panel="Data and this machine")
def doctor() -> None:
    """Check this machine; print a fix for whatever is missing."""
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


def run_to_an_end(app: Callable[[], Any]) -> None:
    """Run an app that ends by `SystemExit`; print errors in one line.

    Exit codes: 0; 2 for user errors; 130 or 143 for signals; 1, with a traceback, for bugs.
    """
    with forgiving_output(), _ended_by_signals():
        handler = logging.StreamHandler()
        handler.setFormatter(_PlainFormatter("%(levelname)s: %(message)s"))
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # warns if it has no cache
        try:
            app()
        except SystemExit as end:  # of every finished command, even with failed images
            _end_process_group()
            if end.code in STOPPED:
                _end(STOPPED[end.code], end.code)
            raise
        except KeyboardInterrupt:
            _end(STOPPED[INTERRUPTED], INTERRUPTED)
        except Exception as error:
            _end_by(error)


def _end_by(error: Exception) -> None:
    """End with one line for user errors and stops, else a traceback."""
    exit_code = getattr(error, "exit_code", None)
    if "--debug" in sys.argv or not (exit_code or is_user_error(error)):
        raise error
    if exit_code:
        _end(f"{error}; go on with the same command and --resume", exit_code)
    advice = _cache_advice(error) if isinstance(error, OSError) else ""
    _end(f"error: {one_line(error)}{advice}", 2)


def _cache_advice(error: OSError) -> str:
    """Say how to move the cache, if that cannot be written."""
    if not error.filename or error.errno is None:
        return ""
    from clipgraft.cache import cache_dir

    try:
        place, cache = Path(os.fsdecode(error.filename)), cache_dir()
    except UserError:  # no home folder, so no cache
        return ""
    is_cache = place == cache or place in cache.parents or cache in place.parents
    return "; the cache cannot be kept there: set XDG_CACHE_HOME to a folder that can be written" * is_cache


class _PlainFormatter(logging.Formatter):
    """Escapes control characters of untrusted file names in warnings."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals unwind through every `finally`; ignored ones (nohup) stay ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    mine = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
    for number in mine:
        signal.signal(number, _stop)
    usual_hook, sys.unraisablehook = sys.unraisablehook, _send_again
    try:
        yield
    finally:
        sys.unraisablehook = usual_hook
        for number, handler in mine.items():
            signal.signal(number, handler)


def _stop(signal_number: int, _frame: FrameType | None) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and getattr(torch.__spec__, "_initializing", False):
        # An exception while torch is imported would abort the process; no folder is locked yet.
        os.write(2, f"{STOPPED[128 + signal_number]}\n".encode())
        os._exit(128 + signal_number)
    raise KeyboardInterrupt if signal_number == signal.SIGINT else SystemExit(TERMINATED)


def _send_again(lost: "sys.UnraisableHookArgs") -> None:
    """Send a signal again that came within a destructor.

    Python drops an exception that is raised there.
    """
    error = lost.exc_value
    if isinstance(error, KeyboardInterrupt):
        number = signal.SIGINT
    elif isinstance(error, SystemExit) and error.code == TERMINATED:
        number = signal.SIGTERM
    else:
        sys.__unraisablehook__(lost)
        return
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()  # after the destructor


def _end_process_group() -> None:
    # An open group may abort the process at exit.
    if "WORLD_SIZE" in os.environ:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def _end(message: str, exit_code: int) -> None:
    typer.echo(message, err=True)
    sys.exit(exit_code)


def main() -> None:
    """Entry point of the command line."""
    # Before its import, else transformers advises on torchvision, which is not needed.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for number, word in enumerate(sys.argv):
        option, _, value = word.partition("=")
        if option.startswith("--") and value.startswith("~/"):  # shells leave it
            sys.argv[number] = f"{option}={os.path.expanduser(value)}"
    run_to_an_end(app)
