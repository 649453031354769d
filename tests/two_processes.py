"""Runs a program in several processes that work together, as `accelerate launch` starts them."""

import os
import signal
import subprocess
import sys


def run_in_two_processes(*arguments: object, is_killed: bool = False) -> tuple[str, str]:
    """Run Python with these arguments twice at once; give what each of the two printed."""
    first, second = run_in_processes(2, *arguments, is_killed=is_killed)
    return first, second


def run_in_processes(number: int, *arguments: object, is_killed: bool = False) -> list[str]:
    """Run Python with these arguments several times at once; give what each printed.

    Args:
        number: Of processes.
        arguments: Of all.
        is_killed: Whether one of them is to end by SIGKILL, upon which the others cannot go on either.
    """
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        # Tests run side by side, each in a process of its own.
        "MASTER_PORT": str(20_000 + os.getpid() % 10_000),
        "WORLD_SIZE": str(number),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(number)
    ]
    printed = [process.communicate(timeout=240)[0] for process in processes]
    ended = [process.returncode for process in processes]
    assert -signal.SIGKILL in ended if is_killed else ended == [0] * number
    return printed
