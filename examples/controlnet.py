"""Use a graft in any diffusers pipeline of its base: here ControlNet and image-to-image.

python examples/controlnet.py runs/graft/graft --image sketch.png --controlnet lllyasviel/sd-controlnet-canny
"""

import argparse

from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionImg2ImgPipeline
from PIL import Image

import clipgraft as cg


def main(
    graft: str,
    image: str,
    *,
    base: str = "",
    controlnet: str | ControlNetModel = "lllyasviel/sd-controlnet-canny",
    prompt: str = "A dog running on the beach at sunset",
    num_inference_steps: int = 25,
) -> list[Image.Image]:
    pipeline = cg.Graft.from_pretrained(graft).pipeline(base)  # a plain StableDiffusionPipeline
    start = Image.open(image).convert("RGB")

    # Every pipeline of diffusers that is made of the same components takes the graft's text encoder.
    img2img = StableDiffusionImg2ImgPipeline.from_pipe(pipeline)
    variation = img2img(prompt, image=start, strength=0.6, num_inference_steps=num_inference_steps).images[0]

    if isinstance(controlnet, str):
        controlnet = ControlNetModel.from_pretrained(controlnet)
    controlled = StableDiffusionControlNetPipeline.from_pipe(pipeline, controlnet=controlnet)
    guided = controlled(prompt, image=start, num_inference_steps=num_inference_steps).images[0]
    return [variation, guided]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graft")
    parser.add_argument("--image", required=True)
    parser.add_argument("--base", default="")
    parser.add_argument("--controlnet", default="lllyasviel/sd-controlnet-canny")
    options = parser.parse_args()
    images = main(options.graft, options.image, base=options.base, controlnet=options.controlnet)
    for name, result in zip(("img2img.png", "controlnet.png"), images, strict=True):
        result.save(name)
        print(name)
