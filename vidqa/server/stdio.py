"""`vidqa mcp`: the tools for agents over stdin and stdout, for a program that starts them itself.

    serve_stdio(settings, libraries, on_stage)

Libraries are only read, and must be there. The model is started when the first question comes, and
our engine may stop between questions; searching, listing and looking need none.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import anyio

from vidqa.config import Settings
from vidqa.server.engine import Answerer
from vidqa.server.gateway import Gateway, open_shelf
from vidqa.server.mcp import speak
from vidqa.server.metrics import Metrics
from vidqa.server.run import DEFAULT_LIBRARY, ServeOptions
from vidqa.server.tools import Tools
from vidqa.wiring import Endpoint, OnStage, endpoint


def serve_stdio(
    settings: Settings,
    libraries: Sequence[tuple[str, Path]] = (),
    on_stage: OnStage = lambda stage: None,
) -> None:
    """Serves until stdin ends. Raises LibraryError when a library is not there.

    `on_stage` hears what the model that answers is doing.
    """
    ServeOptions(libraries=tuple(libraries))  # checks the names
    metrics = Metrics()
    folders = [(DEFAULT_LIBRARY, settings.index), *libraries]
    shelves = [open_shelf(settings, *one, metrics, create=False) for one in folders]

    def connect(tell: OnStage) -> Endpoint:
        def both(stage: str) -> None:
            on_stage(stage)
            tell(stage)

        return endpoint(settings, both)

    async def serve() -> None:
        answerer = Answerer(connect, metrics, watch=False)
        try:
            await speak(Tools(Gateway(settings, shelves, answerer, metrics)))
        finally:
            with anyio.CancelScope(shield=True):
                await answerer.stop()

    # The thread that reads stdin would hold up an end by Ctrl-C, and there is nothing to save.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    anyio.run(serve)
