"""Stands in for vLLM in the tests of the engine: the same command line, lock, key and routes.

FAKE_ENGINE says what is to go wrong: it dies, refuses or wedges, or is late to say who it is; it
ignores adapters, in whose names it answers as the base, answers its base in two ways ("noisy") or
takes no adapter ("picky"), as of one of that name. What it was asked for is in its log.
FAKE_ENGINE_WAITS_FOR names a file that must be there before it serves, FAKE_ENGINE_ANSWERS_AT one
that must be there before a question is answered.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from vidqa.engine_gate import IDLE_SECONDS, Activity, stop_when_idle
from vidqa.engine_main import detach

MODE = os.environ.get("FAKE_ENGINE", "")
WAITS_FOR = os.environ.get("FAKE_ENGINE_WAITS_FOR")
ANSWERS_AT = os.environ.get("FAKE_ENGINE_ANSWERS_AT")
ACTIVITY = Activity()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Handler(BaseHTTPRequestHandler):
    base = ""
    loaded: ClassVar[dict[str, str]] = {}  # name -> path
    asked = 0

    def do_GET(self) -> None:
        key = f"Bearer {os.environ['VLLM_API_KEY']}"
        allowed = self.headers["Authorization"] == key
        counts = allowed and self.path != "/ping"
        if counts:
            ACTIVITY.begin()
            ACTIVITY.end()
            # Now that its starter sees it, it stops when nobody asks; but it answers this first.
            ACTIVITY.begin(asks=False)
            ACTIVITY.serve()
        models = [{"id": one} for one in [self.base, *self.loaded]]
        try:
            self._send(503 if MODE == "refuses" else 200 if allowed else 401, {"data": models})
        finally:
            if counts:
                ACTIVITY.end(asks=False)

    def do_POST(self) -> None:
        ACTIVITY.begin()
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        while ANSWERS_AT and not Path(ANSWERS_AT).exists():
            time.sleep(0.01)
        route = self.path.rpartition("/")[2]
        if route == "load_lora_adapter":
            self._load(body["lora_name"], body["lora_path"])
        elif route == "unload_lora_adapter":
            say(f"unload {body['lora_name']}")
            self._send(200 if self.loaded.pop(body["lora_name"], "") else 404, {})
        else:
            self._answer(body.get("model", self.base))
        ACTIVITY.end()

    def _load(self, name: str, path: str) -> None:
        say(f"load {name} from {path}")
        if MODE == "picky" or name.startswith("picky@"):
            return self._send(500, {"error": {"message": "LoRA rank 64 is greater than 16"}})
        assert (Path(path) / "adapter_model.safetensors").is_file()
        self.loaded[name] = path
        return self._send(200, {})

    def _answer(self, model: str) -> None:
        """A next token that is likelier the more it was asked, and much likelier for an adapter."""
        say(f"ask {model}")
        if model not in (self.base, *self.loaded):
            return self._send(404, {"error": {"message": f"The model `{model}` does not exist."}})
        Handler.asked += MODE == "noisy"
        applied = model in self.loaded and MODE not in ("ignores", "noisy")
        top = {"token": "a", "logprob": -1.0 + 0.5 * applied + 0.001 * self.asked}
        return self._send(200, {"choices": [{"logprobs": {"content": [{"top_logprobs": [top]}]}}]})

    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header(IDLE_SECONDS.decode(), str(ACTIVITY.unasked_seconds()))
        self.end_headers()
        self.wfile.write(data)

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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(worker.kill()))
    say(f"worker: {worker.pid}")
    say("Resolved architecture: Fake")
    while WAITS_FOR and not Path(WAITS_FOR).exists():
        time.sleep(0.01)
    say("Starting to load model")
    Handler.base = flags[flags.index("--served-model-name") + 1]
    server = ThreadingHTTPServer(("127.0.0.1", int(flags[flags.index("--port") + 1])), Handler)
    say("Application startup complete")
    server.serve_forever(0.05)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
