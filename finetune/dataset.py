"""Rows -> tensors: the tokens and pixels that the served model is given, and what it is to answer.

    encoder = Encoder(processor, look, "qwen2-vl", shelf)
    item = encoder(row)                         input_ids, labels, pixel_values_videos, ...
    data = RowDataset(rows, encoder)            a torch Dataset of such items
    batch = collate([data[0], data[1]], encoder.pad_id)

The chat template and the processor are the model's own, and run as vLLM runs them: a prompt and an
answer are tokenized apart, frames are taken as they are sent. Only an assistant's words and their
`<|im_end|>` are labelled. Nothing is cut off: that a row is too long is seen in `plan`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from finetune.layout import Look, Shown, messages
from finetune.media import show_row
from finetune.rows import Row
from finetune.shelf import Shelf
from vidqa.boxes import Sight
from vidqa.errors import ModelError, UsageError
from vidqa.pictures import jpeg_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidqa.boxes import Family

IGNORE = -100
END_OF_TURN = "<|im_end|>"

# How each tensor of a batch is filled up; the others are joined end to end.
_PADDED = {"input_ids": None, "attention_mask": 0, "labels": IGNORE, "mm_token_type_ids": 0}

# Processors that give a video its patches' tokens and nothing else, such as times.
_KNOWN_LAYOUTS = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")

Item = dict[str, Tensor]
"""One row: input_ids, attention_mask, labels, mm_token_type_ids, int64 (L,); where it has media,
pixel_values_videos float32 (patches, pixels of a patch), video_grid_thw int64 (videos, 3), and what
else the processor makes of videos."""


def load_processor(model: str) -> Any:
    """The processor of a model's folder, from the disk alone."""
    from vidqa.compat import declare_torchvision_operators

    declare_torchvision_operators()
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            model, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{model}: its processor cannot be loaded: {reason}") from error
    if not hasattr(processor, "video_processor"):
        raise ModelError(f"{model}: is no model that takes videos; name a Qwen2-VL")
    return processor


@dataclass(frozen=True, slots=True)
class Segments:
    """A conversation as text, cut before and after each answer that is to be learned.

    Texts that are learned follow those that are not: `texts[1::2]` are the answers.
    """

    texts: tuple[str, ...]
    videos: tuple[tuple[bytes, ...], ...]

    @property
    def answers(self) -> tuple[str, ...]:
        return self.texts[1::2]


@dataclass(frozen=True, slots=True)
class Measure:
    """Tokens of a row, those that are learned and those of media among them; patches of pixels."""

    tokens: int
    answer_tokens: int
    media_tokens: int
    patches: int


class Encoder:
    """Rows become what the model is trained on; see `Item`.

    `processor` is the base model's own, `family` says how it writes boxes. `shelf` keeps pictures.
    """

    def __init__(
        self, processor: Any, look: Look, family: Family, shelf: Shelf | None = None
    ) -> None:
        self.processor = processor
        self.look = look
        self.family = family
        self.sight = _sight(processor.video_processor, family)
        self.shelf = shelf
        pad = processor.tokenizer.pad_token_id
        self.pad_id: int = processor.tokenizer.eos_token_id if pad is None else pad

    def __call__(self, row: Row, look: Look | None = None) -> Item:
        """Encodes a row, by another look than the encoder's own where one is given.

        Raises VideoError where its media cannot be read, UsageError where there is nothing to
        learn in it.
        """
        look = look or self.look
        return self.encode(self.segments(row, show_row(row, look, self.shelf), look))

    def segments(self, row: Row, shown: Sequence[Shown], look: Look | None = None) -> Segments:
        """The text of a row, by the model's chat template, and the frames that it names."""
        chat = messages(row, shown, look or self.look, self.family, self.sight.shown_size)
        learned = [n for n, turn in enumerate(_turns(row, chat)) if turn]
        if not learned:
            raise UsageError(f"{row.origin}: no answer of an assistant is to be learned")
        texts: list[str] = []
        done = 0
        whole = self._render(chat)
        for n in learned:
            prompt = self._render(chat[:n], add_generation_prompt=True)
            answer = chat[n]["content"] + END_OF_TURN
            if not whole.startswith(prompt) or not whole.startswith(answer, len(prompt)):
                raise ModelError(
                    "the model's chat template rewrites earlier turns or answers, so what it "
                    "learned would not be what it is asked; use its own original template"
                )
            texts += [prompt[done:], answer]
            done = len(prompt) + len(answer)
        videos = [
            _frames(part)
            for message in chat[: learned[-1]]
            if not isinstance(message["content"], str)
            for part in message["content"]
            if part["type"] == "video_url"
        ]
        return Segments(tuple(texts), tuple(videos))

    def measure(self, segments: Segments) -> Measure:
        """How long a row is, without computing pixels where the processor's layout is known."""
        videos = self.processor.video_processor
        if type(self.processor).__name__ not in _KNOWN_LAYOUTS or videos.cap_pixels_per_frame:
            item = self.encode(segments)
            media = int((item["mm_token_type_ids"] != 0).sum())
            answers = int((item["labels"] != IGNORE).sum())
            patches = len(item.get("pixel_values_videos", ()))
            return Measure(len(item["input_ids"]), answers, media, patches)
        lengths = [
            len(ids)
            for ids in self.processor.tokenizer(
                list(segments.texts), add_special_tokens=False, padding=False
            )["input_ids"]
        ]
        patches = sum(self.patches(len(one), jpeg_size(one[0])) for one in segments.videos)
        media = patches // videos.merge_size**2
        # Each video has one token in the text, which stands for all of its own.
        tokens = sum(lengths) - len(segments.videos) + media
        return Measure(tokens, sum(lengths[1::2]), media, patches)

    def patches(self, frames: int, size: tuple[int, int]) -> int:
        """Patches of a video of so many frames of that (width, height), after resizing."""
        width, height = size
        return int(
            self.processor.video_processor.get_num_of_video_patches(frames, height, width, {})
        )

    def encode(self, segments: Segments) -> Item:
        """Token ids, labels and pixels."""
        made = self._process(segments)
        ids: list[int] = []
        labels: list[int] = []
        for n, piece in enumerate(made["input_ids"]):
            ids += piece
            labels += piece if n % 2 else [IGNORE] * len(piece)
        kinds = [kind for piece in made["mm_token_type_ids"] for kind in piece]
        item = {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.ones(len(ids), dtype=torch.long),
            "labels": torch.tensor(labels),
            "mm_token_type_ids": torch.tensor(kinds),
        }
        rest = made.keys() - item.keys()
        return item | {name: torch.as_tensor(made[name]) for name in sorted(rest)}

    def _process(self, segments: Segments) -> Mapping[str, Any]:
        """What vLLM asks of the processor, for all segments at once."""
        videos = [decoded(frames) for frames in segments.videos]
        return self.processor(  # type: ignore[no-any-return]
            text=list(segments.texts),
            videos=[torch.from_numpy(one).permute(0, 3, 1, 2) for one in videos] or None,
            text_kwargs={
                "add_special_tokens": False,
                "padding": False,
                "return_mm_token_type_ids": True,
            },
            videos_kwargs={"do_sample_frames": False},
        ).data

    def _render(self, chat: Sequence[Mapping[str, Any]], **options: Any) -> str:
        return self.processor.apply_chat_template(  # type: ignore[no-any-return]
            [_for_template(one) for one in chat], tokenize=False, **options
        )


def _sight(videos: Any, family: Family) -> Sight:
    """How the model sees pictures, by the processor that they go through."""
    return Sight(
        family,
        factor=videos.patch_size * videos.merge_size,
        min_pixels=videos.size["shortest_edge"],
        max_pixels=videos.size["longest_edge"],
    )


def _turns(row: Row, chat: Sequence[Mapping[str, Any]]) -> list[bool]:
    """For each message whether it is an answer to be learned."""
    trains = iter([turn.trains for turn in row.turns if turn.role == "assistant"])
    return [one["role"] == "assistant" and next(trains) and bool(one["content"]) for one in chat]


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as vLLM gives it to a chat template: frame lists are videos, without the frames."""
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    parts = [{"type": "video"} if one["type"] == "video_url" else one for one in content]
    return {"role": message["role"], "content": parts}


def _frames(part: Mapping[str, Any]) -> tuple[bytes, ...]:
    encoded = part["video_url"]["url"].partition(",")[2]
    return tuple(base64.b64decode(one) for one in encoded.split(","))


def decoded(jpegs: Sequence[bytes]) -> NDArray[np.uint8]:
    """Frames as vLLM decodes them: RGB uint8 (N, height, width, 3)."""
    from PIL import Image

    pictures = []
    for jpeg in jpegs:
        with Image.open(io.BytesIO(jpeg)) as image:
            pictures.append(np.asarray(image.convert("RGB")))
    return np.stack(pictures)


def collate(items: Sequence[Item], pad_id: int) -> Item:
    """A batch: sequences (B, L) filled up at their ends; pixels and grids of all rows joined."""
    batch: Item = {}
    for name in dict.fromkeys(name for item in items for name in item):
        tensors = [item[name] for item in items if name in item]
        if name in _PADDED:
            fill = _PADDED[name]
            batch[name] = torch.nn.utils.rnn.pad_sequence(
                tensors, batch_first=True, padding_value=pad_id if fill is None else fill
            )
        else:
            batch[name] = torch.cat(tensors)
    return batch


class RowDataset(Dataset[Item]):
    """Rows, encoded when they are asked for. `looks` are those of single rows, as planned."""

    def __init__(
        self, rows: Sequence[Row], encoder: Encoder, looks: Sequence[Look] | None = None
    ) -> None:
        self.rows = rows
        self.encoder = encoder
        self.looks = looks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> Item:
        return self.encoder(self.rows[at], self.looks[at] if self.looks else None)
