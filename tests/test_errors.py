"""Which errors are the user's to mend, and how they are said."""

import errno

import pytest

from clipgraft.errors import CheckpointError, DataError, MissingFileError, UserError, is_user_error, one_line
from clipgraft.files import write_json


@pytest.mark.parametrize("kind", [UserError, DataError, CheckpointError, MissingFileError])
def test_user_errors_are_value_errors_that_say_their_text(kind):
    error = kind("learning_rate must be above 0; got -1")
    assert is_user_error(error)
    assert isinstance(error, ValueError)
    assert str(error) == "learning_rate must be above 0; got -1"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("zip() argument 2 is shorter"),
        RuntimeError(),
        KeyError("a"),
        AssertionError(),
        OSError("a"),
    ],
)
def test_errors_of_our_own_code_are_not_the_users(error):
    assert not is_user_error(error)


def test_refusals_of_the_operating_system_are_the_users():
    assert is_user_error(PermissionError(errno.EACCES, "Permission denied", "a"))
    full = OSError(errno.ENOSPC, "No space left on device", "a.npy")
    assert one_line(full) == "no space left on the disk (a.npy); free some and run again"


def test_one_line_escapes_what_a_terminal_would_obey():
    error = DataError("x\x1b]0;owned\x07.jpg:\n no caption \udce9 é 😀")
    assert one_line(error) == r"x\x1b]0;owned\x07.jpg: no caption \udce9 é 😀"


def test_refusals_of_the_system_name_the_file_and_no_number(tmp_path):
    (tmp_path / "images.json").mkdir()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - any of the system's
        write_json(tmp_path / "images.json", [])
    assert one_line(caught.value) == f"{tmp_path}/images.json: Is a directory"
