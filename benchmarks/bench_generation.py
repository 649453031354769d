"""Drawing with Stable Diffusion v1.5's shape (random weights) and with flatland, side by side.

    python benchmarks/bench_generation.py [--rows steps ...] [--repeats 5] [--minutes 7] [--again] [--tiny]

Each row is written to benchmarks/results/generation.json as soon as it is measured, and one that is there is
not measured again without --again: so the whole can be measured in parts. `--tiny` runs every row in a few
minutes on flatland and writes nothing. The networks' weights are those of tests/real_size.py.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from clipgraft.cache import cache_dir
from clipgraft.device import describe_environment, inference_dtype, quiet_libraries
from clipgraft.evaluation.metrics.image_similarity import psnr, ssim
from clipgraft.evaluation.metrics.probe import fidelity_scores, load_probe, read_attributes
from clipgraft.flatland import composed_prompts, fidelity_prompts
from clipgraft.generation.engines.attach import put_on_engine, set_approximations
from clipgraft.generation.engines.choice import choose_engine
from clipgraft.generation.engines.engine import engines_at_hand
from clipgraft.generation.engines.networks import Decoder
from clipgraft.generation.pipeline import build_pipeline, sample
from clipgraft.generation.requests import ImageRequest
from clipgraft.generation.schedulers import build_scheduler
from clipgraft.measured import all_kept
from clipgraft.models import single_file as sd15
from clipgraft.models.base import FrozenBase
from clipgraft.models.hub import embedded_models
from clipgraft.sampling_params import InferenceConfig, SamplingParams

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from real_size import write_sd15_checkpoint

RESULT = Path(__file__).parent / "results" / "generation.json"
SD15 = cache_dir() / "bench-sd15"
CPU = torch.device("cpu")
BF16, F32 = torch.bfloat16, torch.float32
PROMPTS = (
    "A dog running on the beach at sunset",
    "A colorful garden with blooming flowers",
    "A red boat on a lake at night",
    "A black cat sits beside a white horse",
    "A kite over a green park in the morning",
    "A yellow bird in the snow",
    "A brown horse in the desert at noon",
    "A small house in the forest",
)
Step = Callable[[], object]
DEADLINE = float("inf")
"""Of `time.monotonic()`."""
TURNS: list[int] = []
"""How many were measured, by `take_turns`."""


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load(options: argparse.Namespace, unet_dtype: torch.dtype, rest: torch.dtype = F32) -> FrozenBase:
    """The base; its U-Net in a dtype of its own."""
    name = "flatland" if options.tiny else str(SD15)
    light = FrozenBase.load(name, components=("vae", "scheduler", "tokenizer", "text_encoder"), dtype=rest)
    return replace(light, unet=FrozenBase.load(name, components=("unet",), dtype=unet_dtype).unet)


def on_engine(
    options: argparse.Namespace, engine: str, dtype: torch.dtype, cache: Path | None = None, **speed: Any
) -> FrozenBase:
    """The base on an engine, as `clipgraft generate` has it."""
    base = load(options, dtype)
    settings = InferenceConfig(engine=engine, **speed)
    made = engines_at_hand(settings, CPU, cache or cache_dir() / "openvino")[0]
    made.dtype = dtype
    put_on_engine(base, made, has_feature_cache=settings.feature_cache > 1)
    return base


def inputs_of(base: FrozenBase, rows: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timestep and states of a batch."""
    assert base.unet is not None
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(rows, 4, size // 8, size // 8, generator=generator)
    states = torch.randn(rows, 77, base.unet.config.cross_attention_dim, generator=generator)
    return latents, torch.tensor([500.0]), states


def unet_step(base: FrozenBase, dtype: torch.dtype, rows: int, size: int) -> Step:
    """A denoising step's forward pass, with inputs in the dtype that the pipeline would have."""
    latents, timestep, states = inputs_of(base, rows, size)
    latents, states = latents.to(dtype), states.to(dtype)

    @torch.no_grad()
    def step() -> Tensor:
        return base.unet(latents, timestep, encoder_hidden_states=states, return_dict=False)[0]  # type: ignore[misc]

    return step


def decode_step(base: FrozenBase, dtype: torch.dtype, size: int) -> Step:
    """A picture's decoding."""
    latents = inputs_of(base, 1, size)[0].to(dtype)

    @torch.no_grad()
    def step() -> Tensor:
        return base.vae.decode(latents, return_dict=False)[0]  # type: ignore[union-attr]

    return step


def take_turns(
    variants: dict[str, Step], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each variant; the first turn of each is thrown away.

    When the time is over, fewer turns have to do: how many is in the row. `time.process_time` as clock counts
    what all threads computed, whatever else the machine does.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        if turn > 1 and time.monotonic() > DEADLINE:
            break
        for name, step in variants.items():
            begun = clock()
            step()
            if turn:
                seconds[name].append(clock() - begun)
        print({name: round(values[-1], 3) for name, values in seconds.items() if values}, flush=True)
    TURNS.append(min(len(values) for values in seconds.values()))
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare(variants: dict[str, Step], repeats: int) -> dict[str, Any]:
    """Medians, each over the fastest, and how far each output is from the first's."""
    medians = take_turns(variants, repeats)
    outputs = {name: step().float() for name, step in variants.items()}  # type: ignore[attr-defined]
    first = next(iter(outputs.values()))
    fastest = min(medians.values())
    return {
        "median_seconds": medians,
        "times_the_fastest": {name: value / fastest for name, value in medians.items()},
        "largest_difference_to_the_first": {
            name: float((output - first).abs().max()) for name, output in outputs.items()
        },
        "standard_deviation_of_the_first": float(first.std()),
    }


def variants_of(
    options: argparse.Namespace,
    make: Callable[[FrozenBase, torch.dtype], Step],
    engines_in: torch.dtype = BF16,
) -> dict[str, Step]:
    """Stock diffusers and each engine; nothing in bfloat16 where the engines have float32."""
    variants = {
        f"stock diffusers {name_of(dtype)}": make(load(options, dtype, dtype), dtype)
        for dtype in dict.fromkeys((F32, engines_in))
    }
    for engine in ("torch", "openvino"):
        made = on_engine(options, engine, engines_in)
        variants[f"{engine} engine {name_of(engines_in)}"] = make(made, F32)
    return variants


def row_steps(options: argparse.Namespace) -> dict[str, Any]:
    """A guided step of one picture."""
    result = compare(
        variants_of(options, lambda base, dtype: unet_step(base, dtype, 2, options.size)), options.repeats
    )
    flops = 2 * unet_flops()
    peak = matmul_peak(BF16)
    medians = result["median_seconds"]
    return result | {
        "ratios": {
            f"stock diffusers {stock} / {engine} engine": medians[f"stock diffusers {stock}"]
            / medians[f"{engine} engine bfloat16"]
            for stock in ("float32", "bfloat16")
            for engine in ("torch", "openvino")
        },
        "flops_a_guided_step": flops,
        "matmul_peak_flops": {"bfloat16": peak, "float32": matmul_peak(F32)},
        "share_of_bfloat16_peak": {name: flops / value / peak for name, value in medians.items()},
    }


def row_auto(options: argparse.Namespace) -> dict[str, Any]:
    """The engine that `auto` measures and takes, against each engine and stock diffusers."""
    name = "flatland" if options.tiny else str(SD15)
    engines = engines_at_hand(InferenceConfig(), CPU, cache_dir() / "openvino")
    light = FrozenBase.load(name, components=("tokenizer",))
    measuring = []
    for _ in range(2):  # the first converts, if that was not done before
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {"XDG_CACHE_HOME": folder}):
            begun = time.perf_counter()
            chosen = choose_engine(engines, light).name
            measuring.append(time.perf_counter() - begun)
            (measured,) = (each for each in all_kept() if chosen in each.seconds)
    dtype = inference_dtype(CPU)
    medians = take_turns(
        variants_of(options, lambda base, dtype: unet_step(base, dtype, 2, options.size), dtype),
        options.repeats,
    )
    by_engine = {engine.name: medians[f"{engine.name} engine {name_of(dtype)}"] for engine in engines}
    stock = min(value for variant, value in medians.items() if variant.startswith("stock"))
    return {
        "median_seconds": medians,
        "chosen": chosen,
        "seconds_when_chosen": measured.seconds,
        "auto / fastest engine": by_engine[chosen] / min(by_engine.values()),
        "faster stock / auto": stock / by_engine[chosen],
        "seconds_of_choosing_first_and_again": measuring,
        "machine": measured.machine.model_dump(),
    }


def row_auto_without_bfloat16(options: argparse.Namespace) -> dict[str, Any]:
    """The same on a CPU without bfloat16, in which stock diffusers would take hours a step."""
    if inference_dtype(CPU) != F32:
        return {"skipped": "this CPU gains from bfloat16: the row `auto` is for it"}
    return row_auto(options)


def row_flatland_auto(options: argparse.Namespace) -> dict[str, Any]:
    """The same for flatland."""
    return row_auto(argparse.Namespace(**vars(options) | {"tiny": True, "size": 128}))


def row_float32(options: argparse.Namespace) -> dict[str, Any]:
    """The engines where the CPU has no bfloat16."""
    variants = {"stock diffusers float32": unet_step(load(options, F32), F32, 2, options.size)}
    for engine in ("torch", "openvino"):
        variants[f"{engine} engine float32"] = unet_step(
            on_engine(options, engine, F32), F32, 2, options.size
        )
    result = compare(variants, options.repeats)
    flops, peak = 2 * unet_flops(), matmul_peak(F32)
    shares = {name: flops / value / peak for name, value in result["median_seconds"].items()}
    return result | {"matmul_peak_flops": peak, "share_of_peak": shares}


def row_decode(options: argparse.Namespace) -> dict[str, Any]:
    """The VAE's decoder, one picture."""
    return compare(
        variants_of(options, lambda base, dtype: decode_step(base, dtype, options.size)), options.repeats
    )


def row_tiny_vae(options: argparse.Namespace) -> dict[str, Any]:
    """Processor seconds of a guided step and of decoding, also by a tiny VAE; four steps go unguided."""
    result: dict[str, Any] = {}
    for name in ("openvino", "torch"):
        base = on_engine(options, name, BF16)
        engine = engines_at_hand(InferenceConfig(engine=name), CPU, cache_dir() / "openvino")[0]
        latents = inputs_of(base, 1, options.size)[0]
        tiny = engine.prepare("a tiny decoder", Decoder(AutoencoderTiny().decoder), (latents[..., :9, :9],))
        steps: dict[str, Step] = {
            "guided step": unet_step(base, F32, 2, options.size),
            "decoding": decode_step(base, F32, options.size),
            "tiny decoding": partial(tiny, latents),
        }
        medians = take_turns(steps, options.repeats, time.process_time)
        denoising = {"25 guided steps": 25 * medians["guided step"], "4 steps": 2 * medians["guided step"]}
        result[name] = {
            "median_processor_seconds": medians,
            "decoding / tiny decoding": medians["decoding"] / medians["tiny decoding"],
            "share_of_decoding": {
                count: {
                    which: medians[which] / (seconds + medians[which])
                    for which in ("decoding", "tiny decoding")
                }
                for count, seconds in denoising.items()
            },
            "image / image with the tiny VAE": {
                count: (seconds + medians["decoding"]) / (seconds + medians["tiny decoding"])
                for count, seconds in denoising.items()
            },
        }
        del base, steps, tiny
    return result | {"num_threads": torch.get_num_threads()}


def row_flatland_tiny_vae(options: argparse.Namespace) -> dict[str, Any]:
    """The same for flatland."""
    return row_tiny_vae(argparse.Namespace(**vars(options) | {"tiny": True, "size": 128}))


def row_whole_picture(options: argparse.Namespace) -> dict[str, Any]:
    """Twenty steps from the prompt to the PNG against twenty times a step and a decoding."""
    base = on_engine(options, "openvino", BF16)
    pipeline = build_pipeline(base, base.text_encoder)  # type: ignore[arg-type]
    step, decode = unet_step(base, F32, 2, options.size), decode_step(base, F32, options.size)

    def picture() -> None:
        picture = next(sample(pipeline, [ImageRequest(PROMPTS[0], SamplingParams(num_inference_steps=20))]))
        with tempfile.TemporaryDirectory() as folder:
            picture.image.save(Path(folder) / "picture.png")

    medians = take_turns({"step": step, "decode": decode, "picture": picture}, min(3, options.repeats))
    parts = 20 * medians["step"] + medians["decode"]
    return {
        "median_seconds": medians,
        "twenty_steps_and_decoding": parts,
        "picture / parts": medians["picture"] / parts,
    }


def row_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak bytes of a process that loads the base, draws a picture in two steps and saves it.

    Weights' files are mapped, and what was read of them counts as resident though the system takes it back
    where memory is short; the process's own memory is the rest.
    """
    peaks = {}
    for engine in ("stock", "torch", "openvino"):
        words = [sys.executable, __file__, "--memory-of", engine, *(["--tiny"] if options.tiny else [])]
        output = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        peaks[f"{engine} bfloat16"] = json.loads(output)
    return {"peak_bytes": peaks}


def draw_for_memory(options: argparse.Namespace, engine: str) -> None:
    """What `row_memory` starts; the engine's networks are converted beforehand."""
    own = [0]
    threading.Thread(target=watch_own_memory, args=(own,), daemon=True).start()
    if engine == "int8":
        base = on_engine(options, "openvino", BF16, options.cache, quantize="int8")
    else:
        base = load(options, BF16, BF16) if engine == "stock" else on_engine(options, engine, BF16)
    pipeline = build_pipeline(base, base.text_encoder)  # type: ignore[arg-type]
    next(sample(pipeline, [ImageRequest(PROMPTS[0], SamplingParams(num_inference_steps=2))])).image.save(
        os.devnull, format="PNG"
    )
    print(json.dumps({"resident": bytes_in_status("VmHWM"), "own": own[0]}))


def watch_own_memory(peak: list[int]) -> None:
    """Keep in `peak` the most anonymous memory that this process has had."""
    while True:
        peak[0] = max(peak[0], bytes_in_status("RssAnon"))
        time.sleep(0.01)


def bytes_in_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def row_batches(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a guided step for each picture of a batch."""
    result: dict[str, dict[str, float]] = {}
    for engine in ("openvino", "torch"):
        base = on_engine(options, engine, BF16)
        seconds = {}
        for batch in (1, 2, 4, 8):
            step = unet_step(base, F32, 2 * batch, options.size)
            seconds[str(batch)] = take_turns({"": step}, min(3, options.repeats))[""] / batch
        result[engine] = seconds
    return {"seconds_a_picture_and_step": result}


def row_sizes(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a guided step of one picture by its side in pixels."""
    base = on_engine(options, "openvino", BF16)
    sizes = (64, 128, 192) if options.tiny else (256, 512, 768)
    return {"seconds": {str(size): take_turns({"": unet_step(base, F32, 2, size)}, 3)[""] for size in sizes}}


def row_feature_cache(options: argparse.Namespace) -> dict[str, Any]:
    """A guided step with the whole U-Net, and one with its last layer on a kept feature."""
    base = on_engine(options, "openvino", BF16, feature_cache=3)
    unet = base.unet
    sample, timestep, states = inputs_of(base, 2, options.size)
    feature = unet.run_unet(sample, timestep, states)[1]  # type: ignore[union-attr]
    variants: dict[str, Step] = {
        "whole": lambda: unet.run_unet(sample, timestep, states),  # type: ignore[union-attr]
        "last layer": lambda: unet.run_last_layer(sample, timestep, states, feature),  # type: ignore[union-attr]
    }
    return {"median_seconds": take_turns(variants, options.repeats)}


def row_int8(options: argparse.Namespace) -> dict[str, Any]:
    """Processor seconds of a guided step in INT8 against bfloat16; memory and time of calibrating."""
    in_bf16 = on_engine(options, "openvino", BF16)  # converts, if that was not done before
    with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
        cache = shutil.copytree(cache_dir() / "openvino", Path(folder) / "openvino", copy_function=os.link)
        processes = {}
        for name in ("calibrating", "kept"):
            words = [sys.executable, __file__, "--memory-of", "int8", "--cache", str(cache)]
            begun = time.perf_counter()
            words += ["--tiny"] if options.tiny else []
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE)
            peaks = json.loads(done.stdout.splitlines()[-1])
            processes[name] = {"peak_bytes": peaks, "seconds": time.perf_counter() - begun}
        in_int8 = on_engine(options, "openvino", BF16, cache, quantize="int8")
        bases = {"bfloat16": in_bf16, "int8": in_int8}
        steps = {name: unet_step(base, F32, 2, options.size) for name, base in bases.items()}
        medians = take_turns(steps, options.repeats, time.process_time)
        del bases, in_bf16, in_int8, steps
        parts = seconds_by_part(cache, inputs_of(load(options, F32), 2, options.size))
    total = sum(parts["bfloat16"].values())
    in_float = total - parts["bfloat16"]["convolutions"] - parts["bfloat16"]["linear layers"]
    return {
        "median_processor_seconds": medians,
        "bfloat16 / int8": medians["bfloat16"] / medians["int8"],
        "limit, at twice the speed in INT8": 2 * total / (total + in_float),
        "seconds_by_part": parts,
        "a_process": processes,
        "num_threads": torch.get_num_threads(),
    }


def row_flatland_int8(options: argparse.Namespace) -> dict[str, Any]:
    """Prompt fidelity in INT8 against bfloat16, and how alike the images are; calibrated on other prompts."""
    probe = load_probe(embedded_models() / "probe.safetensors")
    prompts = [*fidelity_prompts()[:32], *composed_prompts()[:32]]
    jobs = [ImageRequest(each.text, SamplingParams(seed=seed)) for seed, each in enumerate(prompts)]
    pixels, fidelity = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("none", "int8"):
            base = on_engine(argparse.Namespace(tiny=True), "openvino", BF16, Path(folder), quantize=name)
            pipeline = build_pipeline(base, base.text_encoder)  # type: ignore[arg-type]
            flatland_pictures(pipeline, 1)  # calibrates
            images = [each.image for each in sample(pipeline, jobs, batch_size=8, defaults=base.defaults)]
            pixels[name] = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(
                0, 3, 1, 2
            )
            scores = fidelity_scores(read_attributes(probe, pixels[name]), [each.scene for each in prompts])
            fidelity[name] = float(np.nanmean(scores["prompt_fidelity"]))
    alike = ssim(pixels["int8"] / 255, pixels["none"] / 255)
    decibels = psnr(pixels["int8"] / 255, pixels["none"] / 255)
    return {
        "num_images": len(jobs),
        "prompt_fidelity": fidelity,
        "int8 / bfloat16": fidelity["int8"] / fidelity["none"],
        "ssim_median_and_min": [float(alike.median()), float(alike.min())],
        "psnr_median_and_min": [float(decibels.median()), float(decibels.min())],
    }


def seconds_by_part(cache: Path, inputs: tuple[Tensor, ...]) -> dict[str, dict[str, float]]:
    """Seconds that OpenVINO counts for each kind of layer of the U-Net, in bfloat16 and in INT8."""
    import openvino as ov

    core, found = ov.Core(), {}
    for path in cache.rglob("network.xml"):
        model = core.read_model(path)
        is_int8 = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
        if len(model.inputs) != 3 or model.input(2).partial_shape[2].get_length() != inputs[2].shape[2]:
            continue
        rows = [torch.zeros(1, model.input(1).shape[1]) if each.ndim == 1 else each for each in inputs]
        model.reshape({port: list(row.shape) for port, row in zip(model.inputs, rows, strict=True)})
        settings = {"INFERENCE_PRECISION_HINT": "bf16", "PERF_COUNT": True}
        request = core.compile_model(
            model, "CPU", settings | {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        ).create_infer_request()
        for _ in range(2):
            request.infer([row.numpy() for row in rows])
        parts: dict[str, float] = defaultdict(float)
        for layer in request.profiling_info:
            kinds = {"Convolution": "convolutions", "FullyConnected": "linear layers"}
            kind = kinds.get(layer.node_type.removesuffix("QuantizedLegacy"), "the rest")
            is_attention = layer.node_type == "Subgraph" and "ScaledDotProductAttention" in layer.node_name
            parts["attention" if is_attention else kind] += layer.real_time.total_seconds()
        found["int8" if is_int8 else "bfloat16"] = dict(parts)
    return found


def flatland_pictures(pipeline: Any, steps: int, scheduler: str = "dpm++") -> list[Image.Image]:
    """The eight prompts, one seed each."""
    pipeline.scheduler = build_scheduler(scheduler, pipeline.scheduler)
    jobs = [
        ImageRequest(prompt, SamplingParams(seed=seed, num_inference_steps=steps))
        for seed, prompt in enumerate(PROMPTS)
    ]
    return [picture.image for picture in sample(pipeline, jobs, batch_size=8)]


def closeness(images: list[Image.Image], references: list[Image.Image]) -> dict[str, float]:
    """The worst and the middle of the pictures' PSNR (dB) and SSIM."""
    drawn, expected = (
        torch.stack([torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1) for image in each])
        for each in (images, references)
    )
    decibels = psnr(drawn, expected).clamp(max=99)  # equal pictures have no noise
    alike = ssim(drawn, expected)
    return {
        "psnr_min": float(decibels.min()),
        "psnr_median": float(decibels.median()),
        "ssim_min": float(alike.min()),
        "ssim_median": float(alike.median()),
    }


def row_flatland_pictures(options: argparse.Namespace) -> dict[str, Any]:
    """Pictures of the same seeds against stock diffusers in float32, 20 steps."""
    stock = FrozenBase.load("flatland")
    reference = flatland_pictures(build_pipeline(stock, stock.text_encoder), 20)  # type: ignore[arg-type]
    result = {}
    half = FrozenBase.load("flatland", dtype=BF16)
    result["stock diffusers bfloat16"] = closeness(
        flatland_pictures(build_pipeline(half, half.text_encoder), 20),  # type: ignore[arg-type]
        reference,
    )
    for engine in ("torch", "openvino"):
        for dtype in (F32, BF16):
            base = on_engine(argparse.Namespace(tiny=True), engine, dtype)
            pictures = flatland_pictures(build_pipeline(base, base.text_encoder), 20)  # type: ignore[arg-type]
            result[f"{engine} engine {name_of(dtype)}"] = closeness(pictures, reference)
    return result


def row_flatland_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Pictures a second in batches of eight, 25 steps; and eight prompts from the command line."""
    variants: dict[str, Step] = {}
    stock = FrozenBase.load("flatland")
    pipelines = {"stock diffusers float32": build_pipeline(stock, stock.text_encoder)}  # type: ignore[arg-type]
    for engine in ("torch", "openvino"):
        base = on_engine(argparse.Namespace(tiny=True), engine, BF16)
        pipelines[f"{engine} engine bfloat16"] = build_pipeline(base, base.text_encoder)  # type: ignore[arg-type]
    for name, pipeline in pipelines.items():
        variants[name] = partial(flatland_pictures, pipeline, 25)
    medians = take_turns(variants, options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable,
            "-m",
            "clipgraft",
            "generate",
            *PROMPTS,
            "--base",
            "flatland",
            "--out",
            folder,
        ]
        begun = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        seconds = time.perf_counter() - begun
    return {
        "images_a_second": {name: 8 / value for name, value in medians.items()},
        "ratio_to_stock": {
            name: medians["stock diffusers float32"] / value for name, value in medians.items()
        },
        "eight_prompts_from_the_command_line_seconds": seconds,
    }


def row_shortcuts(options: argparse.Namespace) -> dict[str, Any]:
    """Class C on flatland with the default engine: time, and how far the pictures go from the default's."""
    settings: dict[str, tuple[dict[str, Any], int, str]] = {
        "default, 25 steps": ({}, 25, "dpm++"),
        "default, 15 steps": ({}, 15, "dpm++"),
        "reference: pndm, 50 steps": ({}, 50, "pndm"),
        "guidance interval 0 to 0.6": ({"guidance_interval": (0.0, 0.6)}, 25, "dpm++"),
        "guidance interval 0.1 to 0.8": ({"guidance_interval": (0.1, 0.8)}, 25, "dpm++"),
        "feature cache 2": ({"feature_cache": 2}, 25, "dpm++"),
        "feature cache 3": ({"feature_cache": 3}, 25, "dpm++"),
    }
    variants: dict[str, Step] = {}
    for name, (shortcut, steps, scheduler) in settings.items():
        speed = InferenceConfig(**shortcut)
        base = FrozenBase.load("flatland")
        engine = engines_at_hand(speed, CPU, cache_dir() / "openvino")[0]
        put_on_engine(base, engine, has_feature_cache=speed.feature_cache > 1)
        pipeline = build_pipeline(base, base.text_encoder)  # type: ignore[arg-type]
        set_approximations(pipeline, speed)
        variants[name] = partial(flatland_pictures, pipeline, steps, scheduler)
    medians = take_turns(variants, options.repeats)
    reference = variants["default, 25 steps"]()
    return {
        name: {"ratio": medians["default, 25 steps"] / medians[name]} | closeness(step(), reference)  # type: ignore[arg-type]
        for name, step in variants.items()
    }


def row_onnxruntime(options: argparse.Namespace) -> dict[str, Any]:
    """ONNX Runtime on the U-Net, in an environment of its own, taking turns with OpenVINO."""
    python = os.environ.get("ONNXRUNTIME_PYTHON", "")
    if not python:
        return {
            "skipped": "name a Python with onnxruntime and onnxscript beside clipgraft in ONNXRUNTIME_PYTHON"
        }
    script = Path(__file__).parent / "onnxruntime_step.py"
    words = [
        python,
        str(script),
        str(options.size),
        str(options.repeats),
        "tiny" if options.tiny else "whole",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"skipped": done.stderr.strip().splitlines()[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def unet_flops() -> int:
    """Operations of one row's forward pass at 512 x 512, counted on shapes alone."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(sd15.UNET_CONFIG)
        inputs = torch.randn(1, 4, 64, 64), torch.tensor([1.0]), torch.randn(1, 77, 768)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2])
    return counter.get_total_flops()


def matmul_peak(dtype: torch.dtype) -> float:
    """Operations a second of a product of two 4096 x 4096 matrices, the best of a few."""
    matrix = torch.ones(4096, 4096, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - begun)
    return 2 * 4096**3 / best


ROWS = {
    name.removeprefix("row_"): function
    for name, function in list(globals().items())
    if name.startswith("row_")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no turn after that")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    global DEADLINE
    DEADLINE = time.monotonic() + 60 * options.minutes
    options.size = 128 if options.tiny else 512
    quiet_libraries()
    if options.memory_of:
        draw_for_memory(options, options.memory_of)
        return
    if not options.tiny and not all("flatland" in row for row in options.rows) and not SD15.is_dir():
        write_sd15_checkpoint(SD15, BF16)
    results = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    for row in options.rows:
        is_measured = row in results and "skipped" not in results[row]
        is_there = is_measured and not options.again and not options.tiny
        if is_there or time.monotonic() > DEADLINE:
            continue
        TURNS.clear()
        measured = ROWS[row](options) | {"turns": min(TURNS, default=1)}
        print(json.dumps({row: measured}, indent=2), flush=True)
        command = {"command": f"python benchmarks/bench_generation.py --rows {row}"}
        results[row] = measured | {"environment": describe_environment(CPU) | command}
        if not options.tiny:
            RESULT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
