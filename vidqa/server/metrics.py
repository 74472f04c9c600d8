"""What Prometheus is told: requests, stages, tokens, frames, cache hits, queue, engine.

One registry an application, so that two in one process do not meet. With several workers the
library's files of several processes are added up (PROMETHEUS_MULTIPROC_DIR, set by `run`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
ENGINE_STATES = ("starting", "ready", "failed")

# From a warm search to a long answer on a processor.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """All figures of one server process; names and labels are a promise (docs/api.md)."""

    def __init__(self) -> None:
        several = MULTIPROCESS_VARIABLE in os.environ
        self._registry = CollectorRegistry()
        registry = None if several else self._registry
        self._requests = Counter(
            "vidqa_requests",
            "Requests by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "vidqa_request_seconds", "From request to the end of its answer.", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._stage_seconds = Histogram(
            "vidqa_stage_seconds",
            "One stage: queue, embed, search, frames, first_token, model.",
            ["stage"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "vidqa_tokens",
            "Tokens by kind: prompt, completion, cached.",
            ["kind"],
            registry=registry,
        )
        self._frames = Counter(
            "vidqa_frames_shown", "Frames shown to the model.", registry=registry
        )
        self._cache = Counter(
            "vidqa_query_cache",
            "Query vectors by outcome: hit, miss.",
            ["outcome"],
            registry=registry,
        )
        self._queue = Gauge(
            "vidqa_queue", "Questions by place: waiting, answering.", ["place"],
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self._engine = Gauge(
            "vidqa_engine", "1 for the state that the engine is in.", ["state"],
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
        if several:
            multiprocess.MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]

        # A figure that is there from the start can be watched from the start.
        for kind in ("prompt", "completion", "cached"):
            self._tokens.labels(kind)
        for outcome in ("hit", "miss"):
            self._cache.labels(outcome)

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def stages(self, milliseconds: Mapping[str, float]) -> None:
        """What an answer or a search took; a stage that was not gone through is 0 and left out."""
        for stage, value in milliseconds.items():
            if value:
                self._stage_seconds.labels(stage).observe(value / 1000)

    def answered(self, *, prompt: int, completion: int, cached: int, frames: int) -> None:
        counts = {"prompt": prompt, "completion": completion, "cached": cached}
        for kind, count in counts.items():
            self._tokens.labels(kind).inc(count)
        self._frames.inc(frames)

    def cache(self, *, hit: bool) -> None:
        self._cache.labels("hit" if hit else "miss").inc()

    def queue(self, waiting: int, answering: int) -> None:
        self._queue.labels("waiting").set(waiting)
        self._queue.labels("answering").set(answering)

    def engine(self, state: str) -> None:
        for one in ENGINE_STATES:
            self._engine.labels(one).set(one == state)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        if MULTIPROCESS_VARIABLE in os.environ:
            _forget_the_dead(Path(os.environ[MULTIPROCESS_VARIABLE]))
        return generate_latest(self._registry)


def _forget_the_dead(folder: Path) -> None:
    """A worker that was killed in the middle of answers would be counted for them for ever."""
    for file in folder.glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
