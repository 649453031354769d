"""The table of cases in docs/data.md: each row is held by tests that are there."""

import json
import re
from pathlib import Path

import pytest

from clipgraft.data.encodings import decode_text
from clipgraft.data.formats import load_dataset

REPOSITORY = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (?P<case>[^|]+) \| (?P<right>[^|]+) \| `(?P<test>\w+)` \|$", re.MULTILINE)


def documented() -> list[tuple[str, str]]:
    text = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    table = text[text.index("## Cases that go wrong elsewhere") :]
    return [(row["case"], row["test"]) for row in ROW.finditer(table)]


def test_every_documented_case_names_a_test_that_is_there() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py")]
    there = {name for source in sources for name in re.findall(r"def (test_\w+)\(", source)}
    cases = documented()
    assert len(cases) >= 40
    assert [case for case, test in cases if test not in there] == []
    assert len({case for case, _ in cases}) == len(cases)


@pytest.mark.parametrize("text", ["Grupa ludzi stoi przed kościołem.", "Černá kočka spí na židli."])
def test_central_european_texts_are_read_as_western_and_said(text: str) -> None:
    # Nothing tells few accents of Windows-1250 from those of Windows-1252 (charset-normalizer does not).
    read, note = decode_text(text.encode("cp1250"), "a.txt")
    assert (read, note) == (text.encode("cp1250").decode("cp1252"), "not UTF-8, so read as Windows-1252: ")


def test_null_caption_is_counted_out(tmp_path: Path) -> None:
    captions = [{"image_id": 7, "caption": text} for text in (None, "A dog")]
    found = {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": captions}
    (tmp_path / "captions_train2017.json").write_text(json.dumps(found))
    (tmp_path / "a.jpg").touch()
    dataset = load_dataset(tmp_path)
    assert [image.captions for image in dataset.images] == [("A dog",)]
    assert [(item.name, item.reason) for item in dataset.excluded] == [("a.jpg#0", "empty caption")]
