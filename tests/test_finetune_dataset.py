"""Rows as tensors: the tokens of the template and the processor, and labels on answers only."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_answerer

from finetune.dataset import (
    IGNORE,
    Encoder,
    Item,
    Measure,
    RowDataset,
    collate,
    decoded,
    load_processor,
)
from finetune.layout import Look, messages
from finetune.media import show_row
from finetune.rows import Boxed, Located, Media, Origin, Row, Turn
from finetune.shelf import Shelf
from tests.media import REPOSITORY, Format, three_shots
from vidqa.boxes import Box, Family, family_of
from vidqa.errors import ModelError, UsageError, VideoError

BUNDLED = REPOSITORY / "vidqa" / "demo" / "models" / "tiny-qwen2-vl"
NAMES = ["bundled", "qwen2-vl-tiny", "qwen2.5-vl-3b"]
LOOK = Look(max_frames=4, max_pixels=112 * 84)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    return three_shots(folder / "film.mp4", Format(width=320, height=240)).path


@pytest.fixture(scope="module", params=NAMES)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = BUNDLED
    if request.param != "bundled":
        folder = make_answerer(tmp_path_factory.mktemp("models"), request.param)
    family: Family = "qwen2.5-vl" if "2.5" in request.param else "qwen2-vl"
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    return Encoder(load_processor(str(folder)), LOOK, family, shelf)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    return Encoder(load_processor(str(BUNDLED)), LOOK, family_of("qwen2_vl"), shelf)


def rows(film: Path) -> dict[str, Row]:
    """A row of each kind that differs in how it is laid out."""
    video = Media("video", (str(film),))
    part = Media("video", (str(film),), 2.0, 4.0)
    still = Media("image", (str(film),), at_seconds=1.0)
    box = Box(0.1, 0.2, 0.5, 0.6)
    conversations = {
        "video": [("user", (video, "What colour is the star?")), ("assistant", ("Red.",))],
        "two videos": [("user", (part, video, "Which?")), ("assistant", ("The first [1].",))],
        "turns": [
            ("system", ("Be short.",)),
            ("user", (video, "What colour?")),
            ("assistant", ("The star is red.",)),
            ("user", ("And the other?",)),
            ("assistant", ("It is blue [1].",)),
            ("user", (still, "And here?")),
            ("assistant", ("Ünïcode, \n\n 中文 and 42.",)),
        ],
        "text": [("user", ("What colour is the sky?",)), ("assistant", ("Blue.",))],
        "box": [
            ("user", (still, "Locate the star in this picture.")),
            ("assistant", (Located((("the star", box),)),)),
        ],
        "boxes in text": [
            ("user", ("Is it ", still, " at ", Boxed(box), "?")),
            ("assistant", ("No, at ", Boxed(box))),
        ],
    }
    return {
        name: Row(tuple(Turn(*turn) for turn in turns), Origin("rows.jsonl", 1))  # type: ignore[arg-type]
        for name, turns in conversations.items()
    }


KINDS = list(rows(Path()))


def reference(encoder: Encoder, chat: Sequence[dict[str, Any]]) -> Any:
    """The whole conversation through the chat template and the processor, the usual way."""
    videos, plain = [], []
    for message in chat:
        parts = []
        for part in (
            [{"type": "text", "text": message["content"]}]
            if isinstance(message["content"], str)
            else message["content"]
        ):
            if part["type"] == "video_url":
                urls = part["video_url"]["url"].partition(",")[2].split(",")
                videos.append(decoded([base64.b64decode(one) for one in urls]))
                part = {"type": "video"}
            parts.append(part)
        plain.append({"role": message["role"], "content": parts})
    text = encoder.processor.apply_chat_template(plain, tokenize=False)
    return encoder.processor(
        text=[text],
        videos=videos or None,
        return_tensors="pt",
        text_kwargs={"return_mm_token_type_ids": True},
        videos_kwargs={"do_sample_frames": False},
    )


def answers(encoder: Encoder, item: Item) -> list[str]:
    """What the labels say, one text for each run of them."""
    runs: list[list[int]] = [[]]
    for label in item["labels"].tolist():
        if label == IGNORE:
            runs.append([])
        else:
            runs[-1].append(label)
    return [encoder.processor.tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_pixels_are_those_of_template_and_processor(
    encoder: Encoder, film: Path, kind: str
) -> None:
    row = rows(film)[kind]
    item = encoder(row)
    chat = messages(row, show_row(row, LOOK), LOOK, encoder.family)
    expected = reference(encoder, chat)
    assert set(item) == {*expected, "labels"}
    length = len(item["input_ids"])
    for name in ("input_ids", "mm_token_type_ids", "attention_mask"):
        assert item[name].tolist() == expected[name][0, :length].tolist()
    # After the last answer comes nothing but the template's line end.
    rest = encoder.processor.tokenizer.decode(expected["input_ids"][0, length:])
    assert rest == "\n"
    for name in {"pixel_values_videos", "video_grid_thw", "second_per_grid_ts"} & set(item):
        assert torch.equal(item[name], torch.as_tensor(expected[name])), name


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_the_answers_and_their_ends(encoder: Encoder, film: Path, kind: str) -> None:
    row = rows(film)[kind]
    item = encoder(row)
    chat = messages(row, show_row(row, LOOK), LOOK, encoder.family)
    said = [one["content"] + "<|im_end|>" for one in chat if one["role"] == "assistant"]
    assert answers(encoder, item) == said
    labelled = item["labels"] != IGNORE
    assert torch.equal(item["labels"][labelled], item["input_ids"][labelled])


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_a_token_for_each_merged_patch(encoder: Encoder, film: Path, kind: str) -> None:
    item = encoder(rows(film)[kind])
    media = item["input_ids"] == encoder.processor.video_token_id
    grids = item.get("video_grid_thw", torch.zeros(0, 3, dtype=torch.long))
    merge = encoder.processor.video_processor.merge_size
    assert media.sum() == grids.prod(-1).sum() // merge**2
    assert torch.equal(media, item["mm_token_type_ids"] == 2)
    assert len(item.get("pixel_values_videos", ())) == grids.prod(-1).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_measured_as_it_is_encoded(encoder: Encoder, film: Path, kind: str) -> None:
    row = rows(film)[kind]
    segments = encoder.segments(row, show_row(row, LOOK))
    item = encoder.encode(segments)
    assert encoder.measure(segments) == Measure(
        len(item["input_ids"]),
        int((item["labels"] != IGNORE).sum()),
        int((item["mm_token_type_ids"] != 0).sum()),
        len(item.get("pixel_values_videos", ())),
    )


def test_a_box_in_a_question_is_marked_by_tokens_of_the_model(bundled: Encoder, film: Path) -> None:
    ids = bundled(rows(film)["boxes in text"])["input_ids"].tolist()
    for mark in ("<|box_start|>", "<|box_end|>"):  # the question's and the answer's
        assert ids.count(bundled.processor.tokenizer.convert_tokens_to_ids(mark)) == 2


def test_boxes_in_pixels_are_of_the_picture_that_the_processor_makes(
    film: Path, tmp_path: Path
) -> None:
    processor = load_processor(str(make_answerer(tmp_path / "model", "qwen2.5-vl-3b")))
    processor.video_processor.size = {"shortest_edge": 336 * 252, "longest_edge": 448 * 336}
    encoder = Encoder(processor, LOOK, "qwen2.5-vl")
    whole = Located((("the film", Box(0, 0, 1, 1)),))
    asks = Turn("user", (Media("image", (str(film),), at_seconds=1.0), "Where?"))
    item = encoder(Row((asks, Turn("assistant", (whole,))), Origin("rows.jsonl", 1)))
    _, rows_of_patches, columns = item["video_grid_thw"][0].tolist()
    patch = processor.video_processor.patch_size
    assert columns * patch > 112  # it was enlarged
    assert f"[0, 0, {columns * patch}, {rows_of_patches * patch}]" in answers(encoder, item)[0]


def test_answers_that_are_given_are_not_learned(bundled: Encoder, film: Path) -> None:
    row = rows(film)["turns"]
    given = tuple(
        Turn(turn.role, turn.parts, trains=n != 4) for n, turn in enumerate(row.turns[:5])
    )
    item = bundled(Row(given, row.origin))
    # The question after the last answer to learn teaches nothing, so the row ends before it.
    assert answers(bundled, item) == ["The star is red [1].<|im_end|>"]
    assert item["labels"][-1] == bundled.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_row_without_an_answer_to_learn_is_refused(bundled: Encoder) -> None:
    row = Row((Turn("user", ("?",)), Turn("assistant", ("",))), Origin("rows.jsonl", 9))
    with pytest.raises(UsageError, match=r"rows\.jsonl:9: no answer of an assistant is to be"):
        bundled(row)


def test_a_template_that_rewrites_answers_is_refused(film: Path) -> None:
    processor = load_processor(str(BUNDLED))
    processor.chat_template = "{% for m in messages %}{{ m.role }}: <think></think>{% endfor %}"
    with pytest.raises(ModelError, match="rewrites earlier turns or answers"):
        Encoder(processor, LOOK, "qwen2-vl")(rows(film)["text"])


def test_a_folder_without_a_processor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{tmp_path}: its processor cannot be loaded"):
        load_processor(str(tmp_path))


# Batches


def test_a_batch_of_rows_holds_each_row(bundled: Encoder, film: Path) -> None:
    items = [bundled(row) for row in rows(film).values()]
    batch = collate(items, bundled.pad_id)
    length = max(len(item["input_ids"]) for item in items)
    assert batch["input_ids"].shape == batch["labels"].shape == (len(items), length)
    patches = 0
    for n, item in enumerate(items):
        own = len(item["input_ids"])
        for name, fill in (("input_ids", bundled.pad_id), ("labels", IGNORE)):
            assert batch[name][n, :own].tolist() == item[name].tolist()
            assert set(batch[name][n, own:].tolist()) <= {fill}
        assert batch["attention_mask"][n].sum() == own
        pixels = item.get("pixel_values_videos", torch.zeros(0, 294))
        assert torch.equal(batch["pixel_values_videos"][patches : patches + len(pixels)], pixels)
        patches += len(pixels)
    assert patches == len(batch["pixel_values_videos"])


def test_rows_without_media_make_a_batch_without_pixels(bundled: Encoder, film: Path) -> None:
    item = bundled(rows(film)["text"])
    assert "pixel_values_videos" not in collate([item, item], bundled.pad_id)


@pytest.mark.parametrize("encoder", NAMES[:2], indirect=True)
def test_a_model_answers_a_batch_as_it_answers_its_rows(encoder: Encoder, film: Path) -> None:
    """Padding, grids and pixels of several rows do not get into each other's way."""
    from transformers import AutoModelForImageTextToText

    folder = encoder.processor.tokenizer.name_or_path
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    every = rows(film)
    items = [encoder(every[kind]) for kind in ("video", "two videos", "box")]
    with torch.no_grad():
        together = model(**collate(items, encoder.pad_id))
        losses = [model(**collate([item], encoder.pad_id)) for item in items]
    for n, (item, alone) in enumerate(zip(items, losses, strict=True)):
        own = len(item["input_ids"])
        assert torch.allclose(together.logits[n, :own], alone.logits[0], atol=1e-3)


def test_a_dataset_encodes_rows_by_their_own_looks(bundled: Encoder, film: Path) -> None:
    row = rows(film)["video"]
    small = Look(max_frames=2, max_pixels=56 * 56)
    data = RowDataset([row, row], bundled, [LOOK, small])
    assert len(data) == 2
    assert [data[n]["video_grid_thw"].tolist() for n in (0, 1)] == [[[2, 12, 16]], [[1, 4, 8]]]


def test_an_unreadable_video_is_an_error_that_names_it(bundled: Encoder) -> None:
    with pytest.raises(VideoError, match=r"gone\.mp4: there is no such file"):
        bundled(rows(Path("gone.mp4"))["video"])


def test_frames_are_decoded_as_pillow_does(film: Path) -> None:
    shown = show_row(rows(film)["video"], LOOK)[0]
    frames = decoded([one.jpeg for one in shown.pictures])
    assert frames.shape == (4, 84, 112, 3)
    assert frames.dtype == np.uint8
