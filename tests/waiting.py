"""Waiting for what another thread or process brings about, and comparing what two things cost.

No test asserts a time: machines differ. A wait ends as soon as it may, so its limit is only how
long a test that fails takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

LIMIT_SECONDS = 60.0


def until(holds: Callable[[], bool]) -> None:
    """Waits until it holds; a test that waits in vain fails."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def times_dearer(dear: Callable[[], object], cheap: Callable[[], object]) -> float:
    """How many times the processor time of `cheap` the other takes, the best of three of each."""
    return _cpu_seconds(dear) / _cpu_seconds(cheap)


def _cpu_seconds(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(3):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)
