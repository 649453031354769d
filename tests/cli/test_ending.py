"""How the process ends: one line and the right exit code, whatever ends it."""

import io
import signal
import subprocess
import sys
import time

import pytest

from clipgraft.cli import app as cli_app
from clipgraft.console import print_line, say, track
from clipgraft.errors import UserError

COMMAND = """
import sys, time
import typer
from clipgraft.cli.app import Commands, run_to_an_end

app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

@app.command()
def work():
    try:
        print("at work", file=sys.stderr, flush=True)
        time.sleep(30)
    finally:
        print("put away", file=sys.stderr, flush=True)

@app.command()
def other():
    pass

run_to_an_end(app)
"""


ENDED_BY_SIGNAL = pytest.mark.parametrize(
    ("number", "message", "code"),
    [(signal.SIGINT, "stopped by Ctrl-C\n", 130), (signal.SIGTERM, "stopped by SIGTERM\n", 143)],
)


@ENDED_BY_SIGNAL
def test_a_signal_ends_in_one_line_by_way_of_every_finally(number, message, code):
    process = subprocess.Popen([sys.executable, "-c", COMMAND, "work"], stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "at work\n"
    process.send_signal(number)
    assert process.communicate(timeout=30)[1] == f"put away\n{message}"
    assert process.returncode == code


@ENDED_BY_SIGNAL
def test_a_signal_within_a_destructor_is_not_lost(number, message, code):
    dropped = f"""
class Dropped:
    def __del__(self):
        signal.raise_signal({int(number)})
"""
    script = COMMAND.replace("import sys, time", f"import signal, sys, time{dropped}")
    script = script.replace("        time.sleep(30)", "        Dropped()\n        time.sleep(30)")
    ended = subprocess.run(
        [sys.executable, "-c", script, "work"], capture_output=True, text=True, check=False, timeout=25
    )
    assert ended.stderr == f"at work\nput away\n{message}"
    assert ended.returncode == code


def test_another_exit_within_a_destructor_stops_nothing():
    script = COMMAND.replace(
        "import sys, time", "import sys, time\nclass Dropped:\n    def __del__(self):\n        sys.exit(3)"
    )
    script = script.replace("        time.sleep(30)", "        Dropped()\n        time.sleep(0.3)")
    ended = subprocess.run(
        [sys.executable, "-c", script, "work"], capture_output=True, text=True, check=False, timeout=25
    )
    assert ended.returncode == 0
    assert "put away" in ended.stderr


@pytest.mark.parametrize("seconds", [0.08, 0.12, 0.2])
def test_ctrl_c_while_the_command_line_is_imported_is_one_line(seconds):
    begin = "import os, signal, sys; sys.argv = ['clipgraft', 'doctor']; import clipgraft.__main__ as entry\n"
    begin += "import threading\n"
    begin += f"threading.Timer({seconds}, os.kill, (os.getpid(), signal.SIGINT)).start()\nentry.main()"
    ended = subprocess.run(
        [sys.executable, "-c", begin], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.stderr, ended.returncode) == ("stopped by Ctrl-C\n", 130)


def test_an_end_of_file_of_ours_is_a_bug_with_its_traceback():
    code = COMMAND.replace('print("at work"', "raise EOFError('nothing'); print('at work'")
    ended = subprocess.run(
        [sys.executable, "-c", code, "work"], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith("RuntimeError: unexpected end of a file: nothing\n")


def test_a_reader_that_has_gone_stops_no_work(tmp_path):
    code = """
import pathlib, sys
from clipgraft.console import print_line, say, track, forgiving_output
with forgiving_output(), track("working", 2000) as update:
    for done in range(2000):
        print_line("a result")
        say("a note")
        update(2000, "")
pathlib.Path(sys.argv[1]).write_text("done")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "end"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "end").read_text() == "done"


def run(error: Exception) -> int:
    def fail():
        raise error

    with pytest.raises(SystemExit) as end:
        cli_app.run_to_an_end(fail)
    return end.value.code


def test_cache_that_cannot_be_kept_names_where_to_have_it(monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/.cache")
    assert run(FileNotFoundError(2, "No such file or directory", "/proc/.cache")) == 2
    assert capsys.readouterr().err.endswith(
        "; the cache cannot be kept there: set XDG_CACHE_HOME to a folder that can be written\n"
    )
    assert run(PermissionError(13, "Permission denied", "/elsewhere/x")) == 2
    assert "XDG_CACHE_HOME" not in capsys.readouterr().err


def test_names_reach_the_terminal_escaped(capsys):
    name = "x\x1b]0;pwned\x07[red]:dog:.jpg"
    say(name)
    print_line(name)
    with track(name, 1) as update:
        update(1, name)
    assert run(UserError(name)) == 2
    out = "".join(capsys.readouterr())
    assert "\x1b" not in out
    assert out.count(r"x\x1b]0;pwned\x07[red]:dog:.jpg") == 5


def test_a_terminals_bar_reads_no_markup(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")
    with track("[red]:dog:", 1) as update:
        update(1, "[bold]")
        time.sleep(0.2)
    assert "[red]:dog:" in terminal.getvalue()
