"""Damage of any kind to any file of a run: it falls back and ends in the same bits, or the file is named."""

import json
import random
import shutil

import pytest
import torch

from clipgraft.errors import CheckpointError
from clipgraft.training.run_log import LOG_NAME
from regression import DeathError, read_log, rows_of, run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(folder)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A run that died at step 19 of 24, with checkpoints of steps 12 and 16 and evaluations up to 18."""
    folder = tmp_path_factory.mktemp("broken")
    with pytest.raises(DeathError):
        run(folder, die=True)
    assert sorted(path.name[-2:] for path in (folder / "checkpoints").iterdir()) == ["12", "16"]
    return folder


def damaged_contents(content: bytes) -> list[bytes]:
    """What a file may hold after an accident."""
    noise = random.Random(0).randbytes(300)
    found = [content[:cut] for cut in (0, 1, len(content) // 3, len(content) // 2, len(content) - 1)]
    found += [b"[]", b"null", b"{}", b'"text"', b"3", b"1e400", b"[" * 100_000, b'{"a":' * 5000, noise]
    found += [b"\0" * len(content), content + content, b"\xff\xfe" + content]
    for place in range(0, len(content), max(1, len(content) // 8)):
        found.append(content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :])
    lines = content.splitlines(keepends=True)
    for index in range(0, len(lines), max(1, len(lines) // 4)):
        for line in (b"", lines[index][: len(lines[index]) // 2], b"[]\n", b"{}\n", lines[index] * 2):
            found.append(b"".join([*lines[:index], line, *lines[index + 1 :]]))
    return found


def damaged_values(content: bytes) -> list[bytes]:
    """A JSON object with each of its values lost, and in turn of each wrong type."""
    values = json.loads(content)
    found = [{key: value for key, value in values.items() if key != name} for name in values]
    for name in values:
        found += [{**values, name: wrong} for wrong in (None, [], {}, "x", -1, 10**30, 1.5, True)]
    found += [{"files": dict.fromkeys(values.get("files", {}), wrong)} for wrong in (None, [], {}, "x", 3)]
    return [json.dumps(changed).encode() for changed in found]


FILES = [
    "checkpoints/step-00000016/manifest.json",
    "checkpoints/step-00000016/state.json",
    "checkpoints/step-00000016/tensors.safetensors",
    "checkpoints/step-00000012/manifest.json",
    "log.jsonl",
    "evaluations.jsonl",
    "best.safetensors",
]


def check_resumed(folder, name, unbroken) -> str:
    """Go on with a damaged run; say how it ended."""
    expected_folder, expected = unbroken
    try:
        resumed = run(folder, resume=True)
    except CheckpointError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert name.rpartition("/")[2] in refusal
        assert "\n" not in refusal
        return "refused"
    assert torch.equal(resumed.linear.weight, expected.linear.weight)
    assert read_log(folder) == read_log(expected_folder)
    assert rows_of(folder) == rows_of(expected_folder)
    return "fell back"


def endings_of(broken, unbroken, tmp_path, name, contents) -> set[str]:
    """Go on with a copy of the run for each content; return how the copies ended."""
    endings = set()
    for index, content in enumerate(contents):
        folder = tmp_path / str(index)
        shutil.copytree(broken, folder)
        (folder / name).write_bytes(content)
        endings.add(check_resumed(folder, name, unbroken))
        shutil.rmtree(folder)
    return endings


def allowed(name: str) -> set[str]:
    """A damaged checkpoint always has one before it; any other file may be named in a refusal instead."""
    return {"fell back"} if name.startswith("checkpoints") else {"fell back", "refused"}


@pytest.mark.parametrize("name", FILES)
def test_damaged_file_of_a_run_is_passed_over_or_named(broken, unbroken, tmp_path, name):
    contents = damaged_contents((broken / name).read_bytes())
    few = random.Random(name).sample(contents, 7)
    assert endings_of(broken, unbroken, tmp_path, name, few) <= allowed(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_damage_to_a_runs_files_is_passed_over_or_named(broken, unbroken, tmp_path, name):
    content = (broken / name).read_bytes()
    is_object = name.endswith(".json")
    contents = damaged_contents(content) + (damaged_values(content) if is_object else [])
    assert endings_of(broken, unbroken, tmp_path, name, contents) <= allowed(name)


@pytest.mark.parametrize("name", ["manifest_list.json", "manifest_no_sums.json", "manifest_null.json"])
def test_manifest_that_was_seen_damaged_is_passed_over(broken, unbroken, tmp_path, cases_dir, name):
    content = (cases_dir / "training" / name).read_bytes()
    assert endings_of(broken, unbroken, tmp_path, FILES[0], [content]) == {"fell back"}


def test_manifest_that_lists_nothing_passes_for_no_checkpoint(broken, unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(broken, folder)
    (folder / FILES[0]).write_text('{"files": {}}')
    tensors = folder / FILES[2]
    tensors.write_bytes(tensors.read_bytes()[:100])
    assert check_resumed(folder, FILES[0], unbroken) == "fell back"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["lost", "a folder", "a broken link"])
def test_lost_file_of_a_run_is_passed_over_or_named(broken, unbroken, tmp_path, name, change):
    folder = tmp_path / "run"
    shutil.copytree(broken, folder)
    (folder / name).unlink()
    if change == "a folder":
        (folder / name).mkdir()
    if change == "a broken link":
        (folder / name).symlink_to(tmp_path / "nowhere")
    ending = check_resumed(folder, name, unbroken)
    assert ending == ("fell back" if name.startswith("checkpoints") else "refused")


def test_half_a_row_behind_the_checkpoint_is_dropped(broken, unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(broken, folder)
    with (folder / LOG_NAME).open("ab") as file:
        file.write(b'{"step": 19, "lo')
    assert check_resumed(folder, LOG_NAME, unbroken) == "fell back"


@pytest.mark.parametrize("row", [14, 16])
def test_damaged_row_is_found_before_a_step_is_made(broken, tmp_path, unbroken, row):
    folder = tmp_path / "run"
    shutil.copytree(broken, folder)
    lines = (folder / LOG_NAME).read_bytes().splitlines(keepends=True)
    lines[row - 1] = lines[row - 1][:40] + b"\n"
    (folder / LOG_NAME).write_bytes(b"".join(lines))
    assert check_resumed(folder, LOG_NAME, unbroken) == "fell back"


def test_partial_files_of_killed_processes_are_cleared(broken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(broken, folder)
    left = [folder / ".best.safetensors.77.part", folder / ".evaluations.jsonl.77.part"]
    left.append(folder / "checkpoints" / ".step-00000020.part")
    left[2].mkdir()
    for path in (*left[:2], left[2] / "tensors.safetensors"):
        path.write_bytes(b"part")
    run(folder, resume=True)
    assert not any(path.exists() for path in left)
