"""LoRAs of a request: found by name, recorded as sums, given again."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipgraft.errors import DataError, MissingFileError, UserError
from clipgraft.generation.lora_files import lora_path
from clipgraft.generation.request_files import file_sum
from clipgraft.sampling_params import Lora, SamplingParams

TAG = re.compile(r"\s*<lora:(?P<name>[^:<>]+)(?P<weights>[^<>]*)>")
"""A LoRA in a prompt, as A1111 writes it: `<lora:NAME>`, `:BOTH`, `:TEXT:UNET`, `:te=TEXT`, `:unet=UNET`."""
MAX_NAMED = 5


def read_tags(prompt: str, params: SamplingParams) -> tuple[str, SamplingParams]:
    """Take `<lora:NAME:STRENGTH>` out of a weighted prompt.

    Returns:
        The prompt without tags, and the parameters with their LoRAs, found in `lora_dir`.

    Raises:
        UserError: If `lora_dir` is missing, or a strength is no number.
        MissingFileError: If there is no such file.
    """
    is_read = params.prompt_syntax == "weighted" and isinstance(prompt, str)
    tags = list(TAG.finditer(prompt)) if is_read else []
    if not tags:
        return prompt, params
    if not params.lora_dir:
        raise UserError(f"prompt: {tags[0][0].strip()!r} needs the folder of its file: lora_dir (--lora-dir)")
    named = [
        {"file": find_lora(Path(params.lora_dir), tag["name"].strip()), **_strengths(tag)} for tag in tags
    ]
    return TAG.sub("", prompt).strip(), SamplingParams.of(params, loras=[*params.loras, *named])


def find_lora(folder: Path, name: str) -> Path:
    """Return the file of a LoRA in a folder or its subfolders.

    Raises:
        MissingFileError: If there is none of that name; says which names are near.
        DataError: If there are several.
    """
    files = {path: path.stem for path in sorted(folder.rglob("*.safetensors"))}
    found = [path for path, stem in files.items() if stem == name]
    if not found:
        near = difflib.get_close_matches(name, sorted(set(files.values())), n=MAX_NAMED, cutoff=0.4)
        hint = f"; there are e.g. {', '.join(near)}" if near else ""
        raise MissingFileError(f"no LoRA {name!r} (.safetensors) in {folder}{hint}")
    if len(found) > 1:
        raise DataError(f"{folder} has several LoRAs {name!r}: {found[0]}, {found[1]}; rename one")
    return found[0]


def _strengths(tag: re.Match[str]) -> dict[str, float]:
    """Strengths of a tag: the text encoder's first."""
    words = [word.strip() for word in tag["weights"].split(":")[1:]]
    given = dict(zip(("te", "unet"), (word for word in words if "=" not in word), strict=False))
    given |= dict(word.split("=", 1) for word in words if "=" in word)
    if len([word for word in words if "=" not in word]) > 2 or given.keys() - {"te", "unet"}:
        raise UserError(
            f"prompt: {tag[0].strip()!r} has more than the strengths of text encoder and U-Net; write "
            "<lora:NAME:STRENGTH>"
        )
    try:
        numbers = {name: float(word) for name, word in given.items()}
    except ValueError:
        raise UserError(f"prompt: {tag[0].strip()!r} has a strength that is no number") from None
    text = numbers.get("te", 1.0)
    return {"strength": numbers.get("unet", text), "text_strength": text}


def check_adapters(params: SamplingParams) -> None:
    """Refuse LoRAs that are no files, before anything is loaded."""
    for lora in params.loras:
        lora_path(Path(lora.file))


def adapter_record(params: SamplingParams) -> dict[str, Any]:
    """Return name, sum and strengths of a request's LoRAs."""
    loras = [
        {
            "name": Path(lora.file).stem,
            "sha256": file_sum(lora_path(Path(lora.file))),
            "strength": lora.strengths["unet"],
            "text_strength": lora.strengths["text_encoder"],
        }
        for lora in params.loras
    ]
    return {"loras": loras} if loras else {}


def adapters_of(record: Mapping[str, Any], given: SamplingParams) -> dict[str, Any]:
    """Return the LoRAs for a record, each with the recorded sum.

    Args:
        record: Of the image to reproduce.
        given: Names the files, or the folder that has them.

    Raises:
        DataError: If a file is missing, one too many, or another one, or the record is damaged.
    """
    try:
        recorded = [
            (str(each["name"]), str(each["sha256"]), each["strength"], each["text_strength"])
            for each in record.get("loras", ())
        ]
    except (TypeError, KeyError) as error:
        raise DataError(f"the image's record is damaged: its LoRAs cannot be read ({error!r})") from None
    if given.loras and not recorded:
        raise DataError("that image was made without a LoRA; leave --lora out")
    files = {file_sum(lora_path(Path(lora.file))): lora.file for lora in given.loras}
    loras = []
    for name, expected, strength, text_strength in recorded:
        file = files.get(expected) or _in_folder(name, expected, given)
        if not file:
            raise DataError(_missing(name, expected, given.loras))
        loras.append({"file": file, "strength": strength, "text_strength": text_strength})
    for found, file in files.items():
        if found not in {expected for _, expected, *_ in recorded}:
            raise DataError(f"--lora {file} is none of the LoRAs of that image (its sha256 is {found[:10]})")
    return {"loras": loras}


def _in_folder(name: str, expected: str, given: SamplingParams) -> str:
    if not given.lora_dir:
        return ""
    paths = Path(given.lora_dir).rglob(f"{name}.safetensors") if re.fullmatch(r"[^*?\[\]/\\]+", name) else ()
    return next((str(path) for path in sorted(paths) if file_sum(path) == expected), "")


def _missing(name: str, expected: str, given: Sequence[Lora]) -> str:
    what = f"that image was made with the LoRA {name!r} (sha256 {expected[:10]})"
    if given:
        return f"{what}, which is none of the files named with --lora; name the right one"
    return f"{what}; name its file with --lora, or its folder with --lora-dir"
