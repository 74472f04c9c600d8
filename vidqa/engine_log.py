"""What vLLM's log says to somebody who waits: the stage of a start, and why it failed.

Pure functions over the text. The sentences are those of vLLM 0.32; where they change, stages become
coarser and nothing breaks.
"""

from __future__ import annotations

import re

READY = "ready"
# What vLLM 0.32 writes, newest stage first, and what that means to somebody who waits.
_STAGES = (
    ("Application startup complete", READY),
    ("Starting vLLM server", "opening the server"),
    ("init engine", "opening the server"),
    ("Loading weights took", "warming up"),
    ("Loading safetensors", "loading weights"),
    ("Starting to load model", "loading weights"),
    ("Initializing a V1 LLM engine", "setting up the engine"),
    ("Resolved architecture", "importing vLLM in the engine's process"),
)
_PERCENT = re.compile(r"Loading safetensors[^\r\n]*?(\d+)% Completed")


def stage_of(log: str) -> str:
    """What a starting engine is doing, or `READY`."""
    for sign, stage in _STAGES:
        if sign in log:
            percent = _PERCENT.findall(log) if stage == "loading weights" else []
            return f"{stage}, {percent[-1]} %" if percent else stage
    return "importing vLLM"


_RAISED = re.compile(
    r"^(?:\([^)]*\)\s)?(?:ERROR [^\]]*\]\s*)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b: .+)$"
)
# pydantic, which checks vLLM's options, says what is wrong on the line after.
_INVALID = re.compile(r"^\s*Value error, (.+?)(?: \[type=.*)?$")


def failure_reason(log: str) -> str:
    """The first error in the log: those that follow are of processes that waited for that one."""
    lines = log.splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=False):
        raised = _RAISED.match(line.strip())
        if raised:
            invalid = _INVALID.match(after)
            return invalid.group(1) if invalid else raised.group(1)
    return ""
