"""What commands print on a terminal and into a file."""

import io
import sys
import time

from rich.table import Table

from clipgraft import console
from clipgraft.console import print_table, say, track

WORDS = "what commands say is read by people, so no line ends within a word " * 3
PATH = f"/folder/{'x' * 90}/image.png"


def make_terminal(monkeypatch):
    """Let stderr be a terminal of 80 columns."""
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_notes_break_between_words_and_never_in_a_path(monkeypatch):
    terminal = make_terminal(monkeypatch)
    say(f"{WORDS}{PATH}")
    *lines, path = terminal.getvalue().splitlines()
    assert path == PATH
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines).split()) == f"note: {WORDS}".strip()


def test_a_finished_bar_stays_with_its_time_if_it_took_any(monkeypatch):
    terminal, erased = make_terminal(monkeypatch), "\x1b[1A\x1b[2K"
    with track("a moment", 1) as update:
        update(1, "done")
    assert terminal.getvalue().endswith(erased)
    monkeypatch.setattr(console, "SECONDS_TO_STAY", 1.0)
    with track("a while", 1) as update:
        time.sleep(1.05)
        update(1, "done")
    assert not terminal.getvalue().endswith(erased)
    assert "0:00:01" in terminal.getvalue()


def test_the_last_line_of_a_log_says_how_long_it_took(capsys):
    with track("reading", 2) as update:
        update(1, "")
        update(2, "")
    assert capsys.readouterr().err == "reading: 2/2 in 0 s\n"


def test_a_file_gets_tables_uncut(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("path", box=None)
    table.add_column("words", overflow="ellipsis", no_wrap=True)
    table.add_row(PATH, WORDS)
    print_table(table)
    assert f"{PATH}  {WORDS}" in capsys.readouterr().out
