"""Build wheel and sdist, install the wheel into empty environments, and try it there as a user would.

    python tools/check_dist.py                       # with the interpreter that runs it
    python tools/check_dist.py --python python3.13   # with others
    python tools/check_dist.py --resolve-only --python python3.13   # only whether every pin can be had for it

Fails at the first thing that is not as it should be. What it built is left in dist/.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
TOOLS = ("build", "hatchling", "twine")
"""Pinned in constraints.txt, as everything is."""
FOR_DEVELOPERS = {"dev", "docs"}
"""Extras that no user needs."""
MAX_WHEEL_MB = 60
"""The embedded base's weights are most of it."""
PHOTOS = """
from pathlib import Path
from PIL import Image
for number in range(24):
    Image.new("RGB", (64, 64), (10 * number, 80, 200)).save(f"photos/{number}.png")
    Path(f"photos/{number}.txt").write_text(f"a dog on the beach, number {number}")
"""
PARQUET = """
import io, pyarrow, pyarrow.parquet
from pathlib import Path
photos = [Path(f"photos/{number}.png") for number in range(4)]
images = [{"bytes": photo.read_bytes(), "path": photo.name} for photo in photos]
captions = [f"a dog, {photo.stem}" for photo in photos]
pyarrow.parquet.write_table(pyarrow.table({"image": images, "caption": captions}), "table.parquet")
"""
HEIC = """
import pillow_heif
from PIL import Image
pillow_heif.register_heif_opener()
Image.new("RGB", (64, 64), "red").save("phone.heic")
"""
SERVE = """
import json, subprocess, sys, time, urllib.request
server = subprocess.Popen(["clipgraft", "studio", ".", "--port", "8931"], stderr=subprocess.DEVNULL)
try:
    for attempt in range(300):
        time.sleep(0.2)
        try:
            page = urllib.request.urlopen("http://127.0.0.1:8931/", timeout=5).read().decode()
            break
        except OSError:
            assert server.poll() is None, "the studio ended"
    assert "<title>" in page and "</html>" in page
    print(urllib.request.urlopen("http://127.0.0.1:8931/health", timeout=5).read().decode())
finally:
    server.terminate()
    server.wait(60)
"""
FINETUNE = (
    *("clipgraft", "finetune", "--data", "photos", "--overwrite", "--set", "finetune.num_epochs=1"),
    *("--set", "finetune.batch_size=8"),
)
GENERATE = ("clipgraft", "generate", "A dog on the beach", "--base", "flatland", "--steps", "2")
STUDIO = ("clipgraft", "studio", ".", "--port", "8931")


@dataclass(frozen=True)
class Extra:
    """A command that needs an extra, its answer without it, and how it is tried with it."""

    name: str
    command: tuple[str, ...]
    prepare: str = ""
    """Python code that writes the command's input with the extra's package."""
    instead: str = ""
    """Python code to run with the extra in place of the command."""


EXTRAS = (
    Extra("lora", (*FINETUNE, "--out", "lora", "--set", "finetune.lora_rank=2")),
    Extra("data", ("clipgraft", "data", "check", "table.parquet"), prepare=PARQUET),
    Extra("app", STUDIO, instead=SERVE),
    Extra("heif", (*GENERATE, "--out", "images", "--init-image", "phone.heic"), prepare=HEIC),
    Extra("lms", (*GENERATE, "--out", "images", "--scheduler", "lms")),
    Extra("openvino", (*GENERATE, "--out", "images", "--engine", "openvino")),
    Extra("tracking", (*FINETUNE, "--out", "tracked", "--report-to", "tensorboard")),
)


class Environment:
    """An empty environment outside the source tree.

    Args:
        place: Folder of the environment and of everything that its commands write.
        python: Interpreter that it is made with.
    """

    def __init__(self, place: Path, python: str):
        self.home, self.venv = place / "home", place / "venv"
        self.home.mkdir(parents=True)
        run([python, "-m", "venv", self.venv])

    def run(self, *command: str | Path, expect: int = 0) -> str:
        """Run a command of the environment in its folder; return all that it prints."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {
            "HOME": str(self.home),
            "PATH": f"{self.venv / 'bin'}:/usr/bin:/bin",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        return run(command, expect=expect, cwd=self.home, env=environment)

    def pip(self, *arguments: str | Path) -> None:
        """Run pip with the repository's constraints."""
        run([self.venv / "bin" / "python", "-m", "pip", *arguments], cwd=self.home)

    def install(self, *packages: str | Path) -> None:
        """Install packages in the tested versions."""
        self.pip("install", "--quiet", "--constraint", CONSTRAINTS, *packages)

    def packages(self) -> set[str]:
        """Return the installed packages."""
        listed = run([self.venv / "bin" / "python", "-m", "pip", "freeze", "--all"], cwd=self.home)
        return {line.split("==")[0].split(" @ ")[0] for line in listed.splitlines() if line.strip()}


def run(command, *, expect: int = 0, **options) -> str:
    """Run a command; return what it prints, or end with it if its exit code is another."""
    ended = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )
    if ended.returncode != expect:
        shown = " ".join(str(part) for part in command)[:200]
        sys.exit(f"{shown}\nended with {ended.returncode}, not {expect}:\n{ended.stdout[-4000:]}")
    return ended.stdout


def check(condition: bool, message: str) -> None:
    """End with a message unless a condition holds."""
    if not condition:
        sys.exit(message)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long a block took."""
    begun = time.perf_counter()
    yield
    print(f"{time.perf_counter() - begun:6.1f} s  {what}", flush=True)


def build(work: Path, dist: Path) -> Path:
    """Build the sdist and from it the wheel, check both, and return the wheel."""
    tools = Environment(work / "tools", sys.executable)
    with timed("install " + ", ".join(TOOLS)):
        tools.install(*TOOLS)
    python = tools.venv / "bin" / "python"
    shutil.rmtree(dist, ignore_errors=True)
    with timed("build the sdist, the wheel from it, and the wheel from the source tree"):
        run([python, "-m", "build", "--no-isolation", "--outdir", dist, ROOT])
        run([python, "-m", "build", "--no-isolation", "--wheel", "--outdir", work / "direct", ROOT])
    [wheel], [sdist], [direct] = dist.glob("*.whl"), dist.glob("*.tar.gz"), (work / "direct").glob("*.whl")
    check(sha256(wheel) == sha256(direct), "the sdist builds another wheel than the source tree")
    run([python, "-m", "twine", "check", "--strict", wheel, sdist])
    check_contents(wheel, sdist)
    return wheel


def check_contents(wheel: Path, sdist: Path) -> None:
    """Compare both with the files that git knows: nothing is missing, nothing else is in them."""
    tracked = set(run(["git", "-C", ROOT, "ls-files"]).splitlines())
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    check_equal("sdist", members, tracked | {"PKG-INFO"})
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
        members = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    check_equal("wheel", members, source)
    offered = {line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra: ")}
    check(
        offered - FOR_DEVELOPERS == {extra.name for extra in EXTRAS}, f"not all extras are tried: {offered}"
    )
    for path in (wheel, sdist):
        print(f"          {path.name}: {path.stat().st_size / 1e6:.1f} MB")
    size = wheel.stat().st_size / 1e6
    check(size <= MAX_WHEEL_MB, f"the wheel has {size:.0f} MB, more than {MAX_WHEEL_MB}")


def check_equal(what: str, found: set[str], expected: set[str]) -> None:
    """Name the first files that are missing or too many."""
    missing, others = sorted(expected - found), sorted(found - expected)
    check(not missing, f"the {what} lacks {', '.join(missing[:5])}")
    check(not others, f"the {what} holds {', '.join(others[:5])}, which git does not know")


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def try_core(environment: Environment, wheel: Path) -> None:
    """Install the wheel alone, and run its commands."""
    with timed("install the wheel without extras"):
        environment.install(wheel)
    version = wheel.name.split("-")[1]
    with timed("clipgraft --version, doctor, generate"):
        check(version in environment.run("clipgraft", "--version"), f"--version does not say {version}")
        environment.run("clipgraft", "doctor")
        environment.run(*GENERATE, "--out", "images")
    check(any((environment.home / "images").glob("*.png")), "no image was generated")
    (environment.home / "photos").mkdir()
    (environment.home / "table.parquet").write_bytes(b"PAR1" + bytes(64) + b"PAR1")
    (environment.home / "phone.heic").write_bytes(bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(80))
    environment.run("python", "-c", PHOTOS)


def try_extra(environment: Environment, wheel: Path, extra: Extra) -> None:
    """Run a command without an extra, install it, run it again, and remove the extra."""
    before = environment.packages()
    answer = environment.run(*extra.command, expect=2)
    advice = f"pip install 'clipgraft[{extra.name}]'"
    lines = [line for line in answer.splitlines() if advice in line]
    check(
        len(lines) >= 1 and "Traceback" not in answer,
        f"{' '.join(extra.command)}\nsays without {extra.name} not {advice!r} but:\n{answer[-3000:]}",
    )
    with timed(f"[{extra.name}]: {lines[0][:90]}"):
        environment.install(f"{wheel}[{extra.name}]")
        if extra.prepare:
            environment.run("python", "-c", extra.prepare)
        environment.run(*(("python", "-c", extra.instead) if extra.instead else extra.command))
    added = environment.packages() - before
    if added:
        environment.pip("uninstall", "--quiet", "--yes", *sorted(added))


def try_wheel(work: Path, wheel: Path, python: str) -> None:
    """Try a wheel in an empty environment: core alone, then each extra alone."""
    version = run([python, "-c", "import platform; print(platform.python_version())"]).strip()
    print(f"Python {version}", flush=True)
    environment = Environment(work / f"python{version}", python)
    try_core(environment, wheel)
    for extra in EXTRAS:
        try_extra(environment, wheel, extra)


def resolve(work: Path, wheel: Path, python: str) -> None:
    """Check that the wheel and all extras can be had as wheels in the tested versions."""
    version = run([python, "-c", "import platform; print(platform.python_version())"]).strip()
    environment = Environment(work / f"resolve{version}", python)
    with timed(f"Python {version}: every pin has a wheel"):
        names = ",".join(extra.name for extra in EXTRAS)
        environment.install("--dry-run", "--only-binary", ":all:", f"{wheel}[{names}]")


def main() -> None:
    """Build once, and try what was built with every interpreter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", action="append", help="interpreter; several are allowed")
    parser.add_argument("--resolve-only", action="store_true", help="install nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clipgraft-dist-") as temporary:
        work = Path(temporary)
        wheel = build(work, ROOT / "dist")
        for python in options.python or [sys.executable]:
            (resolve if options.resolve_only else try_wheel)(work, wheel, python)
    print("wheel and sdist are in order")


if __name__ == "__main__":
    main()
