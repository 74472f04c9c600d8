"""Values that users choose: fields of a record with their bounds, help and flags.

    rank: int = setting(16, "Rank of the adapter.", choices=(8, 16, 32))

`Settings` and training's `Recipe` are such records. Each value is written in a file, a variable or
a flag; all are converted and refused here, in the same words.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import Field, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from vidqa.errors import ConfigError

Table = Mapping[str, Field[Any]]


class Bounds(NamedTuple):
    """What a setting may be: `minimum <= value <= maximum`, or one of `choices`."""

    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        """In words, empty where anything goes."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum:.15g} to {self.maximum:.15g}"
        if self.minimum is not None:
            return f"at least {self.minimum:.15g}"
        return ""

    def admit(self, value: object) -> bool:
        if self.choices:
            return value in self.choices
        if isinstance(value, int | float):
            low = self.minimum is None or value >= self.minimum
            return low and (self.maximum is None or value <= self.maximum)
        return True


def setting(
    default: object,
    help_text: str,
    *,
    kind: type | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str | int, ...] = (),
    flag: str | None = None,
    secret: bool = False,
) -> Any:
    """A field of such a record. `kind` is needed where the default is None."""
    metadata = {
        "help": help_text,
        "flag": flag,
        "kind": kind or type(default),
        "bounds": Bounds(minimum, maximum, choices),
        "secret": secret,
    }
    return field(default=default, repr=not secret, metadata=metadata)


def table_of(record: type) -> dict[str, Field[Any]]:
    """Name -> field of a record's settings; other fields are not a user's to choose."""
    return {one.name: one for one in fields(record) if one.metadata}


def flag_in(table: Table, name: str) -> str:
    """The flag of a setting on the command line: `max_frames` is `--frames`."""
    flag: str | None = table[name].metadata["flag"] if name in table else None
    return flag or "--" + name.replace("_", "-")


def read_yaml(path: Path, unreadable: str) -> dict[str, object]:
    """The `name: value` lines of a file; `unreadable` is what to say, with `{}` for the reason."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(unreadable.format(reason)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}: line {mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML; write one `name: value` a line") from error
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path}: holds no settings; write one `name: value` a line")
    return {str(name): value for name, value in (content or {}).items()}


def convert(table: Table, name: str, value: object, where: str) -> Any:
    """One value in its setting's type; `where` is how the user wrote its name.

    Raises ConfigError: no such name, not of its type, out of its bounds.
    """
    known = table.get(name)
    if known is None:
        raise ConfigError(f"{where}: no such setting; {nearest(name, table)}")
    if value is None and known.default is None:
        return None
    kind = known.metadata["kind"]
    try:
        converted = _CONVERTERS[kind](value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{where}: {value!r} is not {_KIND_NAMES[kind]}") from None
    check_bounds(known, converted, where)
    return converted


def check_bounds(known: Field[Any], value: object, where: str) -> None:
    bounds: Bounds = known.metadata["bounds"]
    if not bounds.admit(value):
        raise ConfigError(f"{where}: {value} is not allowed; {bounds} is")


def nearest(name: str, known: Table, prefix: str = "") -> str:
    """Advice for a name that is not known; with `prefix`, names are as variables have them.

    Flags count as well: who knows `--lr` may write `lr` into a file.
    """
    by_flag = {flag_in(known, one).strip("-").replace("-", "_"): one for one in known}
    close = difflib.get_close_matches(name, [*known, *by_flag], n=1, cutoff=0.5)
    if not close:
        return f"known are {', '.join(known)}"
    meant = close[0] if close[0] in known else by_flag[close[0]]
    flag = "" if close[0] == meant else f" (its flag is {flag_in(known, meant)})"
    return f"did you mean {prefix + meant.upper() if prefix else meant}?{flag}"


def _to_bool(value: object) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    text = str(value).lower()
    if text not in known:
        raise ValueError(value)
    return known[text]


def _to_int(value: object) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(value)
    return int(value)  # type: ignore[call-overload, no-any-return]


def _to_float(value: object) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    number = float(value)  # type: ignore[arg-type]
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(value)
    return number


def _to_text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(value)
    return value


def _to_path(value: object) -> Path:
    return Path(os.path.expanduser(value if isinstance(value, Path) else _to_text(value)))


_CONVERTERS = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_text, Path: _to_path}
_KIND_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a folder",
}
