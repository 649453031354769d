"""Find a request's LoRAs and embeddings, record and match their checksums."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from clipgraft.errors import DataError, MissingFileError, UserError
from clipgraft.files import beside
from clipgraft.generation.embedding_files import Embeddings, embedding_path, read_embedding, words_pattern
from clipgraft.generation.lora_files import lora_path
from clipgraft.generation.request_files import file_checksum
from clipgraft.sampling_params import SamplingParams

TAG = re.compile(r"\s*<lora:(?P<name>[^:<>]+)(?P<weights>[^<>]*)>")
"""A LoRA in a prompt, as A1111 writes it: `<lora:NAME>`, `:BOTH`, `:TEXT:UNET`, `:te=TEXT`, `:unet=UNET`."""
MAX_NAMED = 5
FOLDERS = {"loras": "lora_dir", "embeddings": "embedding_dir"}
FLAGS = {"loras": ("a LoRA", "--lora"), "embeddings": ("an embedding", "--embedding")}


def read_tags(prompt: str, params: SamplingParams) -> tuple[str, SamplingParams]:
    """Take `<lora:NAME:STRENGTH>` out of a weighted prompt.

    Returns:
        The prompt without tags, and the parameters with their LoRAs, found in `lora_dir`.

    Raises:
        UserError: If `lora_dir` is missing, or a strength is no number.
        MissingFileError: If there is no such file.
    """
    tags = list(TAG.finditer(prompt)) if isinstance(prompt, str) else []
    if not tags:
        return prompt, params
    if not params.lora_dir:
        raise UserError(f"prompt: {tags[0][0].strip()!r} needs the folder of its file: lora_dir (--lora-dir)")
    named = [
        {"file": find_lora(Path(params.lora_dir), tag["name"].strip()), **_strengths(tag)} for tag in tags
    ]
    return TAG.sub("", prompt).strip(), SamplingParams.of(params, loras=[*params.loras, *named])


class EmbeddingFolder:
    """Embeddings that prompts name by their files' names.

    Args:
        folder: Looked through once, with its subfolders.

    Raises:
        MissingFileError: If there is no such folder.
    """

    def __init__(self, folder: str) -> None:
        if not Path(folder).is_dir():
            raise MissingFileError(f"no folder {folder}; name one with embeddings (embedding_dir)")
        self.folder = folder
        self._files: dict[str, list[Path]] = {}
        for path in safetensors_below(Path(folder)):
            self._files.setdefault(path.stem.lower(), []).append(path)
        self._pattern = words_pattern(self._files)

    def added(self, prompt: str, params: SamplingParams) -> SamplingParams:
        """Add the embeddings that a prompt or its negative names.

        Raises:
            DataError: If a word that is named has several files.
        """
        texts = (prompt, params.negative_prompt)
        named = dict.fromkeys(found[0].lower() for text in texts for found in self._pattern.finditer(text))
        for word in named:
            if len(self._files[word]) > 1:
                first, second, *_ = self._files[word]
                raise DataError(
                    f"{self.folder} has several embeddings {word!r}: {first}, {second}; rename one"
                )
        given = {each.file for each in params.embeddings}
        found = [file for word in named if (file := str(self._files[word][0])) not in given]
        return SamplingParams.of(params, embeddings=[*params.embeddings, *found])


def safetensors_below(folder: Path) -> list[Path]:
    """Return the `.safetensors` files of a folder and its subfolders, whatever their case."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() == ".safetensors")
    return sorted(path for path in found if path.is_file())


def check_lora_dir(folder: Path) -> None:
    """Raise MissingFileError if a folder of LoRAs is not there."""
    if not folder.is_dir():
        raise MissingFileError(f"no folder {folder}; name one with LoRAs (lora_dir)")


def find_lora(folder: Path, name: str) -> Path:
    """Return the file of a LoRA in a folder or its subfolders.

    Raises:
        MissingFileError: If no file has that name; says which names are near.
        DataError: If there are several.
    """
    check_lora_dir(folder)
    files = {path: path.stem for path in safetensors_below(folder)}
    found = [path for path, stem in files.items() if stem == name]
    found = found or [path for path, stem in files.items() if stem.casefold() == name.casefold()]
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


def adapters_beside(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a row's files of models, relative to its file's folder."""
    found: dict[str, Any] = {}
    for name in FLAGS:
        given = values.get(name)
        given = [given] if isinstance(given, str) else given
        if isinstance(given, list):
            found[name] = [_beside(each, folder) for each in given]
    for name in FOLDERS.values():
        if isinstance(values.get(name), str):
            found[name] = beside(folder, values[name])
    return found


def _beside(given: Any, folder: Path) -> Any:
    if isinstance(given, str):
        return beside(folder, given)
    if isinstance(given, dict) and isinstance(given.get("file"), str):
        return given | {"file": beside(folder, given["file"])}
    return given


def check_adapters(params: SamplingParams) -> None:
    """Refuse unusable LoRAs and embeddings before a base is loaded."""
    for lora in params.loras:
        lora_path(Path(lora.file))
    Embeddings(params.embeddings)


class _Recorded(BaseModel):
    """A LoRA or an embedding of an image."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str
    sha256: str
    strength: float = 1.0
    text_strength: float = 1.0


_RECORDED = TypeAdapter(list[_Recorded])


def adapter_record(params: SamplingParams) -> dict[str, Any]:
    """Return names and checksums of LoRAs and embeddings, and LoRAs' strengths."""
    loras = [
        {
            "name": Path(lora.file).stem,
            "sha256": file_checksum(lora_path(Path(lora.file))),
            "strength": lora.strengths["unet"],
            "text_strength": lora.strengths["text_encoder"],
        }
        for lora in params.loras
    ]
    embeddings = [
        {"name": _words(each.file), "sha256": file_checksum(Path(each.file))} for each in params.embeddings
    ]
    found = {"loras": loras, "embeddings": embeddings}
    return {name: entries for name, entries in found.items() if entries}


def _words(file: str) -> str:
    return ", ".join(read_embedding(Path(file)))


def adapters_of(record: Mapping[str, Any], given: SamplingParams) -> dict[str, Any]:
    """Return LoRAs and embeddings for a record, each with the recorded checksum.

    Args:
        record: Of the image to reproduce.
        given: Names the files in any order, or the folders that have them.

    Raises:
        DataError: If a file is missing, one too many, or another one, or the record is damaged.
    """
    files = {file_checksum(lora_path(Path(lora.file))): lora.file for lora in given.loras}
    loras = [
        {"file": file, "strength": each.strength, "text_strength": each.text_strength}
        for each, file in _matched("loras", record, files, given)
    ]
    files = {file_checksum(embedding_path(Path(each.file))): each.file for each in given.embeddings}
    embeddings = []
    for each, file in _matched("embeddings", record, files, given):
        if _words(file) != each.name:
            raise DataError(f"{file} has to be called {each.name}.safetensors, as the prompt names it")
        embeddings.append({"file": file})
    return {"loras": loras, "embeddings": embeddings}


def _matched(
    kind: str, record: Mapping[str, Any], files: Mapping[str, str], given: SamplingParams
) -> list[tuple[_Recorded, str]]:
    """Return what is recorded, each with the file of its checksum."""
    what, flag = FLAGS[kind]
    try:
        recorded = _RECORDED.validate_python(record.get(kind, []))
    except ValidationError:
        raise DataError(f"the image's record is damaged: its {kind} cannot be read") from None
    if files and not recorded:
        raise DataError(f"that image was made without {what}; leave {flag} out")
    matched = []
    for each in recorded:
        file = files.get(each.sha256) or _in_folder(getattr(given, FOLDERS[kind]), each)
        if not file:
            raise DataError(
                f"that image was made with {what} {each.name!r} (sha256 {each.sha256[:10]}); name its file "
                f"with {flag}, or its folder with {flag}-dir"
            )
        matched.append((each, file))
    for found, file in files.items():
        if found not in {each.sha256 for each in recorded}:
            raise DataError(f"that image was made without {flag} {file} (sha256 {found[:10]}); leave it out")
    return matched


def _in_folder(folder: str, recorded: _Recorded) -> str:
    paths = safetensors_below(Path(folder)) if folder else []
    named = (path for path in paths if path.stem == recorded.name)
    return next((str(path) for path in named if file_checksum(path) == recorded.sha256), "")
