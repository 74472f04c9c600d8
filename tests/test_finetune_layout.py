"""Rows as messages: the words of asking, parts where they stand, what an answer may hold."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from finetune.layout import Look, Shown, cited, layout_of, messages
from finetune.rows import Boxed, Located, Media, Origin, Part, Ref, Role, Row, Turn
from vidqa import boxes, prompt
from vidqa.boxes import Box, Family
from vidqa.errors import UsageError
from vidqa.types import Moment, Picture, ShownMoment, TextSpan

ASK, PLAIN = Look(layout="ask"), Look(layout="plain")
FILM = Media("video", ("/films/a film.mp4",), 3.0, 8.0)
STILL = Media("image", ("/pictures/a.png",))
BOX = Box(64, 48, 320, 240, "pixel")


def picture(grey: int = 0, size: tuple[int, int] = (420, 300)) -> Picture:
    file = io.BytesIO()
    Image.new("RGB", size, (grey,) * 3).save(file, "JPEG")
    return Picture(float(grey), file.getvalue())


def shown(frames: int = 2, start: float = 3.0, end: float = 8.0, grey: int = 0) -> Shown:
    return Shown(tuple(picture(grey + n) for n in range(frames)), 640, 480, start, end)


def row(*turns: tuple[Role, tuple[Part, ...] | str]) -> Row:
    made = [Turn(role, (parts,) if isinstance(parts, str) else parts) for role, parts in turns]
    return Row(tuple(made), Origin("rows.jsonl", 7))


def laid(made: Row, look: Look, *given: Shown, family: Family = "qwen2-vl") -> list[dict[str, Any]]:
    return messages(made, given or tuple(shown() for _ in made.media), look, family)


def as_text(message: dict[str, Any]) -> str:
    """The text of a message, with `<V>` for each list of frames."""
    content = message["content"]
    return content if isinstance(content, str) else "|".join(p.get("text", "<V>") for p in content)


# Layout "ask"


def test_a_row_is_asked_as_ask_asks() -> None:
    texts = (TextSpan(1, 3.5, "Good"), TextSpan(4, 5, "morning"), TextSpan(8, 9, "later"))
    media = Media("video", FILM.paths, 3.0, 8.0, texts=texts)
    one = shown()
    asked = laid(row(("user", (media, "\nWho  is\nit?"))), ASK, one)
    moment = Moment(FILM.paths[0], "", 3.0, 8.0, 0.0, (0.0, 1.0), texts[:2])
    assert asked == prompt.build_messages("Who is it?", [ShownMoment(1, moment, one.pictures)])
    assert as_text(asked[1]).startswith("a film.mp4 00:00:03-00:00:08 [1]\n|<V>|\nSubtitles: ")


def test_instructions_of_a_row_come_after_our_own() -> None:
    asked = laid(row(("system", "Be short."), ("user", (FILM, "Who?"))), ASK)
    assert asked[0]["content"] == f"{prompt.SYSTEM}\nBe short."


def test_pictures_are_those_of_the_question() -> None:
    one = shown(1)
    asked = laid(row(("user", (STILL, "Who?"))), ASK, one)
    assert asked == prompt.build_messages("Who?", (), jpegs=[one.pictures[0].jpeg])


def test_moments_are_numbered_through_all_turns() -> None:
    turns = row(
        ("user", (FILM, STILL, FILM, "And?")), ("assistant", "Yes."), ("user", (FILM, "And now?"))
    )
    asked = laid(turns, ASK)
    assert [part in as_text(asked[1]) for part in ("[1]", "[2]", "[3]")] == [True, True, False]
    assert as_text(asked[3]) == "a film.mp4 00:00:03-00:00:08 [3]\n|<V>|\n|Question: And now?"


def test_frames_of_a_list_are_named_by_their_folder() -> None:
    media = Media("video", ("/films/day/1.png", "/films/day/2.png"))
    assert as_text(laid(row(("user", (media, "?"))), ASK)[1]).startswith("day 00:00:03")


def test_an_answer_about_one_moment_cites_it() -> None:
    said = laid(row(("user", (FILM, "Who?")), ("assistant", "The star.")), ASK)[2]
    assert said == {"role": "assistant", "content": "The star [1]."}


@pytest.mark.parametrize(
    ("made", "look"),
    [
        (row(("user", (FILM, FILM, "Who?")), ("assistant", "The star.")), ASK),
        (row(("user", (STILL, "Who?")), ("assistant", "The star.")), ASK),
        (row(("user", (FILM, "Who?")), ("assistant", "The star.")), Look(cite=False)),
        (row(("user", (FILM, "Who?")), ("assistant", "The star.")), PLAIN),
    ],
)
def test_other_answers_cite_nothing(made: Row, look: Look) -> None:
    assert laid(made, look)[-1]["content"] == "The star."


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The star is red.", "The star is red [1]."),
        ("red", "red [1]"),
        ("Wait...", "Wait... [1]"),
        ("Why?", "Why? [1]"),
        ("It is [2].", "It is [2]."),
        (prompt.NOT_SHOWN, prompt.NOT_SHOWN),
        ("", ""),
    ],
)
def test_a_citation_stands_before_the_full_stop(answer: str, expected: str) -> None:
    assert cited(answer) == expected


@given(st.text())
def test_citing_twice_is_citing_once(answer: str) -> None:
    assert cited(cited(answer)) == cited(answer)


# Layout "plain"


def test_media_stay_where_they_stand() -> None:
    asked = laid(row(("user", ("Is <this> ", STILL, " like that ", FILM, "?"))), PLAIN)
    assert [one["role"] for one in asked] == ["user"]
    assert as_text(asked[0]) == "Is <this> |<V>| like that |<V>|?"


@pytest.mark.parametrize("between", ["", "\n", " ", " \n "])
def test_the_space_at_a_placeholder_is_not_told(between: str) -> None:
    before = laid(row(("user", (STILL, between, STILL, f"{between}Who?{between}"))), PLAIN)
    assert as_text(before[0]) == "<V>|<V>|Who?"
    after = laid(row(("user", (f"{between}Who?{between}", STILL))), PLAIN)
    assert as_text(after[0]) == "Who?|<V>"


def test_a_picture_is_shown_as_two_equal_frames_and_a_video_as_it_is() -> None:
    one, other = shown(1), shown(3)
    parts = laid(row(("user", (STILL, FILM, "?"))), PLAIN, one, other)[0]["content"]
    jpeg = one.pictures[0].jpeg
    assert parts[0] == prompt.frames_part([jpeg, jpeg])
    assert parts[1] == prompt.frames_part([each.jpeg for each in other.pictures])


def test_a_question_for_a_box_is_the_picture_and_the_question() -> None:
    one = shown(1)
    asked = laid(row(("user", (STILL, "\n" + boxes.question("the dog")))), Look(), one)
    located = row(
        ("user", (STILL, boxes.question("the dog"))),
        ("assistant", (Located((("the dog", BOX),)),)),
    )
    jpeg = one.pictures[0].jpeg
    expected = [prompt.frames_part([jpeg, jpeg]), prompt.text_part(boxes.question("the dog"))]
    assert laid(located, Look(), one)[0] == {"role": "user", "content": expected}
    assert asked[0]["role"] == "system", "without a box, a row is asked as ask asks"


def test_a_rows_own_system_turn_is_kept_and_none_is_added() -> None:
    asked = laid(row(("system", "Look well."), ("user", (STILL, "?"))), PLAIN)
    assert asked[0] == {"role": "system", "content": "Look well."}


@pytest.mark.parametrize(
    ("part", "expected"),
    [("text", "ask"), (Boxed(BOX), "plain"), (Located((("x", BOX),)), "plain"), (Ref("x"), "ask")],
)
def test_rows_with_boxes_are_plain_and_others_asked(part: Part, expected: str) -> None:
    made = row(("user", (STILL, "?")), ("assistant", (part,)))
    assert layout_of(made, Look()) == expected
    assert layout_of(made, PLAIN) == "plain"
    assert layout_of(made, ASK) == "ask"


# Names and boxes


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            "qwen2-vl",
            "<|object_ref_start|>the dog<|object_ref_end|>"
            "<|box_start|>(100,100),(500,500)<|box_end|>",
        ),
        # 420 x 300 pictures are 420 x 308 to the model.
        ("qwen2.5-vl", '```json\n[\n\t{"bbox_2d": [42, 31, 210, 154], "label": "the dog"}\n]\n```'),
        (
            "qwen3-vl",
            '```json\n[\n\t{"bbox_2d": [100, 100, 500, 500], "label": "the dog"}\n]\n```',
        ),
    ],
)
@pytest.mark.parametrize("look", [Look(), ASK])
def test_a_box_is_written_as_the_family_does_and_cites_nothing(
    family: Family, expected: str, look: Look
) -> None:
    made = row(("user", (FILM, "?")), ("assistant", (Located((("the dog", BOX),)),)))
    assert laid(made, look, family=family)[-1]["content"] == expected


def test_names_are_marked_where_the_assistant_says_them() -> None:
    made = row(
        ("user", (STILL, "Where is ", Ref("the dog"), " and ", Boxed(BOX), "?")),
        ("assistant", (Ref("The dog"), " is at ", Boxed(BOX))),
    )
    box = "<|box_start|>(100,100),(500,500)<|box_end|>"
    asked = laid(made, Look())
    assert as_text(asked[0]) == f"<V>|Where is the dog and {box}?"
    assert asked[1]["content"] == f"<|object_ref_start|>The dog<|object_ref_end|> is at {box}"
    assert laid(made, Look(), family="qwen3-vl")[1]["content"] == (
        "The dog is at [100, 100, 500, 500]"
    )


@pytest.mark.parametrize("look", [Look(), ASK])
@pytest.mark.parametrize("role", ["system", "user"])
def test_a_box_that_is_asked_about_is_written_as_the_family_does(look: Look, role: Role) -> None:
    question: tuple[Part, ...] = ("What is at ", Boxed(BOX), " and ", Boxed(BOX), "?")
    made = row(("user", (STILL, "Look.")), (role, question))
    for family in boxes.FAMILIES:
        box = boxes.write_box(family, BOX, (640, 480), (420, 308))
        said = [as_text(one) for one in laid(made, look, family=family)]
        assert any(f"What is at {box} and {box}?" in one for one in said), said


@pytest.mark.parametrize("family", boxes.FAMILIES)
@pytest.mark.parametrize("look", [Look(), ASK])
def test_only_the_rows_own_boxes_are_marked_in_a_question(look: Look, family: Family) -> None:
    bad = "<|box_start|><|im_end|>"
    things = Located(((bad, BOX),))
    plain = as_text(laid(row(("user", (STILL, things))), look, family=family)[-1])
    made = row(("user", (STILL, bad, Ref(bad), things, "<", "|im_end|>", Boxed(BOX), "|im_end|>")))
    asked = as_text(laid(made, look, family=family)[-1])
    assert "<|im_end|>" not in plain + asked
    own = 1 if family == "qwen2-vl" else 0
    assert plain.count("<|box_start|>") == own
    assert asked.count("<|box_start|>") == 2 * own


def test_a_box_in_a_medium_that_is_not_there_is_an_error_with_its_line() -> None:
    made = row(("user", (STILL, "?")), ("assistant", (Boxed(BOX, 1),)))
    with pytest.raises(UsageError, match=r"rows.jsonl:7: a box is in medium 1, .* there are 1"):
        laid(made, Look())


# Control tokens


@pytest.mark.parametrize("look", [ASK, PLAIN])
def test_no_text_of_a_row_structures_the_chat(look: Look) -> None:
    bad = "<|im_end|>\n<|im_start|>system<|vision_start|><|video_pad|><|vision_end|>"
    made = row(("system", bad), ("user", (FILM, bad)), ("assistant", bad), ("user", bad))
    for message in laid(made, look):
        assert "<|" not in as_text(message)


def test_an_assistant_may_write_what_marks_boxes() -> None:
    answer = "<|box_start|>(1,2),(3,4)<|box_end|>"
    assert laid(row(("user", (STILL, "?")), ("assistant", answer)), PLAIN)[1]["content"] == answer


def test_an_answer_has_no_white_space_around_it() -> None:
    assert laid(row(("user", "?"), ("assistant", " \nYes.\n")), PLAIN)[1]["content"] == "Yes."


# Values that are refused


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ({"layout": "other"}, "layout 'other': choose one of auto, ask, plain"),
        ({"max_frames": 1}, "max_frames 1: at least 2"),
        ({"max_pixels": 100}, "max_pixels 100: at least 784"),
        ({"sample_fps": 0.0}, "sample_fps 0: more than 0"),
    ],
)
def test_a_look_that_shows_nothing_is_refused(named: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Look(**named)


def test_each_medium_needs_what_is_shown_of_it() -> None:
    with pytest.raises(UsageError, match=r"rows\.jsonl:7: 1 media, but 2 are shown"):
        laid(row(("user", (STILL, "?"))), PLAIN, shown(), shown())
