"""Image files with settings as other tools write them, rewritten from their published formats."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from clipgraft.generation.from_image import read_foreign
from clipgraft.sampling_params import SamplingParams

INFOTEXT = """girl with an artist's beret, ((eyeshadow)), (coquettish:1.2), desert scene
by night
Negative prompt: ugly, [blurry],
bad anatomy
Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45de, Model: dreamy"""
"""As in the docstring of A1111's modules/infotext_utils.py."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def comfyui_graph() -> dict[str, Any]:
    """ComfyUI's default workflow, as SaveImage writes it under `prompt`."""
    return {
        "3": node(
            "KSampler",
            seed=156680208700286,
            steps=20,
            cfg=8,
            sampler_name="euler",
            scheduler="normal",
            denoise=1,
            model=["4", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["5", 0],
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=640, batch_size=1),
        "6": node("CLIPTextEncode", text="beautiful scenery, galaxy bottle", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="text, watermark", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
    }


INVOKEAI = {
    "app_version": "4.2.0",
    "generation_mode": "txt2img",
    "positive_prompt": "a red boat",
    "negative_prompt": "fog",
    "width": 512,
    "height": 640,
    "seed": 42,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "steps": 30,
    "scheduler": "dpmpp_2m_k",
    "model": {"key": "5f3c", "hash": "blake3:0", "name": "dreamshaper-8", "base": "sd-1", "type": "main"},
    "loras": [{"model": {"name": "add-detail"}, "weight": 0.75}],
}
SD_METADATA = {
    "model": "stable diffusion",
    "model_weights": "stable-diffusion-1.5",
    "app_version": "2.3.0",
    "image": {
        "prompt": [{"prompt": "a red boat [fog, rain]", "weight": 1.0}],
        "steps": 50,
        "cfg_scale": 7.5,
        "height": 512,
        "width": 640,
        "seed": 1826793488,
        "type": "txt2img",
        "sampler": "k_euler",
    },
}
DREAM = '"a red boat [fog]" -s 50 -S 1826793488 -W 512 -H 640 -C 7.5 -A ddim -f 0.3'
NOVELAI = {
    "prompt": "{{boat}}, [fog], lake (wide)",
    "steps": 28,
    "height": 640,
    "width": 512,
    "scale": 5.0,
    "seed": 9,
    "sampler": "k_euler",
    "noise_schedule": "native",
    "uc": "lowres",
    "sm": True,
    "request_type": "PromptGenerateRequest",
}


def novelai_texts(**changes: Any) -> dict[str, str]:
    return {
        "Title": "NovelAI generated image",
        "Description": "{{boat}}, [fog], lake (wide)",
        "Software": "NovelAI",
        "Source": "NovelAI Diffusion V3 C1E1DE52",
        "Comment": json.dumps(NOVELAI | changes),
    }


def write_png(path: Path, texts: dict[str, str], *, is_packed: bool = False) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text, zip=is_packed) if text.isascii() else info.add_itxt(key, text)
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(file, "PNG", pnginfo=info)
    path.write_bytes(file.getvalue())
    return path


def read(texts, **given):
    """The prompt, the parameters that differ from the defaults, and what was not read."""
    settings = read_foreign(texts)
    request = settings.request(SamplingParams(**given))
    changed = {name: value for name, value in request.params if value != getattr(SamplingParams(), name)}
    return request.prompt, changed, settings.unread


def read_graph(graph, **given):
    return read({"prompt": json.dumps(graph), "workflow": "{}"}, **given)
