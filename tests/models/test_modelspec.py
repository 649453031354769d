"""Metadata of written files, read as the specification's tools do."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from clipgraft.models.modelspec import HASH_KEY, content_hash, write_model_file

TENSORS = {
    "b": torch.arange(6.0).view(2, 3),
    "a": torch.ones(2, dtype=torch.int64),
    "c": torch.zeros(3).half(),
}


def test_the_header_holds_the_hash_of_the_tensors(tmp_path):
    path = tmp_path / "model.safetensors"
    write_model_file(path, TENSORS, {"modelspec.title": 'A title: "é"'})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    assert metadata == {
        "modelspec.title": 'A title: "é"',
        HASH_KEY: "0x" + hashlib.sha256(content[8 + length :]).hexdigest(),
    }
    assert content_hash(path) == metadata[HASH_KEY]


def test_tensors_are_read_back_as_they_were(tmp_path):
    write_model_file(tmp_path / "model.safetensors", TENSORS, {})
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        for name, tensor in TENSORS.items()
    )


def test_the_hash_depends_on_values_and_not_on_metadata(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    write_model_file(paths[0], TENSORS, {})
    write_model_file(paths[1], TENSORS, {"modelspec.title": "another"})
    write_model_file(paths[2], {**TENSORS, "b": TENSORS["b"] + 1}, {})
    first, second, third = map(content_hash, paths)
    assert first == second != third


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "model.safetensors"
    write_model_file(path, TENSORS, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_model_file(path, TENSORS, {"modelspec.title": 3})  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with safe_open(path, "pt") as file:
        assert file.metadata()[HASH_KEY] == content_hash(path)
