"""Folders and images that once failed: right values or one line, in bounded memory and time."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from clipgraft.cli import app as cli
from clipgraft.data.formats import load_dataset, read_lines

DIGITS = "9" * 5000
DEEP = "[" * 100_000
COCO = '{"images": [{"id": 0, "file_name": "p0.jpg"}], "annotations": [%s]}'
WRITTEN: dict[str, tuple[dict[str, str], str]] = {
    "deep JSONL": ({"metadata.jsonl": DEEP}, "line 1 is not JSON as read here: nested deeper than 64"),
    "deep value": ({"metadata.jsonl": '{"file_name": "p0.jpg", "text": ' + DEEP}, "nested deeper than 64"),
    "digits": (
        {"metadata.jsonl": '{"file_name": "p0.jpg", "text": ' + DIGITS + "}"},
        r"line 1 .* a number has over 4,300 digits",
    ),
    "half a pair": (
        {"metadata.jsonl": r'{"file_name": "p0.jpg", "text": "a \ud83d"}'},
        "holds half a surrogate pair",
    ),
    "deep COCO": ({"captions_val.json": '{"images": ' + DEEP}, "nested deeper than 64"),
    "digits in COCO": (
        {"captions_val.json": '{"images": [{"id": ' + DIGITS},
        "a number has over 4,300 digits",
    ),
    "caption that is a number": (
        {"captions_val.json": COCO % '{"image_id": 0, "caption": 5}'},
        "'caption': 5} in annotations; expected COCO captions",
    ),
    "id that is a list": (
        {"captions_val.json": COCO % '{"image_id": [0], "caption": "a"}'},
        r"'image_id': \[0\].* in annotations; expected COCO captions",
    ),
    "null caption alone": (
        {"captions_val.json": COCO % '{"image_id": 0, "caption": null}'},
        r"Excluded: 1 caption\(s\): empty caption",
    ),
    "digits in a token file": (
        {"Flickr8k.token.txt": f"p0.jpg#{DIGITS}\ta dog"},
        "line 1: read .*; expected IMAGE.jpg#NUMBER",
    ),
    "huge caption": (
        {"p0.txt": "dog " * 10_000},
        r"Excluded: 1 caption\(s\): caption of over 10,000 characters",
    ),
    "JSON beside an image": (
        {"p0.txt": '{\n  "caption": "A dog"\n}'},
        "p0.txt: holds JSON; expected plain text",
    ),
    "unknown split": (
        {"metadata.jsonl": '{"file_name": "p0.jpg", "text": "a", "split": "x"}'},
        "line 1: read the split 'x'; expected train, val or test",
    ),
    "column twice": (
        {"metadata.csv": "file_name,text,text\np0.jpg,a,b\n"},
        "metadata.csv: a column's name comes twice in file_name, text, text",
    ),
    "binary": ({"metadata.jsonl": "\x00\x01"}, "holds NUL bytes, so it is UTF-16 or no text"),
    "escapes": ({"metadata.jsonl": '{"file_name": "../\x1b]0;pwned\x07.jpg", "text": "a"}'}, "is not JSON"),
    "escapes in a name": (
        {"captions.txt": "../\x1b]0;pwned\x07.jpg,a dog\n"},
        r"image name '../\\x1b\]0;pwned\\x07.jpg' points out",
    ),
}

SHARED: dict[str, str | dict[str, Any]] = {
    "data/big": "metadata.jsonl, line 5 is not JSON as read here: a number has over 4,300 digits",
    "data/coco3": "is not JSON as read here: a number has over 4,300 digits",
    "data/coco5": "nested deeper than 64",
    "data/coco6": "'file_name': 7} in images; expected",
    "data/coco7": "'file_name': None} in images; expected",
    "data/coco8": {"p0.jpg": ["c 0"]},  # the null caption is counted out
    "data/coco9": "'caption': 5} in annotations; expected",
    "data/coco11": r"'image_id': \[0\].* in annotations; expected",
    "data/coco16": "the id 0 stands for 'p0.jpg' and for 'p1.jpg'",
    "data/deep": "line 5 is not JSON as read here: nested deeper than 64",
    "data/deep2": "line 5 is not JSON as read here: nested deeper than 64",
    "data/surr": "line 5 is not JSON of whole characters: .* holds half a surrogate pair",
    "data/surr2": "line 5 is not JSON of whole characters: .* holds half a surrogate pair",
    "data/tok2": "line 1: read .*; expected IMAGE.jpg#NUMBER",
    "layouts/caption-extension": {"a0.jpg": ["A dog number 0 runs."]},
    "layouts/coco-null-caption": {"train2017/1.jpg": ["A dog"]},
    "layouts/exif-garbage": {"a0.jpg": ["A dog"]},
    "layouts/flickr30k-comma": {"1000092795.jpg": [f"Two young guys {number}" for number in range(5)]},
    "layouts/flickr30k-results": {
        "2199200615.jpg": [
            *(f"A dog {number} runs ." for number in range(4)),
            "A dog runs across the grass .",
        ]
    },
    "layouts/jfif": {"b.jfif": ["A cat"]},
    "layouts/json-in-txt": "holds JSON; expected plain text",
    "layouts/karpathy-json": {f"Images/a{number}.jpg": [f"A dog {number} ."] for number in range(6)},
    "layouts/open-clip-tsv": {"images/a0.jpg": ["A dog 0 runs, then sits"]},
    "layouts/split-column": {"a0.jpg": ["A dog 0"], "a20.jpg": ["A dog 20"]},
}


def check(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any] | str:
    """Run `data check --json`; return what it told, or the one line of its error."""
    monkeypatch.setattr(sys, "argv", ["clipgraft", "data", "check", str(folder), "--json"])
    start = time.process_time()
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert time.process_time() - start < 20
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    if not end.value.code:
        assert err == ""
        return json.loads(out)
    assert (end.value.code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert all(character.isprintable() for character in line)
    return line


@pytest.mark.parametrize("name", WRITTEN)
def test_data_that_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, message = WRITTEN[name]
    for file, text in {"p0.jpg": "", **files}.items():
        (tmp_path / file).write_text(text)
    told = check(tmp_path, capfd, monkeypatch)
    assert isinstance(told, str)
    assert re.search(message, told)
    assert len(told) < 2000


@pytest.mark.parametrize("name", SHARED)
def test_folder_that_once_failed_gives_right_values_or_one_line(
    cases_dir: Path, name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, expected = check(cases_dir / name, capfd, monkeypatch), SHARED[name]
    if isinstance(expected, str):
        assert isinstance(told, str)
        assert re.search(expected, told)
        return
    assert isinstance(told, dict)
    assert told["unreadable"] == {}
    dataset = load_dataset(cases_dir / name)
    captions = {image.image_id: list(image.captions) for image in dataset.images}
    assert expected.items() <= captions.items()
    if name == "layouts/split-column":
        rows = map(json.loads, (cases_dir / name / "metadata.jsonl").read_text().splitlines())
        assert {row["file_name"]: row["split"] for row in rows} == {
            image.image_id: image.split.replace("val", "validation") for image in dataset.images
        }


def test_every_folder_that_once_failed_is_tried(cases_dir: Path) -> None:
    found = {f"{part}/{path.name}" for part in ("data", "layouts") for path in (cases_dir / part).iterdir()}
    assert found == set(SHARED)


DECODE_EACH = """
import json, os, resource, sys, time
from pathlib import Path
from transformers import CLIPImageProcessorPil
from clipgraft.data.images import open_image
from clipgraft.data.transforms import clip_crop
from clipgraft.errors import UserError, one_line

def size():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

processor, told = CLIPImageProcessorPil(), {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    reader, writer = os.pipe()
    if not (child := os.fork()):
        before, start = size(), time.process_time()
        try:
            answer = str(clip_crop(open_image(path), processor).shape)
        except UserError as error:
            answer = one_line(error)
        except BaseException as error:
            answer = f"{type(error).__name__}!"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        os.write(writer, json.dumps([answer, time.process_time() - start, peak]).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        told[path.name] = json.loads(file.read() or '["killed!", 0, 0]')
    os.waitpid(child, 0)
print(json.dumps(told))
"""
REFUSED = {
    "thin_16x400000.png": "one side may be 100 times",
    "thin_16x800000.png": "one side may be 100 times",
    "thin_16x6000000.png": "one side may be 100 times",
    "thin_tall_16x400000.png": "one side may be 100 times",
    "scan_bomb_400.jpg": "has more than 100 scans",
    "bomb_20000.png": "has more than 100,000,000 pixels",
    "palette_no_plte.png": "is damaged",
    "lfs.jpg": "is a Git LFS pointer",
    "side15.png": "each side needs at least 16",
}
TAKEN = (
    "good.jpg",
    "avif.jpg",
    "iccp_bomb.png",
    "itxt_bomb.png",
    "ztxt_bomb.png",
    "cmyk.jpg",
    "mpo.jpg",
    "exif_junk.jpg",
    "apng.png",
    "anim.webp",
    "jpeg_65500.jpg",
    "ycck.jpg",
)


@pytest.fixture(scope="module")
def decoded(cases_dir: Path) -> dict[str, tuple[str, float, int]]:
    """Image -> what opening and cropping it told, its seconds and bytes, each in a process of its own."""
    command = [sys.executable, "-W", "error", "-c", DECODE_EACH, cases_dir / "images"]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "RANK": "0"}
    )
    assert ended.stderr == ""
    return json.loads(ended.stdout)


@pytest.mark.slow
def test_every_image_is_a_crop_or_one_line_within_bounds(
    decoded: dict[str, tuple[str, float, int]],
) -> None:
    assert len(decoded) >= 79
    for name, (answer, seconds, peak) in decoded.items():
        assert answer == "(3, 224, 224)" or name in answer, (name, answer)
        assert "\n" not in answer
        assert seconds < 10, name
        assert peak < 600 * 2**20, name  # 372 MiB for 94.6 million pixels
    for name, message in REFUSED.items():
        assert message in decoded[name][0]
    for name in TAKEN:
        assert decoded[name][0] == "(3, 224, 224)"


@pytest.mark.parametrize(
    "file", ["captions.txt", "metadata.csv", "metadata.jsonl", "p0.txt", "Flickr8k.token.txt"]
)
def test_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, file: str) -> None:
    texts = {
        "captions.txt": "p0.jpg,a dog\r\n",
        "metadata.csv": "file_name,text\r\np0.jpg,a dog\r\n",
        "metadata.jsonl": '{"file_name": "p0.jpg", "text": "a dog"}\r\n',
        "p0.txt": "a dog\r\n",
        "Flickr8k.token.txt": "p0.jpg#0\ta dog\r\n",
    }
    (tmp_path / "p0.jpg").touch()
    (tmp_path / file).write_bytes(b"\xef\xbb\xbf" + texts[file].encode())
    (image,) = load_dataset(tmp_path).images
    assert (image.image_id, image.captions) == ("p0.jpg", ("a dog",))
    (tmp_path / "captions").write_bytes(b"\xef\xbb\xbfa dog\r\n\r\na cat\r\n")
    assert read_lines(tmp_path / "captions", "caption") == ["a dog", "a cat"]
