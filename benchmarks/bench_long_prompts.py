"""Prompts of more than 77 tokens on flatland: cut, or encoded in chunks.

    python benchmarks/bench_long_prompts.py [--prompts 24]

Each prompt names its scene's place again and again until 77 tokens are full, and subject, colour and action
only then. Prints the share of named attributes that images show, and writes it to
benchmarks/results/long_prompts.json; "alone" is the short prompt.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from clipgraft.console import print_line
from clipgraft.device import describe_environment
from clipgraft.evaluation.metrics.intervals import bootstrap_interval
from clipgraft.evaluation.metrics.probe import fidelity_scores, load_probe, read_attributes
from clipgraft.files import write_json
from clipgraft.flatland.captions import plain_caption
from clipgraft.flatland.prompts import fidelity_prompts
from clipgraft.generation.generator import load
from clipgraft.models.hub import embedded_models

RESULT = Path(__file__).parent / "results" / "long_prompts.json"
SAMPLING = {"num_inference_steps": 15, "seed": 3, "batch_size": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=24, help="of flatland's 240")
    prompts = fidelity_prompts()[: parser.parse_args().prompts]
    generator = load("flatland", device="cpu")
    probe = load_probe(embedded_models() / "probe.safetensors")
    tokenizer = generator.pipeline.tokenizer
    longest = tokenizer.model_max_length

    def lengthened(prompt) -> str:
        place = plain_caption(replace(prompt.scene, subject="", colour="", action=""))
        beginning = place
        while len(tokenizer(beginning, verbose=False).input_ids) <= longest:
            beginning += f", {place}"
        return f"{beginning}, {prompt.text}"

    texts, longer = [prompt.text for prompt in prompts], [lengthened(prompt) for prompt in prompts]
    ways = {
        "alone": (texts, "chunk"),
        "77 tokens later, cut": (longer, "cut"),
        "77 tokens later, chunk": (longer, "chunk"),
    }
    result = {}
    for name, (given, long_prompts) in ways.items():
        images = generator.generate(given, long_prompts=long_prompts, **SAMPLING)
        pixels = torch.from_numpy(np.stack([np.asarray(each.image) for each in images])).permute(0, 3, 1, 2)
        scores = fidelity_scores(read_attributes(probe, pixels), [prompt.scene for prompt in prompts])
        shares = scores["prompt_fidelity"]
        result[name] = {"fidelity": float(shares.mean()), "interval": bootstrap_interval(shares)}
        print_line(f"{name}: {shares.mean():.3f}, 95 % interval {result[name]['interval']}")
    environment = describe_environment(torch.device("cpu"))
    command = "python benchmarks/bench_long_prompts.py"
    write_json(RESULT, result | {"environment": environment | {"command": command}})


if __name__ == "__main__":
    main()
