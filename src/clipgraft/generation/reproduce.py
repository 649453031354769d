"""An image generated again from the record in its file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clipgraft.console import print_line, say
from clipgraft.errors import CheckpointError, UserError
from clipgraft.generation.engines.engine import approximations
from clipgraft.generation.generate import GenerateOptions, image_key, say_count
from clipgraft.generation.generator import load_generators
from clipgraft.generation.image_encoding import RECORD_KEY, read_image_texts
from clipgraft.generation.image_folder import ImageFolder, ImageRow
from clipgraft.generation.metadata import LOCAL, parse_record, request_of, versions
from clipgraft.sampling_params import DEFAULT_SAMPLING, InferenceConfig, SamplingParams

CHECKSUMS = ("vae_sha256", "unet_sha256", "text_encoder_sha256")


def reproduce(
    path: Path,
    graft: Path | None,
    out_dir: Path,
    options: GenerateOptions,
    given: SamplingParams = DEFAULT_SAMPLING,
) -> list[ImageRow]:
    """Generate an image again, to the bit with machine and versions unchanged.

    Args:
        path: An image that clipgraft wrote.
        graft: Folder of the graft that it was made with; None for a base's own text encoder.
        out_dir: Gets the image under its own name, or with a number if that is taken.
        options: Base and device; the base needs a name only if the record has none.
        given: Names the files that it was made with, such as `init_image`.

    Returns:
        Its row of `images.json`; none in a dry run.

    Raises:
        DataError: If it is missing or holds no record.
        UserError: If graft, base or LoRA must be named or left out, or `out_dir` holds the image itself.
        CheckpointError: If their weights are not those that it was made with.
    """
    texts, image_format = read_image_texts(path)
    record = parse_record(texts.get(RECORD_KEY, ""), path)
    request, models = request_of(record, given), record["models"]
    if path.parent.resolve() == out_dir.resolve():
        raise UserError(f"{out_dir} is the folder of that image; name another one with --out")
    base = _base(models, graft, options)
    _check_vae(models, options.inference.vae)
    folder = ImageFolder(out_dir, with_metadata=options.with_metadata, image_format=image_format)
    generators = load_generators(
        {"": graft},
        base=base,
        revision=models["revision"] if base == models["base"] else "",
        device=options.device,
        offload=options.offload,
        inference=_inference(models, options),
    )
    _, generator = next(generators)
    _refuse_others(generator.models, models)
    _say_differences(record, generator.pipeline._execution_device.type, generator.models)
    size, index = record["batch"]["size"], record["batch"]["index"]
    batch = [request] * size
    if options.is_dry_run:
        say_count(batch)
        return []
    [slot] = folder.reserve([path.stem], [request], [image_key(request, generator)])
    image = list(generator.sample(batch, batch_size=size))[index]
    if image.metadata and image.metadata["models"].get("calibration") != models.get("calibration"):
        say("INT8 was calibrated on other prompts then, so the image differs")
    row = folder.add(slot, "", image)
    folder.write_list([])
    if not options.is_quiet:
        print_line(f"{row.status}  {out_dir / row.file}")
    return [row]


def _base(models: Mapping[str, Any], graft: Path | None, options: GenerateOptions) -> str:
    """Name the base of a record; empty for a graft's own."""
    base = options.base or (models["base"] if models["base"] != LOCAL else "")
    if (models["text_encoder"] == "graft") != bool(graft):
        raise UserError(
            "that image was generated with a graft; name its folder with --graft"
            if not graft
            else "that image was generated with the base's own text encoder; leave --graft out"
        )
    if not base and not graft:
        raise UserError("that image's base is a local one; name it with --base")
    return base


def _check_vae(models: Mapping[str, Any], given: str) -> None:
    """Refuse a VAE missing for a record, or one too many."""
    recorded = models.get("vae", "")
    if recorded and not given:
        raise UserError(f"that image was made with a VAE of its own, {recorded}; name it with --vae")
    if given and not recorded:
        raise UserError("that image was made with the base's own VAE; leave --vae out")


def _inference(models: Mapping[str, Any], options: GenerateOptions) -> InferenceConfig:
    """Engine and approximations of the record."""
    given = options.inference
    if given.safety_checker == "auto" and not models.get("safety_checker"):
        given = given.updated({"safety_checker": "off"})
    if "engine" not in models:
        return given
    inference = InferenceConfig.of(
        given,
        engine=models["engine"] if given.engine == "auto" else given.engine,
        compile=models["compile"],
        guidance_interval=models["guidance_interval"],
        feature_cache=models["feature_cache"],
        quantize=models.get("quantize", "none"),
    )
    if options.offload == "none":
        return inference
    if approximations(inference):
        named = ", ".join(approximations(inference))
        raise UserError(f"that image was generated with {named}; leave --offload out")
    return given


def _refuse_others(here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Compare checksums; they cannot be compared between dtypes."""
    ours, theirs = _dtypes(here), _dtypes(there)
    for name in CHECKSUMS:
        part = name.removesuffix("_sha256").replace("_", " ")
        if ours[name] != theirs[name]:
            say(f"the {part}'s weights cannot be compared: {theirs[name]} then, {ours[name]} now")
        elif here[name] != there[name]:
            right = "--vae" if part == "vae" and here.get("vae") else "--graft and --base"
            raise CheckpointError(
                f"the {part} here (sha256 {here[name][:10]}) is not the one that made the image "
                f"({there[name][:10]}); name the right {right}"
            )


def _dtypes(models: Mapping[str, Any]) -> dict[str, str]:
    """Dtypes of the weights compared; an engine changes only the U-Net's."""
    return {
        name: "float32" if "engine" in models and name != "unet_sha256" else models["dtype"]
        for name in CHECKSUMS
    }


def _say_differences(record: Mapping[str, Any], device: str, models: Mapping[str, Any]) -> None:
    """Report what may change the last bits."""
    here = {
        "dtype": models["dtype"],
        "engine": models.get("engine"),
        "device": device,
        "num_threads": torch.get_num_threads(),
        **versions(models.get("engine", "")),
    }
    there = {name: record["models"].get(name) for name in ("dtype", "engine")}
    there["pillow"] = here["pillow"]  # images of earlier versions do not name theirs
    there |= {**record["machine"], **record["versions"]}
    others = [
        f"{name} {there.get(name)} then, {here[name]} now" for name in here if here[name] != there.get(name)
    ]
    is_checked, was_checked = models["safety_checker"], record["models"].get("safety_checker", False)
    if is_checked != was_checked:
        words = {True: "a safety checker", False: "no safety checker"}
        say(f"{words[was_checked]} looked at that image, {words[is_checked]} looks at this one")
    if others:
        say(f"the image may differ in its last bits: {'; '.join(others)}")
