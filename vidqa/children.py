"""What the child processes of vidqa have in common: their environment, their end, its name.

Starting one and speaking with it is done by its own module. Nothing heavy is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

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
