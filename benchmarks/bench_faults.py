"""Kills, damage and faults against the whole command line: tried, held, failed.

    python benchmarks/bench_faults.py [--only kills disk ...] [--seed 0]

Every case runs `clipgraft` in a process of its own, forked from one that has torch loaded. It holds if it
ends as expected: with exit code 0, or 2 and one line of error; never with a traceback, a hang, other bits
than the undisturbed run, or an input that has changed. A few minutes on two cores. Prints each family and
every case that failed, exits with 1 if there is one, and writes benchmarks/results/faults.json.
"""

import argparse
import importlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from rich.console import Console

from clipgraft.device import describe_environment
from clipgraft.files import write_json
from fault_world import DAMAGE, TRAIN, World, call, ended_well, refused, studio, tree

RESULT = Path(__file__).parent / "results" / "faults.json"


class Case(NamedTuple):
    """One attempt."""

    name: str
    attempt: Callable[[], str]
    """Returns what went wrong; empty = it held."""


def kills(world: World) -> Iterator[Case]:
    """SIGKILL at any moment; resumed, the run ends in the same bits."""

    def killed_and_resumed() -> str:
        out = world.new()
        for _ in range(2):
            world.finetune(out, "--resume", kill_after=world.random.uniform(0.05, world.train_seconds))
        return ended_well(world.finetune(out, "--resume")) or world.other_bits(out)

    def killed_while_overwriting() -> str:
        out = world.new(world.tuned)
        world.finetune(out, "--overwrite", kill_after=world.random.uniform(0.05, world.train_seconds / 4))
        if not world.other_bits(out):
            return ""  # the old run is whole
        return ended_well(world.finetune(out, "--resume")) or world.other_bits(out)

    for number in range(10):
        yield Case(f"fine-tuning killed twice and resumed, {number}", killed_and_resumed)
    for number in range(10):
        yield Case(f"--overwrite killed, {number}", killed_while_overwriting)


def training_damage(world: World) -> Iterator[Case]:
    """Each file of a run damaged: resumed, it ends in the same bits, or says in one line what is wrong."""

    def hurt(name: str, damage: Callable[[bytes], bytes]) -> str:
        out = world.new(world.tuned)
        for left in ("metrics.json", "clip"):  # else there is nothing left to do
            shutil.rmtree(out / left) if (out / left).is_dir() else (out / left).unlink()
        newest = max((out / "checkpoints").iterdir())
        path = newest / name.removeprefix("NEWEST/") if name.startswith("NEWEST/") else out / name
        path.write_bytes(damage(path.read_bytes()))
        outcome = world.finetune(out, "--resume")
        return world.other_bits(out) if outcome.code == 0 else refused(outcome)

    files = ["NEWEST/manifest.json", "NEWEST/state.json", "NEWEST/tensors.safetensors"]
    for name in [*files, "log.jsonl", "evaluations.jsonl", "recipe.toml", "data.json", "environment.json"]:
        for kind, damage in DAMAGE.items():
            yield Case(f"{name} {kind}", lambda name=name, damage=damage: hurt(name, damage))


def inputs_in_out(world: World) -> Iterator[Case]:
    """A command is told to write where it reads: nothing that it was to read is lost."""

    def overlap(like: Path, *words: str) -> str:
        place = world.new(like)
        before = tree(place)
        outcome = call(*(word.replace("PLACE", str(place)) for word in words))
        lost = [name for name, content in before.items() if tree(place).get(name) != content]
        return refused(outcome) or (f"lost: {lost[:3]}" if lost else "")

    data = str(world.data)
    to = ["--data", data, "--out"]
    commands = {
        "finetune --data": (world.data, "finetune", "--data", "PLACE", "--out", "PLACE"),
        "finetune --data inside": (world.data, "finetune", "--data", "PLACE/Images", "--out", "PLACE"),
        "finetune into data": (world.data, "finetune", "--data", "PLACE", "--out", "PLACE/run"),
        "finetune --clip": (world.tuned, "finetune", "--clip", "PLACE/clip", *to, "PLACE"),
        "finetune --recipe": (world.tuned, "finetune", "--recipe", "PLACE/recipe.toml", *to, "PLACE"),
        "bridge --clip": (world.tuned, "bridge", "--clip", "PLACE/clip", *to, "PLACE"),
        "bridge --base": (world.base, "bridge", "--base", "PLACE", *to, "PLACE"),
        "refine --graft": (world.bridged, "refine", "--graft", "PLACE/graft", *to, "PLACE"),
        "interpolate --after": (world.tuned, "interpolate", "--after", "PLACE/clip", *to, "PLACE"),
        "export": (world.bridged, "export", "PLACE/graft", "--out", "PLACE/graft"),
        "data draw": (world.data, "data", "draw", "--num-images", "8", "--out", "PLACE"),
        "run --data": (world.data, "run", "demo", "--data", "PLACE", "--out", "PLACE"),
    }
    for name, (like, *words) in commands.items():
        ways = {"export": [""], "data": [""], "interpolate": ["--overwrite"]}
        # To go on with a run's own recipe is right.
        is_own_recipe = "recipe.toml" in str(words)
        for way in ["--overwrite"] if is_own_recipe else ways.get(words[0], ["--overwrite", "--resume"]):
            given = [*words, *filter(None, [way])]
            yield Case(f"{name} in --out {way}", lambda like=like, given=given: overlap(like, *given))
    no_run = [world.data, "finetune", "--data", data, "--out", "PLACE"]
    for option in ("--resume", "--overwrite"):
        yield Case(f"{option} in a folder of photographs", lambda o=option: overlap(*no_run, o))
    missing = (world.bridged, "refine", "--graft", "none", "--data", data, "--out", "PLACE", "--overwrite")
    yield Case("--overwrite with a graft that is not there", lambda: overlap(*missing))


def models(world: World) -> Iterator[Case]:
    """Each file of a CLIP, a base and a graft damaged or gone: refused in one line."""

    def hurt(like: Path, name: str, damage: Callable[[bytes], bytes] | None, *words: str) -> str:
        place = world.new(like)
        path = place / name
        if damage:
            path.write_bytes(damage(path.read_bytes()))
        else:
            path.unlink()
        return refused(call(*(word.replace("PLACE", str(place)) for word in words)))

    data, out = str(world.data), str(world.root / "unused")
    uses = {
        "CLIP": (world.tuned / "clip", ("data", "check", data, "--clip", "PLACE")),
        "base": (world.base, ("generate", "a dog", "--base", "PLACE", "--out", out)),
        "graft": (world.bridged / "graft", ("generate", "a dog", "--graft", "PLACE", "--out", out)),
    }
    for what, (like, words) in uses.items():
        optional = {"model_index.json", "README.md", "generation_config.json", "special_tokens_map.json"}
        names = [name for name in tree(like) if Path(name).name not in optional]
        for name in names:
            for kind, damage in ({"gone": None} | DAMAGE).items():
                if (what, name, kind) == ("CLIP", "manifest.json", "gone"):
                    continue  # a CLIP of transformers has none
                harmless = kind == "an empty object" and name.endswith("preprocessor_config.json")
                if not harmless:
                    yield Case(
                        f"{what}: {name} {kind}",
                        lambda like=like, n=name, d=damage, w=words: hurt(like, n, d, *w),
                    )


def disk(world: World) -> Iterator[Case]:
    """A disk that is full at any file: one line says so, and with room again the run goes on."""

    def full(limit: int) -> str:
        out = world.new()
        outcome = world.finetune(out, file_bytes=limit)
        problem = "" if outcome.code == 0 else refused(outcome, "no space left")
        left = [path.name for path in out.rglob("*.part")]
        problem = problem or (f"left behind: {left}" if left else "")
        return problem or ended_well(world.finetune(out, "--resume")) or world.other_bits(out)

    for limit in (100, 1000, 2048, 4096, 10_000, 100_000, 1_000_000, 5_000_000, 9_000_000, 12_000_000):
        yield Case(f"no file above {limit} bytes", lambda limit=limit: full(limit))


def images(world: World) -> Iterator[Case]:
    """Photographs that are none: named, and nothing worse."""

    def png(**options: object) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (32, 32)).save(file, "PNG", **options)
        return file.getvalue()

    def thin() -> bytes:
        file = io.BytesIO()
        Image.new("L", (16, 400_000)).save(file, "PNG")
        return file.getvalue()

    bad = {"thin": thin(), "cut": png()[:-30], "not one": b"GIF89a", "empty": b"", "text": b"a" * 1000}

    def hurt(content: bytes) -> str:
        data = world.new(world.data)
        first = min((data / "Images").iterdir())
        first.write_bytes(content)
        outcome = call("finetune", "--data", data, "--out", world.new(), *TRAIN)
        return refused(outcome, first.name)

    for name, content in bad.items():
        yield Case(f"photograph {name}", lambda content=content: hurt(content))


def recipes(world: World) -> Iterator[Case]:
    """A recipe that is none: refused in one line."""
    whole = (world.tuned / "recipe.toml").read_bytes()
    values = ["1e308", "nan", "-1", "9" * 5000, '"x"', "[]", "true", "{a = 1}"]
    keys = ["learning_rate", "batch_size", "num_workers", "lora_rank", "num_epochs", "crop_scale"]
    contents = {
        kind: damage(whole)
        for kind, damage in DAMAGE.items()
        if kind not in ("empty", "cut at the end", "a list")
    }
    contents |= {"dots": b"a" + b".a" * 5000 + b" = 1", "deep list": b"seed = " + b"[" * 5000 + b"]" * 5000}
    contents |= {
        f"{key} = {value[:9]}": f"[finetune]\n{key} = {value}\n".encode() for key in keys for value in values
    }
    is_fine = {("crop_scale", "true"), ("learning_rate", "true")}

    def run(content: bytes) -> str:
        path = world.root / "other.toml"
        path.write_bytes(content)
        return refused(call("finetune", "--recipe", path, "--data", world.data, "--out", world.new()))

    for name, content in contents.items():
        if tuple(name.split(" = ")) not in is_fine:
            yield Case(f"recipe: {name}", lambda content=content: run(content))


def data(world: World) -> Iterator[Case]:
    """Caption files with wrong types, depth, size or characters: refused in one line that names the file."""
    photograph = next((world.data / "Images").iterdir()).read_bytes()
    wrong = ["7", "null", "[0]", "{}", '"\\ud83d"', "9" * 5000, "[" * 5000 + "]" * 5000, '"../x.jpg"', '""']
    coco_image = '{"id": 1, "file_name": "a.jpg"}'

    def coco(image: str, annotation: str) -> str:
        return f'{{"images": [{image}], "annotations": [{annotation}]}}'

    cases = {f"metadata.jsonl file_name {v[:9]}": f'{{"file_name": {v}, "text": "a dog"}}' for v in wrong}
    cases |= {f"metadata.jsonl text {v[:9]}": f'{{"file_name": "a.jpg", "text": {v}}}' for v in wrong[:7]}
    for v in wrong:
        row = f'{{"image_id": 1, "caption": {v}}}'
        cases[f"captions_train.json file_name {v[:9]}"] = coco(
            f'{{"id": 1, "file_name": {v}}}', '{"image_id": 1, "caption": "a"}'
        )
        cases[f"captions_train.json image_id {v[:9]}"] = coco(
            coco_image, f'{{"image_id": {v}, "caption": "a"}}'
        )
        if v != '"../x.jpg"':
            cases[f"captions_train.json caption {v[:9]}"] = coco(coco_image, row)
    other = coco_image.replace("a.jpg", "b.jpg")
    annotation = '{"image_id": 1, "caption": "a"}'
    cases["captions_train.json id twice"] = coco(f"{coco_image}, {other}", annotation)

    def read(name: str, content: str) -> str:
        place = world.new()
        (place / "images").mkdir(parents=True)
        for folder in (place, place / "images", place / "train"):
            folder.mkdir(exist_ok=True)
            (folder / "a.jpg").write_bytes(photograph)
        (place / name.split()[0]).write_text(content, encoding="utf-8")
        return refused(call("data", "check", place))

    for name, content in cases.items():
        yield Case(f"data: {name}", lambda name=name, content=content: read(name, content))


def studio_runs(world: World) -> Iterator[Case]:
    """A run that is damaged in any file: the studio leaves it out, and everything else works."""
    good = world.root / "runs"
    shutil.copytree(world.tuned, good / "good")
    secret = world.root / "secret.html"
    secret.write_text("a secret")

    def spoil(change: Callable[[Path], object]) -> str:
        run = good / "bad"
        shutil.copytree(world.tuned, run)
        (run / "report.html").write_text("a report")
        try:
            change(run)
            answers = {path: get(path) for path in ("/health", "/v1/runs", "/v1/models", "/v1/runs/good")}
            problems = [f"{path}: {status}" for path, (status, _) in answers.items() if status != 200]
            if b'"good' not in answers["/v1/runs"][1]:
                problems.append("the good run is left out")
            for path in ("/v1/runs/bad", "/v1/runs/bad/report"):
                status, body = get(path)
                if status >= 500 or b"a secret" in body:
                    problems.append(f"{path}: {status} {body[:80]!r}")
            return "; ".join(problems)
        finally:
            for name in os.listdir(os.fsencode(good)):
                if name != b"good" and not name.startswith((b"studio", b".")):
                    left = os.fsencode(good) + b"/" + name
                    os.unlink(left) if os.path.islink(left) else shutil.rmtree(left)

    changes: dict[str, Callable[[Path], object]] = {
        f"{name} {kind}": lambda run, name=name, damage=damage: (run / name).write_bytes(
            damage((run / name).read_bytes())
        )
        for name in ("recipe.toml", "metrics.json", "log.jsonl", "data.json", "environment.json")
        for kind, damage in DAMAGE.items()
    }
    changes["recipe.toml nested 600 deep"] = lambda run: (run / "recipe.toml").write_text(
        "a" + ".a" * 600 + " = 1"
    )
    changes["run.lock absurd"] = lambda run: (run / "run.lock").write_text("1" + "0" * 30)
    changes["run.lock a folder"] = lambda run: [(run / "run.lock").unlink(True), (run / "run.lock").mkdir()]
    changes["gone"] = shutil.rmtree
    changes["its name not UTF-8"] = lambda run: os.rename(run, os.fsencode(run) + b"\xe9")
    changes["its report a link out"] = lambda run: [
        (run / "report.html").unlink(), (run / "report.html").symlink_to(secret),
    ]  # fmt: skip
    changes["itself a link out"] = lambda run: [shutil.rmtree(run), run.symlink_to(world.root)]
    with studio(good) as get:
        for name, change in changes.items():
            yield Case(f"studio: run with {name}", lambda change=change: spoil(change))


FAMILIES = {
    "kills": kills,
    "training damage": training_damage,
    "inputs in out": inputs_in_out,
    "models": models,
    "disk": disk,
    "images": images,
    "data": data,
    "recipes": recipes,
    "studio": studio_runs,
}


def main() -> None:
    """Try, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process cannot use threads that the first one has started
    for module in ("finetuning.wise_ft", "bridging.refine", "exporting.export", "whole_run", "data.formats"):
        importlib.import_module(f"clipgraft.{module}")  # once here, not in every forked process
    console, counts, failures = Console(), {}, []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder + "/cache"
        world = World(Path(folder), options.seed)
        for family in options.only:
            started, tried, problems = time.monotonic(), 0, {}
            for case in FAMILIES[family](world):
                tried += 1
                if problem := case.attempt():
                    problems[case.name] = problem
            counts[family] = {"tried": tried, "held": tried - len(problems), "failed": len(problems)}
            console.print(f"{family}: {counts[family]}, {time.monotonic() - started:.0f} s", highlight=False)
            for name, problem in problems.items():
                console.print(f"  {name}: {problem}", markup=False, highlight=False, soft_wrap=True)
            failures += problems
    total = {key: sum(count[key] for count in counts.values()) for key in ("tried", "held", "failed")}
    console.print("all: " + " / ".join(f"{key} {value}" for key, value in total.items()))
    command = f"python benchmarks/bench_faults.py --seed {options.seed}"
    environment = describe_environment(torch.device("cpu")) | {"command": command}
    if options.only == list(FAMILIES):
        write_json(
            RESULT, {"environment": environment, "total": total, "families": counts, "failed": failures}
        )
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
