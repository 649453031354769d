"""Memory and time of each kind of request at Stable Diffusion v1.5's exact shape, with random weights.

    python benchmarks/bench_kinds.py [--engines torch openvino] [--kinds mask ...] [--folder DIR]

Each kind is one `clipgraft generate` of 512 x 512 pixels in one step, in a process of its own: text, an
initial image, a mask, a ControlNet, and all of them; a mask also with an inpainting base of 9 channels. Peak
memory counts mapped files of weights, which the system takes back where memory is short. Prints a line for
each and writes it to benchmarks/results/kinds.json. It needs 8 GB of disk, or 16 for OpenVINO.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from PIL import Image, ImageDraw

from clipgraft.device import cpu_gains_from_bf16, describe_environment
from clipgraft.models import single_file as sd15

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from real_size import build_random, write_sd15_checkpoint, write_sd15_controlnet

RESULT = Path(__file__).parent / "results" / "kinds.json"
SIDE = 512
IMAGE, MASK = ("--init-image", "picture.png", "--strength", "1"), ("--mask", "mask.png")
CONTROL = ("--control", "controlnet=mask.png")
KINDS = {
    "text": ("sd15",),
    "initial image": ("sd15", *IMAGE),
    "mask": ("sd15", *IMAGE, *MASK),
    "mask, 9 channels": ("inpainting", *IMAGE, *MASK),
    "ControlNet": ("sd15", *CONTROL),
    "ControlNet, initial image, mask": ("sd15", *CONTROL, *IMAGE, *MASK),
}
"""Base and options by name."""


def write_models(folder: Path, dtype: torch.dtype) -> None:
    """Write the base, the same with a U-Net of 9 channels, a ControlNet and the images."""
    write_sd15_checkpoint(folder / "sd15", dtype)
    (folder / "inpainting").mkdir()
    for path in (folder / "sd15").iterdir():
        if path.name != "unet":
            (folder / "inpainting" / path.name).symlink_to(path)
    wide = build_random(lambda: UNet2DConditionModel.from_config(sd15.UNET_CONFIG, in_channels=9), dtype)
    wide.save_pretrained(folder / "inpainting" / "unet")
    del wide
    write_sd15_controlnet(folder / "controlnet", dtype)
    mask = Image.new("RGB", (SIDE, SIDE))
    ImageDraw.Draw(mask).rectangle((SIDE // 4, SIDE // 4, SIDE // 2, SIDE // 2), fill="white")
    mask.save(folder / "mask.png")
    Image.effect_noise((SIDE, SIDE), 60).convert("RGB").save(folder / "picture.png")


def measure(folder: Path, engine: str, base: str, *options: str) -> dict[str, float]:
    """Return peak memory and seconds of one command, loading and all."""
    out = tempfile.mkdtemp(dir=folder)
    command = ["generate", "A dog runs on the beach", "--base", base, *options, "--steps", "1", "--out", out]
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "clipgraft", *command, "--engine", engine],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed")
    [row] = json.loads((Path(out) / "images.json").read_text())
    assert (row["status"], row["width"], row["height"]) == ("ok", SIDE, SIDE)
    return {"peak_bytes": usage.ru_maxrss * 1024, "seconds": time.monotonic() - begun}


def main() -> None:
    """Measure all kinds with each engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", nargs="+", default=["torch", "openvino"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--folder", type=Path, help="where the models are, or are to be written")
    options = parser.parse_args()
    dtype = torch.bfloat16 if cpu_gains_from_bf16() else torch.float32
    environment = describe_environment(torch.device("cpu")) | {"command": "python benchmarks/bench_kinds.py"}
    result = {"side": SIDE, "stored": str(dtype).removeprefix("torch."), "environment": environment}
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / "picture.png").is_file():
            write_models(folder, dtype)
        for engine, kind in product(options.engines, options.kinds):
            row = rows.setdefault(engine, {})[kind] = measure(folder, engine, *KINDS[kind])
            print(
                f"{engine:9} {kind:32} {row['peak_bytes'] / 1e9:5.2f} GB  {row['seconds']:6.1f} s", flush=True
            )
            RESULT.write_text(json.dumps(result | {"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
