"""Videos over HTTP: lists, the file and its ranges, frames, subtitles, clips, deletion."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from fakes import FakeEmbedder, FakeEndpoint
from library_parts import start_writer
from media import make_film, shot
from serve_parts import Served, served
from test_ask import add_film
from test_server_gate import error_of, raw
from waiting import LIMIT_SECONDS, until

from vidqa.ingest import ingest
from vidqa.library import Library
from vidqa.server import videos as module
from vidqa.server.gateway import CLIPS_AT_ONCE
from vidqa.types import TextSpan

NOBODY = "0" * 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def film(folder: Path) -> Path:
    (folder / "films").mkdir()
    return make_film(folder / "films" / "a film.mp4", [shot(2, 1), shot(2, 2)]).path


@pytest.fixture(scope="module")
def library(folder: Path, film: Path) -> Library:
    """A real film, and c.mp4 whose file is away."""
    made = Library.open(folder / "library", FakeEmbedder.spec, create=True)
    report = ingest([film], made, FakeEmbedder())
    assert report.files[0].state == "ingested"
    words = [TextSpan(1, 2, HOSTILE), TextSpan(3.25, 7, "the sea")]
    add_film(made, "c.mp4", ["red", "green"], words)
    return Library.open(folder / "library", follow=True)


HOSTILE = (
    "a --> b\n\n00:00:00.000 --> 99:00:00.000\n<script>alert(1)</script> &amp; <v Bob>\r\nNOTE x"
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as running:
        yield running


@pytest.fixture(scope="module")
def server(library: Library, endpoint: FakeEndpoint) -> Iterator[Served]:
    with served(library, endpoint.base_url) as running:
        yield running


@pytest.fixture(scope="module")
def ids(server: Served) -> dict[str, str]:
    listed = server.http.get("v1/videos").json()["data"]
    return {one["video"]: one["id"] for one in listed}


@pytest.fixture
def own(tmp_path: Path, endpoint: FakeEndpoint) -> Iterator[tuple[Served, Library]]:
    """A server of one test."""
    made = Library.open(tmp_path / "library", FakeEmbedder.spec, create=True)
    with served(Library.open(made.folder, follow=True), endpoint.base_url) as running:
        yield running, made


def address(ids: dict[str, str], what: str, name: str = "a film.mp4") -> str:
    return what.format(ids[name])


# ---------------------------------------------------------------- lists


def test_videos_are_listed_with_what_is_known_of_them(server: Served) -> None:
    listed = {one["video"]: one for one in server.http.get("v1/videos").json()["data"]}
    film = listed["a film.mp4"]
    assert (film["width"], film["height"], film["codec"]) == (160, 120, "h264")
    assert film["duration_seconds"] == pytest.approx(4, abs=0.1)
    assert (film["state"], film["uploaded"], film["content_type"]) == ("ready", False, "video/mp4")
    assert listed["c.mp4"]["state"] == "file away"


def test_a_list_tells_no_path_of_this_machine(server: Served, folder: Path) -> None:
    text = server.http.get("v1/videos").text
    assert str(folder) not in text
    assert "/films" not in text


def test_pages_of_a_list_together_are_the_list(server: Served) -> None:
    whole = server.http.get("v1/videos").json()
    first = server.http.get("v1/videos?limit=1").json()
    second = server.http.get(f"v1/videos?limit=1&after={first['data'][0]['id']}").json()
    assert first["data"] + second["data"] == whole["data"]
    assert [page["has_more"] for page in (first, second, whole)] == [True, False, False]


def test_a_page_after_a_video_that_is_gone_is_not_the_first_again(server: Served) -> None:
    response = server.http.get(f"v1/videos?after={NOBODY}")
    assert (response.status_code, error_of(response)["code"]) == (404, "video_not_found")


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=99999", "after=../x", "after="])
def test_a_page_that_cannot_be_is_refused(server: Served, query: str) -> None:
    assert server.http.get(f"v1/videos?{query}").status_code == 422


def test_one_video_is_told_with_its_scenes_and_words(server: Served, ids: dict[str, str]) -> None:
    film = server.http.get(address(ids, "v1/videos/{}")).json()
    assert film["scene_count"] == len(film["scenes"]) == 2
    assert film["scenes"][1]["start_seconds"] == pytest.approx(2, abs=0.05)
    assert server.http.get(film["scenes"][1]["thumbnail_url"]).status_code == 200
    texts = server.http.get(address(ids, "v1/videos/{}", "c.mp4")).json()["texts"]
    assert texts[1] == {"start_seconds": 3.25, "end_seconds": 7.0, "text": "the sea"}


def test_a_library_that_is_not_there_is_told_with_those_that_are(server: Served) -> None:
    response = server.http.get("v1/videos?library=cats")
    assert response.status_code == 404
    assert error_of(response)["message"] == "no library 'cats' here; there are default"


@pytest.mark.parametrize("what", ["", "/stream", "/subtitles.vtt"])
def test_a_video_that_is_not_there_is_not_found(server: Served, what: str) -> None:
    response = server.http.get(f"v1/videos/{NOBODY}{what}")
    assert (response.status_code, error_of(response)["code"]) == (404, "video_not_found")


@pytest.mark.parametrize(
    "name",
    [
        "..%2f..%2fetc%2fpasswd", "%2e%2e", "%2fetc%2fpasswd", "..%5c..%5cx", "a%00", "%00",
        "0000000000000000%0a", "0000000000000000%2f..", "000000000000000G", "0" * 15, "0" * 17,
        "%F0%9F%98%80", "'%20OR%201=1--",
    ],
)  # fmt: skip
def test_an_id_is_sixteen_digits_and_never_a_path(server: Served, name: str) -> None:
    for path in (f"v1/videos/{name}", f"v1/videos/{name}/stream", f"v1/frames/{name}/1.jpg",
                 f"v1/clips/{name}?start=0&end=1"):  # fmt: skip
        head = f"GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        status, body = raw(server, head)
        assert status in (400, 404, 422), path
        assert b"root:" not in body


# ---------------------------------------------------------------- the file


def test_a_file_is_sent_as_it_is(server: Served, ids: dict[str, str], film: Path) -> None:
    response = server.http.get(address(ids, "v1/videos/{}/stream"))
    assert response.content == film.read_bytes()
    assert response.headers["content-type"] == "video/mp4"
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-disposition"] == "inline; filename*=utf-8''a%20film.mp4"
    assert response.headers["cache-control"].startswith("private")


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("0-0", 0, 1), ("10-19", 10, 20), ("-5", -5, None), ("100-", 100, None),
     ("5-99999999", 5, None)],
)  # fmt: skip
def test_a_range_of_a_file_is_sent(
    server: Served, ids: dict[str, str], film: Path, asked: str, start: int, end: int | None
) -> None:
    path = address(ids, "v1/videos/{}/stream")
    response = server.http.get(path, headers={"Range": f"bytes={asked}"})
    assert response.status_code == 206
    assert response.content == film.read_bytes()[start:end]
    size = film.stat().st_size
    assert response.headers["content-range"].endswith(f"/{size}")


def test_several_ranges_are_sent_in_one_answer(
    server: Served, ids: dict[str, str], film: Path
) -> None:
    path = address(ids, "v1/videos/{}/stream")
    response = server.http.get(path, headers={"Range": "bytes=0-1, 10-12"})
    assert response.status_code == 206
    assert response.headers["content-type"].startswith("multipart/byteranges")
    data = film.read_bytes()
    assert data[:2] in response.content
    assert data[10:13] in response.content


@pytest.mark.parametrize("asked", ["bytes=999999999-", "bytes=999999999-9999999999"])
def test_a_range_beyond_the_file_is_told_as_such(
    server: Served, ids: dict[str, str], film: Path, asked: str
) -> None:
    response = server.http.get(address(ids, "v1/videos/{}/stream"), headers={"Range": asked})
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{film.stat().st_size}"


@pytest.mark.parametrize("asked", ["bytes=9-1", "bytes=x", "lines=1-2", "bytes", "bytes=-0"])
def test_a_senseless_range_breaks_nothing(server: Served, ids: dict[str, str], asked: str) -> None:
    response = server.http.get(address(ids, "v1/videos/{}/stream"), headers={"Range": asked})
    assert response.status_code in (200, 400, 416)


def test_a_head_of_a_file_reads_nothing_of_it(
    server: Served, ids: dict[str, str], film: Path
) -> None:
    response = server.http.head(address(ids, "v1/videos/{}/stream"))
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == str(film.stat().st_size)


def test_a_range_of_another_version_is_the_whole_file(
    server: Served, ids: dict[str, str], film: Path
) -> None:
    path = address(ids, "v1/videos/{}/stream")
    tag = server.http.head(path).headers["etag"]
    for given, status in ((tag, 206), ('"other"', 200)):
        headers = {"Range": "bytes=0-9", "If-Range": given}
        assert server.http.get(path, headers=headers).status_code == status


def test_a_file_that_is_away_is_told_as_such(server: Served, ids: dict[str, str]) -> None:
    response = server.http.get(address(ids, "v1/videos/{}/stream", "c.mp4"))
    assert (response.status_code, error_of(response)["code"]) == (404, "file_away")
    assert "/films" not in response.text


def test_a_file_that_has_changed_is_not_sent(own: tuple[Served, Library], tmp_path: Path) -> None:
    server, made = own
    film = make_film(tmp_path / "b.mp4", [shot(1)]).path
    ingest([film], made, FakeEmbedder())
    until(lambda: bool(server.http.get("v1/videos").json()["data"]))
    video_id = server.http.get("v1/videos").json()["data"][0]["id"]
    film.write_text("a secret that took its place")
    for path in (f"v1/videos/{video_id}/stream", f"v1/clips/{video_id}?start=0&end=1"):
        response = server.http.get(path)
        assert (response.status_code, error_of(response)["code"]) == (409, "file_changed")
    assert server.http.get("v1/videos").json()["data"][0]["state"] == "file changed"


def test_what_stands_in_a_files_place_is_not_opened_unless_it_is_a_file(
    own: tuple[Served, Library], tmp_path: Path
) -> None:
    server, made = own
    film = make_film(tmp_path / "b.mp4", [shot(1)]).path
    ingest([film], made, FakeEmbedder())
    until(lambda: bool(server.http.get("v1/videos").json()["data"]))
    video_id = server.http.get("v1/videos").json()["data"][0]["id"]
    film.unlink()
    os.mkfifo(film)
    assert server.http.get(f"v1/videos/{video_id}/stream").status_code == 409


# ---------------------------------------------------------------- frames


def test_the_frame_nearest_to_a_second_is_sent(server: Served, ids: dict[str, str]) -> None:
    response = server.http.get(address(ids, "v1/frames/{}/2.7.jpg", "c.mp4"))
    assert response.headers["x-frame-seconds"] == "2.500"
    assert response.headers["content-type"] == "image/jpeg"
    assert response.content.startswith(b"\xff\xd8")


@pytest.mark.parametrize(("at", "found"), [("0", "0.500"), ("1e9", "7.500"), ("4.0001", "4.500")])
def test_a_second_outside_the_video_is_its_first_or_last_frame(
    server: Served, ids: dict[str, str], at: str, found: str
) -> None:
    response = server.http.get(address(ids, f"v1/frames/{{}}/{at}.jpg", "c.mp4"))
    assert response.headers["x-frame-seconds"] == found


@pytest.mark.parametrize(
    "at", ["nan", "inf", "-inf", "-1", "1e999", "x", "1e10", "", "0x10", "%00"]
)
def test_what_is_no_second_is_refused(server: Served, ids: dict[str, str], at: str) -> None:
    response = server.http.get(address(ids, f"v1/frames/{{}}/{at}.jpg", "c.mp4"))
    assert response.status_code in (404, 422)
    assert error_of(response)


@pytest.mark.parametrize("form", ["{}", "W/{}", '"x", {}'])
def test_a_frame_that_is_known_is_not_sent_again(
    server: Served, ids: dict[str, str], form: str
) -> None:
    path = address(ids, "v1/frames/{}/1.jpg", "c.mp4")
    tag = server.http.get(path).headers["etag"]
    again = server.http.get(path, headers={"If-None-Match": form.format(tag)})
    assert (again.status_code, again.content) == (304, b"")
    assert server.http.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_frame_of_a_video_that_is_not_there_is_not_found(server: Served) -> None:
    assert error_of(server.http.get(f"v1/frames/{NOBODY}/1.jpg"))["code"] == "video_not_found"


# ---------------------------------------------------------------- subtitles


def test_subtitles_are_cues_that_every_player_reads(server: Served, ids: dict[str, str]) -> None:
    response = server.http.get(address(ids, "v1/videos/{}/subtitles.vtt", "c.mp4"))
    assert response.headers["content-type"] == "text/vtt; charset=utf-8"
    first, _, last = response.text.strip().split("\n\n")
    assert first == "WEBVTT"
    assert last == "00:00:03.250 --> 00:00:07.000\nthe sea"


def test_a_subtitle_cannot_make_a_cue_or_a_tag(server: Served, ids: dict[str, str]) -> None:
    text = server.http.get(address(ids, "v1/videos/{}/subtitles.vtt", "c.mp4")).text
    assert text.count("-->") == 2
    assert "<" not in text
    assert "&lt;script&gt;" in text
    assert "&amp;amp;" in text


def test_a_video_without_words_has_an_empty_file(server: Served, ids: dict[str, str]) -> None:
    response = server.http.get(address(ids, "v1/videos/{}/subtitles.vtt"))
    assert response.text == "WEBVTT\n"


# ---------------------------------------------------------------- clips


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the server puts what does not stay."""
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    return made


def test_a_clip_lasts_as_long_as_was_asked(
    server: Served, ids: dict[str, str], temporary: Path, tmp_path: Path
) -> None:
    response = server.http.get(address(ids, "v1/clips/{}?start=1.5&end=3"))
    assert response.headers["content-type"] == "video/mp4"
    assert "a%20film_1.5-3.mp4" in response.headers["content-disposition"]
    assert response.headers["content-disposition"].startswith("attachment")
    (tmp_path / "clip.mp4").write_bytes(response.content)
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        assert clip.duration is not None
        assert clip.duration / 1e6 == pytest.approx(1.5, abs=0.05)
    until(lambda: not list(temporary.iterdir()))


@pytest.mark.parametrize(
    "span",
    ["start=2&end=1", "start=1&end=1", "start=-1&end=1", "start=nan&end=1", "start=0&end=inf",
     "start=0&end=601", "start=0", "end=1", "start=a&end=b", "start=3e9&end=3.1e9"],
)  # fmt: skip
def test_what_is_no_clip_is_refused(server: Served, ids: dict[str, str], span: str) -> None:
    response = server.http.get(address(ids, f"v1/clips/{{}}?{span}"))
    assert response.status_code == 422
    assert error_of(response)["message"]


def test_a_clip_beyond_the_end_is_refused_without_a_path(
    server: Served, ids: dict[str, str], temporary: Path, folder: Path
) -> None:
    response = server.http.get(address(ids, "v1/clips/{}?start=100&end=101"))
    assert (response.status_code, error_of(response)["code"]) == (422, "no_clip")
    assert str(folder) not in response.text
    assert str(temporary) not in response.text
    assert list(temporary.iterdir()) == []


def test_a_clip_of_a_file_that_cannot_be_read_is_refused_without_a_path(
    own: tuple[Served, Library], tmp_path: Path, temporary: Path
) -> None:
    server, made = own
    film = make_film(tmp_path / "b.mp4", [shot(1)]).path
    ingest([film], made, FakeEmbedder())
    until(lambda: bool(server.http.get("v1/videos").json()["data"]))
    video_id = server.http.get("v1/videos").json()["data"][0]["id"]
    film.write_bytes(bytes(film.stat().st_size))
    response = server.http.get(f"v1/clips/{video_id}?start=0&end=1")
    assert (response.status_code, error_of(response)["code"]) == (422, "no_clip")
    assert error_of(response)["message"].startswith("b.mp4: ")
    assert str(tmp_path) not in response.text
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("asked", ["bytes=999999999-", "bytes=x"])
def test_a_bad_range_of_a_clip_leaves_nothing(
    server: Served, ids: dict[str, str], temporary: Path, asked: str
) -> None:
    path = address(ids, "v1/clips/{}?start=0&end=1")
    assert server.http.get(path, headers={"Range": asked}).status_code in (400, 416)
    until(lambda: not list(temporary.iterdir()))


def test_a_client_that_leaves_ends_the_cutting(
    server: Served, ids: dict[str, str], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    async def endless(path: str, start: float, end: float, target: Path) -> None:
        target.write_bytes(b"half")
        events.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            events.append("ended")

    monkeypatch.setattr(module, "cut_async", endless)
    with asking(server, address(ids, "v1/clips/{}?start=0&end=1")):
        until(lambda: events == ["begun"])
    until(lambda: events == ["begun", "ended"])
    until(lambda: not list(temporary.iterdir()))


@contextmanager
def asking(server: Served, path: str) -> Iterator[None]:
    """A client that asks, reads nothing, and leaves."""
    port = httpx.URL(server.url).port or 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield


def test_a_client_that_leaves_does_not_wait_for_its_turn_any_more(
    server: Served, ids: dict[str, str], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[float] = []
    go = threading.Event()

    async def slow(path: str, start: float, end: float, target: Path) -> None:
        cut.append(start)
        await asyncio.to_thread(go.wait, LIMIT_SECONDS)
        target.write_bytes(b"whole")

    def get(start: int) -> None:
        path = f"{address(ids, 'v1/clips/{}')}?start={start}&end=3"
        httpx.get(f"{server.url}{path}", timeout=LIMIT_SECONDS)

    monkeypatch.setattr(module, "cut_async", slow)
    with ThreadPoolExecutor(CLIPS_AT_ONCE) as pool:
        waited_for = [pool.submit(get, 0) for _ in range(CLIPS_AT_ONCE)]
        until(lambda: len(cut) == CLIPS_AT_ONCE)
        with asking(server, address(ids, "v1/clips/{}?start=1&end=2")):
            until(lambda: server.gateway.clips.waiting == 1)
        until(lambda: server.gateway.clips.waiting == 0)
        until(lambda: len(list(temporary.iterdir())) == CLIPS_AT_ONCE)
        go.set()
        for one in waited_for:
            one.result()
    until(lambda: not list(temporary.iterdir()))
    assert cut == [0] * CLIPS_AT_ONCE


def test_a_client_that_leaves_in_the_middle_of_a_clip_leaves_nothing(
    server: Served, ids: dict[str, str], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def large(path: str, start: float, end: float, target: Path) -> None:
        target.write_bytes(bytes(64 * 2**20))

    monkeypatch.setattr(module, "cut_async", large)
    with server.http.stream("GET", address(ids, "v1/clips/{}?start=0&end=1")) as response:
        next(response.iter_raw())
    until(lambda: not list(temporary.iterdir()))


def test_only_so_many_clips_are_cut_at_once(
    server: Served, ids: dict[str, str], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = most = 0

    async def watched(path: str, start: float, end: float, target: Path) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        while most < CLIPS_AT_ONCE:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # for one more, were it let in
        now -= 1
        target.write_bytes(b"clip")

    monkeypatch.setattr(module, "cut_async", watched)

    async def many() -> list[int]:
        url = server.url + address(ids, "v1/clips/{}?start=0&end=1")
        async with httpx.AsyncClient(timeout=LIMIT_SECONDS) as client:
            answers = await asyncio.gather(*(client.get(url) for _ in range(6)))
        return [one.status_code for one in answers]

    assert asyncio.run(many()) == [200] * 6
    assert most == CLIPS_AT_ONCE


# ---------------------------------------------------------------- deletion


def test_a_file_that_was_not_uploaded_is_never_deleted(
    own: tuple[Served, Library], tmp_path: Path
) -> None:
    server, made = own
    film = make_film(tmp_path / "mine.mp4", [shot(1)]).path
    ingest([film], made, FakeEmbedder())
    until(lambda: bool(server.http.get("v1/videos").json()["data"]))
    video_id = server.http.get("v1/videos").json()["data"][0]["id"]
    body = server.http.delete(f"v1/videos/{video_id}").json()
    assert body == {
        "id": video_id, "object": "video.deleted", "deleted": True, "file_deleted": False,
    }  # fmt: skip
    assert film.exists()
    assert server.http.get("v1/videos").json()["data"] == []
    assert server.http.delete(f"v1/videos/{video_id}").status_code == 404


def test_a_link_among_the_uploads_that_leads_elsewhere_is_no_upload(
    own: tuple[Served, Library], tmp_path: Path
) -> None:
    server, made = own
    film = make_film(tmp_path / "mine.mp4", [shot(1)]).path
    uploads = made.folder / "uploads"
    uploads.mkdir()
    (uploads / "link.mp4").symlink_to(film)
    ingest([uploads / "link.mp4"], made, FakeEmbedder())
    until(lambda: bool(server.http.get("v1/videos").json()["data"]))
    (listed,) = server.http.get("v1/videos").json()["data"]
    assert listed["uploaded"] is False
    assert server.http.delete(f"v1/videos/{listed['id']}").json()["file_deleted"] is False
    assert film.exists()


# ---------------------------------------------------------------- another process


def test_what_another_process_takes_in_is_found_without_a_restart(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    from library_parts import SPEC, add

    made = Library.open(tmp_path / "library", SPEC, create=True)
    add(made, "first")
    with served(Library.open(made.folder, follow=True), endpoint.base_url) as server:
        assert len(server.http.get("v1/videos").json()["data"]) == 1
        writer = start_writer(made.folder, "more", 2)
        assert writer.wait(LIMIT_SECONDS) == 0
        assert writer.stdout
        writer.stdout.close()
        names = {one["video"] for one in server.http.get("v1/videos").json()["data"]}
        info: dict[str, Any] = server.http.get("v1/info").json()
    assert names == {"first.mp4", "more0.mp4", "more1.mp4"}
    assert info["libraries"][0]["videos"] == 3


def test_a_client_that_stops_reading_does_not_stop_the_others(
    server: Served, ids: dict[str, str]
) -> None:
    with ExitStack() as idle:
        for _ in range(20):
            idle.enter_context(asking(server, address(ids, "v1/videos/{}/stream")))
        assert server.http.get("v1/videos").status_code == 200
