"""A guided step of the U-Net on ONNX Runtime's CPU provider, float32; started by bench_generation.py.

Takes turns with OpenVINO's float32 engine in the same process, so that both see the same machine.
"""

import json
import sys
import tempfile
from pathlib import Path

import onnxruntime
import torch

from bench_generation import BF16, F32, inputs_of, load, on_engine, take_turns, unet_step
from clipgraft.generation.engines.networks import Denoiser


def main() -> None:
    import argparse

    size, repeats, is_tiny = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "tiny"
    options = argparse.Namespace(tiny=is_tiny)
    base = load(options, F32)
    latents, timestep, states = inputs_of(base, 2, size)
    inputs = latents, base.unet.time_proj(timestep), states
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "unet.onnx"
        with torch.no_grad():
            torch.onnx.export(Denoiser(base.unet).eval(), inputs, file, dynamo=True, external_data=True)
        base.unet = None
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    feed = {port.name: tensor.numpy() for port, tensor in zip(session.get_inputs(), inputs, strict=True)}
    variants = {
        "onnxruntime float32": lambda: torch.from_numpy(session.run(None, feed)[0]),
        "openvino engine float32": unet_step(on_engine(options, "openvino", F32), F32, 2, size),
        "openvino engine bfloat16": unet_step(on_engine(options, "openvino", BF16), F32, 2, size),
    }
    medians = take_turns(variants, repeats)
    outputs = {name: step() for name, step in variants.items()}
    first = outputs["openvino engine float32"]
    result = {
        "onnxruntime": onnxruntime.__version__,
        "precision": "float32: its CPU provider has no bfloat16 convolution",
        "median_seconds": medians,
        "ratios": {
            f"onnxruntime / {name}": medians["onnxruntime float32"] / value for name, value in medians.items()
        },
        "largest_difference_to_openvino_float32": {
            name: float((output - first).abs().max()) for name, output in outputs.items()
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
