"""The bridge at Stable Diffusion v1.5's and CLIP B/32's exact shapes, with random weights.

    python benchmarks/bench_bridge.py [--only PART] [--captions 40460] [--flickr8k FILE] [--work DIR]

ridge: the closed form against NumPy's least squares, and a linear teacher that it has to find.
few_captions: on flatland, the linear bridge's error on held-out words by the number of captions.
closed_form: captions a second and peak memory of fitting it to Flickr8k's captions (FILE:
    ../shared/flickr8k/Flickr8k.token.txt).
refine: memory and time of a step on one picture of 512 x 512, and what cached latents save, in processor
    seconds divided by the number of threads.

Peak memory is VmHWM of a process of its own. Checkpoints are written once into DIR (runs/bench_bridge), 3 GB.
Each part updates its section of benchmarks/results/bridge.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

import real_size  # noqa: E402
from clipgraft.bridging.corpus import load_captions  # noqa: E402
from clipgraft.bridging.fit import linear_bridge  # noqa: E402
from clipgraft.bridging.pairs import load_towers  # noqa: E402
from clipgraft.bridging.refine import build_objective  # noqa: E402
from clipgraft.config import BridgeSettings, Recipe, apply_overrides  # noqa: E402
from clipgraft.device import (  # noqa: E402
    PRECISION_DTYPES,
    choose_mixed_precision,
    describe_environment,
)
from clipgraft.models.base import FrozenBase  # noqa: E402
from clipgraft.models.bridge import Bridge  # noqa: E402
from clipgraft.models.clip import load_clip  # noqa: E402
from clipgraft.models.configs import BaseRecord  # noqa: E402
from clipgraft.models.graft import Graft, GraftedTextEncoder  # noqa: E402
from clipgraft.models.ridge import RidgeRegression  # noqa: E402
from clipgraft.models.weights import module_sha256  # noqa: E402
from clipgraft.settings import OptimConfig  # noqa: E402
from clipgraft.training.step import TrainStep  # noqa: E402

RESULT = REPOSITORY / "benchmarks" / "results" / "bridge.json"
FLICKR8K = REPOSITORY.parent / "shared" / "flickr8k" / "Flickr8k.token.txt"
WIDTH, BASE_WIDTH = 512, 768
REPEATS = 5
PRECISION = choose_mixed_precision("auto", torch.device("cpu"))
FEW = (25, 100, 1000)
NUM_CAPTIONS = 40_460
"""All of Flickr8k's."""


def ridge() -> dict[str, Any]:
    """Relative differences from NumPy's least squares and from a linear teacher, inputs of unequal power."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -2, WIDTH, dtype=torch.float64)
    inputs = torch.randn(6000, WIDTH, generator=generator, dtype=torch.float64) * scales
    targets = torch.randn(6000, BASE_WIDTH, generator=generator, dtype=torch.float64)
    weights = torch.rand(6000, generator=generator, dtype=torch.float64)
    true = torch.randn(WIDTH, BASE_WIDTH, generator=generator, dtype=torch.float64)

    def solve(y: torch.Tensor) -> torch.Tensor:
        regression = RidgeRegression(WIDTH, BASE_WIDTH)
        for rows in torch.arange(6000).split(1000):
            regression.add(inputs[rows], y[rows], weights[rows])
        weight, bias = regression.solve(0.0)
        return torch.cat([weight.T, bias])

    root = weights.sqrt()[:, None]
    stacked = torch.cat([inputs, torch.ones(6000, 1, dtype=torch.float64)], 1) * root
    expected = torch.from_numpy(np.linalg.lstsq(stacked.numpy(), (targets * root).numpy(), rcond=None)[0])
    found, recovered = solve(targets), solve(inputs @ true)[:-1]
    return {
        "difference_from_lstsq": float((found - expected).norm() / expected.norm()),
        "error_of_a_linear_teacher": float((recovered - true).norm() / true.norm()),
        "rows": 6000,
    }


def few_captions() -> dict[str, Any]:
    """Relative error of held-out words on flatland by number of captions, drawn at random."""
    recipe = Recipe(bridge=BridgeSettings(mixed_precision="no"))
    captions, towers = load_captions(recipe), load_towers(recipe)
    order = torch.randperm(len(captions.train), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = towers.input_ids(captions.held_out[:200])
    found: dict[str, Any] = {}
    for count in FEW:
        linear = towers.fit_linear(towers.input_ids([captions.train[index] for index in order[:count]]))
        found[str(count)] = {}
        for by_class in (True, False):
            settings = BridgeSettings(num_epochs=0, by_token_class=by_class)
            fitted = linear_bridge(towers, linear, settings)
            measured = towers.measure(fitted, held_out, linear.kv_metric_sqrt)
            name = "map_per_class" if by_class else "one_map"
            found[str(count)][name] = dict(measured.relative_error)
    return found


def closed_form(work: Path, num_captions: int, flickr8k: Path) -> dict[str, Any]:
    """Of a tenth of the captions and of all: captions a second, peak memory."""
    if not flickr8k.is_file():
        print(f"closed_form skipped: no Flickr8k captions at {flickr8k}; name them with --flickr8k")
        return {}
    found = {}
    for count in (num_captions // 10, num_captions):
        found[str(count)] = in_a_process("fit", work, count, flickr8k)
        print(count, found[str(count)])
    return found


def fit(work: Path, count: int, flickr8k: Path) -> dict[str, float]:
    """Fit the closed form to so many captions."""
    towers = load_towers(recipe_of(work))
    captions = flickr8k_captions(flickr8k)[:count]
    input_ids = towers.input_ids(captions)
    begun = time.perf_counter()
    linear = towers.fit_linear(input_ids)
    linear.regression.solve(1e-4, by_class=True)
    seconds = time.perf_counter() - begun
    return {"captions_per_second": len(captions) / seconds, "seconds": seconds, "captions": len(captions)}


def refine(work: Path) -> dict[str, Any]:
    """A step, also with the latents encoded in it, and with activations computed again."""
    found = {name: in_a_process(name, work, 0, FLICKR8K) for name in ("refine_step", "recomputed_step")}
    return found["refine_step"] | {"gradient_checkpointing": found["recomputed_step"]}


def recomputed_step(work: Path, _count: int, _flickr8k: Path) -> dict[str, Any]:
    """Time steps of one picture with `refine.gradient_checkpointing`; their memory."""
    _, stepper, batch = prepare_step(work, gradient_checkpointing=True)
    forget_peak()
    stepper([batch], 1e-4)
    seconds = []
    for _ in range(REPEATS):
        begun = time.process_time()
        stepper([batch], 1e-4)
        seconds.append((time.process_time() - begun) / torch.get_num_threads())
    return {"peak_bytes_of_steps": peak_bytes(), "seconds": statistics.median(seconds)}


def prepare_step(
    work: Path, *, gradient_checkpointing: bool
) -> tuple[FrozenBase, TrainStep, dict[str, torch.Tensor]]:
    """Return the base, a step in what "auto" is on this CPU, and a batch of one picture."""
    graft = Graft.from_pretrained(work / "graft")
    parts = ("unet", "scheduler", "tokenizer", "text_encoder")
    base = FrozenBase.load(str(work / "sd15"), dtype=PRECISION_DTYPES[PRECISION], components=parts)
    settings = Recipe().refine.updated({"gradient_checkpointing": gradient_checkpointing})
    objective = build_objective(graft, base, settings)
    stepper = TrainStep(objective, OptimConfig(learning_rate=1e-4, mixed_precision=PRECISION))
    return base, stepper, {"latents": torch.randn(1, 4, 64, 64), "input_ids": prompt_ids(base.tokenizer)}


def refine_step(work: Path, _count: int, _flickr8k: Path) -> dict[str, Any]:
    """Time steps of one picture; memory of loading, and of steps with cached latents."""
    base, stepper, batch = prepare_step(work, gradient_checkpointing=False)
    sums = [module_sha256(base.unet)]
    loading = peak_bytes()
    forget_peak()
    with FlopCounterMode(display=False) as counter:
        stepper([batch], 1e-4)
    stepper([batch], 1e-4)
    flops, peak_memory = counter.get_total_flops(), peak_bytes()
    dtype = PRECISION_DTYPES[PRECISION]
    pixels = torch.rand(1, 3, 512, 512, dtype=dtype).mul(2).sub(1)
    base.vae = FrozenBase.load(str(work / "sd15"), dtype=dtype, components=("vae",)).vae
    sums.append(module_sha256(base.vae))

    def encoded() -> dict[str, torch.Tensor]:
        return {**batch, "latents": base.encode_latents(pixels).float()}

    times: dict[str, list[float]] = {"cached": [], "encoded": []}
    for _ in range(REPEATS):
        for name, times_of in times.items():
            begun = time.process_time()
            stepper([encoded() if name == "encoded" else batch], 1e-4)
            times_of.append((time.process_time() - begun) / torch.get_num_threads())
    seconds = {name: statistics.median(values) for name, values in times.items()}
    peak = peak_flops()
    return {
        "peak_bytes_of_loading": loading,
        "peak_bytes_of_steps": peak_memory,
        "seconds": seconds,
        "encoded_over_cached": seconds["encoded"] / seconds["cached"],
        "tflop": flops / 1e12,
        "share_of_matmul_peak": flops / seconds["cached"] / peak,
        "matmul_peak_gflops": peak / 1e9,
        "unet_and_vae_bit_identical": [module_sha256(base.unet), module_sha256(base.vae)] == sums,
    }


def prompt_ids(tokenizer: Any) -> torch.Tensor:
    """Token ids of a caption, (1, 77)."""
    return tokenizer("A dog runs on the beach", padding="max_length", return_tensors="pt").input_ids


def peak_flops() -> float:
    """Operations a second of a large matrix product on all threads, the best of a few."""
    matrix = torch.ones(4096, 4096, dtype=PRECISION_DTYPES[PRECISION])
    seconds = []
    for _ in range(3):
        begun = time.process_time()
        matrix @ matrix
        seconds.append((time.process_time() - begun) / torch.get_num_threads())
    return 2 * 4096**3 / min(seconds)


def flickr8k_captions(path: Path) -> list[str]:
    """All 40,460 captions of Flickr8k."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.partition("\t")[2] for line in lines]


def recipe_of(work: Path) -> Recipe:
    """Both checkpoints."""
    return apply_overrides(Recipe(), {"clip.name": str(work / "clip"), "base.name": str(work / "sd15")})


def write_checkpoints(work: Path, flickr8k: Path) -> None:
    """Write both models once, with a tokenizer that knows Flickr8k's words, so that lengths are usual."""
    if (work / "ready").is_file():
        return
    work.mkdir(parents=True, exist_ok=True)
    real_size.write_clip_b32(work / "clip")
    real_size.write_sd15_checkpoint(work / "sd15", torch.bfloat16)
    if flickr8k.is_file():
        tokenizer = real_size.build_tokenizer(flickr8k_captions(flickr8k), 8000)
        tokenizer.save_pretrained(work / "clip")
        tokenizer.save_pretrained(work / "sd15" / "tokenizer")
    clip = load_clip(work / "clip")
    bridge = Bridge(WIDTH, BASE_WIDTH, 1024, num_maps=3, num_positions=77)
    empty, eos = torch.zeros(77, BASE_WIDTH), clip.tokenizer.eos_token_id
    encoder = GraftedTextEncoder.graft(clip.model.text_model, bridge, empty, eos)
    record = BaseRecord(name="sd15", revision="", sums={})
    Graft(encoder, clip.tokenizer, record).save_pretrained(work / "graft")
    (work / "ready").touch()


def in_a_process(name: str, work: Path, count: int, flickr8k: Path) -> dict[str, Any]:
    """Call one of this file's functions in a process of its own, and add its peak memory."""
    command = [sys.executable, __file__, "--child", name, "--work", str(work), "--captions", str(count)]
    command += ["--flickr8k", str(flickr8k)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


def peak_bytes() -> int:
    """Most memory that this process has held: VmHWM."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def forget_peak() -> None:
    """Have VmHWM count from what is held now: reading weights maps their file beside them."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def update_result(section: str, found: dict[str, Any], num_captions: int) -> None:
    """Put a section into the results, with the environment that it was measured in."""
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    command = f"python benchmarks/bench_bridge.py --only {section}"
    if section == "closed_form" and num_captions != NUM_CAPTIONS:
        command += f" --captions {num_captions}"
    environment = describe_environment(torch.device("cpu")) | {"command": command}
    if section == "refine" and PRECISION == "no":
        section = "refine_float32"
    result[section] = found | {"environment": environment}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=("ridge", "few_captions", "closed_form", "refine"))
    parser.add_argument("--captions", type=int, default=NUM_CAPTIONS)
    parser.add_argument("--flickr8k", type=Path, default=FLICKR8K)
    parser.add_argument("--work", type=Path, default=Path("runs/bench_bridge"))
    parser.add_argument("--child", choices=("fit", "refine_step", "recomputed_step"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        function = {"fit": fit, "refine_step": refine_step, "recomputed_step": recomputed_step}[options.child]
        found = function(options.work, options.captions, options.flickr8k)
        print(json.dumps({**found, "peak_bytes": peak_bytes()}))
        return
    parts = {
        "ridge": ridge,
        "few_captions": few_captions,
        "closed_form": lambda: closed_form(options.work, options.captions, options.flickr8k),
        "refine": lambda: refine(options.work),
    }
    for name in [options.only] if options.only else parts:
        if name in ("closed_form", "refine"):
            write_checkpoints(options.work, options.flickr8k)
        found = parts[name]()
        print(name, json.dumps(found, indent=2))
        if found:
            update_result(name, found, options.captions)


if __name__ == "__main__":
    main()
