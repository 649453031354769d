"""The worked example of docs/your_images.md, command by command, on a small folder."""

import shlex

import pytest
from PIL import Image

import tiny
from helpers import call
from test_docs import DOCS, blocks, commands

PHOTOS = 60
ANIMALS = ("dog", "cat", "horse")
PLACES = ("beach", "park", "snow", "red sofa", "stairs")


def write_photos(folder) -> None:
    """A phone's photographs with captions: one without, one damaged."""
    folder.mkdir()
    for index in range(PHOTOS):
        name = folder / f"IMG_{index:04}"
        Image.effect_noise((48, 40), 20 + index).convert("RGB").save(name.with_suffix(".JPG"))
        animal, place = ANIMALS[index % 3], PLACES[index % 5]
        name.with_suffix(".txt").write_text(f"Milo the {animal} runs on the {place}\nA small {animal}\n")
    (folder / "IMG_0001.txt").unlink()
    (folder / "IMG_0002.JPG").write_bytes((folder / "IMG_0002.JPG").read_bytes()[:400])


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_clip(tmp_path / "openai" / "clip-vit-base-patch32")
    tiny.write_base(tmp_path / "stable-diffusion-v1-5" / "stable-diffusion-v1-5")
    write_photos(tmp_path / "photos")
    broad = [
        f"A {animal} in the {each} {number}" for animal in ANIMALS for each in PLACES for number in range(9)
    ]
    (tmp_path / "captions.txt").write_text("\n".join(broad))
    return tmp_path


@pytest.mark.slow
def test_commands_of_your_images_run_in_their_order(place, capsys) -> None:
    page = [block for block in blocks() if block.path == DOCS / "your_images.md"]
    lines = [each for block in page for each in commands(block.code)]
    assert len(lines) == 9
    for arguments in lines:
        code = call(*arguments)
        said = capsys.readouterr()
        if "checkpoint" in arguments:
            # Other tools take Stable Diffusion's sizes for granted, and the tiny base has others.
            assert (code, "Stable Diffusion" in said.err) == (2, True)
        elif arguments[0] == "new-words":
            # A CLIP of random weights sees nothing in noise; the page says to write the file then.
            assert (code, "sees no word" in said.err) == (2, True)
            (place / "words.txt").write_text("milo\n")
        else:
            assert code == 0, f"{shlex.join(arguments)}: {said.err}"
    changes = (place / "cleaned" / "changes.jsonl").read_text()
    assert ("IMG_0001.JPG" in changes, "IMG_0002.JPG" in changes) == (True, True)
    assert (place / "words" / "milo.safetensors").is_file()
    assert (place / "compared" / "grid.png").is_file()
