"""What the gateway holds and what it costs: many streaming clients, and one beside vLLM alone.

    python benchmarks/serve.py                         64 clients, the bundled models, films drawn
    python benchmarks/serve.py --clients 8 --rounds 2  a first impression
    python benchmarks/serve.py --json

load      clients, each on a connection of its own, ask different questions one after the other and
          read the whole stream; the same number of searches beside that, one after the other
overhead  one client asks the gateway, then vLLM itself for the very same messages, in turns: the
          difference, less what the gateway says that embedding, searching and reading frames took

All of it runs on this machine, the clients too, so they take their share of its processors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

START_SECONDS = 300
Body = dict[str, Any]


@dataclass
class Load:
    """What the clients saw; times in milliseconds."""

    first_token: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    search: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


# ------------------------------------------------------------ the server


def make_library(folder: Path, films: int) -> list[str]:
    """Films of the playground, ingested; returns questions about them."""
    from vidqa.demo import films as drawn
    from vidqa.demo import world

    seeds = [world.FIRST_HELD_OUT_SEED + n for n in range(films)]
    asked, _ = drawn.write_library(folder / "films", seeds, scene_count=8, per_type=2)
    vidqa("ingest", str(folder / "films"), "--index", str(folder / "index"), "-q", folder=folder)
    return [one.text for one in asked]


def vidqa(*arguments: str, folder: Path) -> None:
    subprocess.run(
        [*command(), *arguments, "--config", "demo"], check=True, env=environment(folder)
    )


def command() -> list[str]:
    return [sys.executable, "-m", "vidqa.cli"]


def environment(folder: Path) -> dict[str, str]:
    """An engine of its own, which ends with the benchmark."""
    return os.environ | {"VIDQA_RUNTIME_DIR": str(folder / "runtime"), "PYTHONPATH": str(ROOT)}


def start(folder: Path, workers: int) -> tuple[subprocess.Popen[str], str]:
    """The server's process and its address, once it can answer."""
    process = subprocess.Popen(
        [
            *command(), "serve", "--config", "demo", "--index", str(folder / "index"),
            "--port", "0", "--workers", str(workers), "--json",
        ],
        env=environment(folder), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        sys.exit("the server did not start; see above")
    url = str(json.loads(line)["url"])
    deadline = time.monotonic() + START_SECONDS
    while not is_ready(url):
        if time.monotonic() > deadline or process.poll() is not None:
            sys.exit(f"the server was not ready within {START_SECONDS} s")
        time.sleep(0.5)
    return process, url


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}readyz").status_code == 200
    except httpx.TransportError:
        return False


def memory_mb(pid: int) -> float:
    """Resident memory of a process and its children."""
    tree = {pid}
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(fields[1])
    while new := {one for one, parent in parents.items() if parent in tree} - tree:
        tree |= new
    total = 0
    for one in tree:
        try:
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return total / 1000


# ------------------------------------------------------------ load


def question(text: str) -> Body:
    messages = [{"role": "user", "content": text}]
    options = {"include_usage": True}
    return {"model": "vidqa", "messages": messages, "stream": True, "stream_options": options}


async def streamed(client: httpx.AsyncClient, url: str, body: Body) -> tuple[float, float, Body]:
    """Milliseconds to the first piece of text and to the end, and the last event with its usage."""
    started = time.perf_counter()
    first, last, ended = 0.0, {}, False
    async with client.stream("POST", f"{url}chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError((await response.aread()).decode())
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                ended = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            if not first and any(one["delta"].get("content") for one in event["choices"]):
                first = time.perf_counter()
            last |= {key: event[key] for key in ("usage", "vidqa") if event.get(key)}
    if not ended or not first:
        raise RuntimeError("the stream broke off")
    return (first - started) * 1000, (time.perf_counter() - started) * 1000, last


async def load(url: str, questions: Sequence[str], clients: int, rounds: int) -> Load:
    seen = Load()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def reader(number: int) -> None:
            for turn in range(rounds):
                text = questions[(number * rounds + turn) % len(questions)]
                try:
                    first, whole, last = await streamed(client, f"{url}v1/", question(text))
                except (RuntimeError, httpx.HTTPError) as error:
                    seen.errors.append(f"{type(error).__name__}: {error}")
                    continue
                seen.first_token.append(first)
                seen.whole.append(whole)
                seen.tokens += last["usage"]["completion_tokens"]

        async def searcher() -> None:
            number = 0
            while True:
                text = f"{questions[number % len(questions)]} {number}"  # never a cached vector
                begun = time.perf_counter()
                answer = await client.post(f"{url}v1/search", json={"query": text})
                if answer.status_code != 200:
                    seen.errors.append(answer.text)
                seen.search.append((time.perf_counter() - begun) * 1000)
                number += 1

        started = time.perf_counter()
        searching = asyncio.create_task(searcher())
        await asyncio.gather(*(reader(number) for number in range(clients)))
        searching.cancel()
        seen.seconds = time.perf_counter() - started
    return seen


# ------------------------------------------------------------ overhead


async def overhead(folder: Path, url: str, questions: Sequence[str], turns: int) -> Body:
    """Medians of one client: through the gateway, at vLLM, and between them."""
    os.environ["VIDQA_RUNTIME_DIR"] = str(folder / "runtime")
    from vidqa.ask import prepare
    from vidqa.config import Settings
    from vidqa.wiring import ask_options, endpoint, open_library

    settings = Settings.load("demo", {"index": str(folder / "index")})
    library, embedder = open_library(settings)
    where = endpoint(settings)
    through: list[float] = []
    alone: list[float] = []
    between: list[float] = []
    keyed = {"Authorization": f"Bearer {where.api_key}"}
    async with httpx.AsyncClient(timeout=600) as client, httpx.AsyncClient(headers=keyed) as direct:
        for turn in range(turns):
            text = questions[turn % len(questions)]
            options = ask_options(settings)
            prepared = prepare(text, library, embedder, options)
            body = {
                "model": where.model,
                "messages": prepared.messages(),
                **options.sampling.fields(),
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            # In turns, and each once before it counts: both find the prompt in vLLM's cache.
            for counted in (False, True):
                _, at_vllm, _ = await streamed(direct, f"{where.base_url}/", body)
                _, at_gateway, last = await streamed(client, f"{url}v1/", question(text))
                if counted:
                    stages = last["vidqa"]["timings_ms"]
                    retrieval = sum(stages[name] for name in ("embed", "search", "frames"))
                    alone.append(at_vllm)
                    through.append(at_gateway)
                    between.append(at_gateway - retrieval - at_vllm)
    return {
        "turns": turns,
        "gateway_p50_ms": statistics.median(through),
        "vllm_p50_ms": statistics.median(alone),
        "overhead_p50_ms": statistics.median(between),
    }


# ------------------------------------------------------------ the table


def at(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6, help="questions of each client")
    parser.add_argument("--films", type=int, default=8)
    parser.add_argument("--turns", type=int, default=60, help="turns of the overhead")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions = make_library(folder, told.films)
        process, url = start(folder, told.workers)
        try:
            asyncio.run(load(url, questions, 4, 2))  # everything is loaded now
            before = memory_mb(process.pid)
            seen = asyncio.run(load(url, questions, told.clients, told.rounds))
            after = memory_mb(process.pid)
            cost = asyncio.run(overhead(folder, url, questions, told.turns))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
            vidqa("engine", "stop", folder=folder)
    report(told, seen, before, after, cost)


def report(told: argparse.Namespace, seen: Load, before: float, after: float, cost: Body) -> None:
    figures: Body = {
        "clients": told.clients,
        "answers": len(seen.whole),
        "errors": len(seen.errors),
        "seconds": seen.seconds,
        "answers_per_second": len(seen.whole) / seen.seconds,
        "tokens_per_second": seen.tokens / seen.seconds,
        "first_token_p50_ms": at(seen.first_token, 0.5),
        "first_token_p99_ms": at(seen.first_token, 0.99),
        "whole_p50_ms": at(seen.whole, 0.5),
        "whole_p99_ms": at(seen.whole, 0.99),
        "searches": len(seen.search),
        "search_p50_ms": at(seen.search, 0.5),
        "search_p99_ms": at(seen.search, 0.99),
        "memory_before_mb": before,
        "memory_after_mb": after,
        **cost,
    }
    figures = {
        name: round(value, 1) if isinstance(value, float) else value
        for name, value in figures.items()
    }
    if told.json:
        print(json.dumps(figures))
    else:
        print("| figure | value |\n| --- | --- |")
        print("\n".join(f"| {name} | {value} |" for name, value in figures.items()))
    for error in seen.errors[:3]:
        print(f"error: {error}", file=sys.stderr)
    sys.exit(1 if seen.errors else 0)


if __name__ == "__main__":
    main()
