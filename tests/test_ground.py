"""Grounding: a real video, a real HTTP endpoint that says what it is told, pictures by pixel."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_fixture import small_engine
from fakes import FakeEmbedder, FakeEndpoint
from media import Format, make_film, shot
from PIL import Image, ImageColor
from typer.testing import CliRunner, Result

from vidqa import engine as managed
from vidqa.ask import AskOptions, ask
from vidqa.boxes import Box, Sight, question
from vidqa.cli import app
from vidqa.drawing import COLOURS
from vidqa.engine import EngineHandle
from vidqa.errors import ModelError, NothingFound, UsageError, VideoError
from vidqa.ground import Grounded, GroundOptions, ground, ground_answer, phrase_of, still_at
from vidqa.library import Library
from vidqa.probe import probe
from vidqa.prompt import NOT_SHOWN, ground_messages
from vidqa.types import Picture
from vidqa.vlm import VlmClient
from vidqa.weights import sight

DOG = (
    "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(250,500),(750,900)<|box_end|>"
    "<|im_end|>"
)
NAME = "fake-qwen2-vl"
WIDTH, HEIGHT = 640, 480


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of one texture and two of another, 640 x 480."""
    path = tmp_path_factory.mktemp("ground") / "dogs.mp4"
    make_film(path, [shot(2, 1), shot(2, 5)], Format(width=WIDTH, height=HEIGHT, fps=8))
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDQA_RUNTIME_DIR", str(tmp_path / "runtime"))


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint(pieces=(DOG[:40], DOG[40:]), models=(NAME,)) as running:
        yield running


def located(
    endpoint: FakeEndpoint, film: Path, phrases: Sequence[str] = ("the dog",), **options: Any
) -> Grounded:
    family = Sight(options.pop("family", "qwen2-vl"))
    with VlmClient(endpoint.base_url) as client:
        still = still_at(probe(film), options.pop("at", 1.0))
        return ground(phrases, still, client, family, GroundOptions(**options))


def shown_picture(endpoint: FakeEndpoint, request: int = -1) -> Image.Image:
    url = endpoint.requests[request]["messages"][0]["content"][0]["video_url"]["url"]
    first, second = url.split("base64,")[1].split(",")
    assert first == second
    return Image.open(io.BytesIO(base64.b64decode(first)))


# ---------------------------------------------------------------- what is asked


def test_a_question_is_the_picture_twice_and_the_phrase() -> None:
    (message,) = ground_messages("the dog", b"jpeg")
    frames, text = message["content"]
    assert message["role"] == "user"
    assert frames["video_url"]["url"].count(base64.b64encode(b"jpeg").decode()) == 2
    assert text["text"] == question("the dog")


def test_control_tokens_are_kept_and_nothing_is_drawn_by_chance(
    film: Path, endpoint: FakeEndpoint
) -> None:
    located(endpoint, film)
    body = endpoint.requests[0]
    assert body["skip_special_tokens"] is False
    assert body["temperature"] == 0
    assert endpoint.text == question("the dog")


def test_each_phrase_is_asked_once(film: Path, endpoint: FakeEndpoint) -> None:
    grounded = located(endpoint, film, ["the dog", "a  cat", "the dog"])
    assert len(endpoint.requests) == 2
    assert [one.phrase for one in grounded.found] == ["the dog", "a cat"]


@pytest.mark.parametrize("phrases", [[], [" "]])
def test_nothing_to_look_for_is_wrong_usage(
    phrases: list[str], film: Path, endpoint: FakeEndpoint
) -> None:
    with pytest.raises(UsageError, match="nothing to look for"):
        located(endpoint, film, phrases)


def test_the_model_is_shown_what_ask_shows_unless_more_is_wanted(
    film: Path, endpoint: FakeEndpoint
) -> None:
    located(endpoint, film)
    assert shown_picture(endpoint).size == (420, 315)
    located(endpoint, film, max_pixels=196 * 140)
    assert shown_picture(endpoint).size == (168, 140)
    located(endpoint, film, max_pixels=1_000_000)
    assert shown_picture(endpoint).size == (WIDTH, HEIGHT)


# ---------------------------------------------------------------- what is found


def test_boxes_are_fractions_with_what_the_model_calls_them(
    film: Path, endpoint: FakeEndpoint
) -> None:
    (one,) = located(endpoint, film, ["my dog"]).found
    assert (one.phrase, one.label) == ("my dog", "the dog")
    assert one.box == Box(0.25, 0.5, 0.75, 0.9)


def test_pixels_count_in_the_picture_as_the_model_sees_it(film: Path) -> None:
    # 420 x 315 is 420 x 308 in whole tokens.
    reply = '```json\n[{"bbox_2d": [105, 77, 210, 154], "label": "the dog"}]\n```'
    with FakeEndpoint(pieces=(reply,)) as endpoint:
        (one,) = located(endpoint, film, family="qwen2.5-vl").found
    assert one.box == Box(0.25, 0.25, 0.5, 0.5)


def test_a_reply_without_a_box_is_missing(film: Path) -> None:
    with FakeEndpoint(pieces=("I see no dog.",)) as endpoint:
        grounded = located(endpoint, film)
    assert grounded.found == ()
    assert [(one.phrase, one.reply) for one in grounded.missing] == [("the dog", "I see no dog.")]


def test_the_picture_is_the_frame_at_full_size_with_the_box(
    film: Path, endpoint: FakeEndpoint
) -> None:
    grounded = located(endpoint, film)
    image = grounded.picture()
    assert image.size == (WIDTH, HEIGHT)
    for x, y in [(160, 300), (479, 300), (320, 240), (320, 431)]:
        assert image.getpixel((x, y)) == ImageColor.getrgb(COLOURS[0])
    drawn, bare = np.asarray(image), grounded.still.image
    assert (drawn[250:420, 170:470] == bare[250:420, 170:470]).all()
    assert (drawn[440:] == bare[440:]).all()


def test_the_frame_is_the_one_on_the_screen_then(film: Path) -> None:
    early, late = (still_at(probe(film), at).image.astype(int) for at in (1.9, 2.1))
    again = still_at(probe(film), 2.3).image.astype(int)
    assert np.abs(early - late).mean() > 5 * np.abs(late - again).mean()


@pytest.mark.parametrize("at", [-1.0, 4.0, 99.0, float("nan"), float("inf")])
def test_a_time_outside_of_the_video_is_wrong_usage(at: float, film: Path) -> None:
    with pytest.raises(UsageError, match=r"dogs.mp4 lasts 4 s; 0 to less than 4 is allowed"):
        still_at(probe(film), at)


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    make_film(tmp_path / "turned.mp4", [shot(1, 1)], Format(rotation=90))
    still = still_at(probe(tmp_path / "turned.mp4"), 0.5)
    assert still.size == (120, 160)
    assert Image.open(io.BytesIO(still.kept.jpeg)).size == (120, 160)


# ---------------------------------------------------------------- how the model sees


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {
                "config.json": {"model_type": "qwen2_5_vl"},
                "preprocessor_config.json": {"min_pixels": 3136, "max_pixels": 12845056},
            },
            Sight("qwen2.5-vl", 28, 3136, 12845056),
        ),
        (
            {
                "config.json": {"model_type": "qwen2_vl"},
                "processor_config.json": {
                    "video_processor": {
                        "patch_size": 7,
                        "merge_size": 4,
                        "size": {"shortest_edge": 784, "longest_edge": 37632},
                    }
                },
            },
            Sight("qwen2-vl", 28, 784, 37632),
        ),
        ({"config.json": {"model_type": "qwen3_vl"}}, Sight("qwen3-vl")),
    ],
)
def test_a_model_s_folder_says_how_it_sees(
    files: dict[str, object], expected: Sight, tmp_path: Path
) -> None:
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    assert sight(tmp_path) == expected


def test_a_model_that_is_not_known_for_boxes_needs_the_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UsageError, match="'llava' writes boxes is not known"):
        sight(tmp_path)
    assert sight(tmp_path, "qwen3-vl").family == "qwen3-vl"


def test_a_model_without_a_type_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no model_type"):
        sight(tmp_path)


# ---------------------------------------------------------------- the command


def vidqa(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def command(endpoint: FakeEndpoint, *arguments: str) -> Result:
    return vidqa("ground", *arguments, "--base-url", endpoint.base_url, "--config", "cpu")


def test_the_command_prints_pixels_and_writes_the_picture(
    film: Path, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    result = command(endpoint, str(film), "--at", "1.5", "the dog")
    assert result.exit_code == 0
    head, row = (line.split() for line in result.stdout.splitlines())
    assert head[:4] == ["left", "top", "right", "bottom"]
    assert row == ["160", "240", "480", "432", "the", "dog"]
    assert "picture: dogs-1.5s.png" in result.stderr
    assert Image.open(tmp_path / "dogs-1.5s.png").size == (WIDTH, HEIGHT)


def test_with_json_it_is_one_object_of_the_documented_shape(
    film: Path, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    result = command(endpoint, str(film), "--at", "1.5", "the dog", "--json", "--output", "a/b.jpg")
    found = json.loads(result.stdout)
    assert found == {
        "video": str(film),
        "video_id": found["video_id"],
        "seconds": 1.5,
        "width": WIDTH,
        "height": HEIGHT,
        "boxes": [
            {
                "phrase": "the dog",
                "label": "the dog",
                "fractions": [0.25, 0.5, 0.75, 0.9],
                "pixels": [160, 240, 480, 432],
            }
        ],
        "not_found": [],
        "picture": "a/b.jpg",
        "model": NAME,
    }
    assert Image.open(tmp_path / "a/b.jpg").format == "JPEG"


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_model_that_gives_no_box_is_nothing_found(
    flags: list[str], film: Path, tmp_path: Path
) -> None:
    with FakeEndpoint(pieces=("I see \x1b[31mno dog.",), models=(NAME,)) as endpoint:
        result = command(endpoint, str(film), "--at", "1", "the dog", *flags)
    assert result.exit_code == NothingFound.exit_code
    assert list(tmp_path.iterdir()) == []
    if flags:
        told = json.loads(result.stdout)
        assert (told["boxes"], told["picture"]) == ([], None)
        assert told["not_found"] == [{"phrase": "the dog", "reply": "I see \x1b[31mno dog."}]
    else:
        assert "not found: the dog" in result.stderr
        assert "the model said: I see \ufffd[31mno dog." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nofile.mp4", "--at", "1", "x"], "nofile.mp4: there is no such file, and no library at"),
        (["{film}", "--at", "9", "x"], "dogs.mp4 lasts 4 s"),
        (["{film}", "--at", "1", "x", "--output", "x.gif"], "ends in one of .png, .jpg"),
        (
            ["{film}", "--at", "1", "x", "--box-format", "yolo"],
            "--box-format yolo: one of qwen2-vl",
        ),
        (["{film}", "--at", "1", " "], "nothing to look for"),
        (["{film}", "--at", "1"], "Missing argument 'PHRASE...'"),
    ],
)
def test_wrong_usage_is_said_before_a_model_is_asked(
    arguments: list[str], message: str, film: Path, endpoint: FakeEndpoint
) -> None:
    result = command(endpoint, *(one.replace("{film}", str(film)) for one in arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert endpoint.requests == []


def test_a_picture_that_cannot_be_written_is_wrong_usage(
    film: Path, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    result = command(endpoint, str(film), "--at", "1", "x", "-o", "file/x.png")
    assert (result.exit_code, "name a file to write" in result.stderr) == (2, True)


def test_a_name_that_tells_no_family_wants_it_said(film: Path) -> None:
    with FakeEndpoint(pieces=("[250, 500, 750, 900]",), models=("llm",)) as endpoint:
        refused = command(endpoint, str(film), "--at", "1", "x")
        assert (refused.exit_code, endpoint.requests) == (2, [])
        assert "how llm writes boxes cannot be told from its name" in refused.stderr
        result = command(endpoint, str(film), "--at", "1", "x", "--box-format", "qwen3-vl")
    assert "160   240  480    432" in result.stdout


# ---------------------------------------------------------------- a library, and its answers


@pytest.fixture
def library(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The film, in the library at the default place."""
    monkeypatch.setattr("vidqa.embed.load_embedder", lambda *_: FakeEmbedder())
    (tmp_path / "dogs.mp4").write_bytes(film.read_bytes())
    assert vidqa("ingest", "dogs.mp4", "--config", "cpu").exit_code == 0
    (tmp_path / "dogs.mp4").rename(tmp_path / "away")
    return Library.open(tmp_path / "indexes/default")


def test_a_video_of_the_library_is_named_as_it_is_there(
    library: Library, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    (row,) = library.videos()
    for name in ("dogs.mp4", row.video.video_id, str(tmp_path / "dogs.mp4")):
        assert command(endpoint, name, "--at", "1", "the dog").exit_code == 0
    unknown = command(endpoint, "cats.mp4", "--at", "1", "the dog")
    assert (unknown.exit_code, "not in the library" in unknown.stderr) == (3, True)


def test_without_its_file_the_kept_picture_is_drawn_on_and_said_so(
    library: Library, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    result = command(endpoint, "dogs.mp4", "--at", "1", "the dog")
    assert "this is the picture that was kept" in result.stderr
    assert result.stdout.splitlines()[1].split()[:4] == ["160", "240", "480", "432"]
    (picture,) = tmp_path.glob("dogs-*s.png")
    assert Image.open(picture).size == (420, 315)


def test_without_a_library_a_file_that_is_away_is_an_error(film: Path) -> None:
    video = probe(film)
    film.rename(film.with_suffix(".away"))
    try:
        with pytest.raises(VideoError, match="no such file"):
            still_at(video, 1.0)
    finally:
        film.with_suffix(".away").rename(film)


def answers(endpoint: FakeEndpoint, *arguments: str) -> Result:
    return vidqa("ask", *arguments, "--base-url", endpoint.base_url, "--config", "cpu")


class Scripted:
    """An endpoint's pieces that change from question to question."""

    def __init__(self, *replies: str) -> None:
        self._replies = list(replies)

    def __iter__(self) -> Iterator[str]:
        yield self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

    def __len__(self) -> int:
        return 1


QUESTION = "Where is the dog in red and blue?"


def test_ask_draws_boxes_in_the_frames_that_the_answer_cites(
    library: Library, tmp_path: Path
) -> None:
    (tmp_path / "away").rename(tmp_path / "dogs.mp4")
    with FakeEndpoint(pieces=Scripted("It is here [1].", DOG), models=(NAME,)) as endpoint:  # type: ignore[arg-type]
        result = answers(endpoint, QUESTION, "--ground", "--html", "page.html")
    assert result.exit_code == 0, result.stderr
    assert len(endpoint.requests) == 2
    assert endpoint.text == question("the dog in red and blue")
    assert result.stdout.startswith("It is here [1].")
    assert "160   240  480    432     the dog in red and blue" in result.stdout
    (picture,) = tmp_path.glob("dogs-*s-1.png")
    assert Image.open(picture).size == (WIDTH, HEIGHT)
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(one.split('"')[0]))).size
        for one in (tmp_path / "page.html").read_text().split("data:image/jpeg;base64,")[1:]
    ]
    assert sizes.count((WIDTH, HEIGHT)) == 1
    assert set(sizes) == {(WIDTH, HEIGHT), (420, 315)}


def test_ask_with_json_carries_what_was_found(library: Library) -> None:
    with FakeEndpoint(pieces=Scripted("It is here [1].", DOG), models=(NAME,)) as endpoint:  # type: ignore[arg-type]
        result = answers(endpoint, QUESTION, "--phrase", "a dog", "--json")
    (one,) = json.loads(result.stdout)["ground"]
    assert (one["n"], one["boxes"][0]["phrase"]) == (1, "a dog")
    assert endpoint.text == question("a dog")


@pytest.mark.parametrize(
    "words", [("ask", QUESTION, "--ground"), ("ground", "dogs.mp4", "--at", "1", "the dog")]
)
def test_a_connection_ends_with_its_command(library: Library, words: tuple[str, ...]) -> None:
    with FakeEndpoint(pieces=Scripted("It is here [1].", DOG), models=(NAME,)) as endpoint:  # type: ignore[arg-type]
        result = vidqa(*words, "--base-url", endpoint.base_url, "--config", "cpu")
    assert endpoint.requests
    assert "vlm" not in [thread.name for thread in threading.enumerate()], result.stderr


def test_other_frames_of_a_moment_are_tried_until_one_shows_it(library: Library) -> None:
    replies = Scripted("It is here [1].", "none", DOG)
    with FakeEndpoint(pieces=replies, models=(NAME,)) as endpoint:  # type: ignore[arg-type]
        result = answers(endpoint, QUESTION, "--ground", "--json")
    (one,) = json.loads(result.stdout)["ground"]
    assert (len(one["boxes"]), one["not_found"], len(endpoint.requests)) == (1, [], 3)
    assert shown_picture(endpoint, 1).tobytes() != shown_picture(endpoint, 2).tobytes()


def test_an_answer_whose_frames_show_nothing_stays_an_answer(
    library: Library, tmp_path: Path
) -> None:
    with FakeEndpoint(pieces=("It is here [1].",), models=(NAME,)) as endpoint:
        result = answers(endpoint, QUESTION, "--ground")
    assert result.exit_code == 0
    assert "not found: the dog in red and blue, [1] " in result.stdout
    assert list(tmp_path.glob("*.png")) == []


def test_an_answer_without_a_citation_draws_nothing(library: Library) -> None:
    with FakeEndpoint(pieces=(NOT_SHOWN,), models=(NAME,)) as endpoint:
        result = answers(endpoint, QUESTION, "--ground")
    assert "no boxes: the answer cites no moment" in result.stderr
    assert len(endpoint.requests) == 1


def test_without_ground_an_answer_says_nothing_of_it(library: Library) -> None:
    with FakeEndpoint(models=("llm",)) as endpoint:
        result = answers(endpoint, QUESTION, "--json")
    assert "ground" not in json.loads(result.stdout)


def test_an_answer_of_another_library_is_an_error(library: Library, endpoint: FakeEndpoint) -> None:
    with FakeEndpoint() as asked, VlmClient(asked.base_url) as client:
        answer = ask(QUESTION, library, FakeEmbedder(), client, AskOptions())
    citation = replace(answer.citations[0], video_id="0" * 16)
    foreign = replace(answer, citations=(citation,))
    with (
        VlmClient(endpoint.base_url) as client,
        pytest.raises(VideoError, match="not in the library"),
    ):
        list(ground_answer(foreign, ["x"], library, client, Sight("qwen2-vl")))


@pytest.mark.parametrize(
    ("asked", "answer", "phrase"),
    [
        ("Where is the red car?", "", "the red car"),
        ("Who opens the door, and when?", "", "the door"),
        ("Who opens the door and when?", "", "the door"),
        ("What colour is the star?", "", "the star"),
        ("What is the colour of the star?", "", "the star"),
        ("Is her  dog in a park? Why?", "", "her dog in a park"),
        ("Wer singt?", "A woman in blue [1]. She dances.", "A woman in blue"),
        ("Wer singt?", "A woman [1, 2] in blue [1-3]. She dances.", "A woman in blue"),
        ("Wer singt?", NOT_SHOWN, ""),
        ("?", "[1]", ""),
    ],
)
def test_what_a_question_is_about(asked: str, answer: str, phrase: str) -> None:
    assert phrase_of(asked, answer) == phrase


# ---------------------------------------------------------------- the real vLLM


@pytest.mark.e2e
def test_control_tokens_come_through_the_engine(engine: EngineHandle, tiny_answerer: Path) -> None:
    import httpx

    tokens = json.loads((tiny_answerer / "tokenizer.json").read_text())["added_tokens"]
    pad = next(one["id"] for one in tokens if one["content"] == "<|vision_pad|>")
    body: dict[str, Any] = {
        "model": engine.model,
        "messages": ground_messages("the dog", kept_picture().jpeg),
        "max_tokens": 2,
        "logit_bias": {str(pad): 100},
        "temperature": 0,
    }
    headers = {"Authorization": f"Bearer {engine.api_key}"}
    texts = [
        httpx.post(
            f"{engine.base_url}/chat/completions", json=body | more, headers=headers, timeout=300
        ).json()["choices"][0]["message"]["content"]
        for more in ({}, {"skip_special_tokens": False})
    ]
    assert texts == ["", "<|vision_pad|><|vision_pad|>"]


def kept_picture() -> Picture:
    encoded = io.BytesIO()
    Image.new("RGB", (112, 84), "red").save(encoded, "JPEG")
    return Picture(0.0, encoded.getvalue())


@pytest.mark.e2e
def test_the_command_runs_through_the_real_engine(
    film: Path,
    tiny_answerer: Path,
    engine: EngineHandle,
    engine_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random weights know nothing of boxes: the whole way runs, and says that nothing was found."""
    monkeypatch.setenv("VIDQA_RUNTIME_DIR", str(engine_folder.parent))
    options = small_engine(tiny_answerer)
    (tmp_path / "tiny.yaml").write_text(
        f"model: {tiny_answerer}\ndtype: float32\nmax_model_len: {options.max_model_len}\n"
        f"kvcache_gib: {options.kvcache_gib}\nmax_tokens: 8\nmax_pixels: 9408\n"
        f"gpu_memory_utilization: {options.gpu_memory_utilization}\n"
        f"engine_idle_minutes: {options.idle_minutes}\n"
    )
    result = vidqa("ground", str(film), "--at", "1", "the dog", "--json", "--config", "tiny.yaml")
    found = json.loads(result.stdout)
    assert found["model"] == engine.model
    assert result.exit_code == (0 if found["boxes"] else NothingFound.exit_code)
    assert found["not_found"] or os.path.exists(found["picture"])
    status = managed.status(engine_folder)
    assert status is not None
    assert status.pid == engine.pid  # it was asked of the engine that ran already
