"""What holds for every test: nothing reaches the network, nothing logs an ERROR, nothing of the
user's own settings leaks in. Fixtures that start the real vLLM live in `engine_fixture.py`, those
that start the real server in `serve_fixture.py`.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parent.parent

# Child processes inherit these, where the guard on sockets below does not reach.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
# A job in the background of a shell ignores Ctrl-C, and so would the child processes of tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in [name for name in os.environ if name.startswith("VIDQA_")]:
    del os.environ[name]

# hypothesis asserts times by default: how long an example and its making take.
settings.register_profile("vidqa", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vidqa")

pytest_plugins = ["engine_fixture", "serve_fixture"]


class NetworkBlocked(Exception):
    """A test tried to leave this machine; not an OSError, so that no retry swallows it."""


def _stays_here(address: Any) -> bool:
    if not isinstance(address, tuple):  # a Unix socket
        return True
    host = address[0].decode() if isinstance(address[0], bytes) else address[0]
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    connect, connect_ex, getaddrinfo = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.getaddrinfo,
    )

    def guarded(original: Any, address_index: int) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            address = arguments[address_index]
            target = address if address_index else (address,)
            if target != (None,) and not _stays_here(target):
                raise NetworkBlocked(f"a test tried to reach {target!r}")
            return original(*arguments, **options)

        return call

    patch.setattr(socket.socket, "connect", guarded(connect, 1))
    patch.setattr(socket.socket, "connect_ex", guarded(connect_ex, 1))
    patch.setattr(socket, "getaddrinfo", guarded(getaddrinfo, 0))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _no_error_logs(
    caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> Iterator[None]:
    yield
    errors = [
        record.getMessage()
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.levelno >= logging.ERROR
    ]
    if errors:
        pytest.fail(f"{len(errors)} ERROR in the log; the first: {errors[0]}")
