"""What can go wrong by the user's hand, and how it is said."""

import errno
import traceback
from pathlib import Path


class DataError(ValueError):
    """A captioned-image source, a caption file or an image cannot be used as it is."""


class CheckpointError(RuntimeError):
    """Saved weights or training state are missing, damaged or made for something else."""


def one_line(error: Exception) -> str:
    """Say an error in one line."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no space left on the disk ({error.filename or 'while writing'}); free some and run again"
    return " ".join(str(error).split())


def is_users_to_mend(error: Exception) -> bool:
    """Whether it is one of the system's files, or one that this package raised to say what is wrong."""
    if isinstance(error, OSError):
        return True
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    is_ours = Path(raised_in).is_relative_to(Path(__file__).parent)
    return is_ours and isinstance(error, (ValueError, RuntimeError, FloatingPointError))
