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
from finetune.formats.containers import Record, records
from finetune.formats.reading import ROLES, Reading, Source, Tags, named
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
    value = _content(path)
    if not isinstance(value, dict):
        return {}  # ms-swift has lists under this name
    return {name: one for name, one in value.items() if isinstance(one, dict)}


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read: {error}; mend it, or give --format") from error


def description_of(path: Path) -> Description | None:
    """What the dataset_info.json beside a data file says of it."""
    known = descriptions(path.parent / INFO)
    name = _name_of(path, known)
    return None if name is None else known[name]


def _name_of(path: Path, known: Mapping[str, Any]) -> str | None:
    """The name under which a data file is described, in the dataset_info.json beside it."""
    for name, one in known.items():
        file = one.get("file_name") if isinstance(one, dict) else None
        if isinstance(file, str) and (path.parent / file).resolve() == path.resolve():
            return name
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
    known = _with_description(target.path, found)
    target.beside[INFO] = json.dumps(known, indent=2, ensure_ascii=False) + "\n"
    return found


def _record(writing: Writing) -> dict[str, Any]:
    known = ("messages", "conversations", "videos", "images", "video", "image", "system")
    return {
        "messages": writing.messages(),
        **writing.lists(),
        **writing.fields(*known),
    }


def _with_description(path: Path, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the dataset_info.json beside a file is to say: what it says now, and of the file.

    Raises UsageError where that would take the place of what is somebody else's.
    """
    info = path.parent / INFO
    if path.name == INFO:
        raise UsageError(f"{path}: is the name of the description; give the data another one")
    known = _content(info)
    if not isinstance(known, dict):
        raise UsageError(
            f"{info}: holds {named(known)}, and LLaMA-Factory wants an object there; "
            "write to another folder"
        )
    name = _name_of(path, known)
    if name is None and path.stem in known:
        raise UsageError(
            f"{info}: {path.stem!r} is {named(known[path.stem])} already, not {path.name}; "
            "give the file another name, or write to another folder"
        )
    kinds = [kind for kind in ("videos", "images") if any(kind in one for one in found)]
    description = {
        "file_name": path.name,
        "formatting": "sharegpt",
        "columns": {one: one for one in ("messages", *kinds)},
        "tags": _OPENAI_TAGS,
    }
    return {**known, name or path.stem: description}


LLAMA_FACTORY = Format(
    "llama-factory",
    "LLaMA-Factory: messages with <video> and <image>, described by dataset_info.json",
    _fits,
    _read,
    _write,
)
