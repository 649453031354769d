"""What decided the splits is said, whatever form they have."""

import json
from pathlib import Path

import pytest

from clipgraft.data.formats import load_dataset
from clipgraft.data.split_names import SplitRule

TOKENS = {"Images/a.jpg": "", "Flickr8k.token.txt": "a.jpg#0\tA dog", "Flickr_8k.trainImages.txt": "a.jpg"}
KARPATHY = json.dumps(
    {"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A dog"}]}], "dataset": "x"}
)
COCO = json.dumps(
    {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "id": 1, "caption": "A dog"}],
    }
)
FOLDERS: dict[SplitRule, dict[str, str]] = {
    SplitRule.LISTS: TOKENS,
    SplitRule.COLUMN: {"a.jpg": "", "metadata.csv": "file_name,text,split\na.jpg,A dog,train\n"},
    SplitRule.KARPATHY: {"a.jpg": "", "dataset.json": KARPATHY},
    SplitRule.FILES: {"train2017/a.jpg": "", "captions_train2017.json": COCO},
    SplitRule.FOLDERS: {"train/a.jpg": "", "train/a.txt": "A dog"},
    SplitRule.HASH: {"a.jpg": "", "a.txt": "A dog"},
}


def load(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return load_dataset(folder).split_rule


@pytest.mark.parametrize("rule", SplitRule)
def test_each_rule_is_said(tmp_path: Path, rule: SplitRule) -> None:
    assert load(tmp_path, FOLDERS[rule]) == rule


def test_names_of_tables_and_folders_of_metadata_are_rules_too(tmp_path: Path) -> None:
    table = "filepath,title\na.jpg,A dog\n"
    tables = {"a.jpg": "", "b.jpg": "", "train.csv": table, "val.csv": table.replace("a.jpg", "b.jpg")}
    assert load(tmp_path / "tables", tables) == SplitRule.FILES
    metadata = {"train/a.jpg": "", "train/metadata.jsonl": '{"file_name": "a.jpg", "text": "A dog"}'}
    assert load(tmp_path / "metadata", metadata) == SplitRule.FOLDERS


def test_karpathys_split_beside_other_captions_is_the_rule(tmp_path: Path) -> None:
    beside = {"a.jpg": "", "a.txt": "A dog", "dataset.json": KARPATHY}
    assert load(tmp_path / "alone", beside) == SplitRule.KARPATHY
    assert load(tmp_path / "lists", TOKENS | {"dataset.json": KARPATHY}) == SplitRule.LISTS
