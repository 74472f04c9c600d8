"""Pages that stand alone, hold every picture, and run nothing that a file or a model wrote."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from vidqa.report import Section, of_answer, of_search, page
from vidqa.types import Answer, Citation, Moment, Picture, ShownMoment, TextSpan, Usage

JPEG = b"\xff\xd8picture"


class Page(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def shown(n: int = 1, name: str = "holiday.mp4", texts: tuple[TextSpan, ...] = ()) -> ShownMoment:
    moment = Moment(f"/videos/{name}", "0" * 16, 62.0, 70.0, 0.25, (62.0, 65.5), texts)
    return ShownMoment(n, moment, (Picture(62.0, JPEG), Picture(65.5, JPEG)))


def answer(text: str, *cited: int) -> Answer:
    citations = tuple(Citation(n, "/videos/a.mp4", "0" * 16, 62, 70, 0.2) for n in cited)
    usage = Usage(10, 5, 2)
    return Answer("What is it?", text, citations, (), "a-model", usage, {"model": 1500.0})


def test_every_picture_is_inline_with_its_time_in_words() -> None:
    images = Page(page("a boat", [of_search("a boat", [shown()])])).all("img")
    assert [image["alt"] for image in images] == [
        "holiday.mp4 at 00:01:02.0",
        "holiday.mp4 at 00:01:05.5",
    ]
    source = images[0]["src"]
    assert source is not None
    assert base64.b64decode(source.removeprefix("data:image/jpeg;base64,")) == JPEG


def test_a_moment_shows_its_file_its_times_its_score_and_its_words() -> None:
    texts = (TextSpan(63, 64, "ahoy"),)
    text = Page(page("a boat", [of_search("a boat", [shown(texts=texts)])])).text
    for part in ("holiday.mp4", "00:01:02-00:01:10", "0.250", "ahoy"):
        assert part in text


def test_a_page_asks_nothing_of_any_host_and_has_no_script() -> None:
    html = page("a boat", [of_search("a boat", [shown()])])
    read = Page(html)
    assert read.all("script") == read.all("link") == read.all("iframe") == []
    assert "http:" not in html
    assert "https:" not in html
    policies = [meta["content"] for meta in read.all("meta") if "http-equiv" in meta]
    assert policies
    assert (policies[0] or "").startswith("default-src 'none'")


def test_citations_are_links_to_their_moments() -> None:
    section = of_answer(answer("Red [1][2], not [7].", 2), [shown(1), shown(2)])
    read = Page(page("What is it?", [section]))
    assert [link["href"] for link in read.all("a")] == ["#m1-1", "#m1-2"]
    articles = read.all("article")
    assert [one["id"] for one in articles] == ["m1-1", "m1-2"]
    assert [(one["class"] or "").split() for one in articles] == [["moment"], ["moment", "cited"]]
    assert "Red 1 2 , not [7]." in read.text


def test_an_answer_tells_model_frames_and_time() -> None:
    html = page("x", [of_answer(answer("Red."), [shown()])])
    assert "a-model · 2 frames · 1.5 s" in Page(html).text


def test_a_wrong_answer_shows_what_was_expected() -> None:
    section = of_answer(answer("Red."), [shown()], right=False, expected="blue")
    assert "wrong · expected: blue" in Page(page("x", [section])).text


def test_a_summary_stands_under_the_title() -> None:
    read = Page(page("Playground", [of_search("q", [])], summary=["7 of 8 right"]))
    assert "Playground 7 of 8 right" in read.text


@given(st.text(min_size=1))
def test_nothing_that_is_said_becomes_markup(words: str) -> None:
    hostile = f"{words}<script>alert(1)</script>\"'><img src=x onerror=alert(1)> [1]"
    moment = shown(name=hostile.replace("/", ""), texts=(TextSpan(63, 64, hostile),))
    section = Section(
        title=hostile,
        shown=(moment,),
        answer=hostile,
        cited=(1,),
        right=False,
        expected=hostile,
        facts=(hostile,),
    )
    plain = Section(
        title="t", shown=(shown(texts=(TextSpan(63, 64, "t"),)),), answer="t [1]", cited=(1,),
        right=False, expected="t", facts=("t",),
    )  # fmt: skip
    read = Page(page(hostile, [section], summary=[hostile]))
    assert [tag for tag, _ in read.tags if tag not in ("h2",)] == [
        tag for tag, _ in Page(page("u", [plain], summary=["t"])).tags if tag not in ("h2",)
    ]
    for tag, attributes in read.tags:
        assert tag != "script"
        assert not any(name.startswith("on") for name in attributes)
