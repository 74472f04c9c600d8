"""The page of `vidqa finetune review` in a real browser.

Whatever a test does, the page must not reach another host, log an error or break its content
security policy.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from media import make_film, shot

from finetune.formats import read
from finetune.review import Review
from finetune.review_server import ReviewServer
from finetune.rows import Media, Origin, Row, Turn
from finetune.rows_file import row_line, said_by

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = Path("/usr/bin/chromium")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no browser at {CHROMIUM}"),
]

HOSTILE = "</script><img src=x onerror=document.title='caught'>"


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    film, file = tmp_path / "<b>film.mp4", tmp_path / "rows.jsonl"
    make_film(film, [shot(2.0)])
    media = Media("video", (str(film),), start_seconds=0.0, end_seconds=2.0)
    said = [("What is it?", "A star."), (HOSTILE, HOSTILE), ("How many?", "Three.")]
    rows = [
        Row((Turn("user", (media, q)), Turn("assistant", (a,))), Origin("rows.jsonl", n))
        for n, (q, a) in enumerate(said)
    ]
    file.write_text("".join(row_line(row, file) for row in rows))
    return file


@pytest.fixture
def server(rows_file: Path) -> Iterator[ReviewServer]:
    with Review.open(rows_file) as review, ReviewServer(review) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield server
        server.stop()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Any, server: ReviewServer) -> Iterator[Any]:
    context = browser.new_context(
        viewport={"width": 1280, "height": 800}, color_scheme=request.param
    )
    context.set_default_timeout(30_000)
    page, wrongs = context.new_page(), list[str]()

    def requested(sent: Any) -> None:
        if not sent.url.startswith((server.url, "data:")):
            wrongs.append(f"a request to {sent.url}")

    def logged(message: Any) -> None:
        refused = "status of 400" in message.text  # what a test means to be refused
        if message.type in ("error", "warning") and not refused:
            wrongs.append(message.text)

    page.on("request", requested)
    page.on("console", logged)
    page.on("pageerror", lambda error: wrongs.append(str(error)))
    page.goto(server.url)
    page.locator("#pictures img").first.wait_for()
    yield page
    context.close()
    assert wrongs == []


def counts(page: Any, text: str) -> None:
    page.locator("#counts", has_text=text).wait_for()


def test_rows_are_kept_edited_and_dropped_with_keys_alone(page: Any, rows_file: Path) -> None:
    page.keyboard.press("y")
    counts(page, "1 kept, 0 edited, 0 dropped, 2 left")
    # What is markup in a row is shown as it is written.
    assert page.input_value("#question") == HOSTILE
    assert page.locator("#list li").nth(1).inner_text() == HOSTILE
    assert page.title() == "Review rows"
    page.keyboard.press("d")
    counts(page, "1 kept, 0 edited, 1 dropped, 1 left")
    page.keyboard.press("e")
    page.keyboard.type("Four, just as y and d say.")
    page.keyboard.press("Control+Enter")
    counts(page, "1 kept, 1 edited, 1 dropped, 0 left")
    reviewed = read(rows_file.with_name("rows.reviewed.jsonl"))
    assert [said_by(row, "assistant") for row in reviewed] == [
        "A star.",
        "Four, just as y and d say.",
    ]
    page.keyboard.press("k")
    page.keyboard.press("u")
    counts(page, "1 kept, 1 edited, 0 dropped, 1 left")
    page.reload()
    counts(page, "1 kept, 1 edited, 0 dropped, 1 left")


def test_an_edit_that_is_refused_says_why_and_stays_to_be_mended(page: Any) -> None:
    page.keyboard.press("e")
    page.keyboard.type("<|im_end|>")
    page.keyboard.press("Control+Enter")
    page.locator("#problem", has_text="control token").wait_for()
    assert page.input_value("#answer") == "<|im_end|>"
    page.keyboard.press("Escape")
    assert page.input_value("#answer") == "A star."
    counts(page, "0 kept, 0 edited, 0 dropped, 3 left")


def test_the_rest_is_kept_after_a_question_and_rows_can_be_filtered(page: Any) -> None:
    page.on("dialog", lambda dialog: dialog.accept())
    page.keyboard.press("d")
    counts(page, "1 dropped")
    page.click("#rest")
    counts(page, "2 kept, 0 edited, 1 dropped, 0 left")
    page.select_option("#filter", "dropped")
    assert page.locator("#list li").count() == 1


def test_nothing_is_wider_than_a_telephone(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    page.keyboard.press("j")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
