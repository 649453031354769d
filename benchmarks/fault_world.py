"""What `bench_faults.py` starts from: forked commands, damage, and the folders that are hurt."""

import hashlib
import http.client
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from clipgraft.cli.app import main as clipgraft
from clipgraft.models.hub import ASSETS

TIMEOUT_SECONDS = 120
ONE = "--set=device='cpu'"
TRAIN = [
    ONE,
    "--set=finetune.mixed_precision='no'",
    "--set=finetune.num_epochs=2",
    "--set=finetune.batch_size=8",
    "--set=finetune.checkpoint_every=2",
    "--set=finetune.crop_scale=0.8",
    "--set=finetune.best_metric='val_loss'",
]
BRIDGE = [
    ONE,
    "--allow-few-captions",
    "--set=bridge.mixed_precision='no'",
    "--set=bridge.num_epochs=2",
    "--set=bridge.hidden_size=16",
    "--set=bridge.batch_size=32",
    "--set=bridge.checkpoint_every=2",
]
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "cut at the end": lambda content: content[:-3],
    "a list": lambda _: b"[]",
    "null": lambda _: b"null",
    "an empty object": lambda _: b"{}",
    "not UTF-8": lambda _: b"\xff\xfe\x00{",
    "deep": lambda _: b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "a bit turned": lambda content: bytes([content[0] ^ 8]) + content[1:],
}


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    """Exit code; negative: the signal that killed it."""
    errors: str
    """Standard error."""


def call(*words: str | Path, kill_after: float = 0, file_bytes: int = 0) -> Outcome:
    """Run a command in a forked process.

    Args:
        words: Of the command, after `clipgraft`.
        kill_after: Seconds after which it is killed with SIGKILL; 0 = never.
        file_bytes: Largest file that it can write, as on a full disk; 0 = no limit.
    """
    with tempfile.TemporaryFile() as errors:
        process_id = os.fork()
        if not process_id:
            _become(list(map(str, words)), errors.fileno(), file_bytes)
        end = time.monotonic() + (kill_after or TIMEOUT_SECONDS)
        while not (ended := os.waitpid(process_id, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(process_id, signal.SIGKILL)
                ended = os.waitpid(process_id, 0)
                break
            time.sleep(0.01)
        errors.seek(0)
        return Outcome(os.waitstatus_to_exitcode(ended[1]), errors.read().decode(errors="replace"))


def _become(words: list[str], errors: int, file_bytes: int) -> None:
    """Be `clipgraft` with these words, and end."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.dup2(errors, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if file_bytes:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        sys.argv = ["clipgraft", *words]
        clipgraft()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def studio(runs: Path) -> Iterator[Callable[[str], tuple[int, bytes]]]:
    """Serve a folder of runs; gives what answers a GET with status and body."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process_id = os.fork()
    if not process_id:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        _become(["studio", str(runs), "--port", str(port)], nowhere, 0)

    def get(path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()

    try:
        end = time.monotonic() + TIMEOUT_SECONDS
        while True:
            try:
                get("/health")
                break
            except OSError:
                if time.monotonic() > end or os.waitpid(process_id, os.WNOHANG)[0]:
                    raise SystemExit("the studio does not start") from None
                time.sleep(0.1)
        yield get
    finally:
        os.kill(process_id, signal.SIGTERM)
        os.waitpid(process_id, 0)


def refused(outcome: Outcome, *needles: str) -> str:
    """What is wrong with a command that should have been refused in one line."""
    if outcome.code != 2:
        return f"exit code {outcome.code}: {outcome.errors.strip()[-300:]}"
    said = [line for line in outcome.errors.splitlines() if line.startswith("error:")]
    if len(said) != 1 or "Traceback" in outcome.errors:
        return f"not one line of error: {outcome.errors.strip()[-300:]}"
    missing = [needle for needle in needles if needle not in said[0]]
    return f"{said[0]} does not name {missing}" if missing else ""


def ended_well(outcome: Outcome) -> str:
    """What is wrong with a command that should have come to its end."""
    return "" if outcome.code == 0 else f"exit code {outcome.code}: {outcome.errors.strip()[-300:]}"


def tree(folder: Path) -> dict[str, str]:
    """Sum of each file in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.lock"
    }


class World:
    """What the cases start from: data, a fine-tuned CLIP, a graft. Each is copied before it is hurt."""

    def __init__(self, root: Path, seed: int):
        self.root, self.random, self.count = root, random.Random(seed), 0
        self.data, self.tuned, self.bridged = root / "data", root / "tuned", root / "bridged"
        self.base = root / "base"
        shutil.copytree(ASSETS / "base", self.base)
        self.begin("data", "draw", "--num-images", 48, "--out", self.data)
        started = time.monotonic()
        self.begin("finetune", "--data", self.data, "--out", self.tuned, *TRAIN)
        self.train_seconds = time.monotonic() - started
        self.begin(
            "bridge", "--data", self.data, "--clip", self.tuned / "clip", "--out", self.bridged, *BRIDGE
        )

    def begin(self, *words: str | Path | int) -> None:
        """Run a command that has to succeed."""
        if problem := ended_well(call(*map(str, words))):
            raise SystemExit(f"{words[0]} failed: {problem}")

    def new(self, like: Path | None = None) -> Path:
        """A place of its own, or a copy of a folder there."""
        self.count += 1
        place = self.root / f"case-{self.count}"
        if like:
            shutil.copytree(like, place)
        return place

    def finetune(self, out: Path, *more: str, **limits: float) -> Outcome:
        """Fine-tune as `tuned` was."""
        return call("finetune", "--data", self.data, "--out", out, *TRAIN, *more, **limits)

    def other_bits(self, out: Path) -> str:
        """What differs between a run and the undisturbed one."""
        if not (out / "clip" / "model.safetensors").is_file():
            return "there is no clip/model.safetensors"
        mine, theirs = (tree(folder / "clip") for folder in (out, self.tuned))
        return "" if mine == theirs else "clip/ has other bits than the undisturbed run"
