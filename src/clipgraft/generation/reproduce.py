"""Draw a picture again from what its file tells."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clipgraft.console import print_line, say
from clipgraft.errors import CheckpointError, UserError
from clipgraft.generation.engines.options import SpeedOptions
from clipgraft.generation.estimate import announce
from clipgraft.generation.generate import DrawOptions
from clipgraft.generation.generator import load_generators
from clipgraft.generation.image_folder import Gallery
from clipgraft.generation.metadata import LOCAL, job_of, read_record, versions

SUMS = ("vae_sha256", "unet_sha256", "text_encoder_sha256")


def redraw(
    picture: Path, graft: Path | None, out_dir: Path, options: DrawOptions, init_image: Path | None = None
) -> list[dict[str, Any]]:
    """Draw a picture again, to the bit on the same machine with the same versions.

    Args:
        picture: A PNG that clipgraft wrote.
        graft: Folder of the graft that it was drawn with; None for a base's own text encoder.
        out_dir: Gets the picture under its own name, or that with a number where another one lies there.
        options: Base and device; the base needs a name only where the picture does not tell one.
        init_image: The picture that it was started from, where it was.

    Returns:
        Its row in `images.json`; none in a dry run.

    Raises:
        FileNotFoundError: If there is no such picture.
        DataError: If it holds no record.
        ValueError: If graft, base or LoRA must be named or left out, or `out_dir` holds the picture itself.
        CheckpointError: If their weights are not those that drew it.
    """
    record = read_record(picture)
    job, models = job_of(record, init_image), record["models"]
    if picture.parent.resolve() == out_dir.resolve():
        raise UserError(f"{out_dir} is the folder of that picture; name another one with --out")
    base = options.base or (models["base"] if models["base"] != LOCAL else "")
    if (models["text_encoder"] == "graft") != bool(graft):
        raise UserError(
            "that picture was drawn with a graft; name its folder with --graft"
            if not graft
            else "that picture was drawn with the base's own text encoder; leave --graft out"
        )
    if not base and not graft:
        raise UserError("that picture's base is a local one; name it with --base")
    gallery = Gallery(out_dir, with_metadata=options.with_metadata)
    generators = load_generators(
        {"": graft},
        base=base,
        revision=models["revision"] if base == models["base"] else "",
        device=options.device,
        offload=options.offload,
        speed=_speed(models, options),
    )
    _, generator = next(generators)
    _refuse_others(generator.models, models)
    _say_differences(record, generator.pipeline._execution_device.type, generator.models)
    size, index = record["batch"]["size"], record["batch"]["index"]
    batch = [job] * size
    if options.is_dry_run:
        announce(generator, [batch], size)
        return []
    [file] = gallery.name_files([picture.name], [job], generator.models)
    row = gallery.add(file, "", list(generator.draw(batch, batch_size=size))[index], generator.models)
    gallery.write_list([])
    if not options.is_quiet:
        print_line(f"{row['status']}  {out_dir / file}")
    return [row]


def _speed(models: Mapping[str, Any], options: DrawOptions) -> SpeedOptions:
    """Engine and shortcuts of the picture; a LoRA's file must be named."""
    if "lora_sha256" in models and not options.speed.lora:
        raise UserError("that picture was drawn with a LoRA; name its file with --lora")
    if "lora_sha256" not in models and options.speed.lora:
        raise UserError("that picture was drawn without a LoRA; leave --lora out")
    if "engine" not in models:
        return options.speed
    start, stop = models["guidance_interval"]
    speed = replace(
        options.speed,
        engine=models["engine"] if options.speed.engine == "auto" else options.speed.engine,
        compile=models["compile"],
        guidance_interval=(start, stop),
        feature_cache=models["feature_cache"],
    )
    if options.offload == "none":
        return speed
    if speed.shortcuts():
        raise UserError(f"that picture was drawn with {', '.join(speed.shortcuts())}; leave --offload out")
    return options.speed


def _refuse_others(here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Compare sums; in another dtype the same weights have another one."""
    if here.get("lora_sha256") != there.get("lora_sha256"):
        raise CheckpointError(
            f"the LoRA here (sha256 {here['lora_sha256'][:10]}) is not the one that drew the picture "
            f"({there['lora_sha256'][:10]}); name the right --lora"
        )
    ours, theirs = _dtypes(here), _dtypes(there)
    for name in SUMS:
        part = name.removesuffix("_sha256").replace("_", " ")
        if ours[name] != theirs[name]:
            say(f"the {part}'s weights cannot be compared: {theirs[name]} then, {ours[name]} now")
        elif here[name] != there[name]:
            raise CheckpointError(
                f"the {part} here (sha256 {here[name][:10]}) is not the one that drew the picture "
                f"({there[name][:10]}); name the right --graft and --base"
            )


def _dtypes(models: Mapping[str, Any]) -> dict[str, str]:
    """Of the weights that the sums are of: beside an engine all but the U-Net's stay float32."""
    return {
        name: "float32" if "engine" in models and name != "unet_sha256" else models["dtype"] for name in SUMS
    }


def _say_differences(record: Mapping[str, Any], device: str, models: Mapping[str, Any]) -> None:
    """What makes other bits, though the picture is the same to the eye."""
    here = {
        "dtype": models["dtype"],
        "engine": models.get("engine"),
        "device": device,
        "num_threads": torch.get_num_threads(),
        **versions(models.get("engine", "")),
    }
    there = {name: record["models"].get(name) for name in ("dtype", "engine")}
    there |= {**record["machine"], **record["versions"]}
    others = [
        f"{name} {there.get(name)} then, {here[name]} now" for name in here if here[name] != there.get(name)
    ]
    if others:
        say(f"the picture may differ in its last bits: {'; '.join(others)}")
