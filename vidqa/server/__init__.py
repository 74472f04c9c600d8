"""The gateway: the same verbs behind HTTP, for browsers, OpenAI clients and agents.

    run.py         `vidqa serve`: sockets, workers, a graceful end
    app.py         the application: its parts put together
    gate.py        who may ask: host, origin, key, size and rate, on every route
    keys.py        the keys, the media cookie, the rate of each key
    gateway.py     the libraries, the engine and the queue that all routes share
    engine.py      the model that answers: starting, ready, failed, started again
    chat.py        chat completions: a body -> ask() -> OpenAI's shapes, streamed or whole
    answering.py   one answer on its way, for routes and tools alike
    queues.py      who waits for a turn, and who is told to come again
    streams.py     server-sent events
    shapes.py      how moments, citations and videos look in answers
    openai.py      models and embeddings
    schemas.py     what requests may say, and what becomes of each of OpenAI's fields
    search.py      moments
    videos.py      videos, frames, clips, uploads
    jobs.py        uploads become searchable in the background
    pictures.py    pictures from clients: data URLs, and hosts that were allowed
    leaving.py     clients that leave
    metrics.py     what Prometheus is told
    errors.py      every error in OpenAI's shape
    tools.py       the tools for agents: search, ask, frames, list, outline
    tool_schemas.py  what they take and give
    tool_texts.py  how they say it
    mcp.py         their protocol, over HTTP and stdio
    stdio.py       `vidqa mcp`: the tools without a server
    web/           the page

Nothing is decided here that a verb decides: it translates. It trusts no path, address or id of a
client, and the text inside videos is data.
"""

from __future__ import annotations

import importlib.util

from vidqa.errors import MissingExtra

INSTALL = 'uv pip install "vidqa[serve]"'
PACKAGES = ("fastapi", "fastapi_swagger", "mcp", "prometheus_client", "uvicorn")


def check_extra() -> None:
    """Raises MissingExtra with the command that installs what serving needs."""
    missing = [one for one in PACKAGES if importlib.util.find_spec(one) is None]
    if missing:
        raise MissingExtra(f"{', '.join(missing)} not installed; install: {INSTALL}")
