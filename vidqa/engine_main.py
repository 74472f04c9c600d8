"""The managed engine's process: `python -m vidqa.engine_main LOCK_FD IDLE_SECONDS FLAG...`

It leaves the command that started it, holds the lock that says it lives, watches for idleness and
becomes vLLM's API server. vLLM spawns children that import this module again, under another name;
they get what they need from that import and run nothing else of it. Which flags vLLM is given is
decided in `vidqa.engine`.
"""

from __future__ import annotations

import os
import sys

from vidqa.children import die_with_parent
from vidqa.compat import declare_torchvision_operators, mend_patch_merger


def detach(lock_fd: int) -> None:
    """Goes on as the leader of a new session and writes its process id into the lock file.

    The lock belongs to the open file, which the fork shares: it is held until this process ends,
    however it ends. Children do not inherit it.
    """
    if os.fork():
        os._exit(0)
    os.setsid()
    os.set_inheritable(lock_fd, False)
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, str(os.getpid()).encode(), 0)


def inspect_models_here() -> None:
    """vLLM imports itself once more in a process of its own only to look at the model's class.

    It does so to keep CUDA out of the server; without CUDA that process costs 13 CPU seconds for
    nothing. It is also the one process that does not import this module first.
    """
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        registry._run_in_subprocess = lambda function: function()


def main(lock_fd: int, idle_seconds: float, flags: list[str]) -> None:
    from vidqa.engine_gate import stop_when_idle

    detach(lock_fd)
    stop_when_idle(idle_seconds)
    declare_torchvision_operators()
    inspect_models_here()
    from vllm.entrypoints.launchers.api_server import entry

    sys.argv = ["vllm", *flags]
    entry.main()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
elif __name__ == "__mp_main__":
    # No child of a killed server stays behind.
    die_with_parent()
    declare_torchvision_operators()
    mend_patch_merger()
