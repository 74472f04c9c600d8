"""Stands in for vLLM in the tests of the engine: the same command line, lock, key and routes.

FAKE_ENGINE says what is to go wrong: it dies, refuses or wedges, or is late to say who it is.
FAKE_ENGINE_WAITS_FOR names a file that must be there before it serves, FAKE_ENGINE_ANSWERS_AT one
that must be there before a question is answered.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from vidqa.engine_gate import IN_FLIGHT, Activity, stop_when_idle
from vidqa.engine_main import detach

MODE = os.environ.get("FAKE_ENGINE", "")
WAITS_FOR = os.environ.get("FAKE_ENGINE_WAITS_FOR")
ANSWERS_AT = os.environ.get("FAKE_ENGINE_ANSWERS_AT")
ACTIVITY = Activity()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        key = f"Bearer {os.environ['VLLM_API_KEY']}"
        allowed = self.headers["Authorization"] == key
        if allowed and self.path != "/ping":
            ACTIVITY.begin()
            ACTIVITY.end()
        self.send_response(503 if MODE == "refuses" else 200 if allowed else 401)
        self.send_header("Content-Length", "0")
        self.send_header(IN_FLIGHT.decode(), str(ACTIVITY.in_flight))
        self.end_headers()

    def do_POST(self) -> None:
        ACTIVITY.begin()
        while ANSWERS_AT and not Path(ANSWERS_AT).exists():
            time.sleep(0.01)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
        ACTIVITY.end()

    def log_message(self, *_: object) -> None:
        """The log is for what vLLM would say."""


def main(lock_fd: int, idle_seconds: float, flags: list[str]) -> None:
    if MODE == "late":
        time.sleep(1.0)
    detach(lock_fd)
    stop_when_idle(idle_seconds, ACTIVITY)
    say("flags: " + " ".join(flags))
    if MODE == "dies":
        say("(EngineCore pid=7) ValueError: No available memory for the cache blocks.")
        say("RuntimeError: Engine core initialization failed. See root cause above.")
        sys.exit(1)
    if MODE == "wedges":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Event().wait()
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    say(f"worker: {worker.pid}")
    say("Resolved architecture: Fake")
    while WAITS_FOR and not Path(WAITS_FOR).exists():
        time.sleep(0.01)
    say("Starting to load model")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(worker.kill()))
    server = ThreadingHTTPServer(("127.0.0.1", int(flags[flags.index("--port") + 1])), Handler)
    say("Application startup complete")
    ACTIVITY.serve()
    server.serve_forever(0.05)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
