"""The two errors that are the user's to mend, beside ValueError and FileNotFoundError."""


class DataError(ValueError):
    """A captioned-image source, a caption file or an image cannot be used as it is."""


class CheckpointError(RuntimeError):
    """Saved weights or training state are missing, damaged or made for something else."""
