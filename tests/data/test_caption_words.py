"""Words of captions: found, left out, read from a file."""

import pytest

from clipgraft.data.caption_words import chosen_words, holds_any, read_words, without_word, words_of
from clipgraft.errors import DataError, MissingFileError, UserError


def test_words_are_letters_and_digits_in_lower_case():
    caption = "A two-wheeler, 2 dogs' ball -- and the Dog's emerald_kite !"
    assert words_of(caption) == {
        "a",
        "two-wheeler",
        "2",
        "dogs",
        "ball",
        "and",
        "the",
        "dog's",
        "emerald",
        "kite",
    }
    assert words_of("… !") == frozenset()


def test_leaving_a_word_out_keeps_longer_words_and_the_rest():
    assert without_word("A dog , a Dog and a dogged hot-dog .", "dog") == "A , a and a dogged hot-dog ."
    assert without_word("dog", "dog") == ""
    assert without_word("A  cat", "dog") == "A cat"


def test_a_caption_holds_words_only_as_whole_words():
    assert holds_any("The Hound runs", {"hound", "dusk"})
    assert not holds_any("The greyhound runs", {"hound", "dusk"})


def test_a_file_of_words_has_comments_and_capitals(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# new\n\nHound  # 0.05: a hound runs\nDUSK\nhound\ntwo-wheeler\n", encoding="utf-8")
    assert read_words(path) == {"hound", "dusk", "two-wheeler"}


def test_words_are_listed_or_stand_in_a_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("Hound\n", encoding="utf-8")
    assert chosen_words(str(path), "s") == chosen_words(("hOund",), "s") == {"hound"}
    assert chosen_words((), "s") == chosen_words("", "s") == frozenset()
    with pytest.raises(
        UserError, match=r"bridge.exclude_words: 'a hound' is not one word; give single words"
    ):
        chosen_words(("dusk", "a hound"), "bridge.exclude_words")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hound\nyoung woman\n", "'young woman' is not one word; write one word per line, comments after #"),
        ("hound, dusk\n", "'hound, dusk' is not one word"),
        ("# nothing\n", "holds no word; write one per line"),
        ("", "holds no word"),
    ],
)
def test_a_file_without_single_words_is_refused(tmp_path, text, message):
    path = tmp_path / "words.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_words(path)


def test_a_missing_file_of_words_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"words file not found: .*words\.txt"):
        read_words(tmp_path / "words.txt")
