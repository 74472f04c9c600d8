"""What a question costs: `ask` with a warm engine, beside a plain transformers script.

    python benchmarks/ask.py                          the bundled models, a film made on the spot
    python benchmarks/ask.py --video film.mp4 --start 3 --end 7 --questions 20
    python benchmarks/ask.py --config cpu.yaml        other models

plain    transformers, Qwen2-VL and qwen-vl-utils, as the model's page has it: a process loads the
         model, reads the clip's frames from the file (OpenCV, a seek each), prepares, generates
vidqa    the same clip of a library, frames kept as pictures, answered by the engine

Both show the same number of frames of the same clip at the same size; the table says by how many
tokens the prompts differ, which should be those of the label and the system line. `first` is a
process that starts with nothing loaded (for vidqa: no engine running), `again` the median of the
questions after it. Then the stages of a question that is searched for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WIDTH, HEIGHT, FPS = 640, 480, 24
QUESTION = "What is shown here, and what colour is it?"


def make_film(path: Path, seconds: int = 24) -> None:
    """A 24 fps H.264 film with a new picture each four seconds: a square that crosses a plain."""
    import av
    import numpy as np

    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for n in range(seconds * FPS):
            if n % (4 * FPS) == 0:
                plain, square = rng.integers(0, 255, (2, 3))
            picture = np.full((HEIGHT, WIDTH, 3), plain, np.uint8)
            left = 40 + n % (4 * FPS) * 4
            picture[180:300, left : left + 120] = square
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


# ------------------------------------------------------------ the plain script


def plain(task: dict[str, Any]) -> None:
    """Runs in a process of its own and prints one JSON object."""
    born = time.perf_counter()
    from vidqa.compat import declare_torchvision_operators

    declare_torchvision_operators()
    import cv2
    import torch
    from PIL import Image
    from qwen_vl_utils import process_vision_info
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(task["threads"])
    dtype = {"auto": "auto", "float32": torch.float32}.get(task["dtype"], task["dtype"])
    model = AutoModelForImageTextToText.from_pretrained(task["model"], dtype=dtype).eval()
    processor = AutoProcessor.from_pretrained(task["model"])
    loaded = time.perf_counter() - born

    def frames() -> list[Image.Image]:
        video = cv2.VideoCapture(task["video"])
        pictures = []
        for seconds in task["seconds"]:
            video.set(cv2.CAP_PROP_POS_MSEC, seconds * 1000)
            _, bgr = video.read()
            pictures.append(Image.fromarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)))
        return pictures

    def answer() -> tuple[str, int]:
        width, height = task["size"]
        video = {"type": "video", "video": frames()}
        video |= {"resized_width": width, "resized_height": height}
        content = [video, {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        _, videos = process_vision_info(messages)
        batch = processor(
            text=[text],
            videos=[video.numpy() for video in videos],
            do_sample_frames=False,
            return_tensors="pt",
        )
        with torch.no_grad():
            out = model.generate(
                **batch, max_new_tokens=task["tokens"], min_new_tokens=task["tokens"]
            )
        new = out[:, batch["input_ids"].shape[1] :]
        return processor.batch_decode(new, skip_special_tokens=True)[0], batch["input_ids"].shape[1]

    _, prompt_tokens = answer()
    first = time.perf_counter() - born
    again = [timed(answer) for _ in range(task["questions"])]
    print(json.dumps({"loaded": loaded, "first": first, "again": again, "prompt": prompt_tokens}))


def timed(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


# ------------------------------------------------------------ vidqa, and the table


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="demo")
    parser.add_argument("--video", type=Path)
    parser.add_argument("--start", type=float, default=4.0)
    parser.add_argument("--end", type=float, default=8.0)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    told = parser.parse_args(arguments)
    if told.plain:
        plain(json.loads(told.plain))
        return
    with tempfile.TemporaryDirectory(prefix="vidqa-bench-") as folder:
        compare(told, Path(folder))


def compare(told: argparse.Namespace, folder: Path) -> None:
    from vidqa.ask import ask
    from vidqa.children import usable_cpus
    from vidqa.config import Settings
    from vidqa.engine import stop
    from vidqa.ingest import ingest
    from vidqa.select import fitted_size
    from vidqa.weights import find_weights
    from vidqa.wiring import ask_options, connect, ingest_options, open_library

    film = told.video or folder / "film.mp4"
    if told.video is None:
        make_film(film)
    flags = {"index": str(folder / "library"), "max_tokens": told.tokens}
    settings = Settings.load(told.config, flags)
    library, embedder = open_library(settings, create=True)
    ingest([film], library, embedder, ingest_options(settings))
    video = library.videos()[0].video
    clip = replace(ask_options(settings), clip=(video.video_id, told.start, told.end))

    stop()
    started = time.perf_counter()
    client = connect(settings)
    shown = ask(QUESTION, library, None, client, clip)
    first = time.perf_counter() - started
    answers = [ask(QUESTION, library, None, client, clip) for _ in range(told.questions)]
    searched = [
        ask(QUESTION, library, embedder, client, replace(clip, clip=None))
        for _ in range(told.questions)
    ]
    client.close()

    seconds = [at for moment in shown.moments for at in moment.frame_seconds]
    task = {
        "model": str(find_weights(settings.model, settings.hub)),
        "video": str(film),
        "seconds": seconds,
        "size": fitted_size(video.width, video.height, settings.max_pixels),
        "tokens": shown.usage.completion_tokens,
        "questions": told.questions,
        "dtype": settings.dtype,
        "threads": usable_cpus(),
    }
    other = run_plain(task)
    frames = f"{len(seconds)} frames"
    totals = [sum(answer.timings_ms.values()) / 1000 for answer in answers]
    print(f"{'':24}{'first, s':>10}{'again, s':>10}{'frames':>8}{'prompt':>8}{'answer':>8}")
    row("plain transformers", other["first"], other["again"], len(seconds), other["prompt"], task)
    row("vidqa ask", first, totals, len(seconds), shown.usage.prompt_tokens, task)
    ratio = statistics.median(other["again"]) / statistics.median(totals)
    print(f"\nagain, plain / vidqa: {ratio:.1f}  ({frames}, a clip that is given)")
    print(f"\nstages of a searched question, median ms ({searched[0].usage.frames} frames)")
    for stage in searched[0].timings_ms:
        times = [answer.timings_ms[stage] for answer in searched]
        print(f"  {stage:8}{statistics.median(times):9.1f}")


def run_plain(task: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--plain", json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def row(
    name: str, first: float, again: Sequence[float], frames: int, prompt: int, task: dict[str, Any]
) -> None:
    median = statistics.median(again)
    print(f"{name:24}{first:10.2f}{median:10.3f}{frames:8}{prompt:8}{task['tokens']:8}")


if __name__ == "__main__":
    main(sys.argv[1:])
