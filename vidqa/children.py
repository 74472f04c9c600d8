"""What the child processes of vidqa have in common: start, number, environment, end, name.

What is said to one, and what it does, is its own module's. Nothing heavy is imported.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

_SECRETS = ("VIDQA_SERVE", "VIDQA_API_KEY")


def environment() -> dict[str, str]:
    """The child finds the modules that its parent found, and starts no thread pools.

    It decodes other people's files, and is not told a server's keys.
    """
    package_root = str(Path(__file__).resolve().parent.parent)
    search = [entry for entry in sys.path if entry]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SECRETS)}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([*search, package_root])),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def usable_cpus() -> int:
    """The processors that this process may use; fewer than there are, in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start(
    program: str, errors: int | IO[bytes] = subprocess.DEVNULL
) -> tuple[subprocess.Popen[bytes], Connection[Any, Any]]:
    """Runs Python code that finds its end of a connection, by number, in `sys.argv[1]`."""
    connection, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            # -P: a file of the user's folder must not pass for a module.
            [sys.executable, "-P", "-c", program, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment(),
            # Ctrl-C is the parent's to handle.
            start_new_session=True,
        )
    return process, connection


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """The kernel sends this process a signal when its parent ends (Linux; nothing elsewhere)."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(number))


def signal_name(number: int) -> str:
    """What killed a process, for a message."""
    if number == signal.SIGKILL:
        return "SIGKILL, perhaps for lack of memory"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
