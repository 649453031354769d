"""Tiny pipelines on each engine."""

import numpy as np
import torch

from clipgraft.generation.engines.attach import put_on_engine, set_approximations
from clipgraft.generation.engines.engine import (
    TorchEngine,
)
from clipgraft.generation.pipeline import build_pipeline, sample
from clipgraft.sampling_params import InferenceConfig
from helpers import image_request, import_openvino

CPU = torch.device("cpu")
PROMPTS = ("A dog runs", "A red ball", "A black cat")
WHOLE = InferenceConfig(engine="torch")


def openvino(cache, dtype=torch.float32):
    return import_openvino().OpenVinoEngine(dtype, cache)


def engine_of(name, cache, dtype=torch.float32):
    return TorchEngine(CPU, dtype) if name == "torch" else openvino(cache, dtype)


def pipeline_of(base, engine=None, speed=WHOLE):
    if engine:
        put_on_engine(base, engine, has_feature_cache=speed.feature_cache > 1)
    pipeline = build_pipeline(base, base.text_encoder)
    if engine:
        set_approximations(pipeline, speed)
    return pipeline


def generated(pipeline, prompts=PROMPTS, **settings):
    """8-bit pixels as integers, so that differences do not wrap round."""
    settings = {"num_inference_steps": 4, "guidance_scale": 5.0} | settings
    jobs = [image_request(prompt, seed, **settings) for seed, prompt in enumerate(prompts)]
    drawn = sample(pipeline, jobs, batch_size=len(jobs))
    return np.stack([np.asarray(picture.image, dtype=int) for picture in drawn])
