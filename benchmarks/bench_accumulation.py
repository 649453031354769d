"""Peak memory of accumulated passes of CLIP ViT-B/32's shape (random weights), over that of one pass.

    python benchmarks/bench_accumulation.py [--passes 1 4 16] [--tiny]

Each number of passes of 32 runs in a process of its own, which makes one step in float32; its VmHWM is
written to benchmarks/results/accumulation.json. `--tiny` tries it on a small model and writes nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import CLIPImageProcessorPil

from bench_training import BATCH_SIZE, NUM_IMAGES, our_step, photographs
from clipgraft.data.transforms import cut_crops
from clipgraft.device import describe_environment, quiet_libraries

RESULT = Path(__file__).parent / "results" / "accumulation.json"


def peak_memory(passes: int, tiny: bool, folder: Path) -> int:
    """Peak resident bytes of a process that makes one step."""
    words = [sys.executable, __file__, "--child", str(passes), "--folder", str(folder)]
    output = subprocess.run(
        [*words, *(["--tiny"] if tiny else [])], check=True, capture_output=True, text=True
    )
    return int(output.stdout.split()[-1])


def step_and_print_peak(passes: int, tiny: bool, folder: Path) -> None:
    """Make one step; print the process's peak, which `getrusage` would mix with its parent's."""
    images = photographs(folder, NUM_IMAGES)
    crops = cut_crops([image.file for image in images], CLIPImageProcessorPil(), folder / "crops")
    our_step(images, crops, tiny, accumulation=passes)()
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.child:
        step_and_print_peak(options.child, options.tiny, options.folder)
        return
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), NUM_IMAGES)  # so that no process draws them
        for passes in options.passes:
            peaks[f"{passes} x {BATCH_SIZE}"] = peak_memory(passes, options.tiny, Path(folder))
            print(peaks, flush=True)
    first = next(iter(peaks.values()))
    result = {
        "peak_memory_bytes": peaks,
        "ratios": {name: peak / first for name, peak in peaks.items()},
        "environment": describe_environment(torch.device("cpu"))
        | {"command": "python benchmarks/bench_accumulation.py"},
    }
    print(json.dumps(result, indent=2))
    if not options.tiny:
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
