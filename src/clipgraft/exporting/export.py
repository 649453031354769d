"""Export a graft or a distilled text encoder, with its card."""

from collections.abc import Sequence
from pathlib import Path

import torch

from clipgraft.console import print_line, say
from clipgraft.device import quiet_libraries
from clipgraft.errors import UserError
from clipgraft.exporting import cards
from clipgraft.exporting.checkpoint_file import build_checkpoint
from clipgraft.exporting.file_metadata import ModelFile
from clipgraft.exporting.graft_formats import write_bridge, write_graft_pipeline, write_prompt_embeds
from clipgraft.exporting.lora_file import build_lora, held_out_captions
from clipgraft.exporting.plain_pipeline import write_plain_pipeline
from clipgraft.exporting.word_embeddings import write_embeddings
from clipgraft.files import write_bytes
from clipgraft.models.graft import BASE_RECORD, Graft
from clipgraft.models.modelspec import write_model_file
from clipgraft.models.weights import write_folder_atomically
from clipgraft.runs.folder import RECIPE_NAME, refuse_inputs_within

GRAFT_FORMATS = ("diffusers", "prompt-embeds", "bridge")
DISTILLED_FORMATS = ("diffusers", "prompt-embeds", "checkpoint", "lora", "embeddings")
FORMATS = tuple(dict.fromkeys(GRAFT_FORMATS + DISTILLED_FORMATS))
ONE_FILE = ("checkpoint", "lora")
SUFFIX = ".safetensors"
DTYPES = {"": None, "fp16": torch.float16, "float32": torch.float32}
DEFAULT_RANK = 16


def export(
    graft: Graft | str | Path,
    out: str | Path,
    *,
    file_format: str = "diffusers",
    base: str = "",
    prompts: Sequence[str] = (),
    negative_prompt: str = "",
    dtype: str = "",
    rank: int = 0,
) -> Path:
    """Write a graft or a distilled text encoder for other tools.

    Args:
        graft: A graft or distilled text encoder, or its folder, or the one that holds `text_encoder/`.
        out: A folder; for checkpoint and lora a `.safetensors` file, whose card is beside it as `.md`. Gets
            all files or none; also returned.
        file_format: "diffusers" or "prompt-embeds"; of a graft alone "bridge"; of a distilled text encoder
            alone "checkpoint", "lora" or "embeddings".
        base: Present location of the base, if the format needs it; empty = the recorded one.
        prompts: For prompt-embeds; for lora, captions to measure its error on in place of held-out ones.
        negative_prompt: For prompt-embeds.
        dtype: "fp16" or "float32", for checkpoint and lora; empty = the base's own, of a LoRA float32.
        rank: Rank of a LoRA; 0 = 16.

    Raises:
        UserError: If the out folder or file holds something already, an option is missing or not allowed, or
            the format cannot hold the text encoder.
        CheckpointError: If the graft or its base is damaged, or the base is another one.
    """
    out = Path(out).expanduser()
    _check_options(file_format, prompts, dtype, rank)
    if negative_prompt and file_format != "prompt-embeds":
        raise UserError(f"--negative-prompt is for --format prompt-embeds; {file_format} encodes none")
    refuse_inputs_within(out, {"the graft": None if isinstance(graft, Graft) else graft, "--base": base})
    _refuse_existing(out, file_format)
    quiet_libraries()
    if not isinstance(graft, Graft):
        graft = Graft.from_pretrained(_encoder_folder(Path(graft).expanduser()))
    _check_kind(graft, file_format)
    if file_format == "checkpoint":
        file = build_checkpoint(graft, base, out.stem, DTYPES[dtype])
        _write_file(graft, file, cards.CHECKPOINT.format(name=out.name), out)
    elif file_format == "lora":
        captions = prompts or held_out_captions(graft)
        file, errors = build_lora(graft, base, out.stem, rank or DEFAULT_RANK, DTYPES[dtype], captions)
        for line in errors.lines():
            print_line(line)
        if errors.is_poor:
            say(
                "the words were learned outside the linear layers, so this LoRA has little of them at any "
                "rank; their vectors are --format embeddings, to be used alone or with it"
            )
        _write_file(graft, file, cards.lora_content(out.name, rank or DEFAULT_RANK, errors), out)
    else:
        with write_folder_atomically(out) as folder:
            _fill_folder(graft, file_format, base, prompts, negative_prompt, folder)
    return out


def _fill_folder(
    graft: Graft, file_format: str, base: str, prompts: Sequence[str], negative_prompt: str, folder: Path
) -> None:
    if file_format == "prompt-embeds":
        write_prompt_embeds(graft, prompts, negative_prompt, folder)
        content = cards.PROMPT_EMBEDS
    elif file_format == "bridge":
        write_bridge(graft, folder)
        content = cards.BRIDGE
    elif file_format == "embeddings":
        content = cards.embeddings_content(write_embeddings(graft, folder))
    elif graft.is_distilled:
        write_plain_pipeline(graft, base, folder)
        content = cards.PLAIN_PIPELINE
    else:
        write_graft_pipeline(graft, base, folder)
        content = cards.GRAFT_PIPELINE
    card = cards.card(graft, content, has_safety_checker=(folder / "safety_checker").is_dir())
    (folder / "README.md").write_text(card, encoding="utf-8")
    if recipe := cards.recipe_of(graft):
        (folder / RECIPE_NAME).write_text(recipe, encoding="utf-8")


def _write_file(graft: Graft, file: ModelFile, content: str, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    place = card_path(out)
    write_bytes(place, cards.card(graft, content, recipe=cards.recipe_of(graft)).encode())
    try:
        write_model_file(out, file.tensors, file.metadata)
    except BaseException:
        place.unlink()
        raise


def card_path(model_file: Path) -> Path:
    """Return the place of a model file's card, beside it as `.md`."""
    return model_file.with_suffix(".md")


def _check_options(file_format: str, prompts: Sequence[str], dtype: str, rank: int) -> None:
    if file_format not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}; got {file_format!r}")
    if file_format == "prompt-embeds" and not prompts:
        raise UserError("prompt-embeds needs prompts, as arguments or in a --prompts-file")
    if prompts and file_format not in ("prompt-embeds", "lora"):
        raise UserError(f"prompts are for --format prompt-embeds and lora; {file_format} encodes none")
    if dtype not in DTYPES:
        raise UserError(f"--dtype must be fp16 or float32; got {dtype!r}")
    if dtype and file_format not in ONE_FILE:
        raise UserError(f"--dtype is for --format checkpoint and lora; {file_format} keeps the base's own")
    if rank and file_format != "lora":
        raise UserError(f"--rank is for --format lora; {file_format} has none")
    if rank < 0:
        raise UserError(f"--rank must be 1 or more; got {rank}")


def _refuse_existing(out: Path, file_format: str) -> None:
    if file_format not in ONE_FILE:
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} already holds files; name an empty or new folder with --out")
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file, and {file_format} is a folder; name a new folder with --out")
        return
    if out.suffix != SUFFIX:
        raise UserError(f"{file_format} is one file: name it with --out, ending in {SUFFIX}; got {out}")
    for path in (out, card_path(out)):
        if path.exists():
            raise UserError(f"{path} exists already; name another file with --out")


def _encoder_folder(folder: Path) -> Path:
    """Return a run's folder of a distilled text encoder, else the folder."""
    inner = folder / "text_encoder"
    is_run = not (folder / BASE_RECORD).is_file() and (inner / BASE_RECORD).is_file()
    return inner if is_run else folder


def _check_kind(graft: Graft, file_format: str) -> None:
    if graft.is_distilled and file_format not in DISTILLED_FORMATS:
        raise UserError(
            f"a distilled text encoder has no {file_format}; choose one of {', '.join(DISTILLED_FORMATS)}, "
            "or export the graft that it was distilled from"
        )
    if not graft.is_distilled and file_format not in GRAFT_FORMATS:
        raise UserError(
            f"{file_format} has no place for a graft's bridge: distill it into the base's own text encoder "
            "first, with `clipgraft distill --graft GRAFT --out RUN`, and export RUN"
        )
