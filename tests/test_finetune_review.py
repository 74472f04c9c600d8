"""What a person decides about rows, by Python and by HTTP; the page itself is in the e2e tests."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from media import make_film, shot
from PIL import Image
from waiting import LIMIT_SECONDS

from finetune.formats import read
from finetune.review import Review, is_editable
from finetune.review_server import ReviewServer
from finetune.rows import Media, Origin, Row, Turn
from finetune.rows_file import row_line
from vidqa.errors import UsageError
from vidqa.types import TextSpan

HOSTILE = "</script><img src=x onerror=alert(1)>"
ORIGIN = Origin("rows.jsonl", 1)


def row(question: str, answer: str, path: str = "/v/a.mp4", **extra: Any) -> Row:
    media = Media(
        "video", (path,), start_seconds=0.0, end_seconds=2.0, texts=(TextSpan(0, 1, HOSTILE),)
    )
    turns = (Turn("user", (media, question)), Turn("assistant", (answer,)))
    return Row(turns, ORIGIN, id=question, extra=extra)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "a <b>.mp4"
    make_film(path, [shot(2.0)])
    return path


@pytest.fixture
def path(tmp_path: Path, film: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    rows = [
        row("What is it?", "A star.", str(film), frame_seconds=[0.4, 1.2], kind="object"),
        row(f"Who? {HOSTILE}", f"Nobody {HOSTILE}", "/nowhere.mp4"),
        row("How many?", "Three.", str(film)),
    ]
    file.write_text("".join(row_line(one, file) for one in rows))
    return file


@pytest.fixture
def review(path: Path) -> Iterator[Review]:
    with Review.open(path) as review:
        yield review


def answers(path: Path) -> list[tuple[str, str]]:
    """Question and answer of every row of a file."""
    rows = read(path) if path.stat().st_size else []
    return [(str(one.turns[0].parts[-1]), str(one.turns[1].parts[-1])) for one in rows]


# ---------------------------------------------------------------- decisions


def test_only_rows_that_were_kept_or_edited_are_written(review: Review, path: Path) -> None:
    before = path.read_bytes()
    review.decide(0, "kept")
    review.decide(1, "dropped")
    assert answers(review.output) == [("What is it?", "A star.")]
    review.decide(2, "edited", answer="  Four.\n")
    assert answers(review.output) == [("What is it?", "A star."), ("How many?", "Four.")]
    kept = read(review.output)
    assert [one.extra["review"] for one in kept] == ["kept", "edited"]
    assert kept[0].media == review.rows[0].media
    assert review.output.name == "rows.reviewed.jsonl"
    assert path.read_bytes() == before


def test_decisions_are_there_again_also_when_rows_were_added(path: Path) -> None:
    with Review.open(path) as review:
        review.decide(1, "edited", question="Whose?")
    new = row_line(row("New?", "Yes."), path)
    path.write_text(new + path.read_text())
    with Review.open(path) as review:
        assert review.counts() == {"open": 3, "edited": 1}
        assert answers(review.output)[0][0] == "Whose?"
        review.decide(2, None)
        assert answers(review.output) == []
        review.decide(0, "dropped")
        review.keep_the_rest()
        assert review.counts() == {"dropped": 1, "kept": 3}


def test_a_decision_that_cannot_be_saved_is_none(
    review: Review, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    review.decide(0, "kept")
    before = review.output.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device; the decision is not saved"):
        review.decide(1, "kept")
    assert review.decision(1) is None
    assert review.output.read_bytes() == before
    assert not list(review.output.parent.glob(".*"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"answer": " "}, "the answer is empty"),
        ({"question": "q" * 20_001}, "longer than 20000 characters"),
        ({"answer": "Red.<|im_end|>"}, "control token"),
        ({"answer": ["red"]}, "the answer is empty"),
    ],
)
def test_an_edit_that_no_row_may_hold_is_refused(
    review: Review, edit: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        review.decide(0, "edited", **edit)


def test_conversations_of_several_turns_are_kept_or_dropped_but_not_edited_here() -> None:
    turns = row("One?", "One.").turns
    assert is_editable(Row(turns, ORIGIN))
    assert is_editable(Row((Turn("system", ("Be brief.",)), *turns), ORIGIN))
    assert not is_editable(Row((*turns, *turns), ORIGIN))
    assert not is_editable(Row((Turn("user", ("a", "b")), turns[1]), ORIGIN))


def test_one_file_is_reviewed_by_one_at_a_time(review: Review, path: Path) -> None:
    with pytest.raises(UsageError, match="is being reviewed already"):
        Review.open(path)


def test_a_file_without_rows_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with pytest.raises(UsageError, match="No such file"):
        Review.open(file)
    file.write_text("\n")
    with pytest.raises(UsageError, match="holds no row"):
        Review.open(file)
    file.write_text("{}\n")
    with pytest.raises(UsageError, match="is of no known format"):
        Review.open(file)
    file.write_text('{"vidqa": 1, "messages": [{"role": "poet", "content": "Oh"}]}\n')
    with pytest.raises(UsageError, match=r"rows\.jsonl:1: role 'poet' is unknown.*finetune check"):
        Review.open(file)


# ---------------------------------------------------------------- by HTTP


@pytest.fixture
def server(review: Review) -> Iterator[ReviewServer]:
    with ReviewServer(review) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield server
        server.stop()
        thread.join()


@pytest.fixture
def client(server: ReviewServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


def test_the_page_comes_with_a_policy_and_nothing_of_the_rows_in_it(client: httpx.Client) -> None:
    page = client.get("")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "onerror" not in page.text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert addresses == ["data:,", "review.css", "review.js"]
    for name in addresses[1:]:
        assert client.get(name).status_code == 200


def test_rows_are_json_that_no_browser_takes_for_a_page(client: httpx.Client) -> None:
    reply = client.get("rows")
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"
    first, second, _ = reply.json()["rows"]
    assert (first["question"], first["answer"], first["state"]) == ("What is it?", "A star.", None)
    assert first["where"] == "a <b>.mp4 00:00:00-00:00:02"
    assert second["question"] == f"Who? {HOSTILE}"
    assert second["texts"] == [HOSTILE]


def test_the_frames_are_those_that_the_teacher_saw(client: httpx.Client) -> None:
    reply = client.get("rows/0").json()
    assert [one["at"] for one in reply["pictures"]] == ["00:00:00.4", "00:00:01.2"]
    assert all(one["source"].startswith("data:image/jpeg;base64,") for one in reply["pictures"])
    assert len(client.get("rows/2").json()["pictures"]) == 8


def test_a_video_that_is_gone_is_told_beside_its_row(client: httpx.Client) -> None:
    reply = client.get("rows/1")
    assert reply.status_code == 200
    assert "/nowhere.mp4" in reply.json()["error"]


def test_a_file_that_is_no_picture_is_not_handed_out(tmp_path: Path) -> None:
    secret, picture = tmp_path / "secret", tmp_path / "a.png"
    secret.write_text("secret")
    Image.new("RGB", (64, 48), "red").save(picture)
    from finetune.row_pictures import row_pictures
    from vidqa.errors import VideoError

    def of(path: Path) -> Row:
        return Row((Turn("user", (Media("image", (str(path),)), "?")),), ORIGIN)

    (found,) = row_pictures(of(picture), None)
    assert found.jpeg.startswith(b"\xff\xd8")
    with pytest.raises(VideoError, match="secret: "):
        row_pictures(of(secret), None)
    os.mkfifo(tmp_path / "endless.png")  # as a device, it would never be read to its end
    with pytest.raises(VideoError, match=r"endless\.png: is not a regular file"):
        row_pictures(of(tmp_path / "endless.png"), None)


@pytest.mark.parametrize("seen", [["x"], [float("nan"), -5, 1e9], [10**400], "0.4", [{}]])
def test_times_that_are_none_do_not_hide_the_frames(film: Path, seen: Any) -> None:
    from finetune.row_pictures import row_pictures

    found = row_pictures(row("?", "!", str(film), frame_seconds=seen), None)
    assert len(found) == 8
    assert all(0 <= one.seconds <= 2 for one in found)


def test_a_folder_of_frames_is_shown(tmp_path: Path) -> None:
    from finetune.row_pictures import row_pictures

    for n in range(3):
        Image.new("RGB", (64, 48), "red").save(tmp_path / f"{n}.png")
    assert len(row_pictures(row("?", "!", str(tmp_path)), None)) == 3


@pytest.mark.parametrize("part", [{"start": float("nan")}, {"end": 10**400}, {"at": "soon"}])
def test_a_row_with_times_that_are_none_is_named(tmp_path: Path, part: dict[str, Any]) -> None:
    content = [{"type": "video", "video": "a.mp4", **part}, {"type": "text", "text": "?"}]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"vidqa": 1, "messages": [{"role": "user", "content": content}]}))
    with pytest.raises(UsageError, match=r"rows\.jsonl:1: .*is no time"):
        Review.open(rows)


def test_a_decision_is_saved_when_its_reply_comes(client: httpx.Client, review: Review) -> None:
    reply = client.post("rows/0", json={"state": "edited", "answer": "A <b>."})
    assert reply.json()["answer"] == "A <b>."
    assert answers(review.output) == [("What is it?", "A <b>.")]
    assert client.post("rest", json={}).json()["rows"][2]["state"] == "kept"
    assert client.post("rows/0", json={"state": None}).json()["state"] is None
    assert len(answers(review.output)) == 2


@pytest.mark.parametrize(
    ("place", "body", "status"),
    [
        ("rows/9", {"state": "kept"}, 404),
        ("rows/x", {"state": "kept"}, 404),
        ("rows/0", {"state": "burnt"}, 400),
        ("rows/0", ["kept"], 400),
        ("rows/0", {"state": "edited", "answer": "x" * 300_000}, 413),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_reason(
    client: httpx.Client, review: Review, place: str, body: Any, status: int
) -> None:
    reply = client.post(place, json=body)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert not review.output.exists()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_elsewhere_get_nothing_and_decide_nothing(
    client: httpx.Client, review: Review, headers: dict[str, str]
) -> None:
    assert client.get("rows", headers=headers).status_code == 403
    assert client.post("rows/0", json={"state": "kept"}, headers=headers).status_code == 403
    assert not review.output.exists()


def test_without_the_token_there_is_nothing(server: ReviewServer) -> None:
    parts = urlsplit(server.url)
    for path in ("/", "/rows", "/wrong/rows", parts.path.rstrip("/"), f"{parts.path[:-2]}/rows"):
        assert httpx.get(f"http://{parts.netloc}{path}", timeout=LIMIT_SECONDS).status_code == 404


def test_a_form_of_another_page_decides_nothing(client: httpx.Client, review: Review) -> None:
    body = b'{"state": "kept"}'
    reply = client.post("rows/0", content=body, headers={"Content-Type": "text/plain"})
    assert reply.status_code == 400
    assert not review.output.exists()


def test_a_refused_body_is_not_the_next_request(server: ReviewServer) -> None:
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port)
    hidden = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
    connection.request("POST", f"{parts.path}rows/0", hidden, {"Content-Type": "text/plain"})
    reply = connection.getresponse()
    assert reply.getheader("Connection") == "close"
    reply.read()
    connection.close()


# ---------------------------------------------------------------- the command


def test_the_command_serves_until_it_is_interrupted(path: Path) -> None:
    command = [sys.executable, "-m", "vidqa.cli", "finetune", "review", str(path), "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        httpx.post(
            f"{told['url']}rows/0", json={"state": "kept"}, timeout=LIMIT_SECONDS
        ).raise_for_status()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0
    summary = json.loads(out)
    assert (summary["event"], summary["kept"], summary["open"]) == ("summary", 1, 2)
    assert answers(Path(told["output"])) == [("What is it?", "A star.")]
