"""Uploads: on disk as they come, searchable in the background, and never forgotten."""

from __future__ import annotations

import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fakes import FakeEmbedder, FakeEndpoint
from media import make_film, shot
from numpy.typing import NDArray
from serve_parts import Served, served
from test_server_gate import error_of
from waiting import until

from vidqa.errors import LibraryBusy
from vidqa.ingest import IngestOptions
from vidqa.library import Draft, Library
from vidqa.server import jobs as module
from vidqa.server import videos
from vidqa.server.errors import ApiError
from vidqa.server.gateway import Shelf
from vidqa.server.jobs import Jobs
from vidqa.server.videos import safe_name


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as running:
        yield running


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library.open(tmp_path / "library", FakeEmbedder.spec, create=True)


@pytest.fixture
def server(library: Library, endpoint: FakeEndpoint) -> Iterator[Served]:
    with served(Library.open(library.folder, follow=True), endpoint.base_url) as running:
        yield running


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory, endpoint: FakeEndpoint) -> Iterator[Served]:
    """For requests that change nothing."""
    folder = tmp_path_factory.mktemp("common") / "library"
    made = Library.open(folder, FakeEmbedder.spec, create=True)
    with served(made, endpoint.base_url) as running:
        yield running


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_film(tmp_path_factory.mktemp("film") / "a.mp4", [shot(1, 1)]).path.read_bytes()


def send(server: Served, name: str, body: Any, **headers: str) -> httpx.Response:
    return server.http.post("v1/videos", params={"name": name}, content=body, headers=headers)


def finished(server: Served, job: dict[str, Any]) -> dict[str, Any]:
    """The job once it has ended."""
    found: dict[str, Any] = {}

    def ended() -> bool:
        found.update(server.http.get(f"v1/jobs/{job['id']}").json())
        return found["status"] in ("done", "failed")

    until(ended)
    return found


def kept(library: Library) -> list[str]:
    """Names of everything that lies among the uploads."""
    folder = library.folder / "uploads"
    return sorted(one.name for one in folder.iterdir()) if folder.exists() else []


# ---------------------------------------------------------------- from upload to search


def test_an_upload_becomes_searchable(server: Served, library: Library, film: bytes) -> None:
    response = send(server, "holiday.mp4", film)
    assert response.status_code == 202
    job = response.json()
    assert (job["object"], job["status"], job["video"]) == ("job", "queued", "holiday.mp4")
    job = finished(server, job)
    assert (job["status"], job["progress"], job["error"]) == ("done", 1.0, None)
    found = server.http.post("v1/search", json={"query": "red"}).json()["moments"]
    assert found[0]["video_id"] == job["video_id"]
    listed = server.http.get(f"v1/videos/{job['video_id']}").json()
    assert (listed["video"], listed["uploaded"]) == ("holiday.mp4", True)
    assert server.http.get(f"v1/videos/{job['video_id']}/stream").content == film
    assert server.http.get("v1/jobs").json()["data"][0]["id"] == job["id"]
    deleted = server.http.delete(f"v1/videos/{job['video_id']}").json()
    assert deleted["file_deleted"] is True
    assert kept(library) == []


def test_a_library_named_by_a_relative_path_takes_uploads_as_well(
    tmp_path: Path, endpoint: FakeEndpoint, film: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = Library.open(Path("library"), FakeEmbedder.spec, create=True)
    with served(Library.open(made.folder, follow=True), endpoint.base_url) as server:
        good = finished(server, send(server, "good.mp4", film).json())
        bad = finished(server, send(server, "bad.mp4", b"x").json())
        listed = server.http.get("v1/videos").json()["data"]
    assert good["video_id"] == listed[0]["id"]
    assert listed[0]["uploaded"] is True
    assert str(tmp_path) not in bad["error"]


def test_a_file_that_is_no_video_fails_with_its_reason_and_is_deleted(
    server: Served, library: Library
) -> None:
    job = finished(server, send(server, "notes.mp4", b"no film at all").json())
    assert job["status"] == "failed"
    assert job["error"].startswith("notes.mp4: is not a video")
    assert kept(library) == []
    assert server.http.get("v1/videos").json()["failures"] == []


SECRET = "the secret of this machine"


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:{port}/x.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{film}'\n",
        "ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/x.mp4'\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>'
        "http://127.0.0.1:{port}/x.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\n"
        "t=0 0\nm=video {port} RTP/AVP 96\n",
    ],
)
def test_an_upload_cannot_make_the_server_open_another_file_or_address(
    server: Served, library: Library, tmp_path: Path, film: bytes, text: str
) -> None:
    """Playlists: FFmpeg knows them by their content, whatever the name says."""
    (tmp_path / "secret.ts").write_text(SECRET)
    (tmp_path / "other.mp4").write_bytes(film)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        values = {
            "secret": tmp_path / "secret.ts",
            "film": tmp_path / "other.mp4",
            "port": listening.getsockname()[1],
        }
        job = finished(server, send(server, "list.mp4", text.format(**values).encode()).json())
        assert job["status"] == "failed"
        with pytest.raises(TimeoutError):
            listening.accept()
    assert server.http.get("v1/videos").json()["data"] == []


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("given", "kept_name"),
    [
        ("a.mp4", "a.mp4"),
        ("../../etc/a.mp4", "a.mp4"),
        ("/etc/a.mp4", "a.mp4"),
        ("..\\..\\a.mp4", "a.mp4"),
        ("C:\\films\\a.mp4", "a.mp4"),
        (".hidden.mp4", "hidden.mp4"),
        ("... .mp4.mp4", "mp4.mp4"),
        ("two\nlines\x1b[31m.mp4", "two_lines_[31m.mp4"),
        ("nul\0byte.mp4", "nul_byte.mp4"),
        ("Ferien am Meer, süß 🏖.MP4", "Ferien am Meer, süß 🏖.MP4"),
        ('a:b"c.mkv', "a_b_c.mkv"),
        ("right\u202eleft.mp4", "right_left.mp4"),
        ("a" * 250 + ".mp4", "a" * 196 + ".mp4"),
        ("ü" * 150 + ".mp4", "ü" * 98 + ".mp4"),
    ],
)
def test_a_name_is_made_harmless(given: str, kept_name: str) -> None:
    assert safe_name(given) == kept_name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "a", "a.txt", "a.mp4/..", ".mp4", "...mp4", "a.mp4.exe",
             "a.html", "mp4", " .mp4", "a.json", "a.part", "x" * 300 + ".mp4"],
)  # fmt: skip
def test_a_name_that_is_no_videos_is_refused(common: Served, name: str) -> None:
    response = send(common, name, b"x")
    assert response.status_code == 422
    assert error_of(response)["param"] == "name"


def test_two_files_of_one_name_are_both_kept(server: Served, library: Library, film: bytes) -> None:
    jobs = [send(server, "a b.mp4", film).json() for _ in range(3)]
    assert [one["video"] for one in jobs] == ["a b.mp4", "a b (2).mp4", "a b (3).mp4"]
    ended = [finished(server, one) for one in jobs]
    assert {one["status"] for one in ended} == {"done"}
    assert len({one["video_id"] for one in ended}) == 1  # it is one content


def test_nothing_that_lies_there_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("mine")
    (tmp_path / "a (2).mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".x.part").write_text("new")
    path = videos._settle(tmp_path / ".x.part", tmp_path, "a.mp4")
    assert path.name == "a (3).mp4"
    assert (tmp_path / "a.mp4").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


# ---------------------------------------------------------------- what goes wrong


def test_an_empty_upload_is_refused(server: Served, library: Library) -> None:
    response = send(server, "a.mp4", b"")
    assert response.status_code == 422
    assert "the body is empty" in error_of(response)["message"]
    assert kept(library) == []


def test_a_form_is_refused_with_a_hint(server: Served, library: Library) -> None:
    response = server.http.post("v1/videos?name=a.mp4", files={"file": b"x"})
    assert response.status_code == 422
    assert "curl -T FILE" in error_of(response)["message"]
    assert kept(library) == []


def test_an_upload_that_breaks_off_leaves_nothing(server: Served, library: Library) -> None:
    port = httpx.URL(server.url).port or 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = "POST /v1/videos?name=a.mp4 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n"
        connection.sendall(f"{head}\r\n".encode() + bytes(1000))
        until(lambda: len(kept(library)) == 1)
    until(lambda: kept(library) == [])
    assert server.http.get("v1/jobs").json()["data"] == []


def test_a_file_larger_than_what_is_free_is_refused_before_it_is_sent(
    server: Served, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(total=2**40, used=0, free=videos.RESERVE_BYTES + 10)
    monkeypatch.setattr(videos.shutil, "disk_usage", lambda folder: full)
    response = send(server, "a.mp4", bytes(11))
    assert (response.status_code, error_of(response)["code"]) == (413, "no_space")
    assert kept(library) == []


def test_a_disk_that_fills_up_meanwhile_ends_the_upload(
    server: Served, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([2**40, 0])
    usage = lambda folder: SimpleNamespace(free=next(free))  # noqa: E731
    monkeypatch.setattr(videos.shutil, "disk_usage", usage)
    monkeypatch.setattr(videos, "CHECKED_BYTES", 1000)
    response = send(server, "a.mp4", (bytes(600) for _ in range(2)))
    assert (response.status_code, error_of(response)["code"]) == (413, "no_space")
    assert kept(library) == []


@pytest.mark.parametrize("call", ["vidqa.server.videos.os.fsync", "vidqa.server.jobs.Jobs._write"])
def test_a_disk_that_takes_no_more_is_told_as_such(
    server: Served, library: Library, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, full)
    response = send(server, "a.mp4", b"x")
    assert response.status_code == 507
    assert error_of(response)["message"] == "a.mp4 could not be kept: No space left on device"
    assert kept(library) == []


def test_memory_does_not_grow_with_the_size_of_an_upload(server: Served) -> None:
    send(server, "warm.mp4", bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    piece = bytes(2**18)
    response = send(server, "large.mp4", (piece for _ in range(4 * 256)))  # 256 MiB
    assert response.status_code == 202
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 64
    finished(server, response.json())


# ---------------------------------------------------------------- jobs


@pytest.mark.parametrize(
    "name",
    ["job_0000000000000000", "x", "..%2fmanifest", "job_..%2f..%2fmanifest", "turn.lock", "%00",
     "job_0000000000000000%0a", "job_" + "0" * 5000],
)  # fmt: skip
def test_a_job_that_is_not_there_is_not_found(common: Served, name: str) -> None:
    response = common.http.get(f"v1/jobs/{name}")
    assert response.status_code == 404
    assert error_of(response)


class Watched(FakeEmbedder):
    """Counts the frames that it embeds, slowly where wanted."""

    def __init__(self, pause_seconds: float = 0.0) -> None:
        self.frames = 0
        self._pause_seconds = pause_seconds

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        time.sleep(self._pause_seconds)
        self.frames += len(images)
        return super().embed_images(images)


def jobs_of(library: Library, embedder: FakeEmbedder) -> tuple[Jobs, Shelf]:
    shelf = Shelf("default", Library.open(library.folder, follow=True), embedder)
    return Jobs({"default": shelf}, IngestOptions(workers=1)), shelf


def statuses(jobs: Jobs) -> Sequence[str]:
    return [one.status for one in jobs.all()]


def test_what_a_killed_server_left_undone_is_taken_up_by_the_next(
    library: Library, film: bytes
) -> None:
    first, shelf = jobs_of(library, Watched())  # not started: it has been killed
    for number, status in enumerate(("queued", "running")):
        path = module.uploads_of(shelf) / f"{number}.mp4"
        path.write_bytes(film + bytes(number))
        job = first.add(shelf, path)
        first._write(module.replace(job, status=status))
    second, _ = jobs_of(library, Watched())
    assert sorted(statuses(second)) == ["queued", "running"]
    second.start()
    until(lambda: statuses(second) == ["done", "done"])
    assert len(library.videos()) == 2


def test_a_server_that_ends_lets_go_of_its_job_for_the_next(
    library: Library, tmp_path: Path
) -> None:
    film = make_film(tmp_path / "long.mp4", [shot(2, n) for n in range(20)]).path
    first, shelf = jobs_of(library, Watched(0.1))
    path = module.uploads_of(shelf) / "long.mp4"
    film.rename(path)
    job = first.add(shelf, path)
    first.start()
    until(lambda: statuses(first) == ["running"])
    first.stop()
    assert first._thread
    assert not first._thread.is_alive()
    assert path.exists()
    left = first.get(job.id)
    assert left
    assert (left.status, left.attempts) == ("queued", 0)
    second, _ = jobs_of(library, Watched())
    second.start()
    until(lambda: statuses(second) == ["done"])
    second.stop()
    assert second.get(job.id)


def test_a_server_that_waits_for_anothers_job_ends_at_once(library: Library, film: bytes) -> None:
    first, shelf = jobs_of(library, Watched())
    path = module.uploads_of(shelf) / "a.mp4"
    path.write_bytes(film)
    first.add(shelf, path)
    second, _ = jobs_of(library, Watched())
    with first._turn("default"):
        second.start()
        until(lambda: second._waiting.empty())  # it has its job in hand, and waits
        second.stop()
        assert second._thread
        assert not second._thread.is_alive()
    assert statuses(first) == ["queued"]


def test_two_servers_do_one_job_once(library: Library, film: bytes) -> None:
    embedders = Watched(0.2), Watched(0.2)
    first, shelf = jobs_of(library, embedders[0])
    path = module.uploads_of(shelf) / "a.mp4"
    path.write_bytes(film)
    first.add(shelf, path)
    second, _ = jobs_of(library, embedders[1])
    second.start()
    first.start()
    until(lambda: statuses(first) == ["done"])
    until(lambda: first._waiting.empty() and second._waiting.empty())
    time.sleep(0.5)  # whoever came second has looked by now
    assert sorted(min(one.frames, 1) for one in embedders) == [0, 1]


def test_a_job_whose_file_has_gone_fails(library: Library) -> None:
    jobs, shelf = jobs_of(library, Watched())
    job = jobs.add(shelf, module.uploads_of(shelf) / "gone.mp4")
    jobs.start()
    until(lambda: statuses(jobs) == ["failed"])
    found = jobs.get(job.id)
    assert found
    assert found.error == "gone.mp4: there is no such file"


class Broken(Watched):
    """Fails so many times, and then does its work."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self.times:
            self.times -= 1
            raise RuntimeError("xyzzy")
        return super().embed_images(images)


def test_an_error_of_ours_is_tried_again(
    library: Library, film: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    jobs, shelf = jobs_of(library, Broken(1))
    (module.uploads_of(shelf) / "a.mp4").write_bytes(film)
    jobs.add(shelf, module.uploads_of(shelf) / "a.mp4")
    jobs.start()
    until(lambda: statuses(jobs) == ["done"])
    assert jobs.all()[0].error is None
    caplog.clear()


def test_an_error_of_ours_that_stays_fails_the_job_keeps_the_upload_and_lets_the_next_pass(
    library: Library, film: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    jobs, shelf = jobs_of(library, Broken(module.MAX_ATTEMPTS))
    (module.uploads_of(shelf) / "a.mp4").write_bytes(film)
    first = jobs.add(shelf, module.uploads_of(shelf) / "a.mp4")
    jobs.start()
    until(lambda: statuses(jobs) == ["failed"])
    (module.uploads_of(shelf) / "b.mp4").write_bytes(film + b" ")
    jobs.add(shelf, module.uploads_of(shelf) / "b.mp4")
    until(lambda: sorted(statuses(jobs)) == ["done", "failed"])
    failed = jobs.get(first.id)
    assert failed
    assert failed.error
    assert failed.error.startswith("an internal error (RuntimeError); the server's log has it")
    assert failed.error.endswith("given up after 3 tries, the upload is kept: ingest it there")
    assert kept(library) == ["a.mp4", "b.mp4"]
    caplog.clear()


def test_an_upload_that_finds_the_library_busy_is_kept_and_tried_again(
    library: Library, film: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    jobs, shelf = jobs_of(library, FakeEmbedder())
    path = module.uploads_of(shelf) / "a.mp4"
    path.write_bytes(film)
    once = iter([LibraryBusy("another command holds the library")])
    commit = Draft.commit

    def busy(self: Draft, *arguments: Any) -> None:
        for error in once:
            raise error
        commit(self, *arguments)

    monkeypatch.setattr(Draft, "commit", busy)
    jobs.add(shelf, path)
    jobs.start()
    until(lambda: statuses(jobs) == ["done"])
    assert kept(library) == ["a.mp4"]


def test_a_job_that_ends_the_server_each_time_is_given_up(library: Library, film: bytes) -> None:
    jobs, shelf = jobs_of(library, FakeEmbedder())
    path = module.uploads_of(shelf) / "a.mp4"
    path.write_bytes(film)
    job = jobs.add(shelf, path)
    jobs._write(replace(job, status="running", attempts=module.MAX_ATTEMPTS))
    jobs.start()
    until(lambda: statuses(jobs) == ["failed"])
    assert "the server ended 3 times in the middle" in str(jobs.all()[0].error)
    assert kept(library) == ["a.mp4"]


def test_progress_is_told_while_a_job_runs(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.0)
    film = make_film(tmp_path / "long.mp4", [shot(2, n) for n in range(20)]).path
    jobs, shelf = jobs_of(library, Watched(0.1))
    path = module.uploads_of(shelf) / "long.mp4"
    film.rename(path)
    jobs.add(shelf, path)
    seen: set[float] = set()
    jobs.start()

    def done() -> bool:
        (job,) = jobs.all()
        seen.add(job.progress)
        return job.status == "done"

    until(done)
    assert any(0 < one < 1 for one in seen)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"id": 1}', "\xff", "null"])
def test_a_damaged_note_of_a_job_hides_none_of_the_others(
    server: Served, library: Library, text: str
) -> None:
    folder = library.folder / "jobs"
    folder.mkdir(exist_ok=True)
    (folder / ("job_" + "0" * 16 + ".json")).write_text(text, "latin-1")
    job = send(server, "a.mp4", b"x").json()
    listed = server.http.get("v1/jobs").json()["data"]
    assert [one["id"] for one in listed] == [job["id"]]
    finished(server, job)


def test_old_jobs_are_forgotten_but_none_that_waits(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_JOBS", 3)
    jobs, shelf = jobs_of(library, Watched())
    oldest = jobs.add(shelf, Path("/oldest.mp4"))
    for number in range(6):
        job = jobs.add(shelf, Path(f"/{number}.mp4"))
        jobs._write(module.replace(job, status="done"))
    left = jobs.all()
    assert len(left) <= 5
    assert oldest.id in {one.id for one in left}


def test_what_a_killed_server_had_received_is_swept_away_later(library: Library) -> None:
    jobs, shelf = jobs_of(library, Watched())
    folder = module.uploads_of(shelf)
    for name, age_seconds in ((".old.part", 2 * 86_400), (".new.part", 0), ("old.mp4", 2 * 86_400)):
        (folder / name).write_text("x")
        os.utime(folder / name, times=(time.time() - age_seconds,) * 2)
    jobs.start()
    assert kept(library) == [".new.part", "old.mp4"]


def test_a_job_of_one_library_is_not_done_into_another(
    tmp_path: Path, endpoint: FakeEndpoint, film: bytes
) -> None:
    libraries = {
        name: Library.open(tmp_path / name, FakeEmbedder.spec, create=True)
        for name in ("default", "cats")
    }
    with served(libraries, endpoint.base_url) as server:
        response = server.http.post("v1/videos?name=a.mp4&library=cats", content=film)
        job = finished(server, response.json())
        assert job["library"] == "cats"
        assert server.http.get("v1/videos").json()["data"] == []
        assert len(server.http.get("v1/videos?library=cats").json()["data"]) == 1


def test_uploads_that_come_at_once_are_all_taken_in(
    server: Served, library: Library, film: bytes
) -> None:
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(
            target=lambda n=n: answers.append(send(server, "a.mp4", film + bytes(n)))  # type: ignore[misc]
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {finished(server, one.json())["status"] for one in answers} == {"done"}
    assert len(server.http.get("v1/videos").json()["data"]) == 4


def test_a_name_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ApiError, match=r"it ends in one of .*mp4"):
        safe_name("a.txt")


def test_a_note_of_a_job_is_whole_at_any_moment(library: Library) -> None:
    jobs, shelf = jobs_of(library, Watched())
    job = jobs.add(shelf, Path("/a.mp4"))
    (note,) = (library.folder / "jobs").glob("job_*.json")
    assert json.loads(note.read_text())["id"] == job.id
    assert list((library.folder / "jobs").glob(".*")) == []
