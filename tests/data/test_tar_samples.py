"""Samples of a tar are those that webdataset finds; what cannot be used is named with its reason."""

import gzip
import re

import pytest
import webdataset

from clipgraft.data.samples import LeftOut, Sample
from clipgraft.data.tar_samples import read_tar
from clipgraft.errors import DataError
from clipgraft.settings import DataSettings
from shard_writers import jpeg, write_shards, write_tar


def read(path, **settings):
    """Samples by key, and reasons of those left out by name."""
    found = list(read_tar(path, DataSettings(**settings)))
    samples = {item.key: item for item in found if isinstance(item, Sample)}
    return samples, {item.name: item.reason for item in found if isinstance(item, LeftOut)}


def test_samples_are_those_that_webdataset_reads(tmp_path):
    path = write_shards(tmp_path, 30, 30) / "00000.tar"
    samples, left_out = read(path)
    expected = {item["__key__"]: item for item in webdataset.WebDataset(str(path), shardshuffle=False)}
    assert samples.keys() == expected.keys()
    assert left_out == {}
    content = path.read_bytes()
    for key, sample in samples.items():
        assert content[sample.offset : sample.offset + sample.size] == expected[key]["jpg"]
        assert sample.captions == (expected[key]["txt"].decode(),)


def test_keys_end_at_the_first_dot_and_keep_folders(tmp_path):
    names = ["a/b.c/one.jpg", "a/b.c/one.txt", "./two.JPG", "./two.txt", "v1.0.png", "v1.0.txt"]
    path = write_tar(
        tmp_path / "a.tar", [(name, jpeg(1) if i % 2 == 0 else "a dog") for i, name in enumerate(names)]
    )
    samples, left_out = read(path)
    theirs = {
        item["__key__"].removeprefix("./") for item in webdataset.WebDataset(str(path), shardshuffle=False)
    }
    assert samples.keys() == theirs == {"a/b.c/one", "two", "v1"}
    assert [sample.name for sample in samples.values()] == ["a/b.c/one.jpg", "two.JPG", "v1.0.png"]
    assert left_out == {}


def test_members_of_a_sample_may_lie_apart(tmp_path):
    path = write_tar(
        tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2)), ("1.txt", "one"), ("2.txt", "two")]
    )
    samples, left_out = read(path)
    assert {key: sample.captions for key, sample in samples.items()} == {"1": ("one",), "2": ("two",)}
    assert left_out == {}


@pytest.mark.parametrize(
    ("fields", "settings", "captions"),
    [
        ({"captions": ["one", " two  words ", "one", ""]}, {}, ("one", "two words")),
        ({"text": "one", "caption_0": "two"}, {}, ("one", "two")),
        ({"sentences": [{"raw": "one"}, {"raw": "two"}]}, {}, ("one", "two")),
        ({"words": "one", "caption": "no"}, {"caption_field": "words"}, ("one",)),
        ({"prompt": "one"}, {}, ("one",)),
    ],
)
def test_captions_are_fields_of_the_json(tmp_path, fields, settings, captions):
    path = write_tar(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("1.json", fields)])
    samples, _ = read(path, **settings)
    assert samples["1"].captions == captions


def test_text_file_and_json_that_disagree_are_left_out(tmp_path):
    members = [("1.jpg", jpeg(1)), ("1.txt", "new"), ("1.json", {"caption": "old", "split": "val"})]
    path = write_tar(tmp_path / "a.tar", members)
    assert list(read(path)[1].values()) == [
        "sample whose .txt and .json disagree (data.caption_field names one)"
    ]
    for named, caption in (("txt", "new"), ("caption", "old")):
        sample = read(path, caption_field=named)[0]["1"]
        assert (sample.captions, sample.split) == ((caption,), "val")
    agreeing = write_tar(tmp_path / "b.tar", [*members[:2], ("1.json", {"captions": ["old", "new"]})])
    assert read(agreeing)[0]["1"].captions == ("old", "new")


def test_extension_of_images_and_captions_can_be_named(tmp_path):
    members = [("1.jpg", jpeg(1)), ("1.mask.png", jpeg(2)), ("1.tags", "dog, beach"), ("1.txt", "a dog")]
    path = write_tar(tmp_path / "a.tar", members)
    sample = read(path)[0]["1"]
    assert (sample.name, sample.captions) == ("1.jpg", ("a dog",))
    sample = read(path, image_field="mask.png", caption_extension=".tags")[0]["1"]
    assert (sample.name, sample.captions) == ("1.mask.png", ("dog, beach",))
    for setting in ("image_field", "caption_field"):
        with pytest.raises(
            DataError, match=rf"a\.tar: no 'what' in any sample \(data\.{setting}\); .* jpg, mask\.png"
        ):
            read(path, **{setting: "what"})


def test_each_sample_that_cannot_be_used_has_its_reason(tmp_path):
    members = [
        ("good.jpg", jpeg(0)),
        ("good.txt", "a dog"),
        ("text.txt", "no image"),
        ("mute.jpg", jpeg(1)),
        ("blank.jpg", jpeg(2)),
        ("blank.txt", "  \n"),
        ("broken.jpg", jpeg(3)),
        ("broken.json", "{"),
        ("number.jpg", jpeg(4)),
        ("number.json", {"caption": 7}),
        ("two.a.jpg", jpeg(5)),
        ("two.b.jpg", jpeg(6)),
        ("two.txt", "which?"),
        ("good.jpg", jpeg(7)),
        ("../out.jpg", jpeg(8)),
        ("/root.jpg", jpeg(8)),
        ("._good.jpg", "mac"),
        ("odd.jpg", jpeg(9)),
        ("odd.json", {"caption": "a dog", "split": "extra"}),
        ("huge.jpg", jpeg(10)),
        ("huge.txt", "a" * 10_001),
        ("README", "of no sample"),
    ]
    samples, left_out = read(write_tar(tmp_path / "a.tar", members))
    assert list(samples) == ["good"]
    assert left_out == {
        "good.jpg": "name that comes twice in a shard",
        "../out.jpg": "name that points out of the shard",
        "/root.jpg": "name that points out of the shard",
        "._good.jpg": "hidden file",
        "text.txt": "sample without image",
        "mute.jpg": "sample without caption",
        "blank.jpg": "empty caption",
        "broken.jpg": "sample whose text or JSON is damaged or has over 1,048,576 bytes",
        "number.jpg": "sample whose caption is no text",
        "two.a.jpg": "sample of several images (keys end at the first dot)",
        "odd.jpg": "sample in a split other than train, val and test",
        "huge.jpg": "sample whose captions all have over 10,000 characters",
    }


def test_tar_that_is_cut_packed_or_none_is_named(tmp_path):
    members = [(f"{number}.{end}", jpeg(number)) for number in range(4) for end in ("jpg", "txt")]
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    end, boundary = whole.rindex(jpeg(3)[-20:]), whole.index(b"3.jpg")
    path = tmp_path / "a.tar"
    cases = {
        whole[: len(whole) // 2 + 100]: "is cut in the middle; copy or download it anew",
        whole[:boundary]: "is cut: it lacks a tar's end; copy or download it anew",
        whole[:end]: "is cut in the middle",
        whole[:boundary] + b"?" * 512: "is damaged at byte ",
        gzip.compress(
            whole
        ): "is compressed (gzip); images in it cannot be reached alone: unpack it to a .tar",
        b"": "is empty (0 bytes)",
        b"<!DOCTYPE html>" * 100: "is no tar, or is damaged (",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(f"a.tar {message}")):
            read(path)


def test_tar_without_samples_is_empty(tmp_path):
    assert read(write_tar(tmp_path / "a.tar", [])) == ({}, {})
