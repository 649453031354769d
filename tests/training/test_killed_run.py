"""Fine-tuning killed with SIGKILL at a named place, resumed, against the unbroken run: the same bits."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.torch import load_file

import tiny
from clipgraft.models.clip import save_clip
from shard_writers import jpeg, write_shards
from two_processes import run_in_two_processes

PLACES = {
    "at an epoch's start": ("clipgraft.data.loader", "EpochSampler.resume", 3),
    "inside an epoch": ("clipgraft.training.step", "TrainStep.__call__", 6),
    "inside accumulation": ("clipgraft.training.objectives", "ContrastiveObjective.embed", 22),
    "inside an evaluation": ("clipgraft.finetuning.validate", "Validator.measure", 2),
    "inside a save": ("clipgraft.training.checkpoints", "write_tensors", 3),
    "between a save and the next log line": ("clipgraft.training.run_log", "RunLogger.write", 7),
}
"""Module, function or method, and the call at which the process dies, counted from 1.

`resume` is called by the sampler itself, then by each epoch: 3 is the second. `embed` is called once an
evaluation and four times a step, twice without a graph, then twice with one: 22 is the last of step 5.
"""

SETTINGS = (
    'device="cpu"',
    'finetune.mixed_precision="no"',
    "finetune.batch_size=4",
    "finetune.gradient_accumulation_steps=2",
    "finetune.captions_per_image=2",
    "finetune.num_epochs=3",
    "finetune.learning_rate=1e-3",
    "finetune.ema_decay=0.9",
    "finetune.crop_scale=0.9",
    "finetune.checkpoint_every=2",
    'finetune.best_metric="val_loss"',
)


def command(world: Path, out: Path, num_workers: int, *more: str, data: str = "data") -> list[str]:
    settings = (*SETTINGS, f"finetune.num_workers={num_workers}")
    options = [word for setting in settings for word in ("--set", setting)]
    return [
        "finetune",
        "--data",
        f"{world}/{data}",
        "--clip",
        f"{world}/clip",
        "--out",
        str(out),
        *options,
        *more,
    ]


def run(arguments: list[str], *kill: str) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, __file__, *kill, "--", *arguments]
    return subprocess.run(words, env=environment, capture_output=True, timeout=300, check=False).returncode


def rows(path: Path) -> list[dict]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in found]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    clip = tiny.build_clip()
    for config in (clip.model.config.text_config, clip.model.config.vision_config):
        config.attention_dropout = 0.1
    save_clip(clip, folder / "clip")
    tiny.write_flickr8k(folder / "data", 48)
    return folder


@pytest.fixture(scope="module")
def unbroken(world):
    assert run(command(world, world / "unbroken", 0)) == 0
    return world / "unbroken"


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("place", PLACES)
def test_killed_and_resumed_run_ends_in_the_same_bits(world, unbroken, tmp_path, place, num_workers):
    out = tmp_path / "out"
    module, name, call = PLACES[place]
    assert run(command(world, out, num_workers), module, name, str(call)) == -signal.SIGKILL
    assert not (out / "metrics.json").exists()
    assert run(command(world, out, num_workers, "--resume")) == 0
    assert results_of(out) == results_of(unbroken)


@pytest.mark.slow
def test_two_killed_and_resumed_processes_end_in_the_same_bits(world, tmp_path):
    unbroken, out = tmp_path / "unbroken", tmp_path / "out"
    run_in_two_processes(__file__, "--", *command(world, unbroken, 0))
    place = ("clipgraft.training.step", "TrainStep.__call__", 9)
    run_in_two_processes(__file__, *place, "--", *command(world, out, 0), is_killed=True)
    run_in_two_processes(__file__, "--", *command(world, out, 0, "--resume"))
    assert results_of(out) == results_of(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["shards", "listing/pairs.parquet"])
def test_run_killed_within_a_shard_ends_in_the_same_bits(world, tmp_path, data):
    """As two processes of two workers each, and resumed with one."""
    write_listing(world / "listing") if "listing" in data else write_shards(world / "shards", 70, 10)
    unbroken, out = tmp_path / "unbroken", tmp_path / "out"
    run_in_two_processes(__file__, "--", *command(world, unbroken, 2, data=data))
    place = ("clipgraft.training.step", "TrainStep.__call__", 9)
    killed = command(world, out, 2, data=data)
    run_in_two_processes(__file__, *place, "--", *killed, is_killed=True)
    run_in_two_processes(__file__, "--", *command(world, out, 1, "--resume", data=data))
    assert results_of(out) == results_of(unbroken)
    assert [row["step"] for row in rows(out / "log.jsonl")][:12] == list(range(1, 13))


def write_listing(folder: Path) -> None:
    folder.mkdir()
    for number in range(70):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    columns = {"file_name": [f"{n}.jpg" for n in range(70)], "text": [f"a photo of {n}" for n in range(70)]}
    parquet.write_table(pa.table(columns), folder / "pairs.parquet")


def results_of(out: Path) -> dict:
    """Return the rows, the newest checkpoint's tensors and the weights of a run, each to the bit."""
    newest = max((out / "checkpoints").iterdir())
    tensors = load_file(newest / "tensors.safetensors")
    return {
        "rows": [rows(out / name) for name in ("log.jsonl", "evaluations.jsonl")],
        "checkpoint": newest.name,
        "tensors": {key: value.numpy().tobytes() for key, value in tensors.items()},
        "clip": (out / "clip/model.safetensors").read_bytes(),
    }


def die_at(module: str, name: str, call: int) -> None:
    """Have this process killed when a function is called for that time."""
    owner = __import__(module, fromlist=["_"])
    *classes, last = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original, calls = getattr(owner, last), []

    def counted(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, last, counted)


if __name__ == "__main__":
    separator = sys.argv.index("--")
    kill, arguments = sys.argv[1:separator], sys.argv[separator + 1 :]
    if kill:
        die_at(kill[0], kill[1], int(kill[2]))
    sys.argv = ["clipgraft", *arguments]
    from clipgraft.cli.app import main

    main()
