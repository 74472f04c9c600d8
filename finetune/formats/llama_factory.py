"""LLaMA-Factory: files that a `dataset_info.json` beside them describes.

    {"train": {"file_name": "train.jsonl", "formatting": "sharegpt",
               "columns": {"messages": "messages", "videos": "videos"},
               "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                        "assistant_tag": "assistant", "system_tag": "system"}}}

    {"messages": [{"role": "user", "content": "<video>Who opens the door?"},
                  {"role": "assistant", "content": "The red star does."}], "videos": ["a.mp4"]}

The description names columns and tags; without one, those of either kind are found. Of each file
and of `dataset_info.json` itself (which means all files that it names) one may be read. A video is
a path, or the list of its frames. Names of the fields: the project's data/README.md.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from finetune.formats import alpaca
from finetune.formats.base import Format, messages_of
from finetune.formats.containers import Record, records, whole
from finetune.formats.reading import ROLES, Reading, Source, Tags
from finetune.formats.writing import Target, Writing, each
from finetune.rows import Row
from vidqa.errors import UsageError

INFO: Final = "dataset_info.json"
_DEFAULT_TAGS: Final = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
}
_OPENAI_TAGS: Final = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
_MESSAGES: Final = ("messages", "conversations")
_ELSEWHERE: Final = ("hf_hub_url", "ms_hub_url", "om_hub_url", "cloud_file_name", "script_url")

Description = Mapping[str, Any]


def descriptions(path: Path) -> dict[str, Description]:
    """What a dataset_info.json says of each data set; none where there is no such file.

    Raises UsageError for one that cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read: {error}; mend it, or give --format") from error
    if not isinstance(value, dict):
        return {}  # ms-swift has lists under this name
    return {name: one for name, one in value.items() if isinstance(one, dict)}


def description_of(path: Path) -> Description | None:
    """What the dataset_info.json beside a data file says of it."""
    for one in descriptions(path.parent / INFO).values():
        name = one.get("file_name")
        if isinstance(name, str) and (path.parent / name).resolve() == path.resolve():
            return one
    return None


def _fits(value: Mapping[str, Any]) -> bool:
    return bool(messages_of(value, "conversations")) and ("videos" in value or "images" in value)


def _read(found: Iterable[Record], source: Source) -> Iterator[Row]:
    path = Path(source.file)
    if path.name == INFO:
        yield from _read_all(path, source)
        return
    yield from _rows(found, source, description_of(path))


def _read_all(path: Path, source: Source) -> Iterator[Row]:
    known = descriptions(path)
    for name, one in known.items():
        if not isinstance(one.get("file_name"), str):
            where = next((key for key in _ELSEWHERE if key in one), "no file_name")
            raise UsageError(f"{path}: {name} has {where}; download it and give it a file_name")
        file = path.parent / one["file_name"]
        inner = dataclasses.replace(source, file=str(file), elsewhere=(path.parent,))
        yield from _rows(records(file), inner, one)


def _rows(found: Iterable[Record], source: Source, one: Description | None) -> Iterator[Row]:
    if one is not None and one.get("ranking"):
        raise UsageError(
            f"{source.file}: is data of preferences (ranking), which vidqa does not train on; "
            "give a file of questions and answers"
        )
    for record in found:
        reading = Reading(record, source)
        if not reading.fields and reading.faults:
            yield reading.row(())
        elif one is None:
            yield _undescribed(reading)
        elif one.get("formatting", "alpaca") == "alpaca":
            yield alpaca.read_row(reading, _columns(one))
        else:
            yield _sharegpt(reading, _columns(one), _tags(one))


def _columns(one: Description) -> dict[str, str]:
    columns = one.get("columns") or {}
    return {key: name for key, name in columns.items() if isinstance(name, str)}


def _tags(one: Description) -> Tags:
    names = {**_DEFAULT_TAGS, **(one.get("tags") or {})}
    return Tags(
        {
            names["system_tag"]: "system",
            names["user_tag"]: "user",
            names["assistant_tag"]: "assistant",
        },
        (names["role_tag"],),
        (names["content_tag"],),
    )


def _undescribed(reading: Reading) -> Row:
    if any(name in reading.fields for name in _MESSAGES):
        return _sharegpt(reading, {}, Tags(ROLES))
    return alpaca.read_row(reading)


def _sharegpt(reading: Reading, columns: Mapping[str, str], tags: Tags) -> Row:
    # `messages` is by default called conversations; a description seldom leaves it out.
    turns = reading.conversation(
        reading.take(*([columns["messages"]] if "messages" in columns else reversed(_MESSAGES))),
        reading.media("video", columns.get("videos", "videos"), "video"),
        reading.media("image", columns.get("images", "images"), "image"),
        tags=tags,
    )
    return reading.row(reading.with_system(turns, columns.get("system", "system")))


def _write(rows: Sequence[Row], target: Target) -> Sequence[Mapping[str, Any]]:
    found = each(rows, target, _record)
    _describe(target.path, found)
    return found


def _record(writing: Writing) -> dict[str, Any]:
    known = ("messages", "conversations", "videos", "images", "video", "image", "system")
    return {
        "messages": writing.messages(),
        **writing.lists(),
        **writing.fields(*known),
    }


def _describe(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Puts the file into the dataset_info.json beside it; what else is in there stays."""
    info = path.parent / INFO
    kinds = [kind for kind in ("videos", "images") if any(kind in one for one in found)]
    known = dict(descriptions(info))
    known[path.stem] = {
        "file_name": path.name,
        "formatting": "sharegpt",
        "columns": {name: name for name in ("messages", *kinds)},
        "tags": _OPENAI_TAGS,
    }
    with whole(info) as temporary:
        temporary.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", "utf-8")


LLAMA_FACTORY = Format(
    "llama-factory",
    "LLaMA-Factory: messages with <video> and <image>, described by dataset_info.json",
    _fits,
    _read,
    _write,
)
