"""`vidqa mcp`: the tools for agents over stdin and stdout, for a program that starts them itself.

    serve_stdio(settings, libraries, on_engine)

Libraries are only read, and must be there. The model is started when the first question comes, and
our engine may stop between questions; searching, listing and looking need none.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio

from vidqa.config import Settings
from vidqa.server.engine import Answerer
from vidqa.server.gateway import Gateway, open_shelf
from vidqa.server.mcp import speak
from vidqa.server.metrics import Metrics
from vidqa.server.run import DEFAULT_LIBRARY, ServeOptions
from vidqa.server.tools import Tools
from vidqa.wiring import endpoint


def serve_stdio(
    settings: Settings,
    libraries: Sequence[tuple[str, Path]] = (),
    on_engine: Callable[[str, str], None] = lambda state, detail: None,
) -> None:
    """Serves until stdin ends. Raises LibraryError when a library is not there.

    `on_engine` hears the engine's state and what it is doing, as often as that changes.
    """
    ServeOptions(libraries=tuple(libraries))  # checks the names
    metrics = Metrics()
    folders = [(DEFAULT_LIBRARY, settings.index), *libraries]
    shelves = [open_shelf(settings, *one, metrics, create=False) for one in folders]

    async def serve() -> None:
        answerer = Answerer(
            lambda tell: endpoint(settings, tell), metrics, watch=False, on_change=on_engine
        )
        try:
            await speak(Tools(Gateway(settings, shelves, answerer, metrics)))
        finally:
            with anyio.CancelScope(shield=True):
                await answerer.stop()

    # The thread that reads stdin would hold up an end by Ctrl-C, and there is nothing to save.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    anyio.run(serve)
