"""Texts in the encodings that people's files are in, checked against the text itself."""

import pytest

from clipgraft.data.encodings import decode_text
from clipgraft.errors import DataError

TEXTS = {
    "cp1251": "Собака бежит по траве.\nКошка спит на диване.",
    "koi8_r": "Собака бежит по траве.\nКошка спит на диване.",
    "cp932": "犬が草の上を走る。\n猫がソファで寝ている。",
    "gb18030": "一只狗在草地上奔跑。\n一只猫睡在沙发上。",
    "big5": "一隻狗在草地上奔跑，一隻貓睡在沙發上。",
    "cp949": "개가 잔디밭을 달린다. 고양이가 잔다",
    "cp1253": "Ένας σκύλος τρέχει στο γρασίδι",
    "cp1252": "Un chien très âgé court à côté d'une fenêtre",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_encoding_is_told_and_said(encoding: str) -> None:
    text, note = decode_text(TEXTS[encoding].encode(encoding), "a.txt")
    assert text == TEXTS[encoding]
    assert note.startswith("not UTF-8, so read as ")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_text_is_read_with_and_without_its_mark(encoding: str) -> None:
    text, note = decode_text("a.jpg#0\tA café".encode(encoding), "a.txt")
    assert text == "a.jpg#0\tA café"
    assert note.startswith("not UTF-8, so read as UTF-")


@pytest.mark.parametrize("wrong", [b"\xe9", b"\xc3", b"\x81", b"\xff"])
def test_one_wrong_byte_changes_no_other_character(wrong: bytes) -> None:
    raw = "A café\n".encode() + wrong + " – an old naïve dog".encode()
    text, note = decode_text(raw, "a.txt")
    assert text == "A café\n\ufffd – an old naïve dog"
    assert note == "bytes that are not UTF-8, from line 2: "


@pytest.mark.parametrize("raw", [b"\0\1", b"A\0dog", b"\xff\xfeA\0\xd8"])
def test_what_is_no_text_is_refused(raw: bytes) -> None:
    with pytest.raises(DataError, match=r"a.txt: holds NUL bytes, so it is UTF-16 or no text"):
        decode_text(raw, "a.txt")
