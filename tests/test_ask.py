"""Asking a real library through a real HTTP endpoint that says what it is told.

The library holds films of plain colours, one colour a scene, so that anybody can say which scene a
question finds: see `FakeEmbedder`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEmbedder, FakeEndpoint
from PIL import Image

from vidqa.ask import AskOptions, ask, prepare
from vidqa.errors import EndpointError, NothingFound, UsageError
from vidqa.library import Library
from vidqa.types import Answer, Filters, FrameBatch, QuestionImage, Scene, TextSpan, Video
from vidqa.vlm import VlmClient

RGB = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}
SCENE_SECONDS = 4.0
HALF = 0.5


def add_film(
    library: Library, name: str, colours: Sequence[str], texts: Sequence[TextSpan] = ()
) -> Video:
    """A film of one scene of 4 s for each colour, with a frame a second at the half seconds."""
    seconds = np.arange(len(colours) * SCENE_SECONDS) + HALF
    scene_index = (seconds // SCENE_SECONDS).astype(np.int32)
    images = np.array([np.full((8, 8, 3), RGB[colours[n]], np.uint8) for n in scene_index])
    digits = name.encode().hex().ljust(32, "0")
    duration = len(colours) * SCENE_SECONDS
    video = Video(f"/films/{name}", digits, 1, 1, duration, 24.0, 640, 480, 0, "h264", "mp4")
    scenes = [Scene(n, n * SCENE_SECONDS, (n + 1) * SCENE_SECONDS) for n in range(len(colours))]
    frames = FrameBatch(seconds, scene_index, images, tuple(jpeg(image) for image in images))
    library.add(video, scenes, frames, FakeEmbedder().embed_images(images), texts, "recipe")
    return video


def jpeg(image: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(image).resize((420, 315)).save(encoded, "JPEG")
    return encoded.getvalue()


@pytest.fixture
def empty(tmp_path: Path) -> Library:
    return Library.open(tmp_path / "library", FakeEmbedder.spec, create=True)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """a.mp4: red, green, black, red; b.mp4: blue, green, with words in its first scene."""
    folder = tmp_path_factory.mktemp("ask") / "library"
    library = Library.open(folder, FakeEmbedder.spec, create=True)
    add_film(library, "a.mp4", ["red", "green", "black", "red"])
    add_film(library, "b.mp4", ["blue", "green"], [TextSpan(1, 2, "the sea")])
    return library


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as running:
        yield running


def asked(question: str, library: Library, endpoint: FakeEndpoint, **options: object) -> Answer:
    chosen = AskOptions(**options)  # type: ignore[arg-type]
    with VlmClient(endpoint.base_url) as client:
        return ask(question, library, FakeEmbedder(), client, chosen)


def pictures(endpoint: FakeEndpoint) -> list[list[Image.Image]]:
    """The frames that the last request carried, a list for each moment."""
    parts = endpoint.requests[-1]["messages"][-1]["content"]
    urls = [part["video_url"]["url"] for part in parts if part["type"] == "video_url"]
    return [
        [
            Image.open(io.BytesIO(base64.b64decode(frame)))
            for frame in url.split("base64,")[1].split(",")
        ]
        for url in urls
    ]


def colour(image: Image.Image) -> str:
    return min(
        RGB,
        key=lambda name: sum(
            (a - b) ** 2 for a, b in zip(RGB[name], image.getpixel((50, 50)), strict=True)
        ),
    )  # type: ignore[arg-type]


# ---------------------------------------------------------------- what is found and shown


def test_the_best_moment_is_shown_under_its_name_and_time(
    library: Library, endpoint: FakeEndpoint
) -> None:
    asked("blue", library, endpoint, k=1)
    assert endpoint.text.startswith("b.mp4 00:00:00-00:00:04 [1]\n")


def test_the_frames_shown_are_those_of_the_moment(library: Library, endpoint: FakeEndpoint) -> None:
    asked("blue", library, endpoint, k=1)
    assert [[colour(frame) for frame in moment] for moment in pictures(endpoint)] == [["blue"] * 4]


def test_the_frames_of_an_answer_are_the_times_that_were_shown(
    library: Library, endpoint: FakeEndpoint
) -> None:
    answer = asked("blue", library, endpoint, k=1, frames_per_moment=2)
    assert [moment.frame_seconds for moment in answer.moments] == [(1.5, 3.5)]


def test_frames_are_made_to_fit_the_pixel_budget(library: Library, endpoint: FakeEndpoint) -> None:
    asked("blue", library, endpoint, k=1, max_pixels=112 * 84)
    assert {frame.size for frame in pictures(endpoint)[0]} == {(112, 84)}


def test_a_picture_of_the_question_fits_the_pixel_budget_too(library: Library) -> None:
    file = io.BytesIO()
    Image.new("RGB", (400, 300)).save(file, "JPEG")
    pixels = np.full((8, 8, 3), (0, 0, 255), np.uint8)
    image = QuestionImage(pixels, file.getvalue())
    options = AskOptions(k=1, max_pixels=112 * 84)
    (jpeg,) = prepare("blue", library, FakeEmbedder(), options, images=[image]).jpegs
    assert Image.open(io.BytesIO(jpeg)).size == (112, 84)


def test_the_frame_budget_holds_over_all_moments(library: Library, endpoint: FakeEndpoint) -> None:
    answer = asked("green and red", library, endpoint, k=6, max_frames=6)
    assert sum(map(len, pictures(endpoint))) == answer.usage.frames == 6


def test_moments_are_numbered_in_the_order_shown(library: Library, endpoint: FakeEndpoint) -> None:
    asked("red", library, endpoint, k=2)
    assert "a.mp4 00:00:00-00:00:04 [1]" in endpoint.text
    assert "a.mp4 00:00:12-00:00:16 [2]" in endpoint.text


def test_words_that_overlap_a_moment_are_put_beside_its_frames(
    library: Library, endpoint: FakeEndpoint
) -> None:
    asked("blue", library, endpoint, k=1)
    assert 'Subtitles: "the sea"' in endpoint.text


def test_the_question_comes_last(library: Library, endpoint: FakeEndpoint) -> None:
    asked("Is it blue?", library, endpoint, k=1)
    assert endpoint.text.endswith("Question: Is it blue?")


def test_a_question_about_order_shows_the_scenes_beside_the_best(
    library: Library, endpoint: FakeEndpoint
) -> None:
    asked("What comes after the blue one?", library, endpoint, k=1)
    assert [colour(frames[0]) for frames in pictures(endpoint)] == ["blue", "green"]


def test_the_scenes_beside_the_best_come_before_worse_moments_in_a_small_budget(
    library: Library, endpoint: FakeEndpoint
) -> None:
    answer = asked("before green", library, endpoint, k=2, where="path LIKE '%a.mp4'", max_frames=4)
    assert [moment.start_seconds for moment in answer.moments] == [0, 4]


def test_the_video_filter_restricts_what_is_shown(library: Library, endpoint: FakeEndpoint) -> None:
    answer = asked("green", library, endpoint, filters=Filters(video="b.mp4"))
    assert {moment.video for moment in answer.moments} == {"/films/b.mp4"}


# ---------------------------------------------------------------- the answer and its citations


def test_an_answer_cites_the_moment_with_video_time_and_score(
    library: Library, endpoint: FakeEndpoint
) -> None:
    citation = asked("blue", library, endpoint, k=1).citations[0]
    assert (citation.video, citation.start_seconds, citation.end_seconds) == ("/films/b.mp4", 0, 4)
    assert citation.score == pytest.approx(1.0)


@pytest.mark.parametrize("pieces", [["It is red [7]."], ["It is red", " [", "7", "]", "."]])
def test_a_citation_of_a_moment_not_shown_is_dropped(library: Library, pieces: list[str]) -> None:
    with FakeEndpoint(pieces=pieces) as endpoint:
        answer = asked("red", library, endpoint, k=1)
    assert (answer.answer, answer.citations) == ("It is red.", ())


def test_a_citation_split_over_pieces_of_the_stream_counts(library: Library) -> None:
    with FakeEndpoint(pieces=["Red [", "1", ", 9", "]"]) as endpoint:
        answer = asked("red", library, endpoint, k=1)
    assert answer.answer == "Red [1]"
    assert [citation.n for citation in answer.citations] == [1]


def test_the_text_is_passed_on_as_it_arrives(library: Library) -> None:
    heard: list[str] = []
    endpoint = FakeEndpoint(pieces=["It ", "is ", "red [9]."])
    with endpoint, VlmClient(endpoint.base_url) as client:
        ask("red", library, FakeEmbedder(), client, on_text=heard.append)
    assert "".join(heard) == "It is red."
    assert len(heard) > 1


def test_an_answer_says_what_it_cost(library: Library, endpoint: FakeEndpoint) -> None:
    answer = asked("red", library, endpoint, k=1)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (100, 1)
    assert list(answer.timings_ms) == ["embed", "search", "frames", "engine", "model"]
    assert answer.model == "fake-vl"


def test_an_endpoint_that_breaks_off_is_an_error(library: Library) -> None:
    endpoint = FakeEndpoint(pieces=["It ", "is"], breaks_after=1)
    with endpoint, pytest.raises(EndpointError, match="broke off"):
        asked("red", library, endpoint)


# ---------------------------------------------------------------- nothing found


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        ("nothing", {}, "nothing in the library looks like what is asked"),
        ("red", {"filters": Filters(video="c*")}, r"no moment fits --video 'c\*'"),
        ("red", {"where": "1 = 0"}, "no moment fits --where '1 = 0'"),
        (
            "red",
            {"filters": Filters(text="fire", after=date(2099, 1, 2))},
            "no moment fits text 'fire' and after 2099-01-02",
        ),
        (
            "red",
            {"filters": Filters(video_ids=("ff", "0a"))},
            "no moment fits video_ids ff, 0a$",
        ),
        ("red", {"whole": "c.mp4"}, "c.mp4 is not in the library"),
        ("red", {"clip": ("ff", 0, 1)}, "ff is not in the library"),
    ],
)
def test_nothing_found_is_said_before_any_model_is_asked(
    library: Library, endpoint: FakeEndpoint, question: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(NothingFound, match=message):
        asked(question, library, endpoint, **options)
    assert endpoint.requests == []


def test_an_empty_library_is_said_to_be_empty(empty: Library, endpoint: FakeEndpoint) -> None:
    with pytest.raises(NothingFound, match="is empty; fill it: vidqa ingest PATH"):
        asked("red", empty, endpoint)


def test_no_engine_is_started_when_nothing_is_found(library: Library) -> None:
    def start() -> VlmClient:
        raise AssertionError("started")

    with pytest.raises(NothingFound):
        ask("nothing", library, FakeEmbedder(), start)


# ---------------------------------------------------------------- a whole video, a clip of one


@pytest.mark.parametrize("name", ["a.mp4", "/films/a.mp4"])
def test_a_whole_video_is_shown_from_end_to_end(
    library: Library, endpoint: FakeEndpoint, name: str
) -> None:
    answer = asked("What happens?", library, endpoint, whole=name, max_frames=8)
    assert [(one.start_seconds, one.end_seconds) for one in answer.moments] == [
        (0, 4),
        (4, 8),
        (8, 12),
        (12, 16),
    ]


def test_a_whole_video_in_few_frames_joins_scenes(library: Library, endpoint: FakeEndpoint) -> None:
    answer = asked("What happens?", library, endpoint, whole="a.mp4", max_frames=4)
    assert [(one.start_seconds, one.end_seconds) for one in answer.moments] == [(0, 8), (8, 16)]


def test_a_whole_video_needs_no_embedder(library: Library, endpoint: FakeEndpoint) -> None:
    with VlmClient(endpoint.base_url) as client:
        answer = ask("What?", library, None, client, AskOptions(whole="b.mp4"))
    assert len(answer.moments) == 2


def test_a_file_name_of_two_videos_is_an_error(empty: Library, endpoint: FakeEndpoint) -> None:
    add_film(empty, "a.mp4", ["red"])
    add_film(empty, "2/a.mp4", ["green"])
    with pytest.raises(UsageError, match=r"a\.mp4 names 2 videos; give the path of one"):
        asked("What?", empty, endpoint, whole="a.mp4")


def test_a_clip_shows_its_scenes_cut_to_it(library: Library, endpoint: FakeEndpoint) -> None:
    video_id = b"a.mp4".hex().ljust(16, "0")[:16]
    answer = asked("What?", library, endpoint, clip=(video_id, 2.0, 7.0))
    assert [(one.start_seconds, one.end_seconds, one.frame_seconds) for one in answer.moments] == [
        (2, 4, (2.5, 3.5)),
        (4, 7, (4.5, 5.5, 6.5)),
    ]


def test_a_clip_outside_the_video_is_nothing_found(
    library: Library, endpoint: FakeEndpoint
) -> None:
    video_id = b"a.mp4".hex().ljust(16, "0")[:16]
    with pytest.raises(NothingFound, match=r"no frames in \[99, 100\) s; it lasts 16 s"):
        asked("What?", library, endpoint, clip=(video_id, 99.0, 100.0))


def test_a_whole_video_and_a_clip_at_once_are_refused() -> None:
    with pytest.raises(UsageError, match="choose one"):
        AskOptions(whole="a.mp4", clip=("a", 0.0, 1.0))


@pytest.mark.parametrize("shown", [{"whole": "a.mp4"}, {"clip": ("a", 0.0, 1.0)}])
@pytest.mark.parametrize("filters", [{"filters": Filters(video="b*")}, {"where": "fps > 1"}])
def test_a_filter_beside_what_is_shown_without_a_search_is_refused(
    shown: dict[str, Any], filters: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=r"restricts a search, and .* needs none: leave one out"):
        AskOptions(**shown, **filters)
