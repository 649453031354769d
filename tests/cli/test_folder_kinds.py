"""Every command says what kind of folder it was given, and which it takes."""

import shutil

import pytest

from clipgraft.runs.folder_kinds import is_result, kind_of, wrong_kind
from helpers import call, refused

KINDS = {
    "run": "a run",
    "finetune": "a run of finetune or interpolate",
    "bridge": "a run of bridge or refine",
    "distill": "a run of distill",
    "images": "a folder of generated images",
    "clip": "a CLIP",
    "graft": "a text encoder (a graft or a distilled one)",
    "encoder": "a text encoder (a graft or a distilled one)",
    "base": "a diffusers pipeline",
    "pipeline": "a diffusers pipeline",
    "exported bridge": "an exported bridge",
    "embeds": "exported prompt embeds",
    "embeddings": "an export",
    "shards": "a data set in shards",
    "photos": "a folder with dog.jpg",
    "empty": "an empty folder",
    "file": "a .jpg file",
}
RUNS = ("run", "finetune", "bridge", "distill", "images")


@pytest.fixture(scope="module")
def folders(finished, world, tmp_path_factory):
    """A path of every kind that clipgraft writes, and of what it reads."""
    root = tmp_path_factory.mktemp("kinds")
    stages = {name: shutil.copytree(finished / name, root / name) for name in ("finetune", "bridge")}
    graft, words = stages["bridge"] / "graft", root / "words.txt"
    words.write_text("kite\n")
    given = ("--data", world["data"], "--new-words", words, "--epochs", 1)
    assert call("distill", "--graft", graft, "--out", root / "distill", *given) == 0
    made = {
        "run": finished,
        **stages,
        "distill": root / "distill",
        "images": finished / "generate",
        "clip": finished / "finetune" / "clip",
        "graft": graft,
        "encoder": root / "distill" / "text_encoder",
        "base": world["base"],
    }
    for name, source, *options in (
        ("pipeline", graft, "--format", "diffusers"),
        ("exported bridge", graft, "--format", "bridge"),
        ("embeds", graft, "A dog", "--format", "prompt-embeds"),
        ("embeddings", made["encoder"], "--format", "embeddings"),
    ):
        made[name] = root / name
        assert call("export", source, *options, "--out", made[name]) == 0
    made["shards"] = root / "shards"
    assert call("data", "pack", world["data"], made["shards"]) == 0
    made["photos"], made["empty"] = root / "photos", root / "empty"
    made["photos"].mkdir()
    made["empty"].mkdir()
    made["file"] = made["photos"] / "dog.jpg"
    shutil.copy(next(world["data"].rglob("*.jpg")), made["file"])
    return made


@pytest.mark.integration
def test_every_kind_of_folder_is_told(folders):
    assert {name: kind_of(path) for name, path in folders.items()} == KINDS


def test_a_run_of_pretrain_is_told_from_one_of_finetune(tmp_path):
    for name in ("vae", "unet", "clip"):
        (tmp_path / name).mkdir()
    assert kind_of(tmp_path) == "a run of finetune or interpolate"
    (tmp_path / "recipe.toml").touch()
    assert kind_of(tmp_path) == "a run of pretrain"


def test_what_a_command_wrote_is_told_from_what_it_reads(folders):
    read = {"photos", "empty", "file"}
    assert {name for name, path in folders.items() if not is_result(path)} == read | {"images"}


def test_a_folder_that_holds_what_is_wanted_names_it(folders):
    run = folders["run"]
    assert wrong_kind(run, "a CLIP", "finetune/clip/config.json", advice="one").endswith(
        f"is a run, not a CLIP; name {run}/finetune/clip"
    )
    assert wrong_kind(run, "a CLIP", "clip/config.json", advice="one").endswith("not a CLIP; name one")


A_RUN = ("a run", set(RUNS))
A_GRAFT = ("a graft", {"graft", "encoder"})
COMMANDS = {
    "evaluate": (*A_RUN, lambda path, *_: ["evaluate", path]),
    "report": (*A_RUN, lambda path, *_: ["report", path]),
    "compare": (*A_RUN, lambda path, out, _: ["compare", "A dog", "--run", path, "--out", out]),
    "generate": (*A_GRAFT, lambda path, out, _: ["generate", "A dog", "--graft", path, "--out", out]),
    "export": (
        "a graft",
        {"graft", "encoder", "distill"},
        lambda path, out, _: ["export", path, "--out", out, "--format", "bridge"],
    ),
    "refine": (*A_GRAFT, lambda path, out, _: ["refine", "--graft", path, "--out", out, "--base", "x"]),
    "finetune": (
        "a CLIP",
        {"clip"},
        lambda path, out, data: ["finetune", "--clip", path, "--out", out, "--data", data],
    ),
    "generate with a base": (
        "a base",
        {"base", "pipeline", "file"},
        lambda path, out, _: ["generate", "A dog", "--base", path, "--out", out],
    ),
    "data": (
        "a data set",
        {"shards", "images", "photos", "empty", "file"},
        lambda path, *_: ["data", "check", path],
    ),
    "push": ("an export", {"pipeline", "exported bridge", "embeds", "embeddings", "file"},
             lambda path, *_: ["push", path, "me/kite"]),
    "studio": (
        "a folder of runs",
        {"images", "photos", "empty"},
        lambda path, out, _: ["studio", path, "--out", out, "--port", 0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_folder_is_refused_by_its_kind(folders, world, tmp_path, capsys, command):
    wanted, taken, arguments = COMMANDS[command]
    for name in KINDS.keys() - taken:
        line = refused(capsys, *arguments(folders[name], tmp_path / "out", world["data"]))
        assert f" is {KINDS[name]}, not {wanted}" in line, line
    assert not list((tmp_path / "out").rglob("*.png"))


def test_the_run_around_a_graft_is_named(folders, capsys):
    line = refused(capsys, "evaluate", folders["graft"])
    assert line.endswith(f"not a run; name {folders['bridge']}")


@pytest.mark.parametrize("name", ["finetune", "images"])
def test_a_run_without_a_graft_says_what_it_is(folders, tmp_path, capsys, name):
    line = refused(capsys, "compare", "A dog", "--run", folders[name], "--out", tmp_path / "out")
    assert f"is {KINDS[name]}, not a run with a graft; name a run with one" in line
