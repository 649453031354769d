"""A folder of images: resumed, shared out, never overwritten, its list repaired."""

import json
import resource
import shutil
import weakref

import numpy as np
import pytest
from image_world import generate, pixels, rows_of
from PIL import Image

import tiny
from clipgraft.files import file_sha256
from clipgraft.generation import image_folder as gallery
from clipgraft.generation.generate import GenerateOptions
from clipgraft.generation.generate import generate as stage
from clipgraft.generation.image_folder import ImageFolder, Slot
from helpers import call, image_request, refused, run_apart
from two_processes import run_in_two_processes


def test_prompts_that_begin_alike_have_files_of_their_own(base, tmp_path):
    long = "A dog " * 20
    assert generate(base, tmp_path, long + "one", long + "two", long + "two") == 0
    assert len({row["file"] for row in rows_of(tmp_path)}) == 3
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_whole_images_are_not_generated_again(base, tmp_path, capsys):
    generate(base, tmp_path, "A dog", "A cat", "A kite")
    dog, cat, kite = (tmp_path / f"a-{name}_seed0.png" for name in ("dog", "cat", "kite"))
    drawn = {path: pixels(path) for path in (dog, cat, kite)}
    cat.write_bytes(cat.read_bytes()[:200])
    kite.unlink()
    before = dog.stat().st_mtime_ns
    capsys.readouterr()
    assert generate(base, tmp_path, "A dog", "A cat", "A kite") == 0
    assert "3 images: 2 generated" in capsys.readouterr().out
    assert dog.stat().st_mtime_ns == before
    assert all(np.abs(pixels(path).astype(int) - drawn[path]).max() <= 1 for path in drawn)


def test_half_written_row_costs_its_image_alone(base, tmp_path, capsys):
    generate(base, tmp_path, "A dog", "A cat")
    lines = [json.dumps(row) for row in rows_of(tmp_path)]
    (tmp_path / "images.json").unlink()
    (tmp_path / "images-0.jsonl").write_text(f"{lines[0]}\n{lines[1][:50]}")
    capsys.readouterr()
    generate(base, tmp_path, "A dog", "A cat")
    assert "2 images: 1 generated" in capsys.readouterr().out
    assert [row["prompt"] for row in rows_of(tmp_path)] == ["A dog", "A cat"]


@pytest.mark.integration
def test_other_parameters_or_models_generate_again(base, graft, tmp_path, capsys):
    generate(base, tmp_path, "A dog")
    for arguments in (["--guidance-scale", 3], ["--graft", graft]):
        capsys.readouterr()
        generate(base, tmp_path, "A dog", *arguments)
        assert "1 generated" in capsys.readouterr().out


@pytest.mark.integration
def test_image_of_another_request_stays_and_new_one_is_numbered(base, tmp_path, capsys):
    generate(base, tmp_path, "A dog")
    first = (tmp_path / "a-dog_seed0.png").read_bytes()
    (tmp_path / "a-dog_seed0_2.png").write_bytes(b"of no job in the list")
    generate(base, tmp_path, "A dog", "--guidance-scale", 3)
    second = (tmp_path / "a-dog_seed0_3.png").read_bytes()
    assert (tmp_path / "a-dog_seed0.png").read_bytes() == first
    assert (tmp_path / "a-dog_seed0_2.png").read_bytes() == b"of no job in the list"
    assert {row["guidance_scale"]: row["file"] for row in rows_of(tmp_path)} == {
        3.0: "a-dog_seed0_3.png",
        7.5: "a-dog_seed0.png",
    }
    for arguments in ([], ["--guidance-scale", 3]):
        capsys.readouterr()
        generate(base, tmp_path, "A dog", *arguments)
        assert "0 generated" in capsys.readouterr().out
    (tmp_path / "a-dog_seed0.png").unlink()  # its place is free, and the other job still has its own
    generate(base, tmp_path, "A dog", "--guidance-scale", 3)
    assert "0 generated" in capsys.readouterr().out
    assert (tmp_path / "a-dog_seed0_3.png").read_bytes() == second


def test_image_with_metadata_is_not_one_without(base, tmp_path):
    generate(base, tmp_path, "A dog")
    before = pixels(tmp_path / "a-dog_seed0.png")
    generate(base, tmp_path, "A dog", "--no-metadata")
    with Image.open(tmp_path / "a-dog_seed0.png") as image:
        assert image.info == {}
    assert np.array_equal(pixels(tmp_path / "a-dog_seed0.png"), before)
    assert len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.slow
def test_full_disk_leaves_whole_images_and_exit_code_2(base, tmp_path):
    limit = 6_000  # bytes a file may have: small images fit, large ones do not
    lines = [{"prompt": "A dog", "width": 16, "height": 16}, {"prompt": "A cat", "width": 128, "height": 128}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ended = run_apart(
        *("generate", "--from-file", str(tmp_path / "prompts.jsonl"), "--steps", "1", "--base", str(base)),
        *("--out", str(tmp_path / "out")),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: no space left")
    assert pixels(tmp_path / "out" / "a-dog_seed0.png").shape == (16, 16, 3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a-dog_seed0.png", "images-0.jsonl"}


@pytest.mark.parametrize("place", ["file/out", "file"])
def test_unwritable_folder_is_refused_before_loading(tmp_path, capsys, place):
    (tmp_path / "file").write_text("x")
    message = refused(capsys, "generate", "A dog", "--base", "nowhere", "--out", tmp_path / place)
    assert "cannot be written" in message
    assert "name another with --out" in message


@pytest.mark.slow
def test_two_processes_generate_what_one_does(base, one_thread, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"A dog {number}", "num_inference_steps": 1 + number // 5} for number in range(9)]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["--from-file", str(prompts), "--base", str(base), "--batch-size", "2"]
    assert call("generate", *arguments, "--out", tmp_path / "one") == 0
    printed = run_in_two_processes("-m", "clipgraft", "generate", *arguments, "--out", tmp_path / "two")
    assert "9 images: 9 generated" in printed[0]
    assert printed[1] == ""
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "one")  # sums of the files among them


def test_blocked_image_has_no_file_and_is_not_tried_again(tmp_path, capsys):
    base = tiny.write_checked_base(tmp_path / "base", threshold=-1.0)
    assert generate(base, tmp_path / "out", "A dog") == 2
    printed = capsys.readouterr().out
    assert "a-dog_seed0.png was not written: blocked by the base's safety checker" in printed
    assert "1 generated" in printed
    assert "1 blocked" in printed
    assert not list((tmp_path / "out").glob("*.png"))
    assert generate(base, tmp_path / "out", "A dog") == 2
    assert "0 generated in" in capsys.readouterr().out


def test_inputs_are_neither_replaced_nor_deleted(base, tmp_path, capsys):
    mine = tmp_path / "preview.png"
    Image.new("RGB", (64, 64), "red").save(mine)
    content = mine.read_bytes()
    assert generate(base, tmp_path, "A dog") == 0
    command = ["generate", "A dog", "--base", base, "--out", tmp_path, "--steps", 2]
    message = refused(capsys, *command, "--init-image", mine)
    assert "preview.png would be replaced; name another folder with --out" in message
    assert mine.read_bytes() == content


def test_images_are_not_kept_in_memory(base, tmp_path, monkeypatch):
    requests = [image_request("A dog", seed, num_inference_steps=1) for seed in range(40)]
    drawn, alive, write = [], [], gallery.write_image

    def count(image, *arguments):
        drawn.append(weakref.ref(image))
        alive.append(sum(picture() is not None for picture in drawn))
        write(image, *arguments)

    monkeypatch.setattr(gallery, "write_image", count)
    stage(requests, {"teacher": None}, tmp_path, GenerateOptions(base=str(base), is_quiet=True))
    assert len(drawn) == 40
    assert max(alive) <= 2 * GenerateOptions().batch_size


def _cut(content: bytes, _rows: list) -> bytes:
    at = content.index("é".encode()) + 1  # within a letter of the second row
    return content[:at]


DAMAGED_LISTS = {
    # What is done to it, and which of the rows 0, 1, 2 can still be read.
    "whole": (lambda content, _: content, {0, 1, 2}),
    "cut within a letter": (_cut, {0}),
    "a number": (lambda *_: b"7", set()),
    "an object": (lambda *_: b"{}", set()),
    "empty": (lambda *_: b"", set()),
    "not UTF-8": (lambda content, _: content.replace("é".encode(), b"\xe9", 1), {0, 2}),
    "nested": (lambda *_: b"[" * 100_000, set()),
    "rows of junk": (
        lambda _, rows: json.dumps([rows[0], 7, None, [], {"file": 1}, {"status": "ok"}, rows[2]]).encode(),
        {0, 2},
    ),
    "no sum": (
        lambda _, rows: json.dumps(
            [rows[0], {k: v for k, v in rows[1].items() if k != "sha256"}, rows[2]]
        ).encode(),
        {0, 2},
    ),
    "half a pair": (lambda content, _: content.replace("é".encode(), b"\\ud83d", 1), {0, 2}),
}


@pytest.mark.parametrize("damage", DAMAGED_LISTS)
def test_readable_rows_of_a_damaged_list_are_kept(base, three_images, tmp_path, capsys, damage):
    out = shutil.copytree(three_images, tmp_path / "out")
    spoil, readable = DAMAGED_LISTS[damage]
    path = out / "images.json"
    rows = rows_of(out)
    path.write_bytes(spoil(path.read_bytes(), rows))
    capsys.readouterr()
    assert generate(base, out, "A dog", "A café", "A cat", "--steps", 1) == 0
    told = capsys.readouterr()
    said = " ".join(told.err.split())
    assert f"3 images: {3 - len(readable)} generated" in told.out
    assert said.count("images.json is damaged") == (damage != "whole")
    if damage != "whole":
        assert f"{len(readable)} rows are kept, the other images are generated again" in said
    assert {row["prompt"] for row in rows_of(out)} == {"A dog", "A café", "A cat"}
    for index, row in enumerate(rows_of(out)):
        assert (row["file"] == rows[index]["file"]) == (index in readable)
    assert all((out / row["file"]).is_file() for row in rows)  # what was there before stays


def test_damaged_lines_of_the_log_are_skipped_with_a_note(tmp_path, capsys):
    path, outside = tmp_path / "out" / "variant" / "a.png", tmp_path / "outside.png"
    path.parent.mkdir(parents=True)
    for each in (path, outside):
        Image.new("RGB", (8, 8)).save(each)
    row = {"key": "k", "file": "variant/a.png", "status": "ok", "sha256": file_sha256(path)}
    lines = [
        json.dumps(row).encode(),
        b"\xff\xfe junk",
        b"[" * 5000,
        b'["a list"]',
        json.dumps({"key": "no file"}).encode(),
        json.dumps(row | {"key": ["list"]}).encode(),
        json.dumps(row | {"key": "outside", "file": "../outside.png"}).encode(),
        json.dumps(row | {"key": "gone", "file": "variant/gone.png"}).encode(),
        json.dumps(row | {"key": "other bytes", "file": "b.png", "sha256": "0" * 64}).encode(),
        json.dumps(row | {"key": "cut"}).encode()[:-5],
    ]
    (tmp_path / "out" / "images-0.jsonl").write_bytes(b"\n".join(lines))
    folder = ImageFolder(tmp_path / "out")
    rows = folder._rows.values()
    assert {row.key for row in rows if folder.is_finished(Slot(row.file, None, row.key))} == {"k"}
    assert "images-0.jsonl: 6 damaged lines; images are generated again" in " ".join(
        capsys.readouterr().err.split()
    )
