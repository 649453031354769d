"""What the stages write into a run's folder: rows, metrics and real pictures."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLE_EVALUATION = Path(__file__).parents[1] / "evaluation" / "example_evaluation.json"
EVALUATION_VERSION_1 = EXAMPLE_EVALUATION.with_name("evaluation_version_1.json")
RECALL = {
    "text_to_image_recall@1": 0.112,
    "text_to_image_recall@5": 0.31,
    "text_to_image_recall@10": 0.44,
    "image_to_text_recall@1": 0.15,
    "image_to_text_recall@5": 0.402,
    "image_to_text_recall@10": 0.55,
    "num_images": 1000,
    "num_captions": 5000,
}
STATES = {
    "relative_error": {"bos": 0.0, "words": 0.412, "eos": 0.377, "padding": 0.295},
    "cosine": {"bos": 1.0, "words": 0.911, "eos": 0.926, "padding": 0.956},
}
DATA = {
    "root": "/home/someone/flickr8k",
    "format": "Flickr8k",
    "counts": {
        "train": {"images": 6000, "captions": 30000},
        "val": {"images": 1000, "captions": 5000},
        "test": {"images": 1000, "captions": 5000},
    },
    "excluded": [
        {"kind": "image", "reason": "in no split", "count": 91, "examples": ["1042020065_fb3d3ba5ba.jpg"]},
        {
            "kind": "caption",
            "reason": "no photograph",
            "count": 5,
            "examples": ["2258277193_586949ec62.jpg.1#0"],
        },
    ],
}
ENVIRONMENT = {
    "clipgraft": "0.1.0",
    "torch": "2.13.0",
    "python": "3.12.3",
    "platform": "Linux x86_64",
    "cpu": "a processor",
    "num_threads": 2,
    "gpu": None,
    "device": "cpu",
    "command": "clipgraft demo --out runs/demo",
    "started": "2026-01-31T12:00:00+00:00",
}


def log_rows(num_epochs, steps_per_epoch):
    """Steps with a falling, wavy loss and nothing else, as the oldest logs have them."""
    keys = ("step", "epoch", "loss")
    return [{key: row[key] for key in keys} for row in full_log_rows(num_epochs, steps_per_epoch)]


def full_log_rows(num_epochs, steps_per_epoch):
    """Steps as they are logged now."""
    num_steps = num_epochs * steps_per_epoch
    return [
        {
            "step": step + 1,
            "epoch": step // steps_per_epoch,
            "loss": 3.4 * math.exp(-2 * step / num_steps) * (1 + 0.1 * math.sin(step * 12.9)),
            "learning_rate": 1e-5,
            "grad_norm": 1.0,
            "data_seconds": 0.1,
            "step_seconds": 0.2,
        }
        for step in range(num_steps)
    ]


def write_log(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def picture_row(file, prompt, **values):
    """A row of images.json."""
    return {
        "file": file,
        "prompt": prompt,
        "negative_prompt": "",
        "seed": 0,
        "num_inference_steps": 25,
        "guidance_scale": 7.5,
        "height": 64,
        "width": 64,
        "status": "ok",
        **values,
    }


def write_picture(path, *, side=64, seed=0, noise=False):
    """A small PNG with colours of its own; of noise, one that no PNG makes small."""
    generator = np.random.default_rng(seed)
    if noise:
        pixels = generator.integers(0, 256, (side, side, 3))
    else:
        across = np.linspace(0, 1, side)[None, :, None]
        colours = generator.integers(0, 256, (2, 1, 1, 3))
        pixels = np.broadcast_to(colours[0] * across + colours[1] * (1 - across), (side, side, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_pictures(folder: Path, rows, **options):
    """Write images.json and a picture for each row."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images.json").write_text(json.dumps(rows), encoding="utf-8")
    for index, row in enumerate(rows):
        write_picture(folder / row["file"], seed=index, **options)


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_evaluation(folder: Path, *, num_prompts=4, side=16, noise=False, **changes):
    """Write evaluation.json: the worked example, or with more prompts of rising fidelity in its place.

    Only pictures that a page can show get a file: of the best and worst three prompts.
    """
    evaluation = json.loads(EXAMPLE_EVALUATION.read_text(encoding="utf-8"))
    if num_prompts != 4:
        evaluation["prompts"] = [
            {"id": i, "prompt": f"prompt number {i}", "image_id": None, "sets": ["plain"]}
            for i in range(num_prompts)
        ]
        evaluation["images"] = [
            {
                "variant": variant,
                "prompt_id": i,
                "seed": i,
                "file": f"variants/{variant}/{i}.png",
                "status": "ok",
                "scores": {"prompt_fidelity": (i * 7919 % num_prompts) / num_prompts},
            }
            for variant in ("teacher", "before", "after")
            for i in range(num_prompts)
        ]
    evaluation |= changes
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "evaluation.json", evaluation)
    files = [row["file"] for row in evaluation["images"] if is_at_an_end(row, num_prompts)]
    files += [row["training_file"] for row in evaluation["nearest_training_images"]]
    for index, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_picture(folder / file, side=side, seed=index, noise=noise)
    return evaluation


def is_at_an_end(row, num_prompts):
    place = row["prompt_id"] * 7919 % num_prompts
    return num_prompts == 4 or place < 3 or place >= num_prompts - 3
