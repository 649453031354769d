"""Languages of captions: other ones are told, short English is not taken for them."""

import tempfile
from pathlib import Path

import pytest

from clipgraft.data.caption_languages import _load_identifier, other_languages
from clipgraft.data.formats import load_dataset
from clipgraft.errors import one_line
from helpers import files_of_at_most

SENTENCES = {
    "German": "Ein Mann fährt auf einem Fahrrad durch die Stadt",
    "French": "Deux enfants jouent dans la neige",
    "Spanish": "Dos niños juegan en la nieve",
    "Italian": "Un cane corre sulla spiaggia",
    "Dutch": "Een hond rent over het strand",
    "Polish": "Pies biegnie po plaży",
    "Japanese": "犬が浜辺を走っている",
    "Chinese": "一只狗在沙滩上奔跑",
    "Korean": "개가 해변을 달린다",
    "Arabic": "كلب يركض على الشاطئ",
}
SHORT = ("dog", "a dog", "sks dog", "dog, beach, sunset", "IMG_2034.jpg", "no", "1girl, solo", "🐕", "1 2 3")


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_of_another_language_is_told(language: str) -> None:
    (found,) = other_languages(["A dog runs on the beach .", SENTENCES[language]])
    assert (found.language, found.share, found.example) == (language, 0.5, 1)


def test_a_full_disk_names_the_folder_of_the_unpacked_model() -> None:
    _load_identifier.cache_clear()
    with files_of_at_most(100), pytest.raises(OSError, match="File too large") as caught:
        other_languages(["Ein Hund rennt am Strand."])
    assert one_line(caught.value).startswith(f"no space left on the disk ({tempfile.gettempdir()})")


def test_most_frequent_language_comes_first() -> None:
    found = other_languages([SENTENCES["Dutch"], *[SENTENCES["French"]] * 2, "A dog"])
    assert [(share.language, share.share) for share in found] == [("French", 0.5), ("Dutch", 0.25)]


def test_short_english_is_not_taken_for_another_language() -> None:
    assert other_languages(SHORT) == []


@pytest.mark.integration
def test_no_real_english_caption_is_taken_for_another(flickr8k_dir: Path) -> None:
    lines = (flickr8k_dir / "Flickr8k.token.txt").read_text().splitlines()
    captions = [line.split("\t", 1)[1] for line in lines if "\t" in line]
    assert other_languages(captions[::20]) == []
    assert load_dataset(flickr8k_dir).images.captions[0] in captions
