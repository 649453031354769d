"""Which captions are learned from and which are held, and what is refused."""

import pytest

import tiny
from clipgraft.data.formats import load_dataset
from clipgraft.distilling.held_captions import mark_captions, new_words
from clipgraft.errors import UserError
from clipgraft.settings import DistillSettings

CAPTIONS = ["A dog runs .", "A hound runs .", "The HOUND, a big one", "Two cats .", "hounds run .", "a boat"]


def settings(*words, **others):
    return DistillSettings(new_words=words, **others)


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_captions_are_marked_by_whole_words_in_any_case():
    found = mark_captions(CAPTIONS, settings("Hound"))
    assert found.train.of_kind(True) == ["A hound runs .", "The HOUND, a big one"]
    assert found.train.of_kind(False) == ["A dog runs .", "Two cats .", "hounds run .", "a boat"]
    assert found.word_counts == {"hound": 2}
    assert mark_captions(CAPTIONS, settings("hound", max_captions=2)).train.captions == CAPTIONS[:2]


def test_words_of_a_file_are_those_of_a_list(tmp_path):
    path = write(tmp_path / "words.txt", "# learned", "Hound  # a dog", "two-wheeler", "")
    assert new_words(DistillSettings(new_words=path)) == {"hound", "two-wheeler"}
    assert new_words(settings("hound", "Two-wheeler")) == {"hound", "two-wheeler"}


def test_captions_to_hold_are_added(tmp_path):
    hold = write(tmp_path / "hold.txt", "a red car", "a red car", "a tree")
    found = mark_captions(CAPTIONS, settings("hound", hold=hold))
    assert found.train.of_kind(False)[-2:] == ["a red car", "a tree"]
    assert found.word_counts == {"hound": 2}


def test_a_datasets_own_splits_are_used(tmp_path):
    data = load_dataset(tiny.write_flickr8k(tmp_path / "data"))
    found = mark_captions(data, settings("kite"))
    assert set(found.train.captions) == set(data.train.iter_captions())
    test = set(data.test.iter_captions())
    assert all("kite" in caption and caption in test for caption in found.held_out[True])
    assert all("kite" not in caption and caption in test for caption in found.held_out[False])


def test_words_in_no_caption_are_named(capsys):
    mark_captions(CAPTIONS, settings("hound", "zebra"))
    assert "no training caption has zebra: not learned" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no new words: name those that the base is to learn, in a file with one per line, with --new"),
        (("zebra", "emu"), r"no training caption has a new word \(emu, zebra\), so the text encoder would l"),
        (("beach ball",), "'beach ball' is not one word; give single words"),
        (("",), "'' is not one word"),
        (("hound", "a", "two", "hounds"), "every caption has a new word, so no states of the base would be"),
    ],
)
def test_lists_that_teach_nothing_or_hold_nothing_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        mark_captions(CAPTIONS, settings(*words))


def test_a_word_in_every_caption_needs_others_to_hold(tmp_path):
    everywhere = [f"a photo of {text}" for text in CAPTIONS]
    with pytest.raises(
        UserError, match="'photo' is in every caption, so no states of the base would be held"
    ):
        mark_captions(everywhere, settings("photo"))
    hold = write(tmp_path / "hold.txt", "a tree")
    assert mark_captions(everywhere, settings("photo", hold=hold)).train.of_kind(False) == ["a tree"]


def test_captions_to_hold_with_new_words_are_refused(tmp_path):
    hold = write(tmp_path / "hold.txt", "a tree", "A hound sleeps")
    with pytest.raises(UserError, match=r"1 of its 2 captions to hold have new words \(first: 'A hound sl"):
        mark_captions(CAPTIONS, settings("hound", hold=hold))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "holds no word"),
        (["# nothing"], "holds no word"),
        (["hound", "beach ball"], "'beach ball' is not one word; write one word per line"),
        (["hound, kitty"], "'hound, kitty' is not one word"),
    ],
)
def test_files_without_words_are_refused(tmp_path, lines, message):
    path = write(tmp_path / "words.txt", *lines)
    with pytest.raises(ValueError, match=message):
        new_words(DistillSettings(new_words=path))


def test_a_missing_file_of_words_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"words file not found: .*none\.txt"):
        new_words(DistillSettings(new_words=str(tmp_path / "none.txt")))
