"""Draw a picture again from what its file tells."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clipgraft.errors import CheckpointError
from clipgraft.generation.generator import load_generators
from clipgraft.generation.metadata import LOCAL, job_of, read_record, versions
from clipgraft.generation.speed import SpeedOptions
from clipgraft.stages.gallery import Gallery
from clipgraft.stages.generate import DrawOptions, print_line, say

SUMS = ("vae_sha256", "unet_sha256", "text_encoder_sha256")


def redraw(
    picture: Path, graft: Path | None, out_dir: Path, options: DrawOptions, init_image: Path | None = None
) -> list[dict[str, Any]]:
    """Draw a picture again, to the bit on the same machine with the same versions.

    Args:
        picture: A PNG that clipgraft wrote.
        graft: Folder of the graft that it was drawn with; None for a base's own text encoder.
        out_dir: Gets the picture under its own name.
        options: Base and device; the base needs a name only where the picture does not tell one.
        init_image: The picture that it was started from, where it was.

    Returns:
        Its row in `images.json`.

    Raises:
        FileNotFoundError: If there is no such picture.
        DataError: If it holds no record.
        ValueError: If graft or base must be named.
        CheckpointError: If their weights are not those that drew it.
    """
    record = read_record(picture)
    job, models = job_of(record, init_image), record["models"]
    base = options.base or (models["base"] if models["base"] != LOCAL else "")
    if (models["text_encoder"] == "graft") != bool(graft):
        raise ValueError(
            "that picture was drawn with a graft; name its folder with --graft"
            if not graft
            else "that picture was drawn with the base's own text encoder; leave --graft out"
        )
    if not base and not graft:
        raise ValueError("that picture's base is a local one; name it with --base")
    gallery = Gallery(out_dir, with_metadata=options.with_metadata)
    generators = load_generators(
        {"": graft}, base=base, device=options.device, offload=options.offload, speed=_speed(models, options)
    )
    _, generator = next(generators)
    _refuse_others(generator.models, models)
    _say_differences(record, generator.pipeline._execution_device.type, generator.models)
    size, index = record["batch"]["size"], record["batch"]["index"]
    drawn = list(generator.draw([job] * size, batch_size=size))[index]
    row = gallery.add(picture.name, "", drawn, generator.models)
    gallery.write_list([])
    if not options.is_quiet:
        print_line(f"{row['status']}  {out_dir / picture.name}")
    return [row]


def _speed(models: Mapping[str, Any], options: DrawOptions) -> SpeedOptions:
    """Engine and shortcuts of the picture; a LoRA's file must be named."""
    if options.offload != "none" or "engine" not in models:
        return options.speed
    if "lora_sha256" in models and not options.speed.lora:
        raise ValueError("that picture was drawn with a LoRA; name its file with --lora")
    start, stop = models["guidance_interval"]
    return replace(
        options.speed,
        engine=models["engine"] if options.speed.engine == "auto" else options.speed.engine,
        compile=models["compile"],
        guidance_interval=(start, stop),
        feature_cache=models["feature_cache"],
    )


def _refuse_others(here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    for name in SUMS if here["dtype"] == there["dtype"] else ():
        if here[name] != there[name]:
            part = name.removesuffix("_sha256").replace("_", " ")
            raise CheckpointError(
                f"the {part} here (sha256 {here[name][:10]}) is not the one that drew the picture "
                f"({there[name][:10]}); name the right --graft and --base"
            )


def _say_differences(record: Mapping[str, Any], device: str, models: Mapping[str, Any]) -> None:
    """What makes other bits, though the picture is the same to the eye."""
    here = {
        "dtype": models["dtype"],
        "engine": models.get("engine"),
        "device": device,
        "num_threads": torch.get_num_threads(),
        **versions(),
    }
    there = {name: record["models"].get(name) for name in ("dtype", "engine")}
    there |= {**record["machine"], **record["versions"]}
    others = [
        f"{name} {there.get(name)} then, {here[name]} now" for name in here if here[name] != there.get(name)
    ]
    if others:
        say(f"the picture may differ in its last bits: {'; '.join(others)}")
