import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipgraft.errors import CheckpointError
from clipgraft.models.loading import refuse_other_weights, refuse_pickles
from clipgraft.models.weights import module_sha256, verify_folder, write_folder_atomically


def write(folder: Path, text: str) -> None:
    with write_folder_atomically(folder) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a.txt").write_text(text)


def text_of(folder: Path) -> str:
    return (folder / "inner" / "a.txt").read_text()


def test_a_written_folder_verifies_and_lists_size_and_checksum(tmp_path):
    write(tmp_path / "out", "abc")
    verify_folder(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    # FIPS 180-2's own example of sha256
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest["files"] == {"inner/a.txt": {"bytes": 3, "sha256": expected}}


def test_new_content_replaces_the_old_as_a_whole(tmp_path):
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "more.txt").write_text("more")
    write(tmp_path / "out", "new")
    assert text_of(tmp_path / "out") == "new"
    assert not (tmp_path / "out" / "more.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_while_writing_leaves_the_old_content(tmp_path):
    write(tmp_path / "out", "old")

    def write_half():
        with write_folder_atomically(tmp_path / "out") as temporary:
            (temporary / "half.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert text_of(tmp_path / "out") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.integration
def test_a_process_killed_while_writing_leaves_the_old_content(tmp_path):
    write(tmp_path / "out", "old")
    script = (
        "import os, sys; from pathlib import Path\n"
        "from clipgraft.models.weights import write_folder_atomically\n"
        "with write_folder_atomically(Path(sys.argv[1])) as temporary:\n"
        "    (temporary / 'half.txt').write_text('half'); os._exit(1)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, tmp_path / "out"], check=False)
    assert ended.returncode == 1
    verify_folder(tmp_path / "out")
    assert text_of(tmp_path / "out") == "old"
    write(tmp_path / "out", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_process_killed_between_the_renames_loses_nothing(tmp_path):
    write(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / ".out.replaced")
    with pytest.raises(KeyboardInterrupt), write_folder_atomically(tmp_path / "out"):
        raise KeyboardInterrupt
    assert text_of(tmp_path / "out") == "old"


@pytest.mark.integration
def test_a_full_disk_is_said_and_leaves_the_old_content(tmp_path):
    script = f"""
from pathlib import Path
from safetensors.torch import save_file
from torch import zeros
from clipgraft.models.weights import CheckpointError, verify_folder, write_folder_atomically

out = Path({str(tmp_path)!r}) / "out"
with write_folder_atomically(out) as temporary:
    (temporary / "old.txt").write_text("old")
writes = [lambda path: path.write_text("x" * 10**6), lambda path: save_file({{"x": zeros(250_000)}}, path)]
for write in writes:
    try:
        with write_folder_atomically(out) as temporary:
            write(temporary / "x")
    except CheckpointError as error:
        print(error)
    verify_folder(out)
    print((out / "old.txt").read_text(), [path.name for path in out.parent.iterdir()])
"""
    mount = f"mount -t tmpfs -o size=300k tmpfs {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, script]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for error, content in (lines[:2], lines[2:]):
        assert re.search(r"no space left to write .*out \(0 MB free\); free some and run again", error)
        assert content == "old ['out']"


def test_a_changed_file_is_named(tmp_path):
    write(tmp_path / "out", "abc")
    (tmp_path / "out" / "inner" / "a.txt").write_text("abd")
    with pytest.raises(
        CheckpointError, match=r"inner/a\.txt is damaged: sha256 \w{64}, ba7816bf8f01\w{52} was"
    ):
        verify_folder(tmp_path / "out")


def test_a_cut_off_file_is_named_with_its_sizes(tmp_path):
    write(tmp_path / "out", "abc")
    (tmp_path / "out" / "inner" / "a.txt").write_text("ab")
    with pytest.raises(
        CheckpointError, match=r"inner/a\.txt is damaged: 2 bytes; 3 bytes with sha256 ba7816bf8f01"
    ):
        verify_folder(tmp_path / "out")


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path / "out", "abc")
    (tmp_path / "out" / "inner" / "a.txt").unlink()
    with pytest.raises(CheckpointError, match=r"inner/a\.txt is missing \(sha256 ba7816bf8f01"):
        verify_folder(tmp_path / "out")


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no manifest\.json"):
        verify_folder(tmp_path)


def test_a_damaged_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json is not JSON"):
        verify_folder(tmp_path)


def test_unknown_weights_are_counted_and_five_of_them_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"has unknown 7 weights: a, b, c, d, e, \.\.\.; it is of another"
    ):
        refuse_other_weights(tmp_path, missing=[], unexpected="gfedcba")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_module_checksum_changes_with_one_bit_of_one_weight(dtype):
    module = torch.nn.Linear(3, 2).to(dtype)
    before = module_sha256(module)
    assert module_sha256(module) == before
    with torch.no_grad():
        module.weight.view(torch.uint8)[0, 0] ^= 1
    assert module_sha256(module) != before


@pytest.mark.parametrize("name", ["pytorch_model.bin", "v1-5.ckpt", "model.pt", "model.PTH", "w.Bin"])
def test_pickles_are_refused_where_there_is_nothing_else(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"pickled weights alone \({name}\), which can run code"):
        refuse_pickles(tmp_path)
    (tmp_path / "model.SAFETENSORS").write_bytes(b"")
    refuse_pickles(tmp_path)
