"""Memory that decoding large images takes, one by one and through the cache of crops.

    python benchmarks/bench_decoding.py

Each figure is of a process of its own: its peak less what it held before. The table is docs/data.md's.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SIDE = 9700
KINDS = {
    "JPEG": ("RGB", "JPEG", {}),
    "JPEG, progressive": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "JPEG, progressive CMYK": ("CMYK", "JPEG", {"progressive": True, "subsampling": 0}),
    "PNG": ("RGB", "PNG", {"compress_level": 1}),
    "PNG, transparent": ("RGBA", "PNG", {"compress_level": 1}),
    "WebP": ("RGBA", "WEBP", {"lossless": True, "method": 0}),
}
MAKE = """
import json, sys
from PIL import Image
mode, kind, options = json.loads(sys.argv[2])
Image.new(mode, (int(sys.argv[3]),) * 2).save(sys.argv[1], kind, **options)
"""
MEASURE = """
import os, sys, tempfile
from pathlib import Path
from transformers import CLIPImageProcessorPil
from clipgraft.data.transforms import cut_crops
from clipgraft.data.images import open_image

def kib(name):
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0])

path, num_threads = Path(sys.argv[1]), int(sys.argv[2])
processor = CLIPImageProcessorPil()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kib("VmRSS:")
if not num_threads:
    open_image(path)
else:
    os.cpu_count = lambda: num_threads
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder, f"{number}") for number in range(6)]
        for number, copy in enumerate(copies):
            copy.write_bytes(path.read_bytes() + bytes(number))  # else they would be one image
        cut_crops(copies, processor, Path(folder, "cache"))
print((kib("VmHWM:") - before) // 1024)
"""


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    print(f"MiB, {SIDE} x {SIDE} pixels | opened | six cut by 2 threads | by 8")
    with tempfile.TemporaryDirectory() as folder:
        for name, how in KINDS.items():
            path = Path(folder, "image")
            run(MAKE, path, json.dumps(how), SIDE)
            print(
                name, *(run(MEASURE, path, threads).strip() for threads in (0, 2, 8)), sep=" | ", flush=True
            )


if __name__ == "__main__":
    main()
