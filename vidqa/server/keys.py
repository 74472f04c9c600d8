"""The keys: who is asking, how often, and the cookie that stands for a key in a media address.

    keys = read_keys(flags, environment, file)        "NAME:KEY", or KEY alone
    keys.name_of(b"Bearer ...")                       compared in constant time
    Rates(60).admit("alice")                          seconds to wait, 0 when there is no need

A browser sends no header with `<video src>` and `<img src>`, so who has a key may trade it for a
cookie that opens GETs of media and nothing else. It is signed, ends by itself, and cannot be turned
back into the key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vidqa.errors import UsageError

VARIABLE, FILE_VARIABLE = "VIDQA_SERVE_KEYS", "VIDQA_SERVE_KEY_FILE"
# Too short to be guessed at a thousand tries a second for a million years.
MIN_KEY_CHARACTERS = 16
COOKIE = "vidqa_media"
COOKIE_SECONDS = 12 * 3600
NOBODY = "-"  # who asks a server that has no keys

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
# No comma, which stands between the keys of the variable.
_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]+")
_SECONDS = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True)
class Keys:
    """Names and their keys; without any, everybody is admitted as `NOBODY`."""

    by_name: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.by_name)

    def name_of(self, authorization: bytes) -> str | None:
        """Whose key an Authorization header carries; None for nobody's.

        Every key is compared, each in constant time, so that the time tells nothing of any.
        """
        if not self.by_name:
            return NOBODY
        scheme, _, given = authorization.partition(b" ")
        digest = _digest(given.strip())
        found = None
        for name, key in self.by_name.items():
            if hmac.compare_digest(digest, _digest(key.encode())):
                found = name
        return found if scheme.lower() == b"bearer" else None

    def cookie(self, name: str) -> str:
        """A value that opens media until it ends."""
        until = int(time.time()) + COOKIE_SECONDS
        return f"{name}.{until}.{self._signature(name, until)}"

    def name_of_cookie(self, value: str) -> str | None:
        """Whose cookie it is; None when it is forged, too old, or of a key that is gone."""
        name, _, rest = value.rpartition(".")[0].rpartition(".")
        signature = value.rpartition(".")[2]
        if not _SECONDS.fullmatch(rest) or name not in self.by_name:
            return None
        if not hmac.compare_digest(signature.encode(), self._signature(name, int(rest)).encode()):
            return None
        return name if int(rest) > time.time() else None

    def _signature(self, name: str, until: int) -> str:
        key = self.by_name[name].encode()
        return hmac.new(key, f"media {name} {until}".encode(), hashlib.sha256).hexdigest()


def _digest(key: bytes) -> bytes:
    """Of one length, as comparing two of different lengths would tell which is the longer."""
    return hashlib.sha256(key).digest()


def read_keys(flags: Iterable[str], environ: Mapping[str, str], file: Path | None) -> Keys:
    """All keys of a server. Raises UsageError for one that is malformed, without showing it.

    Who names a file or gives a flag means to have a key: one that is empty is an error as well.
    """
    file = file or (Path(environ[FILE_VARIABLE]) if environ.get(FILE_VARIABLE) else None)
    given = [
        *(("--api-key", one) for one in flags),
        *((VARIABLE, one) for one in environ.get(VARIABLE, "").split(",") if one.strip()),
        *(_lines(file) if file else ()),
    ]
    found: dict[str, str] = {}
    for where, text in given:
        name, key = _named(text.strip(), where)
        if found.setdefault(name, key) != key:
            raise UsageError(f"{where}: two keys named {name}; write NAME:KEY to tell them apart")
    return Keys(found)


def _lines(file: Path) -> list[tuple[str, str]]:
    """Where each key of a file stands, and what stands there."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"--api-key-file {file}: {reason}") from error
    found = [
        (f"{file}, line {number}", line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not found:
        raise UsageError(f"--api-key-file {file}: holds no key; write one [NAME:]KEY a line")
    return found


def _named(text: str, where: str) -> tuple[str, str]:
    """No part of a malformed one is shown: it may be the key that stands before the colon."""
    name, colon, key = text.partition(":")
    if not colon:
        name, key = "default", text
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{where}: a key is written NAME:KEY, its name 1 to 40 letters, digits, dots, - or _"
        )
    if not _KEY.fullmatch(key) or len(key) < MIN_KEY_CHARACTERS:
        raise UsageError(
            f"{where}: this key has {len(key)} characters; at least {MIN_KEY_CHARACTERS} of "
            "printable ASCII without a comma are needed, as from openssl rand -hex 16"
        )
    return name, key


class Rates:
    """So many requests a minute for each name, by a bucket of tokens that fills evenly.

    A minute's worth may come at once. 0 means no limit.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._turn = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def admit(self, name: str, now: float | None = None) -> float:
        """0 when a request may pass, which then counts; else the seconds until one may."""
        if not self._per_minute:
            return 0.0
        now = time.monotonic() if now is None else now
        with self._turn:
            tokens, seen = self._buckets.get(name, (float(self._per_minute), now))
            tokens = min(self._per_minute, tokens + (now - seen) * self._per_minute / 60)
            admitted = tokens >= 1
            self._buckets[name] = (tokens - admitted, now)
        return 0.0 if admitted else (1 - tokens) * 60 / self._per_minute
