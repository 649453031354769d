"""Flaws of captions, and mending that changes nothing which is right."""

from pathlib import Path

import pytest

from clipgraft.data.caption_flaws import Flaw, clean, flaws_of, mend_mojibake, unescape
from clipgraft.data.formats import load_dataset

FINE = (
    "A dog runs .",
    "R&B at AT&T, Q&A; fish &chips",
    "Ein Mädchen läuft über die Straße – „schnell“",
    "Un garçon dans un CAFÉ…",
    "IRMÃ” disse",
    "собака бежит",
    "一只狗",
    "A <sks> dog and a <cat-toy>",
    "2 < 3 dogs > 1",
    "*A star*, 5 - 3 dogs",
    "[A dog] in a {field}",
    "🐕 a dog",
)


@pytest.mark.parametrize("caption", FINE)
def test_what_is_right_has_no_flaw_and_stays(caption: str) -> None:
    assert flaws_of(caption) == []
    assert clean(caption) == caption


@pytest.mark.parametrize("caption", ["...", "12345", "🐕", "- -", "?!"])
def test_captions_without_letters_are_found(caption: str) -> None:
    assert Flaw.NO_LETTERS in flaws_of(caption)


@pytest.mark.parametrize(
    "caption", ["A dog &amp; a cat", "A dog &amp;amp; a cat", "A dog &#38; a cat", "A dog &#x26; a cat"]
)
def test_html_entities_are_found_and_replaced_however_deep(caption: str) -> None:
    assert flaws_of(caption) == [Flaw.ENTITIES]
    assert clean(caption) == "A dog & a cat"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Un café – Nîmes", "cp1252"),
        ("Un café – Nîmes", "mac_roman"),
        ("Ein Mädchen, süß", "cp1252"),
        ("Ein Mädchen, süß", "cp1251"),
        ("собака лает", "latin-1"),
        ("собака лает", "mac_roman"),
    ],
)
def test_utf8_misread_is_mended_to_what_was_written(text: str, encoding: str) -> None:
    misread = text.encode().decode(encoding)
    assert flaws_of(misread) == [Flaw.MOJIBAKE]
    assert mend_mojibake(misread) == text


def test_bytes_that_windows_1252_lacks_are_mended_too() -> None:
    misread = "Á bientôt".encode().decode("latin-1")
    assert mend_mojibake(misread) == "Á bientôt"


@pytest.mark.parametrize("caption", ["Un cafÃ© – ouvert", "A caf\ufffd", "Itâ€™s – a dog"])
def test_mojibake_that_is_not_certain_is_found_and_left(caption: str) -> None:
    assert flaws_of(caption) == [Flaw.MOJIBAKE]
    assert clean(caption) == caption


@pytest.mark.parametrize(
    "caption",
    ['{"caption": "A dog"}', '["A dog", "A cat"]', "# A dog", "**A dog** runs", "<p>A dog</p>", "A dog<br/>"],
)
def test_json_html_and_markdown_are_found(caption: str) -> None:
    assert flaws_of(caption) == [Flaw.MARKUP]


def test_entities_without_semicolon_are_left() -> None:
    assert unescape("fish &copy chips &lt dogs") == "fish &copy chips &lt dogs"


def test_real_captions_have_no_flaw(flickr8k_dir: Path) -> None:
    captions = load_dataset(flickr8k_dir / "captions.txt").images.captions
    flawed = [caption for caption in captions if flaws_of(caption)]
    assert flawed == []
