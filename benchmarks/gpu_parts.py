"""What `benchmarks/gpu.sh` runs: parts in processes of their own, their JSON kept, merged into gpu.json."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clipgraft.device import describe_environment, quiet_libraries
from clipgraft.files import write_json
from gpu_generation import measure_generation
from gpu_training import measure_training
from gpu_turns import Scale

TESTS = Path(__file__).parents[1] / "tests" / "gpu"
LEAST_SECONDS, SPARED_SECONDS = 30, 15
"""No part is begun with less time left, and no turn of it with less."""
SHOWN = ("samples_a_second", "iterations_a_second", "images_a_second", "peak_bytes", "share_of_peak")


def run_tests(name: str, scale: Scale) -> dict[str, Any]:
    """Outcome of each test of a file, with what it recorded."""
    report = Path(os.environ["GPU_PART_FOLDER"]) / f"{name}.xml"
    words = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:randomly", f"{TESTS}/{name}.py"]
    environment = os.environ | ({"CLIPGRAFT_REHEARSE": "1"} if scale.is_rehearsal else {})
    subprocess.run(
        [*words, "-o", "junit_family=xunit1", f"--junitxml={report}"], check=False, env=environment
    )
    tests = {}
    for case in ElementTree.parse(report).iter("testcase"):
        found = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        tests[case.get("name")] = {
            "outcome": "passed" if found is None else found.tag,
            "seconds": float(case.get("time", 0)),
            **({} if found is None else {"message": found.get("message", "")[:500]}),
            **{each.get("name"): each.get("value") for each in case.iter("property")},
        }
    report.unlink()
    return {"tests": tests}


PARTS: dict[str, Callable[[Scale], dict[str, Any]]] = {
    "test_gpu_training": partial(run_tests, "test_gpu_training"),
    "test_gpu_generation": partial(run_tests, "test_gpu_generation"),
    "training_32": partial(measure_training, 32, False),
    "training_256": partial(measure_training, 256, False),
    "generation_1": partial(measure_generation, 1, False),
    "generation_16": partial(measure_generation, 16, False),
    "training_32_compiled": partial(measure_training, 32, True),
    "training_256_compiled": partial(measure_training, 256, True),
    "generation_1_compiled": partial(measure_generation, 1, True),
    "generation_16_compiled": partial(measure_generation, 16, True),
}
"""In the order in which they are run."""


def run_part(name: str, path: Path, scale: Scale) -> None:
    """Run a part in this process, and write its file."""
    quiet_libraries()
    os.environ["GPU_PART_FOLDER"] = str(path.parent)
    environment = describe_environment(torch.device(scale.device))  # first: it fails if a package is missing
    begun = time.perf_counter()
    found = PARTS[name](scale)
    found |= {"wall_seconds": time.perf_counter() - begun, "is_rehearsal": scale.is_rehearsal}
    found["environment"] = environment | {"command": f"benchmarks/gpu.sh, part {name}"}
    write_json(path, found)


def run_missing_parts(folder: Path, scale: Scale) -> dict[str, str]:
    """Run each part without a file; return why those without one still have none."""
    missing = {}
    for name in PARTS:
        path = folder / f"{name}.json"
        left = scale.deadline - time.monotonic()
        if path.is_file():
            print(f"{name}: kept", flush=True)
        elif left < LEAST_SECONDS:
            missing[name] = "no time left; run again"
        else:
            print(f"{name}: begun with {left:.0f} s left", flush=True)
            words = [sys.executable, __file__, "--part", name, str(folder), str((left - SPARED_SECONDS) / 60)]
            reason = run_apart([*words, *(["--rehearse"] if scale.is_rehearsal else [])], left)
            if reason:
                missing[name] = reason
            merge(folder, missing)
    return missing


def run_apart(words: list[str], seconds: float) -> str:
    """Run a command for some seconds at most; return why it failed, or nothing."""
    process = subprocess.Popen(words, start_new_session=True)
    try:
        code = process.wait(seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # with its workers
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return f"not finished in the {seconds:.0f} s that were left; run again"
        raise
    return f"ended with exit code {code}" if code else ""


def merge(folder: Path, missing: dict[str, str]) -> None:
    """Write gpu.json from the files of all parts."""
    files = {name: folder / f"{name}.json" for name in PARTS}
    parts = {name: json.loads(path.read_text("utf-8")) for name, path in files.items() if path.is_file()}
    write_json(folder / "gpu.json", {"parts": parts, "missing": missing})


def print_summary(folder: Path) -> None:
    """Print a line for each test file and each contender."""
    merged = json.loads((folder / "gpu.json").read_text("utf-8"))
    for name, part in merged["parts"].items():
        outcomes = [test["outcome"] for test in part.get("tests", {}).values()]
        if outcomes:
            print(f"{name}: " + ", ".join(f"{outcomes.count(each)} {each}" for each in sorted(set(outcomes))))
        for contender, found in part.get("contenders", {}).items():
            shown = [f"{key} {found[key]:.4g}" for key in SHOWN if found.get(key) is not None]
            print(f"{name}: {contender}: {', '.join(shown) or found.get('failed')}")
    for name, reason in merged["missing"].items():
        print(f"{name}: missing: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("minutes", type=float, nargs="?", default=5)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    scale = Scale(options.rehearse, deadline)
    if options.part:
        run_part(options.part, options.out / f"{options.part}.json", scale)
        return
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("no CUDA GPU: torch.cuda.is_available() is false; --rehearse tries everything on the CPU")
    folder = options.out / "rehearsal" if options.rehearse else options.out
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the part in progress too
    missing = run_missing_parts(folder, scale)
    merge(folder, missing)
    print_summary(folder)
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
