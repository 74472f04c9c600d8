"""Boxes: what each family writes, and what is read from whatever a model makes of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import times_dearer

from vidqa.boxes import (
    FAMILIES,
    Box,
    Family,
    family_in_name,
    family_of,
    parse,
    question,
    resized,
    write_box,
    write_located,
    write_ref,
)
from vidqa.compat import declare_torchvision_operators
from vidqa.errors import UsageError

ORIGINAL = (640, 480)
SHOWN = (644, 476)
DOG = Box(0.1, 0.2, 0.5, 0.6)


def only(family: Family, text: str, shown: tuple[int, int] = SHOWN) -> tuple[str, Box]:
    (found,) = parse(family, text, shown)
    return found


def sides(box: Box) -> tuple[float, ...]:
    assert box.unit == "fraction"
    return (box.left, box.top, box.right, box.bottom)


# ---------------------------------------------------------------- the record


def test_a_box_of_any_unit_has_the_same_pixels() -> None:
    expected = pytest.approx((64, 96, 320, 288))
    assert Box(0.1, 0.2, 0.5, 0.6).as_pixels(*ORIGINAL) == expected
    assert Box(100, 200, 500, 600, "thousandth").as_pixels(*ORIGINAL) == expected
    assert Box(64, 96, 320, 288, "pixel").as_pixels(*ORIGINAL) == expected
    assert sides(Box(64, 96, 320, 288, "pixel").as_fractions(*ORIGINAL)) == (
        pytest.approx((0.1, 0.2, 0.5, 0.6))
    )


@pytest.mark.parametrize(
    ("model_type", "family"),
    [
        ("qwen2_vl", "qwen2-vl"),
        ("qwen2_5_vl", "qwen2.5-vl"),
        ("qwen3_vl", "qwen3-vl"),
        ("qwen3_vl_moe", "qwen3-vl"),
    ],
)
def test_the_family_follows_from_the_type_in_config_json(model_type: str, family: Family) -> None:
    assert family_of(model_type) == family


def test_another_type_of_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'llava' writes boxes is not known; known are qwen2_vl"):
        family_of("llava")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", "qwen2-vl"),
        ("tiny-qwen2-vl", "qwen2-vl"),
        ("Qwen/Qwen2.5-VL-7B-Instruct-AWQ", "qwen2.5-vl"),
        ("qwen2.5vl:7b", "qwen2.5-vl"),
        ("qwen2_5_vl", "qwen2.5-vl"),
        ("Qwen/Qwen3-VL-8B-Instruct", "qwen3-vl"),
        ("Qwen3.5-9B", "qwen3-vl"),
        ("Qwen2.5-7B-Instruct", None),
        ("gpt-5", None),
    ],
)
def test_a_name_may_tell_the_family(name: str, family: Family | None) -> None:
    assert family_in_name(name) == family


def test_a_question_has_the_phrase_on_one_line_without_its_full_stop() -> None:
    assert question("  the red\ncar. ") == (
        "Locate the red car in this picture and output the bounding box coordinates."
    )


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((640, 480), {}, (644, 476)),
        ((420, 364), {}, (420, 364)),
        ((1920, 1080), {"max_pixels": 420 * 364}, (504, 280)),
        ((20, 10), {}, (84, 56)),
        ((640, 480), {"factor": 32}, (640, 480)),
    ],
)
def test_a_picture_is_resized_to_whole_tokens(
    size: tuple[int, int], limits: dict[str, int], expected: tuple[int, int]
) -> None:
    assert resized(*size, **limits) == expected


@pytest.mark.e2e  # to import the processor takes most of a minute's quarter
@given(
    width=st.integers(28, 3000),
    height=st.integers(28, 3000),
    low=st.integers(1, 200),
    more=st.integers(0, 2000),
)
def test_sizes_are_those_of_the_model_s_own_processor(
    width: int, height: int, low: int, more: int
) -> None:
    declare_torchvision_operators()
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

    limits = {"min_pixels": low * 784, "max_pixels": (low + more) * 784}
    theirs = smart_resize(height, width, factor=28, **limits)
    assert resized(width, height, **limits) == theirs[::-1]


# ---------------------------------------------------------------- writing


def test_qwen2_vl_gets_marked_names_and_thousandths() -> None:
    assert write_located("qwen2-vl", [("the dog", DOG)], ORIGINAL, SHOWN) == (
        "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(100,200),(500,600)<|box_end|>"
    )


def test_qwen2_5_vl_gets_json_in_pixels_of_the_picture_that_it_sees() -> None:
    written = write_located("qwen2.5-vl", [("the dog", DOG)], ORIGINAL, SHOWN)
    assert written == ('```json\n[\n\t{"bbox_2d": [64, 95, 322, 286], "label": "the dog"}\n]\n```')


def test_qwen3_vl_gets_json_in_thousandths() -> None:
    written = write_located("qwen3-vl", [("the dog", DOG), ("a cat", DOG)], ORIGINAL, SHOWN)
    assert json.loads(written.strip("`").removeprefix("json")) == [
        {"bbox_2d": [100, 200, 500, 600], "label": "the dog"},
        {"bbox_2d": [100, 200, 500, 600], "label": "a cat"},
    ]


def test_the_far_edge_is_999_for_qwen2_vl_and_1000_for_qwen3_vl() -> None:
    everything = Box(0, 0, 640, 480, "pixel")
    assert write_box("qwen2-vl", everything, ORIGINAL, SHOWN) == (
        "<|box_start|>(0,0),(999,999)<|box_end|>"
    )
    assert write_box("qwen3-vl", everything, ORIGINAL, SHOWN) == "[0, 0, 1000, 1000]"
    assert write_box("qwen2.5-vl", everything, ORIGINAL, SHOWN) == "[0, 0, 644, 476]"


def test_pixels_of_the_original_become_pixels_of_what_is_shown() -> None:
    box = Box(192, 108, 960, 540, "pixel")
    assert write_box("qwen2.5-vl", box, (1920, 1080), (504, 280)) == "[50, 28, 252, 140]"


def test_a_box_that_is_smaller_than_the_grid_is_one_unit_wide() -> None:
    speck = Box(0.5, 1.0, 0.50001, 1.0)
    assert write_box("qwen2-vl", speck, ORIGINAL, SHOWN) == (
        "<|box_start|>(500,998),(501,999)<|box_end|>"
    )


def test_a_name_cannot_end_itself() -> None:
    name = 'a <|object_ref_end|> "sign"'
    assert write_ref("qwen2-vl", name) == (
        '<|object_ref_start|>a < |object_ref_end|> "sign"<|object_ref_end|>'
    )
    label, _ = only("qwen3-vl", write_located("qwen3-vl", [(name, DOG)], ORIGINAL, SHOWN))
    assert label == name


@st.composite
def sides_of_one_axis(draw: st.DrawFn) -> tuple[float, float]:
    start = draw(st.floats(0, 0.997))
    return start, draw(st.floats(start + 0.003, 1))


boxes = st.builds(
    lambda x, y: Box(x[0], y[0], x[1], y[1]), sides_of_one_axis(), sides_of_one_axis()
)
labels = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=9
).filter(lambda text: "<|" not in text)


@given(
    family=st.sampled_from(FAMILIES),
    things=st.lists(st.tuples(labels, boxes), min_size=1, max_size=4),
    width=st.integers(1, 120),
    height=st.integers(1, 120),
)
def test_what_was_written_is_read_back_within_the_grid(
    family: Family, things: list[tuple[str, Box]], width: int, height: int
) -> None:
    shown = (width * 28, height * 28)
    read = parse(family, write_located(family, things, ORIGINAL, shown), shown)
    step = (1 / shown[0], 1 / shown[1]) * 2 if family == "qwen2.5-vl" else (0.001,) * 4
    assert [label for label, _ in read] == [label for label, _ in things]
    for (_, box), (_, expected) in zip(read, things, strict=True):
        for side, true, most in zip(sides(box), sides(expected), step, strict=True):
            assert side == pytest.approx(true, abs=most + 1e-9)


@given(family=st.sampled_from(FAMILIES), text=st.text())
def test_any_text_can_be_read(family: Family, text: str) -> None:
    parse(family, text, SHOWN)


CONTROLS = ["<|box_start|>", "<|box_end|>", "<|object_ref_start|>", "<|object_ref_end|>"]
WORDS = [*"{}[](),", "1", "-2.5", "NaN", "999", "dog", "```json", "[1,2,30,40]", "(1,2),(30,40)"]
PIECES = st.sampled_from([*WORDS, *CONTROLS, '"', "'", "\\", " ", "\n", '"bbox_2d": ', '"label": '])


@given(family=st.sampled_from(FAMILIES), pieces=st.lists(PIECES, max_size=40))
def test_whatever_is_read_lies_in_the_picture(family: Family, pieces: list[str]) -> None:
    for _, box in parse(family, "".join(pieces), SHOWN):
        left, top, right, bottom = sides(box)
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1


# ---------------------------------------------------------------- reading


def test_control_tokens_may_be_kept_or_stripped() -> None:
    kept = (
        "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(100,200),(500,600)<|box_end|>"
    )
    for reply in (kept, f"{kept}<|im_end|>", "the dog(100,200),(500,600)"):
        assert only("qwen2-vl", reply) == ("the dog", DOG)


def test_several_boxes_after_one_name_are_all_its() -> None:
    reply = (
        "I see <|object_ref_start|>a dog<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
        "<|box_start|>(5,6),(7,8)<|box_end|> and "
        "<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>."
    )
    assert [label for label, _ in parse("qwen2-vl", reply, SHOWN)] == ["a dog", "a dog", "a cat"]


@pytest.mark.parametrize(
    "reply",
    [
        '[{"bbox_2d": [100, 200, 500, 600], "label": "the dog"}]',
        '```json\n[\n\t{"bbox_2d": [100, 200, 500, 600], "label": "the dog"}\n]\n```',
        'Here:\n```json\n[{"bbox_2d": [100.0, 200, 500, 600], "label": "the dog"}]\n```\nDone.',
        '```json\n[{"bbox_2d": [100, 200, 500, 600], "label": "the dog"}, {"bbox_2d": [1, 2,',
        '[{"bbox_2d": [100, 200, 500, 600], "label": "the dog',
        "[{'bbox_2d': [100, 200, 500, 600], 'label': 'the dog'}]",
        '{"objects": [{"label": "the dog", "bbox_2d": ["100", "200", "500", "600"]}]}',
        '{"bbox": [[100, 200, 500, 600]], "label": "the dog"}',
        "the dog(100,200),(500,600)",
    ],
)
def test_json_is_found_however_it_is_wrapped_or_broken_off(reply: str) -> None:
    assert only("qwen3-vl", reply) == ("the dog", DOG)


def test_a_label_may_hold_braces_and_quotes() -> None:
    label, _ = only("qwen3-vl", r'{"label": "a {b} \"c\" ]", "bbox_2d": [1, 2, 3, 4]}')
    assert label == 'a {b} "c" ]'


def test_boxes_without_names_are_found() -> None:
    assert only("qwen3-vl", "[100, 200, 500, 600]") == ("", DOG)
    assert only("qwen2-vl", "(100,200),(500,600)") == ("", DOG)


def test_pixels_are_those_of_the_picture_as_shown() -> None:
    _, box = only("qwen2.5-vl", '{"bbox_2d": [161, 119, 322, 238]}', (644, 476))
    assert sides(box) == pytest.approx((0.25, 0.25, 0.5, 0.5))


def test_corners_in_the_wrong_order_are_set_right() -> None:
    assert only("qwen2-vl", "the dog(500,600),(100,200)") == ("the dog", DOG)


def test_what_lies_outside_of_the_picture_is_cut_off() -> None:
    _, box = only("qwen3-vl", '{"bbox_2d": [-50, 200, 99999999999999999999999, 600]}')
    assert sides(box) == (0.0, 0.2, 1.0, 0.6)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "The dog is not in this picture.",
        '{"bbox_2d": [NaN, 2, 3, 4], "label": "the dog"}',
        '{"bbox_2d": [1, 2, Infinity, 4]}',
        '{"bbox_2d": ["a", 2, 3, 4]}',
        '{"bbox_2d": [1, 2, 3]}',
        '{"bbox_2d": null, "label": "the dog"}',
        '{"bbox_2d": [],',
        "[]",
        "<|box_start|>(100,200),(500",
        "(100,200),(100,600)",
        "(1001,200),(1400,600)",
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_box_is_an_empty_list(family: Family, reply: str) -> None:
    assert parse(family, reply, (100, 100)) == []


@pytest.mark.parametrize(
    "piece", ["{", '{"', "[", "(", "((1,", " ", "<|", "<|object_ref_start|>", '{"bbox_2d":[', "9"]
)
def test_a_reply_that_goes_round_in_circles_takes_time_in_proportion(piece: str) -> None:
    def read(times: int) -> None:
        for family in FAMILIES:
            assert parse(family, piece * times, SHOWN) == []

    # In proportion it would be 8, and 64 if each piece were looked at again for every other.
    assert times_dearer(lambda: read(16_000), lambda: read(2_000)) < 24


@pytest.mark.parametrize("side", [float("nan"), float("inf")])
def test_a_box_that_is_no_number_is_not_written(side: float) -> None:
    for family in FAMILIES:
        with pytest.raises(UsageError, match="has a side that is no number"):
            write_box(family, Box(side, 0, 1, 1), (10, 10), (28, 28))


def test_long_nonsense_between_corners_takes_time_in_proportion() -> None:
    def read(spaces: int) -> None:
        assert parse("qwen2-vl", "(1,2)" + " " * spaces + "x", (28, 28)) == []

    assert times_dearer(lambda: read(48_000), lambda: read(6_000)) < 24
