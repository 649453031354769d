"""Stopping on Ctrl-C or SIGTERM without losing work."""

import signal
from pathlib import Path
from types import FrameType


class Interrupted(Exception):
    """Training stopped by a signal, after saving its state."""

    def __init__(self, signal_number: int, checkpoints: Path | None):
        place = f"state saved in {checkpoints}" if checkpoints else "no state was saved"
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; {place}")
        self.exit_code = 128 + signal_number


class StopOnSignal:
    """Deferral of a first SIGINT or SIGTERM (a second one acts at once)."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal_number = 0

    def __enter__(self) -> "StopOnSignal":
        self._previous = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def _remember(self, signal_number: int, frame: FrameType | None) -> None:
        self.signal_number = signal_number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()
