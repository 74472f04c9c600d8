"""Subtitles beside a video and inside it become spans of words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media import Format, add_subtitles, three_shots
from vidqa.containers import open_video, video_stream
from vidqa.frames import Decoder
from vidqa.texts import (
    EmbeddedTexts,
    decode_text,
    parse_cues,
    sidecar,
    sidecar_digest,
    sidecar_texts,
)
from vidqa.types import TextSpan

SRT = "1\n00:00:01,000 --> 00:00:02,500\nHello\nthere\n\n2\n00:01:00,000 --> 01:00:02,000\nBye\n"


def embedded(path: Path) -> list[TextSpan]:
    with open_video(str(path)) as container:
        stream = video_stream(container)
        texts = EmbeddedTexts(container, stream)
        for _ in Decoder(container, stream, texts.add):
            pass
        return texts.spans()


def words(text: str) -> list[str]:
    return [span.text for span in parse_cues(text)]


def test_subrip_cues_become_spans() -> None:
    assert parse_cues(SRT) == [TextSpan(1, 2.5, "Hello there"), TextSpan(60, 3602, "Bye")]


def test_webvtt_cues_become_spans() -> None:
    text = (
        "WEBVTT - a title\n\nNOTE a comment\n\nSTYLE\n::cue { color: red }\n\n"
        "intro\n00:01.000 --> 00:02.500 align:start position:0%\n<v Ann>Hello <00:01.500>there\n"
    )
    assert parse_cues(text) == [TextSpan(1, 2.5, "Hello there")]


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("<i>so</i> <b>bold</b>", "so bold"),
        ('<font color="#fff">red</font>', "red"),
        (r"{\an8}top {\i1}it{\i0}", "top it"),
        ("a &lt; b &amp; c", "a < b & c"),
        ("1 < 2 > 0", "1 < 2 > 0"),
        ("two\twords\u00a0here", "two words here"),
        ("bell\x07 and \x1b[31mred", "bell and [31mred"),
    ],
)
def test_tags_and_controls_are_removed(raw: str, plain: str) -> None:
    assert words(f"1\n00:00:01,000 --> 00:00:02,000\n{raw}\n") == [plain]


@pytest.mark.parametrize(
    "cue",
    [
        "00:00:02,000 --> 00:00:01,000\nbackwards",
        "00:00:01,000 --> 00:00:01,000\nno time",
        "00:00:01,000 --> 00:00:02,000\n<i></i>",
        "00:00:aa,000 --> 00:00:02,000\nno number",
        "00:00:01,000 -> 00:00:02,000\nno arrow",
    ],
)
def test_a_malformed_cue_is_passed_over(cue: str) -> None:
    assert words(f"1\n{cue}\n\n2\n00:00:03,000 --> 00:00:04,000\ngood\n") == ["good"]


def test_cues_without_an_empty_line_between_are_told_apart() -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\none\n2\n00:00:03,000 --> 00:00:04,000\ntwo\n"
    assert words(text) == ["one", "two"]


def test_cues_come_in_order_of_time() -> None:
    text = "00:00:03.0 --> 00:00:04.0\nlate\n\n00:00:01.0 --> 00:00:02.0\nearly\n"
    assert words(text) == ["early", "late"]


@given(st.text())
def test_no_text_is_an_error(text: str) -> None:
    parse_cues(text)


@given(st.binary())
def test_no_bytes_are_an_error(content: bytes) -> None:
    parse_cues(decode_text(content))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_is_read_in_its_encodings(encoding: str) -> None:
    text = "00:00:01,000 --> 00:00:02,000\nGrüße, 東京 “quoted”\n"
    assert words(decode_text(text.encode(encoding))) == ["Grüße, 東京 “quoted”"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_western_bytes_are_read(encoding: str) -> None:
    text = "00:00:01,000 --> 00:00:02,000\nGrüße à côté\n"
    assert words(decode_text(text.encode(encoding))) == ["Grüße à côté"]


@pytest.mark.parametrize("newline", ["\r\n", "\r", "\n"])
def test_any_line_ends_are_read(newline: str) -> None:
    assert words(decode_text(SRT.replace("\n", newline).encode())) == ["Hello there", "Bye"]


@pytest.mark.parametrize(
    "name", ["film.srt", "film.vtt", "film.en.srt", "film.pt-BR.vtt", "film.en.sdh.SRT"]
)
def test_a_sidecar_is_found_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(SRT)
    assert sidecar(str(tmp_path / "film.mp4")) == str(tmp_path / name)


@pytest.mark.parametrize("name", ["film2.srt", "film.txt", "my film.srt", "film - part 2.srt"])
def test_other_files_are_no_sidecars(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(SRT)
    assert sidecar_texts(str(tmp_path / "film.mp4")) == []


def test_the_sidecar_without_a_language_comes_first(tmp_path: Path) -> None:
    for name in ("film.de.srt", "film.vtt", "film.en.srt"):
        (tmp_path / name).write_text(SRT)
    assert sidecar(str(tmp_path / "film.mp4")) == str(tmp_path / "film.vtt")


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    video = str(tmp_path / "film.mp4")
    digests = [sidecar_digest(video)]
    for content in (SRT, SRT + "\n3\n"):
        (tmp_path / "film.srt").write_text(content)
        digests.append(sidecar_digest(video))
    assert digests[0] == ""
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("mov_text", "mp4"), ("subrip", "mkv"), ("ass", "mkv"), ("webvtt", "webm")],
)
def test_a_text_stream_becomes_spans(tmp_path: Path, codec: str, suffix: str) -> None:
    form = Format(codec="libvpx-vp9" if suffix == "webm" else "libx264")
    film = three_shots(tmp_path / f"plain.{suffix}", form)
    cues = [(0.5, 1.5, "Hello there"), (2.0, 3.0, r"two\Nlines")]
    path = add_subtitles(film.path, tmp_path / f"a.{suffix}", codec, cues)
    spans = embedded(path)
    assert [span.text for span in spans] == ["Hello there", "two lines"]
    times = [(span.start_seconds, span.end_seconds) for span in spans]
    assert times == [pytest.approx((0.5, 1.5)), pytest.approx((2.0, 3.0))]


def test_a_video_without_text_has_none(tmp_path: Path) -> None:
    assert embedded(three_shots(tmp_path / "a.mp4", Format(audio=True)).path) == []
