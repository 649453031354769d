"""What a check finds, with its effect on training, against folders in which the answer is plain."""

import json
import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipgraft.data.check import check_dataset
from clipgraft.data.dataset import CaptionDataset
from clipgraft.data.findings import Finding
from clipgraft.data.formats import load_dataset

ODD_CAPTIONS = {
    "no_letters": "123 ...",
    "entities": "A dog &amp; a cat",
    "mojibake": "A dog in a cafÃ©",
    "markup": '{"caption": "A dog"}',
}


def save_image(path: Path, seed: int, **options: int) -> None:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(path, **options)


def dataset_of(folder: Path, captions: Mapping[str, list[str]], split: str = "train") -> CaptionDataset:
    """Different images with their captions, all in one split unless their names tell another."""
    for number, name in enumerate(captions):
        if not (folder / name).exists():
            save_image(folder / name, number)
    splits = {name: name.split("/")[0] if "/" in name else split for name in captions}
    rows = [{"file_name": name, "captions": texts, "split": splits[name]} for name, texts in captions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_dataset(folder)


def findings_of(dataset: CaptionDataset) -> dict[str, Finding]:
    return {finding.kind: finding for finding in check_dataset(dataset).findings}


def test_forty_images_with_two_captions(tmp_path: Path) -> None:
    captions = {
        f"{'test' if number < 4 else 'train'}/{number:02}.png": [f"a photo of a {('dog', 'cat')[number % 2]}"]
        for number in range(40)
    }
    found = findings_of(dataset_of(tmp_path, captions))["same_caption"]
    assert found.summary == "40 images share 2 captions"
    assert "false negatives" in found.effect
    assert "recall@1 cannot pass 5.0% over all images, 50.0% over test" in found.effect
    assert [example.text for example in found.examples] == [
        "20 images: a photo of a dog",
        "20 images: a photo of a cat",
    ]
    assert [image.image_id for image in found.examples[0].images][:2] == ["test/00.png", "test/02.png"]


def test_shared_captions_are_those_of_a_plain_count(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    words = ["a dog", "A Dog", "a cat", "a boat", "a kite at dusk", "two dogs"]
    captions = {f"{n:02}.png": random.choice(words, random.integers(1, 4)).tolist() for n in range(12)}
    images_of: dict[str, set[str]] = {}
    for name, texts in captions.items():
        for text in texts:
            images_of.setdefault(text.lower(), set()).add(name)
    shared = {text: names for text, names in images_of.items() if len(names) > 1}
    found = findings_of(dataset_of(tmp_path, captions))["same_caption"]
    num_images = len(set().union(*shared.values()))
    assert found.summary == f"{num_images} images share {len(shared)} captions"
    ceiling = len(images_of) / sum(map(len, images_of.values()))
    assert f"cannot pass {ceiling:.1%} over all images" in found.effect


def test_copies_of_one_image_may_share_their_captions(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_image(tmp_path / name, 1)
    assert "same_caption" not in findings_of(dataset_of(tmp_path, {"a.png": ["A dog"], "b.png": ["A dog"]}))


@pytest.mark.parametrize("kind", ODD_CAPTIONS)
def test_odd_caption_is_found_with_its_image(tmp_path: Path, kind: str) -> None:
    captions = {"a.png": ["A dog runs .", ODD_CAPTIONS[kind]], "b.png": ["A cat sleeps ."]}
    found = findings_of(dataset_of(tmp_path, captions))
    assert list(found) == [kind]
    assert found[kind].count == 1
    (example,) = found[kind].examples
    assert (example.text, [image.image_id for image in example.images]) == (ODD_CAPTIONS[kind], ["a.png"])
    assert found[kind].effect


def test_lengths_and_counts_far_from_the_median_are_found(tmp_path: Path) -> None:
    captions = {f"{n}.png": [f"a brown dog number {n} runs on the wide beach"] for n in range(8)}
    captions["long.png"] = ["dog and " * 25]
    captions["short.png"] = ["A dog"]
    captions["many.png"] = [f"a black cat sleeps on the old sofa in room {n}" for n in range(6)]
    found = findings_of(dataset_of(tmp_path, captions))
    assert list(found) == ["long_captions", "short_captions", "many_captions"]
    assert found["long_captions"].summary == "1 caption of over 40 words (the median has 10)"
    assert found["short_captions"].summary == "1 caption of at most 2 words (the median has 10)"
    assert found["short_captions"].examples[0].text == "2 words: A dog"
    assert found["many_captions"].summary == "1 image with 5 captions or more (the median has 1)"
    assert [image.image_id for image in found["many_captions"].examples[0].images] == ["many.png"]


def test_longest_captions_are_the_examples(tmp_path: Path) -> None:
    captions = {f"{n:02}.png": ["dog " * (41 + n)] for n in range(12)}
    captions |= {f"x{n:02}.png": [f"a brown dog number {n} runs on the wide beach"] for n in range(20)}
    found = findings_of(dataset_of(tmp_path, captions))["long_captions"]
    assert found.count == 12
    assert [int(example.text.split()[0]) for example in found.examples] == list(range(52, 42, -1))


def test_copies_and_leaks_are_told_apart(tmp_path: Path) -> None:
    for name, seed in {"train/a.png": 1, "train/b.png": 1, "train/c.png": 2, "test/c.png": 2}.items():
        save_image(tmp_path / name, seed)
    for name, seed in {"train/d.png": 3, "train/e.jpg": 3, "train/f.png": 4, "val/f.jpg": 4}.items():
        save_image(tmp_path / name, seed, **({"quality": 80} if name.endswith("jpg") else {}))
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.glob("*/*"))]
    found = findings_of(dataset_of(tmp_path, {name: [f"a dog {name}"] for name in names}))
    texts = {kind: [example.text for example in finding.examples] for kind, finding in found.items()}
    assert texts == {
        "leakage": ["test/c.png (test) = train/c.png (train)"],
        "near_leakage": ["train/f.png (train) = val/f.jpg (val)"],
        "duplicates": ["train/a.png (train) = train/b.png (train)"],
        "near_duplicates": ["train/d.png (train) = train/e.jpg (train)"],
    }
    assert "val and test are too good" in found["leakage"].effect


def test_different_images_are_no_near_duplicates(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, {f"{n}.png": [f"a dog {n}"] for n in range(20)})
    assert check_dataset(dataset).near_duplicates == ()
    pixels = [Image.open(image.file).tobytes() for image in dataset.images]
    assert all(one != other for one, other in combinations(pixels, 2))


def test_other_languages_are_found_with_their_share(tmp_path: Path) -> None:
    captions = {f"{n}.png": [f"A brown dog runs on beach number {n} ."] for n in range(3)}
    captions["de.png"] = ["Ein Mann fährt auf einem Fahrrad durch die Stadt"]
    found = findings_of(dataset_of(tmp_path, captions))["languages"]
    assert found.summary == "25.0% of captions are not English: German 25.0%"
    assert found.examples[0].text == "German: Ein Mann fährt auf einem Fahrrad durch die Stadt"


def test_a_clean_set_has_no_findings(tmp_path: Path) -> None:
    captions = {f"{n}.png": [f"A brown dog runs on beach number {n} ."] for n in range(5)}
    assert findings_of(dataset_of(tmp_path, captions)) == {}


def test_missing_packages_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    check = check_dataset(dataset_of(tmp_path, {"a.png": ["A dog"]}))
    [missing] = check.not_measured
    assert missing == "languages were not detected (needs py3langid; pip install 'clipgraft[data]')"
