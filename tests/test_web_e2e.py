"""The page in a real browser, against the real server with the bundled models.

Whatever a test does, the page must not reach another host, log an error or break its content
security policy: the fixture `page` says so after each.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image
from web_parts import ASKED_FILM, HOSTILE, QUESTION, UPLOAD, Films, Served, make_films, serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = Path("/usr/bin/chromium")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no browser at {CHROMIUM}"),
]

Open = Callable[..., Any]
"""Opens a page of the server: `open_page("?q=red", width=390)`; returns Playwright's page."""


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Films:
    return make_films(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def served(films: Films, engine_folder: Path) -> Iterator[Served]:
    with serving(films, engine_folder.parent) as served:
        yield served


@pytest.fixture
def locked(films: Films, engine_folder: Path) -> Iterator[Served]:
    with serving(films, engine_folder.parent, key="a-key-of-more-than-sixteen-signs") as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Watch:
    """What a page did that it should not."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.wrongs: list[str] = []
        # A question that comes before the engine is ready is asked again.
        self.expected_statuses = {503}

    def watch(self, page: Any) -> None:
        page.on("request", lambda request: self._heard_request(request.url))
        page.on("console", lambda message: self._heard_console(message))
        page.on("pageerror", lambda error: self.wrongs.append(f"uncaught: {error}"))

    def _heard_request(self, url: str) -> None:
        if urlsplit(url).scheme not in ("blob", "data") and not url.startswith(self.origin):
            self.wrongs.append(f"a request to {url}")

    def _heard_console(self, message: Any) -> None:
        status = re.search(r"status of (\d+)", message.text)
        if status and int(status[1]) in self.expected_statuses:
            return
        if message.type in ("error", "warning"):
            self.wrongs.append(f"{message.type}: {message.text}")


@pytest.fixture
def watch(served: Served) -> Watch:
    return Watch(served.url)


@pytest.fixture
def open_page(browser: Any, served: Served, watch: Watch) -> Iterator[Open]:
    contexts = []

    def opened(path: str = "", width: int = 1280, url: str = served.url, **options: Any) -> Any:
        viewport = {"width": width, "height": 800}
        context = browser.new_context(viewport=viewport, **{"locale": "en-US", **options})
        contexts.append(context)
        context.set_default_timeout(30_000)
        page = context.new_page()
        watch.watch(page)
        page.goto(url + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert watch.wrongs == []


def search(page: Any, words: str) -> Any:
    """Types the words; returns the cards once there are any."""
    page.locator("#query").press_sequentially(words)
    cards = page.locator("#results:not(.stale) .card:not(.skeleton)")
    cards.first.wait_for()
    return cards


def ask(page: Any, question: str = QUESTION) -> Any:
    """Asks and waits for the whole answer; returns it as the page shows it."""
    page.fill("#query", question)
    page.press("#query", "Enter")
    page.locator(".turn.ended").last.wait_for(timeout=240_000)
    return page.locator(".turn").last


def playing_at(page: Any) -> float:
    """The second from which the player plays, once it does."""
    until(
        page,
        "the video plays",
        "(({ paused, seeking, readyState, played }) =>"
        " !paused && !seeking && readyState >= 3 && played.length > 0)"
        "(document.querySelector('video') ?? {})",
    )
    # Where it is by now depends on how long it took to ask: what it has played up to there tells.
    begun = page.evaluate(
        "(({ played, currentTime }) => [...Array(played.length).keys()].findLast("
        "(n) => played.start(n) <= currentTime))(document.querySelector('video'))"
    )
    return float(page.evaluate(f"document.querySelector('video').played.start({begun})"))


def videos_of(served: Served) -> list[dict[str, Any]]:
    return list(httpx.get(f"{served.url}v1/videos").json()["data"])


def until(page: Any, what: str, expression: str) -> None:
    """Waits until an expression holds; the policy forbids Playwright's own way to do so."""
    for _ in range(600):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"{what}: still not so after a minute")


# ---------------------------------------------------------------- searching


def test_typing_shows_moments_without_a_key_being_pressed(open_page: Open) -> None:
    cards = search(open_page(), "orange house")
    assert cards.count() >= 2
    assert re.search(r"\d:\d\d\W\d:\d\d", cards.first.inner_text())


def test_an_answer_that_comes_late_does_not_replace_a_later_one(open_page: Open) -> None:
    page = open_page()

    def slowly(route: Any) -> None:
        page.wait_for_timeout(1500)
        route.fulfill(status=200, json={"query": "x", "moments": [], "heat": []})

    page.route("**/v1/search*", slowly, times=1)
    with page.expect_request("**/v1/search*"):
        page.locator("#query").press_sequentially("red ")
    search(page, "star")
    page.wait_for_timeout(1500)
    assert page.locator("#results .card").count() > 0


def test_a_click_on_the_strip_of_relevance_plays_there(open_page: Open) -> None:
    page = open_page()
    search(page, "orange house")
    strip = page.locator(".heat .line").first
    box = strip.bounding_box()
    duration = float(strip.get_attribute("aria-valuemax"))
    strip.click(position={"x": box["width"] / 2, "y": 8})
    assert playing_at(page) == pytest.approx(duration / 2, abs=1.5)


def test_a_filter_keeps_to_the_videos_that_it_names(open_page: Open, served: Served) -> None:
    page = open_page()
    search(page, "star")
    page.click("#filters-button")
    with page.expect_response("**/v1/search*"):
        page.fill("#filters [name=video]", served.films.names[0])
    page.locator("#results:not(.stale) .card").first.wait_for()
    until(
        page,
        "only the named video",
        "[...document.querySelectorAll('#results .card .video-name')]"
        f".every((name) => name.textContent === {json.dumps(served.films.names[0])})",
    )


def test_a_dropped_picture_searches(open_page: Open, served: Served) -> None:
    page = open_page()
    listed = videos_of(served)[0]
    jpeg = httpx.get(f"{served.url}{listed['thumbnail_url']}").content
    drop(page, "query.jpg", "image/jpeg", jpeg)
    page.locator("#results .card:not(.skeleton)").first.wait_for()
    best = page.locator("#results .card .video-name").first
    assert best.inner_text() == listed["video"]


def drop(page: Any, name: str, media_type: str, data: bytes) -> None:
    transfer = page.evaluate_handle(
        """([name, type, data]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type }));
            return transfer;
        }""",
        [name, media_type, base64.b64encode(data).decode("ascii")],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})


def test_a_file_name_that_is_markup_is_shown_as_text(open_page: Open) -> None:
    page = open_page()
    card = page.get_by_role("button", name=f"Open {HOSTILE}")
    card.click()
    page.locator("#player .scenes").wait_for()
    assert page.locator("#player h2").inner_text() == HOSTILE
    assert page.locator("img[src=x]").count() == 0


# ---------------------------------------------------------------- asking


def test_a_question_is_answered_with_its_sources(open_page: Open) -> None:
    turn = ask(open_page())
    assert "orange" in turn.locator(".answer").inner_text()
    assert turn.locator(".sources .video-name").all_inner_texts() == [ASKED_FILM]


def test_a_citation_plays_the_moment_that_it_names(open_page: Open) -> None:
    page = open_page()
    turn = ask(page)
    turn.locator(".marker").first.click()
    # The house is there from 7.3 s on.
    assert playing_at(page) == pytest.approx(7.3, abs=1)


def test_a_follow_up_goes_on_with_the_conversation(open_page: Open) -> None:
    page = open_page()
    ask(page)
    page.fill(".follow-up input", "And where is the star?")
    with page.expect_request("**/v1/chat/completions*") as asked:
        page.press(".follow-up input", "Enter")
    page.locator(".turn.ended").nth(1).wait_for(timeout=120_000)
    roles = [message["role"] for message in asked.value.post_data_json["messages"]]
    assert roles == ["user", "assistant", "user"]


def test_a_question_can_be_about_one_moment(open_page: Open, served: Served) -> None:
    page = open_page()
    search(page, "orange house")
    page.locator("#results .card").first.hover()
    page.locator("#results .card-tools button").first.click()
    page.fill("#query", "What colour is the house?")
    with page.expect_request("**/v1/chat/completions*") as asked:
        page.press("#query", "Enter")
    page.locator(".turn.ended").wait_for(timeout=120_000)
    assert asked.value.post_data_json["vidqa"]["clip"]["video_id"]


def test_a_question_that_waits_for_the_engine_can_be_taken_back(open_page: Open) -> None:
    page = open_page()
    error = {"message": "the model is starting", "code": "engine_starting"}
    busy = {"status": 503, "headers": {"Retry-After": "1"}, "json": {"error": error}}
    page.route("**/v1/chat/completions*", lambda route: route.fulfill(**busy))
    page.fill("#query", QUESTION)
    page.press("#query", "Enter")
    page.locator(".thinking", has_text="as soon as it is").wait_for()
    page.get_by_role("button", name="Stop").click()
    assert page.locator(".turn .facts").inner_text().startswith("Stopped.")


def test_an_answer_that_breaks_off_says_what_to_do(open_page: Open) -> None:
    page = open_page()
    words = 'data: {"choices": [{"delta": {"content": "The house"}}]}\n\n'
    failure = 'data: {"error": {"message": "the engine stopped; ask again"}}\n\n'
    reply = {"status": 200, "content_type": "text/event-stream", "body": words + failure}
    page.route("**/v1/chat/completions*", lambda route: route.fulfill(**reply))
    page.fill("#query", QUESTION)
    page.press("#query", "Enter")
    alert = page.locator(".turn .failed")
    alert.wait_for()
    assert "the engine stopped; ask again" in alert.inner_text()
    assert alert.get_by_role("button", name="Try again").is_visible()


# ---------------------------------------------------------------- playing


def test_a_link_to_a_moment_plays_it_at_once(open_page: Open, served: Served) -> None:
    video = videos_of(served)[0]
    page = open_page(f"?video={video['id']}&t=5.5")
    assert playing_at(page) == pytest.approx(5.5, abs=2)
    until(page, "its name", "document.querySelector('#player h2').textContent.trim() !== ''")
    assert page.locator("#player h2").inner_text() == video["video"]


def test_a_link_to_a_video_that_is_gone_says_so(open_page: Open, watch: Watch) -> None:
    watch.expected_statuses = {404}
    page = open_page("?video=0123456789abcdef&t=3")
    page.locator("#player .note", has_text="no video 0123456789abcdef").wait_for()


def test_a_file_that_the_browser_cannot_play_comes_as_a_clip(open_page: Open, watch: Watch) -> None:
    page = open_page()
    # As a codec would do that the browser does not know.
    noise = {"status": 200, "body": b"no video", "content_type": "video/mp4"}
    page.route("**/stream*", lambda route: route.fulfill(**noise))
    search(page, "orange house").first.locator(".card-open").click()
    page.locator("#player .note").wait_for()
    until(page, "the clip plays", "document.querySelector('video').currentTime > 0.2")
    assert "a clip of this moment" in page.locator("#player .note").inner_text()


def test_a_video_that_cannot_be_played_at_all_shows_its_frames(
    open_page: Open, watch: Watch
) -> None:
    watch.expected_statuses = {404}
    page = open_page()
    for pattern in ("**/stream*", "**/v1/clips/**"):
        page.route(pattern, lambda route: route.fulfill(status=404, body="{}"))
    search(page, "orange house").first.locator(".card-open").click()
    frame = page.locator("#player .frame")
    frame.wait_for()
    until(page, "the frame", "document.querySelector('#player .frame').naturalWidth > 0")
    assert "kept frames" in page.locator("#player .note").inner_text()


@pytest.mark.parametrize(
    ("state", "said"), [("file away", "is not where it was"), ("file changed", "has changed")]
)
def test_a_file_that_is_gone_is_not_blamed_on_the_browser(
    open_page: Open, served: Served, watch: Watch, state: str, said: str
) -> None:
    watch.expected_statuses = {404}
    video = videos_of(served)[0]
    page = open_page()
    for pattern in ("**/stream*", "**/v1/clips/**"):
        page.route(pattern, lambda route: route.fulfill(status=404, body="{}"))
    detail = httpx.get(f"{served.url}v1/videos/{video['id']}").json() | {"state": state}
    page.route(f"**/v1/videos/{video['id']}", lambda route: route.fulfill(json=detail))
    page.goto(f"{page.url.split('?')[0]}?video={video['id']}&t=1")
    page.locator("#player .note", has_text=said).wait_for()


def test_a_clip_of_the_moment_can_be_taken_along(open_page: Open) -> None:
    page = open_page()
    search(page, "orange house").first.locator(".card-open").click()
    page.get_by_role("button", name="Export clip").click()
    with page.expect_download() as taken:
        page.locator(".cutter a").click()
    assert Path(taken.value.path()).read_bytes()[4:8] == b"ftyp"


def test_the_page_can_be_used_with_keys_alone(open_page: Open) -> None:
    page = open_page()
    page.locator("#query").blur()
    page.keyboard.press("/")
    page.keyboard.type("red star")
    page.locator("#results:not(.stale) .card:not(.skeleton)").first.wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    playing_at(page)
    page.keyboard.press("Space")
    page.locator("#player .big-play").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#player").is_hidden()
    second = page.locator("#results .card-open").nth(1)
    assert second.evaluate("(card) => card === document.activeElement")


# ---------------------------------------------------------------- the library


def test_an_uploaded_video_becomes_searchable_and_is_deleted_only_after_a_question(
    open_page: Open, served: Served
) -> None:
    page = open_page()
    page.set_input_files("#add-files", served.films.upload)
    page.locator(".job", has_text="Ready to search").wait_for(timeout=120_000)
    page.click("#filters-button")
    page.fill("#filters [name=video]", UPLOAD)
    cards = search(page, "star")
    until(
        page,
        "moments of the new video",
        "[...document.querySelectorAll('#results .card .video-name')]"
        f".every((name) => name.textContent === {json.dumps(UPLOAD)})",
    )
    assert cards.count() >= 1

    page.fill("#query", "")
    bin_button = page.get_by_role("button", name=f"Delete {UPLOAD}")
    for choice, left in (("Cancel", 1), ("Take it out", 0)):
        page.locator(".videos .card", has_text=UPLOAD).hover()
        bin_button.click()
        page.locator("#delete-dialog").get_by_role("button", name=choice).click()
        until(page, choice, f"document.querySelectorAll('.videos .card').length === {left}")
    assert UPLOAD not in {one["video"] for one in videos_of(served)}


def test_what_is_no_video_is_refused_with_its_reason(open_page: Open) -> None:
    page = open_page()
    note = {"name": "note.mp4", "mimeType": "video/mp4", "buffer": b"no video at all"}
    page.set_input_files("#add-files", [note])
    reason = page.locator(".job .bad")
    reason.wait_for(timeout=60_000)
    assert len(reason.inner_text()) > len("That did not work: ")


def test_a_locked_library_asks_for_its_key(open_page: Open, locked: Served, watch: Watch) -> None:
    watch.origin, watch.expected_statuses = locked.url, {401}
    page = open_page(url=locked.url)
    dialog = page.locator("#key-dialog[open]")
    dialog.wait_for()
    page.fill("#key", "not this one")
    page.press("#key", "Enter")
    page.locator("#key-wrong").wait_for()
    page.fill("#key", locked.key)
    page.press("#key", "Enter")
    page.locator("#library .card:not(.skeleton)").first.wait_for()
    # Pictures cannot send the key: that they are there shows the cookie at work.
    until(page, "pictures", "document.querySelector('#library .card img').naturalWidth > 0")


# ---------------------------------------------------------------- how it looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 1440])
def test_nothing_is_wider_than_the_screen(open_page: Open, width: int, scheme: str) -> None:
    page = open_page(width=width, color_scheme=scheme)
    search(page, "orange house").first.locator(".card-open").click()
    page.locator("#player .scenes").wait_for()
    page.click("#filters-button")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    shade = Image.open(io.BytesIO(page.screenshot())).convert("L").getpixel((3, 300))
    assert (shade < 60) == (scheme == "dark")


def test_both_languages_say_everything_that_the_page_says(open_page: Open) -> None:
    english, chinese, asked_for = open_page().evaluate(
        """async () => {
            const { WORDS } = await import(new URL("web/i18n.js", document.baseURI).href);
            const marked = [...document.querySelectorAll("*")]
                .flatMap((node) => [...node.attributes])
                .filter(({ name }) => /^data-t(-|$)/.test(name))
                .map(({ value }) => value);
            return [Object.keys(WORDS.en), Object.keys(WORDS.zh), marked];
        }"""
    )
    assert set(english) == set(chinese)
    assert set(asked_for) <= set(english)


def test_the_page_speaks_chinese_to_a_chinese_browser(open_page: Open) -> None:
    page = open_page(locale="zh-CN")
    page.locator("#library .card:not(.skeleton)").first.wait_for()
    assert page.locator("#ask-button").inner_text().startswith("提问")
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    page.click("#language")
    assert page.locator("#ask-button").inner_text().startswith("Ask")
