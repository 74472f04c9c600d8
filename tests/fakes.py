"""Stand-ins for the two models, with answers that a reader can work out in the head.

FakeEmbedder     a picture's vector is its mean colour, a text's the colours it names
FakeEndpoint     a real HTTP server on loopback that answers questions as it is told
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vidqa.types import EmbedderSpec

COLOURS = {
    "red": (1, 0, 0, 0),
    "green": (0, 1, 0, 0),
    "blue": (0, 0, 1, 0),
    "nothing": (0, 0, 0, -1),
}


class FakeEmbedder:
    """Vectors of (red, green, blue, dark): "red and blue" is (1, 0, 1, 0) / sqrt 2; black is dark.

    A text that names no colour is dark as well. "nothing" is the opposite of dark: its cosine to
    every picture is 0 or less.
    """

    spec = EmbedderSpec("fake-colours", "0" * 16, 4, 8, 8, "squash")

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        means = images.reshape(len(images), -1, 3).mean(axis=1) / 255
        dark = np.all(means < 0.1, axis=1, keepdims=True)
        return _unit(np.concatenate([means * ~dark, dark], axis=1))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = []
        for text in texts:
            named = [vector for name, vector in COLOURS.items() if name in text.lower()]
            rows.append(np.sum(named, axis=0) if named else np.array((0, 0, 0, 1)))
        return _unit(np.array(rows, dtype=np.float64))


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@dataclass
class FakeEndpoint:
    """Serves one model and answers every question with `pieces`, one server-sent event each.

    The other fields are the ways in which real endpoints go wrong. `requests` holds the bodies of
    all questions, in the order in which they came.
    """

    pieces: Sequence[str] = ("It is red [1].",)
    models: Sequence[str] = ("fake-vl",)
    api_key: str | None = None
    status: int = 200
    error: str = ""  # the message that goes with a status other than 200
    takes_video: bool = True
    takes_unknown_fields: bool = True  # OpenAI's own endpoint refuses them
    counts_tokens: bool = True
    breaks_after: int | None = None  # closes the connection after so many pieces
    finish: str = "stop"
    fails_after: int | None = None  # sends an error event after so many pieces
    raw: bytes | None = None  # sent in place of the events
    lingers_seconds: float = 0.0  # after the end mark, with the connection open; until the end
    # What to say to each question, in place of `pieces`: a text, of which an empty one breaks off,
    # or a status to refuse it with.
    says: Callable[[dict[str, Any]], str | int] | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    # Before the first event it waits for this, or for its end; one that is not set keeps silent.
    may_speak: threading.Event | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        endpoint = self

        class Handler(_Handler):
            told = endpoint

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends it; safe to repeat."""
        self.ended.set()
        if self.may_speak is not None:
            self.may_speak.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def text(self) -> str:
        """All texts of the last question, in order."""
        parts = self.requests[-1]["messages"][-1]["content"]
        return "".join(part["text"] for part in parts if part["type"] == "text")


class _Handler(BaseHTTPRequestHandler):
    told: FakeEndpoint

    def do_GET(self) -> None:
        if self._allowed():
            data = [{"id": name, "object": "model"} for name in self.told.models]
            self._answer(200, json.dumps({"object": "list", "data": data}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        self.told.requests.append(body)
        if body["model"] not in self.told.models:
            self._refuse(404, f"The model `{body['model']}` does not exist.")
        elif self.told.status != 200:
            self._refuse(self.told.status, self.told.error)
        elif not self.told.takes_video and '"video_url"' in json.dumps(body):
            self._refuse(400, "Unknown part type: video_url")
        elif not self.told.takes_unknown_fields and "skip_special_tokens" in body:
            self._refuse(400, "Unrecognized request argument supplied: skip_special_tokens")
        elif self.told.raw is not None:
            self._answer(200, self.told.raw)
        elif self.told.says is None:
            self._stream(self.told.pieces)
        elif isinstance(said := self.told.says(body), int):
            self._refuse(said, self.told.error)
        else:
            self._stream([said], cut=not said)

    def _allowed(self) -> bool:
        wanted = self.told.api_key
        if wanted is None or self.headers["Authorization"] == f"Bearer {wanted}":
            return True
        self._refuse(401, "Unauthorized")
        return False

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, json.dumps({"error": {"message": message, "code": status}}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, pieces: Sequence[str], cut: bool = False) -> None:
        if self.told.may_speak is not None:
            self.told.may_speak.wait()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if self.told.breaks_after is not None:
            self.send_header("Content-Length", "100000")  # more than will ever come
        self.end_headers()
        self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        if cut:
            return
        for n, piece in enumerate(pieces):
            if n == self.told.breaks_after:
                return
            if n == self.told.fails_after:
                self._event({"error": {"message": "out of memory", "code": 500}})
                return
            self._event({"choices": [{"index": 0, "delta": {"content": piece}}]})
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": self.told.finish}]})
        if self.told.counts_tokens:
            counts = {"prompt_tokens": 100, "completion_tokens": len(pieces)}
            self._event({"choices": [], "usage": counts})
        self.wfile.write(b"data: [DONE]\n\n")
        self.told.ended.wait(self.told.lingers_seconds)

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b": a comment\ndata: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a test reads `requests`."""
