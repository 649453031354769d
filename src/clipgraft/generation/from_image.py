"""Images from the settings in a file, clipgraft's own or another tool's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipgraft.console import print_line, say
from clipgraft.errors import DataError
from clipgraft.generation.foreign.a1111_infotext import read_infotext
from clipgraft.generation.foreign.comfyui_graph import read_comfyui
from clipgraft.generation.foreign.foreign_settings import ForeignSettings
from clipgraft.generation.foreign.invokeai_metadata import read_invokeai
from clipgraft.generation.foreign.novelai_comment import read_novelai
from clipgraft.generation.generate import GenerateOptions, generate
from clipgraft.generation.image_encoding import PARAMETERS_KEY, RECORD_KEY, read_image_texts
from clipgraft.generation.image_folder import ImageRow
from clipgraft.generation.metadata import parse_record
from clipgraft.generation.reproduce import reproduce
from clipgraft.sampling_params import DEFAULT_SAMPLING, SamplingParams

MAX_LINE = 300
"""Characters of a setting that is printed."""


def generate_from_image(
    path: Path,
    graft: Path | None,
    out_dir: Path,
    options: GenerateOptions,
    given: SamplingParams = DEFAULT_SAMPLING,
) -> list[ImageRow]:
    """Generate an image from the settings in a file.

    Args:
        path: A PNG, JPEG or WebP file: of clipgraft's, which is reproduced to the bit; or of A1111, Forge,
            ComfyUI, InvokeAI or NovelAI, from whose settings an image is generated as near as can be, with a
            line for each that was read, and for each that was not.
        graft: Folder of a graft; None for the base's own text encoder.
        out_dir: Gets the image.
        options: Base and device; in a dry run the settings are printed alone.
        given: Names files that the settings need, such as `init_image`.

    Returns:
        Its row of `images.json`; none in a dry run.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If it holds no settings, or damaged ones.
        UserError: As `reproduce` and `generate`.
    """
    texts, _ = read_image_texts(path)
    if RECORD_KEY in texts:
        if options.is_dry_run:
            _print(path, "clipgraft", parse_record(texts[RECORD_KEY], path)["job"], options)
        return reproduce(path, graft, out_dir, options, given)
    settings = _foreign(texts, path)
    if graft and settings.values.pop("clip_skip", 0):
        settings.unread.append("clip skip; a graft has no such layers")
    request = settings.request(given)
    _print(path, settings.tool, {"prompt": request.prompt} | settings.values, options)
    for line in settings.unread:
        say(f"not read: {_line(line)}")
    if options.is_dry_run:
        return []
    say(f"the image is generated as near as that allows; it will not equal {path.name}")
    return generate([request], {"graft" if graft else "teacher": graft}, out_dir, options)


def read_foreign(texts: Mapping[str, str]) -> ForeignSettings | None:
    """Read another tool's settings from an image's texts, if there are any.

    Raises:
        DataError: If they are damaged.
    """
    found = read_infotext(texts.get(PARAMETERS_KEY, ""))
    return found or read_invokeai(texts) or read_novelai(texts) or read_comfyui(texts)


def _foreign(texts: Mapping[str, str], path: Path) -> ForeignSettings:
    """Read another tool's settings; DataErrors name the image."""
    try:
        found = read_foreign(texts)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if found is None:
        raise DataError(
            f"{path}: holds no record of its generation: neither clipgraft's nor settings of A1111, Forge, "
            "ComfyUI, InvokeAI or NovelAI; they are lost where a file was saved anew or its metadata removed"
        )
    return found


def _print(path: Path, tool: str, values: Mapping[str, Any], options: GenerateOptions) -> None:
    """Print settings, a line each."""
    write = say if options.is_quiet else print_line
    write(f"settings of {path.name}, by {tool}:")
    for name, value in values.items():
        if value not in ("", None):
            write(f"  {name}: {_line(str(value))}")


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}… ({len(text):,} characters)"
