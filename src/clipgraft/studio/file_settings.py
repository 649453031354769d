"""Settings in an image's file: clipgraft's own, or another tool's."""

import json
from typing import Any

from clipgraft.errors import DataError
from clipgraft.generation.from_image import read_foreign
from clipgraft.generation.image_encoding import RECORD_KEY, read_texts
from clipgraft.generation.requests import ImageRequest
from clipgraft.sampling_params import DEFAULT_SAMPLING
from clipgraft.studio.image_files import opened_upload
from clipgraft.studio.named_files import NamedFiles


def settings_from_file(content: bytes, max_pixels: int, files: NamedFiles, vae: str = "") -> dict[str, Any]:
    """Read the settings in an image, clipgraft's own or another tool's.

    Args:
        content: The file.
        max_pixels: At most.
        files: Finds what the settings name.
        vae: Name of the VAE here; empty = each base's own.

    Returns:
        Fields of a request, `model` where the studio wrote it, and as `notes` what is not here: models and
        images that it was made with, or what another tool's image holds beyond.

    Raises:
        DataError: If it holds none, or damaged ones; see `decode_upload` too.
    """
    with opened_upload(content, max_pixels) as image:
        texts = read_texts(image)
    if RECORD_KEY in texts:
        return _own_settings(texts[RECORD_KEY], files, vae)
    found = read_foreign(texts)
    if found is None:
        raise DataError(
            "this image does not hold its settings; those of clipgraft, A1111, ComfyUI, InvokeAI and NovelAI "
            "do, unless they were saved anew"
        )
    settings = found.request(DEFAULT_SAMPLING).as_record()
    return settings | {"model": "", "notes": [f"not read: {line}" for line in found.unread]}


def _own_settings(text: str, files: NamedFiles, vae: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
        job, studio = record["job"], record.get("studio", {})
        # What the form takes; a damaged value is refused here as it would be when generating.
        settings = ImageRequest.from_record(job).as_record()
        if None in (settings["num_inference_steps"], settings["guidance_scale"]):
            raise ValueError  # of a finished image both are numbers
        model = str(studio.get("model", ""))
        named, missing = files.named_in(job, studio)
        if (made_with := record.get("models", {}).get("vae", "")) != vae:
            missing.append(f"VAE {made_with}" if made_with else "the base's own VAE")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError("this image does not hold its settings: the record in it is damaged") from None
    notes = [f"not here: {title}" for title in missing]
    return settings | named | {"model": model, "notes": notes}
