"""Figures of several processes: what a worker left behind that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from vidqa.server.metrics import MULTIPROCESS_VARIABLE

WORKER = """
import sys
from vidqa.server.metrics import Metrics
metrics = Metrics()
metrics.queue(waiting=2, answering=int(sys.argv[1]))
metrics.answered(prompt=7, completion=0, cached=0, frames=0)
print(metrics.text().decode())
"""


def figures(folder: Path, answering: int) -> list[str]:
    """What a worker shows that answers so many questions, and then is no more."""
    command = [sys.executable, "-c", WORKER, str(answering)]
    environment = os.environ | {MULTIPROCESS_VARIABLE: str(folder)}
    return subprocess.check_output(command, env=environment, text=True).splitlines()


def test_a_worker_that_is_gone_is_answering_nobody_but_what_it_did_counts(tmp_path: Path) -> None:
    assert 'vidqa_queue{place="answering"} 5.0' in figures(tmp_path, 5)
    after = figures(tmp_path, 1)
    assert 'vidqa_queue{place="answering"} 1.0' in after
    assert 'vidqa_tokens_total{kind="prompt"} 14.0' in after
