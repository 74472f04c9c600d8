"""Files that are there whole or as they were before, whatever happens to whoever writes them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO, Any


def write_whole(path: Path, content: bytes, *, on_disk: bool = False) -> None:
    """Puts `content` in the place of a file, by way of `NAME.PID` beside it; makes its folder.

    With `on_disk` it also outlives a power cut. Raises OSError, and then leaves no draft.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            if on_disk:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def take_lock(file: IO[Any], path: Path) -> bool:
    """Locks an open file for this process, if nobody has; False where that is not possible.

    Another may have put a new file in its place, or removed it: a lock on the former holds nothing.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False
