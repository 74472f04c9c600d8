"""Where weights are looked for, against a hub of our own that notes what it is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from vidqa.errors import MissingExtra, ModelError
from vidqa.weights import find_weights

COMMIT = "c0ffee" + "0" * 34
FILES = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    "preprocessor_config.json": b"{}",
    "model-00001-of-00001.safetensors": b"weights",
    "merges.txt": b"a b",
    "pytorch_model.bin": b"a pickle",
    "modeling_surprise.py": b"import os",
}


@dataclass
class RecordedHub:
    """A model hub with one model, as huggingface_hub asks for it."""

    model: str = "Qwen/Qwen2-VL-2B-Instruct"
    asked: list[str] = field(default_factory=list)

    def __enter__(self) -> RecordedHub:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                hub.asked.append(f"{self.command} {path}")
                name = path.removeprefix(f"/{hub.model}/resolve/{COMMIT}/")
                if path == f"/api/models/{hub.model}/tree/{COMMIT}":
                    tree = [
                        {"type": "file", "path": one, "size": len(body), "oid": "0" * 40}
                        for one, body in FILES.items()
                    ]
                    self._answer(200, json.dumps(tree).encode())
                elif path.startswith(f"/api/models/{hub.model}/revision/"):
                    siblings = [{"rfilename": one} for one in FILES]
                    info = {"id": hub.model, "sha": COMMIT, "siblings": siblings}
                    self._answer(200, json.dumps(info).encode())
                elif name in FILES:
                    self._answer(200, FILES[name])
                else:
                    self._answer(404, b"{}")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", f'"{len(body)}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Says nothing: a test reads `asked`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


@pytest.fixture
def hub() -> Iterator[RecordedHub]:
    with RecordedHub() as running:
        yield running


def found(model: str, endpoint: str, cache: Path, offline: str = "0") -> str:
    """What `find_weights` says in its own process, as the hub's client reads its settings once."""
    code = (
        "import sys\nfrom vidqa.weights import find_weights\nfrom vidqa.errors import VidqaError\n"
        "try:\n    print(find_weights(sys.argv[1]))\nexcept VidqaError as e:\n"
        "    print(type(e).__name__, e)"
    )
    environ = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    environ.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code, model], env=environ, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_hub_is_asked_for_the_model_at_its_main_revision(
    hub: RecordedHub, tmp_path: Path
) -> None:
    found(hub.model, hub.address, tmp_path)
    assert f"GET /api/models/{hub.model}/revision/main" in hub.asked


def test_a_revision_is_asked_for_by_its_name(hub: RecordedHub, tmp_path: Path) -> None:
    found(f"{hub.model}@v2", hub.address, tmp_path)
    assert f"GET /api/models/{hub.model}/revision/v2" in hub.asked


def test_weights_and_texts_are_fetched_but_no_pickles_and_no_code(
    hub: RecordedHub, tmp_path: Path
) -> None:
    folder = Path(found(hub.model, hub.address, tmp_path))
    assert sorted(one.name for one in folder.iterdir()) == [
        "config.json",
        "merges.txt",
        "model-00001-of-00001.safetensors",
        "preprocessor_config.json",
    ]
    assert not [one for one in hub.asked if one.endswith((".bin", ".py"))]


def test_what_was_fetched_is_found_again_without_the_hub(hub: RecordedHub, tmp_path: Path) -> None:
    first = found(hub.model, hub.address, tmp_path)
    asked = len(hub.asked)
    assert found(hub.model, hub.address, tmp_path) == first
    assert len(hub.asked) == asked


def test_a_hub_without_the_model_is_an_error_with_the_ways_out(
    hub: RecordedHub, tmp_path: Path
) -> None:
    said = found("Qwen/Qwen9-VL", hub.address, tmp_path)
    assert said.startswith("ModelError Qwen/Qwen9-VL: not in ")
    assert f"{hub.address} did not give it" in said
    assert "--model PATH" in said
    assert "VIDQA_HUB=modelscope" in said
    assert "HF_ENDPOINT" in said


def test_no_hub_at_all_is_an_error_with_the_ways_out(tmp_path: Path) -> None:
    said = found("Qwen/Qwen2-VL-2B-Instruct", "http://127.0.0.1:9", tmp_path)
    assert said.startswith("ModelError Qwen/Qwen2-VL-2B-Instruct: not in ")
    assert "http://127.0.0.1:9 did not give it" in said
    assert "--model PATH" in said


def test_offline_the_hub_is_not_asked(hub: RecordedHub, tmp_path: Path) -> None:
    assert "HF_HUB_OFFLINE is set" in found(hub.model, hub.address, tmp_path, offline="1")
    assert hub.asked == []


def model_folder(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine", "config.json", "model.safetensors")
    assert find_weights(str(folder), "none") == folder


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json, so no model"):
        find_weights(str(model_folder(tmp_path / "mine", "a.txt")))


def test_a_folder_with_pickled_weights_alone_is_an_error(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine", "config.json", "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors, so no whole weights"):
        find_weights(str(folder))


def test_a_folder_with_a_shard_missing_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine", "config.json", "model-1.safetensors")
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
    with pytest.raises(ModelError, match=r"holds no model-2\.safetensors"):
        find_weights(str(folder))


@pytest.mark.parametrize("model", ["./mine", "/no/such/folder", "mine", "~/mine", "a/b/c"])
def test_a_path_that_is_not_there_is_an_error_and_no_hub_is_asked(model: str) -> None:
    with pytest.raises(ModelError, match="no such folder; name a folder with --model PATH"):
        find_weights(model)


def test_without_a_hub_a_name_is_an_error_that_says_so() -> None:
    with pytest.raises(ModelError, match=r"no hub is asked \(hub: none\)"):
        find_weights("Qwen/Qwen2-VL-2B-Instruct", "none")


def test_modelscope_without_its_package_is_an_error_with_the_command() -> None:
    with pytest.raises(MissingExtra, match="uv pip install modelscope"):
        find_weights("Qwen/Qwen2-VL-2B-Instruct", "modelscope")


@pytest.mark.parametrize("model", ["a b/c", "Qwen/-VL", "Qwen/VL--2B"])
def test_a_name_that_no_hub_can_have_is_an_error_with_the_ways_out(
    hub: RecordedHub, model: str
) -> None:
    with pytest.raises(
        ModelError, match="no such folder, and no name on a hub; name a folder with --model PATH"
    ):
        find_weights(model)
    assert hub.asked == []
