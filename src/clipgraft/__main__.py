"""`clipgraft` and `python -m clipgraft`; Ctrl-C ends in one line throughout."""

import os
import signal
from types import FrameType


def _stop(_signal_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"stopped by Ctrl-C\n")
    os._exit(130)  # nothing is held yet, and libraries half imported would answer otherwise


def main() -> None:
    """Import the command line and run it."""
    default = signal.getsignal(signal.SIGINT)
    if default is signal.default_int_handler:  # else it is to be ignored, as under nohup
        signal.signal(signal.SIGINT, _stop)
    from clipgraft.cli.app import main as run

    signal.signal(signal.SIGINT, default)
    run()


if __name__ == "__main__":
    main()
