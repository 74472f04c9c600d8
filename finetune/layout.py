"""A row becomes chat messages, in the very words and pictures that it will be asked with.

    look = Look(max_frames=8)
    messages(row, shown, look, "qwen2-vl")      shown: what media.show_row(row, look, shelf) gives

Layout "ask" is what `vidqa.prompt` builds: labels with times before each video, subtitles, and
citations. Layout "plain" is the conversation as it stands in the row, which is how a picture is
asked for boxes. Pure functions over records: nothing here reads a file or knows a tokenizer.
Whether a row makes sense is `check`'s to say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from finetune.rows import Boxed, Located, Media, Part, Ref, Row, Turn
from vidqa import boxes, prompt
from vidqa.boxes import Family, ShownSize
from vidqa.errors import UsageError
from vidqa.pictures import PICTURE_LONG_SIDE, PICTURE_SHORT_SIDE, jpeg_size
from vidqa.types import Moment, Picture, ShownMoment
from vidqa.vlm import in_plain_words

Layout = Literal["auto", "ask", "plain"]

# What structures a chat and marks media: in an answer an accident, or an attempt to end the turn.
# Marks of names and boxes are what some models are to write.
_CONTROL = re.compile(r"<\|(?=(?:im_start|im_end|endoftext|vision_\w+|\w+_pad)\|>)")

# Stands for a box of ours while a text is put in plain words; of Unicode's private characters.
_HELD = "\ue000{}\ue001"


@dataclass(frozen=True, slots=True)
class Look:
    """What decides the prompt and the pixels: the same in training and when the adapter answers.

    layout        "ask", "plain", or "auto": plain for rows with boxes, ask for all others
    cite          answers about a single moment end in its citation
    max_frames    of all videos of a row together; pictures are not counted
    frames_per_moment   of one of them, at most
    max_pixels    of one frame
    sample_fps    frames a second that are sampled, of which `max_frames` are chosen evenly
    """

    layout: Layout = "auto"
    cite: bool = True
    max_frames: int = 16
    frames_per_moment: int = 768
    max_pixels: int = PICTURE_LONG_SIDE * PICTURE_SHORT_SIDE
    sample_fps: float = 1.0

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            allowed = ", ".join(get_args(Layout))
            raise UsageError(f"layout {self.layout!r}: choose one of {allowed}")
        if self.max_frames < 2:
            raise UsageError(f"max_frames {self.max_frames}: at least 2, as frames go in pairs")
        if self.frames_per_moment < 2:
            raise UsageError(
                f"frames_per_moment {self.frames_per_moment}: at least 2, as frames go in pairs"
            )
        if self.max_pixels < 28 * 28:
            raise UsageError(f"max_pixels {self.max_pixels}: at least {28 * 28}, one visual token")
        if not self.sample_fps > 0:
            raise UsageError(f"sample_fps {self.sample_fps:g}: more than 0 is required")


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of one medium: pictures in order of time, all of one size, at least one.

    `width` and `height` are those of the original in pixels, as displayed. The pictures are of
    `[start_seconds, end_seconds)` of it; both are the time of the frame where that is one alone.
    """

    pictures: tuple[Picture, ...]
    width: int
    height: int
    start_seconds: float
    end_seconds: float


def layout_of(row: Row, look: Look) -> Literal["ask", "plain"]:
    """The layout that a row gets: the look's, where that is "auto" by whether it has boxes."""
    if look.layout != "auto":
        return look.layout
    return "plain" if any(isinstance(one, Boxed | Located) for one in row.parts) else "ask"


def messages(
    row: Row,
    shown: Sequence[Shown],
    look: Look,
    family: Family,
    shown_size: ShownSize = boxes.resized,
) -> list[dict[str, Any]]:
    """OpenAI messages of the whole conversation; the assistant's have a string as their content.

    `shown` is one for each of `row.media`, `shown_size` what the model's processor makes of a
    picture's size (`Sight.shown_size`). Media go as lists of frames. Text of system and user is
    in plain words but for the marks of the row's own boxes, so it is to be sent as it is
    (`is_plain` of `AsyncVlmClient.reply`). Raises UsageError where the numbers differ.
    """
    if len(shown) != len(row.media):
        raise UsageError(f"{row.origin}: {len(row.media)} media, but {len(shown)} are shown")
    asks = layout_of(row, look) == "ask"
    return (_Asking if asks else _Layout)(row, shown, look, family, shown_size).messages()


class _Layout:
    """Layout "plain": every part where it stands."""

    def __init__(
        self,
        row: Row,
        shown: Sequence[Shown],
        look: Look,
        family: Family,
        shown_size: ShownSize,
    ) -> None:
        self._row, self._shown, self._look, self._family = row, shown, look, family
        self._shown_size = shown_size
        self._met = 0  # media of the turns before
        self._held: list[str] = []  # boxes of questions, as the family writes them

    def messages(self) -> list[dict[str, Any]]:
        return [self._message(turn) for turn in self._row.turns]

    def _message(self, turn: Turn) -> dict[str, Any]:
        if turn.role == "assistant":
            return {"role": "assistant", "content": self._answer(turn)}
        return self._plain({"role": turn.role, "content": self._content(turn)})

    def _plain(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message in plain words, with the boxes that were held back in their places."""
        (plain,) = in_plain_words([message])
        content = plain["content"]
        if isinstance(content, str):
            return plain | {"content": self._with_boxes(content)}
        texts = [
            part | {"text": self._with_boxes(part["text"])} if part["type"] == "text" else part
            for part in content
        ]
        return plain | {"content": texts}

    def _with_boxes(self, text: str) -> str:
        for n, box in enumerate(self._held):
            text = text.replace(_HELD.format(n), box)
        return text

    def _content(self, turn: Turn) -> Any:
        """The parts, or a string where nothing but text is said."""
        pieces = self._pieces(turn)
        if turn.role == "system":
            return " ".join(one for one in pieces if isinstance(one, str))
        return [
            prompt.text_part(one) if isinstance(one, str) else prompt.frames_part(_jpegs(*one))
            for one in pieces
        ]

    def _pieces(self, turn: Turn) -> list[str | tuple[Media, Shown]]:
        """Texts and media in turn, texts joined and without the space that formats put at media."""
        pieces: list[str | tuple[Media, Shown]] = []
        for part in turn.parts:
            if isinstance(part, Media):
                pieces.append((part, self._shown[self._met]))
                self._met += 1
            elif pieces and isinstance(pieces[-1], str):
                pieces[-1] += self._text(part, "user")
            else:
                pieces.append(self._text(part, "user"))
        return _tidy(pieces)

    def _answer(self, turn: Turn) -> str:
        said = "".join(self._text(part, "assistant") for part in turn.parts).strip()
        return _CONTROL.sub("< |", said)

    def _text(self, part: Part, role: str) -> str:
        if isinstance(part, str):
            return part
        if isinstance(part, Ref):
            return boxes.write_ref(self._family, part.text) if role == "assistant" else part.text
        if isinstance(part, Media):
            return ""
        sizes = self._sizes(part.media)
        if isinstance(part, Boxed):
            written = boxes.write_box(self._family, part.box, *sizes)
        else:
            written = boxes.write_located(self._family, part.things, *sizes)
        # Only qwen2-vl has marks, and breaks up those in names; in JSON a name is anybody's text.
        if role == "assistant" or self._family != "qwen2-vl":
            return written
        self._held.append(written)
        return _HELD.format(len(self._held) - 1)

    def _sizes(self, media: int) -> tuple[boxes.Size, boxes.Size]:
        """The size of the original and of what the model sees, as (width, height)."""
        if not 0 <= media < len(self._shown):
            raise UsageError(
                f"{self._row.origin}: a box is in medium {media}, counted from 0; "
                f"there are {len(self._shown)}"
            )
        shown = self._shown[media]
        return (shown.width, shown.height), self._shown_size(*jpeg_size(shown.pictures[0].jpeg))


class _Asking(_Layout):
    """Layout "ask": what `vidqa ask` asks."""

    def messages(self) -> list[dict[str, Any]]:
        system = "\n".join(self._content(turn) for turn in self._row.turns if turn.role == "system")
        first = prompt.build_messages("", (), instructions=system)[:1]
        turns = [turn for turn in self._row.turns if turn.role != "system"]
        return [self._plain(one) for one in first] + [self._message(turn) for turn in turns]

    def _content(self, turn: Turn) -> Any:
        if turn.role == "system":
            return super()._content(turn)
        moments: list[ShownMoment] = []
        jpegs: list[bytes] = []
        number = sum(one.kind == "video" for one in self._row.media[: self._met])
        for media in (part for part in turn.parts if isinstance(part, Media)):
            shown = self._shown[self._met]
            self._met += 1
            if media.kind == "video":
                number += 1
                moments.append(ShownMoment(number, _moment(media, shown), shown.pictures))
            else:
                jpegs += [one.jpeg for one in shown.pictures[:1]]
        texts = [self._text(part, "user") for part in turn.parts]
        return prompt.user_content("".join(texts), moments, jpegs)

    def _answer(self, turn: Turn) -> str:
        answer = super()._answer(turn)
        located = any(isinstance(part, Boxed | Located) for part in turn.parts)
        moments = sum(one.kind == "video" for one in self._row.media)
        return cited(answer) if self._look.cite and moments == 1 and not located else answer


def cited(answer: str) -> str:
    """`The star is red [1].` of `The star is red.`; unchanged where nothing is to be cited."""
    if not answer or answer == prompt.NOT_SHOWN or prompt.has_marker(answer):
        return answer
    if answer.endswith(".") and not answer.endswith(".."):
        return f"{answer[:-1].rstrip()} [1]."
    return f"{answer} [1]"


def _moment(media: Media, shown: Shown) -> Moment:
    start, end = shown.start_seconds, shown.end_seconds
    return Moment(
        video=video_name(media),
        video_id="",
        start_seconds=start,
        end_seconds=end,
        score=0.0,
        frame_seconds=tuple(one.seconds for one in shown.pictures),
        texts=tuple(
            one for one in media.texts if one.start_seconds < end and start < one.end_seconds
        ),
    )


def video_name(media: Media) -> str:
    """The path that a video is labelled by: for single frames that of their folder."""
    first = media.paths[0]
    return first.replace("\\", "/").rpartition("/")[0] or first if len(media.paths) > 1 else first


def _jpegs(media: Media, shown: Shown) -> list[bytes]:
    """A picture goes as a pair of equal frames, which costs what one frame would."""
    jpegs = [one.jpeg for one in shown.pictures]
    return jpegs[:1] * 2 if media.kind == "image" else jpegs


def _tidy(pieces: list[str | tuple[Media, Shown]]) -> list[str | tuple[Media, Shown]]:
    """Without white space at both ends, after leading and before trailing media, and line ends
    beside media: each format writes its placeholders with another of these."""
    places = [at for at, one in enumerate(pieces) if isinstance(one, str) and one.strip()]
    tidied: list[str | tuple[Media, Shown]] = []
    for at, one in enumerate(pieces):
        if isinstance(one, str):
            if at not in places:
                continue
            one = one.lstrip() if at == places[0] else one.lstrip("\r\n")
            one = one.rstrip() if at == places[-1] else one.rstrip("\r\n")
        tidied.append(one)
    return tidied
