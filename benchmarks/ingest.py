"""What ingesting a video costs, beside the two usual ways, in CPU seconds of whole processes.

    python benchmarks/ingest.py                       a generated film, and a real one when there
    python benchmarks/ingest.py --seconds 120 film.mp4
    python benchmarks/ingest.py --memory              60 minutes against 1 minute, small pictures

A  PySceneDetect's command line; then an OpenCV seek per picture, PIL preprocessing, open_clip fp32
B  the same, with one sequential OpenCV read in place of the seeks
C  vidqa: one decode, int8 image tower, committed to a library

All three use the same ViT-B/32 (random weights, so nothing is downloaded) on the same number of
pictures at the same times. Each way has to load the model once however long the film is: `load` is
a process that only does that as A and B do, `load C` one that does it as C does. The ratios are
given whole, and with its own loading taken off each way. The real film is
../shared/videos/bigbuckbunny.mp4, joined to itself to the same length: by itself it has five
seconds, in which starting is most of the cost.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SHARED_VIDEO = ROOT.parent / "shared" / "videos" / "bigbuckbunny.mp4"
MODEL = "ViT-B-32"
BATCH = 32


# ------------------------------------------------------------ the material


SHOT_SECONDS = 4


def make_film(
    path: Path, seconds: int, width: int = 1920, height: int = 1080, preset: str = "medium"
) -> None:
    """A 24 fps H.264 film (CRF 21, GOP 250): pans over grainy textures, a cut each 4 seconds."""
    import av
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "21", "preset": preset}
        for n in range(seconds * 24):
            step = n % (SHOT_SECONDS * 24)
            if step == 0:
                wall = texture(rng, width + 240, height + 240)
                direction = rng.uniform(-1, 1, 2)
            x, y = (np.clip(120 + direction * step, 0, 240)).astype(int)
            view = wall[y : y + height, x : x + width].astype(np.int16)
            noise = rng.integers(-2, 3, (height // 2, width // 2), dtype=np.int16)
            view += cv2.resize(noise, (width, height), interpolation=cv2.INTER_NEAREST)[..., None]
            frame = av.VideoFrame.from_ndarray(np.clip(view, 0, 255).astype(np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def texture(rng: Any, width: int, height: int) -> Any:
    """Detail at every scale, as photographs have, in a colour of its own."""
    import cv2
    import numpy as np

    wall = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 9):
        cells = rng.standard_normal((2**octave + 2, 2**octave + 2, 3)).astype(np.float32)
        wall += cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC) / 1.6**octave
    wall = (wall - wall.min()) / np.ptp(wall) * 255 * rng.uniform(0.35, 1, 3)
    return wall.astype(np.uint8)


def make_model(folder: Path) -> None:
    """A ViT-B/32 with random weights, in the form that open_clip loads from a folder."""
    import torch

    from vidqa.compat import declare_torchvision_operators

    declare_torchvision_operators()
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model(MODEL)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    config = {
        "model_cfg": open_clip.get_model_config(MODEL),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def joined(video: Path, target: Path, seconds: int) -> None:
    """The video's own packets again and again, for `seconds` at least: nothing is encoded."""
    import av

    with av.open(str(video)) as source, av.open(str(target), "w") as container:
        taken = source.streams.video[0]
        stream = container.add_stream_from_template(taken)
        length = taken.duration or 0
        for n in range(math.ceil(seconds / float(length * taken.time_base))):
            source.seek(0)
            for packet in source.demux(taken):
                if packet.dts is not None and packet.pts is not None:
                    packet.pts, packet.dts = packet.pts + n * length, packet.dts + n * length
                    packet.stream = stream
                    container.mux(packet)


# ------------------------------------------------------------ the three ways


def load_reference(model: Path) -> tuple[Any, Any]:
    from vidqa.compat import declare_torchvision_operators

    declare_torchvision_operators()
    import open_clip

    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    return network.eval(), preprocess


def load_ours(model: Path) -> dict[str, Any]:
    from vidqa.embed import load_embedder

    load_embedder(str(model), "cpu")
    return {}


def pyscenedetect(video: Path, folder: Path) -> list[float]:
    command = [sys.executable, "-m", "scenedetect", "--quiet", "-i", str(video), "-o", str(folder)]
    command += ["detect-adaptive", "detect-threshold", "--fade-bias", "1"]
    command += ["list-scenes", "--skip-cuts", "--filename", "scenes.csv"]
    subprocess.run(command, check=True)
    with open(folder / "scenes.csv", newline="") as file:
        return [float(row["Start Time (seconds)"]) for row in csv.DictReader(file)][1:]


def sought(video: Path, seconds: Sequence[float]) -> Iterator[Any]:
    import cv2

    reader = cv2.VideoCapture(str(video))
    for at in seconds:
        reader.set(cv2.CAP_PROP_POS_MSEC, at * 1000)
        yield reader.read()[1]


def in_sequence(video: Path, seconds: Sequence[float]) -> Iterator[Any]:
    import cv2

    reader = cv2.VideoCapture(str(video))
    for at in seconds:
        while reader.grab():
            if reader.get(cv2.CAP_PROP_POS_MSEC) / 1000 >= at - 1e-3:
                yield reader.retrieve()[1]
                break


def usual_way(video: Path, model: Path, seconds: Sequence[float], pictures: Any) -> dict[str, Any]:
    import cv2
    import torch
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        cuts = pyscenedetect(video, Path(folder))
    network, preprocess = load_reference(model)
    vectors = 0
    batch = []
    with torch.inference_mode():
        for picture in pictures(video, seconds):
            image = Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
            batch.append(preprocess(image))
            if len(batch) == BATCH:
                vectors += len(network.encode_image(torch.stack(batch)))
                batch = []
        if batch:
            vectors += len(network.encode_image(torch.stack(batch)))
    return {"cuts": cuts, "frames": vectors}


class WorkerPeak:
    """The peak memory of the worker, which is still there when its video is reported.

    `ru_maxrss` of a child starts at what its parent had, so /proc is asked.
    """

    def __init__(self) -> None:
        self.peak_mb = 0.0

    def __call__(self, _: object) -> None:
        for path in Path("/proc/self/task").glob("*/children"):
            for pid in path.read_text().split():
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                peak = next((line for line in lines if line.startswith("VmHWM")), "VmHWM: 0 kB")
                self.peak_mb = max(self.peak_mb, int(peak.split()[1]) / 1024)


def our_way(video: Path, model: Path) -> dict[str, Any]:
    from vidqa.embed import load_embedder
    from vidqa.ingest import ingest
    from vidqa.library import Library

    embedder = load_embedder(str(model), "cpu")
    with tempfile.TemporaryDirectory() as folder:
        library = Library.open(Path(folder) / "library", embedder.spec, create=True)
        watch = WorkerPeak()
        ingest([video], library, embedder, on_progress=watch)
        row = library.videos()[0]
        cuts = [scene.start_seconds for scene in library.scenes(row.video.video_id)][1:]
        seconds = library.frame_seconds(row.video.video_id, 0, row.video.duration_seconds)
    found = {"cuts": cuts, "frames": len(seconds), "seconds": seconds}
    return found | {"worker_peak_mb": watch.peak_mb}


def packets(video: Path) -> dict[str, Any]:
    from vidqa.worker import Done, Job, read_video

    *_, done = read_video(Job(str(video), 224, 224, "shortest"))
    assert isinstance(done, Done), done
    return {"read": done.packets_read, "decoded": done.packets_decoded}


class MeanColour:
    """Costs nothing, so that the memory measured is that of reading and storing."""

    def __init__(self) -> None:
        from vidqa.types import EmbedderSpec

        self.spec = EmbedderSpec("mean-colour", "none", 512, 224, 224, "squash")

    def embed_images(self, images: Any) -> Any:
        import numpy as np

        means = images.mean((1, 2), dtype=np.float32)
        vectors = np.tile(means, (1, 171))[:, :512]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def memory_way(video: Path) -> dict[str, Any]:
    from vidqa.ingest import ingest
    from vidqa.library import Library

    embedder: Any = MeanColour()
    with tempfile.TemporaryDirectory() as folder:
        library = Library.open(Path(folder) / "library", embedder.spec, create=True)
        watch = WorkerPeak()
        report = ingest([video], library, embedder, on_progress=watch)
    found = {"frames": report.files[0].frames, "scenes": report.files[0].scenes}
    return found | {"worker_peak_mb": watch.peak_mb}


# ------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Measured:
    cpu_seconds: float
    peak_mb: float
    worker_peak_mb: float
    result: dict[str, Any]


def measure(way: str, **arguments: Any) -> Measured:
    """Runs one way in a process of its own; its CPU time with that of all its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, "--way", way, "--arguments", json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    out = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = json.loads(out.splitlines()[-1])
    return Measured(
        cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        peak_mb=told["peak_mb"],
        worker_peak_mb=told["result"].get("worker_peak_mb", 0.0),
        result=told["result"],
    )


WAYS = {"load C": load_ours, "C": our_way, "packets": packets, "memory": memory_way}


def run_way(way: str, arguments: dict[str, Any]) -> None:
    """In the measured process: one way, then what it found and its peak memory, as JSON."""
    paths = {name: Path(arguments[name]) for name in ("video", "model") if name in arguments}
    if way == "load":
        load_reference(paths["model"])
        result: dict[str, Any] = {}
    elif way in ("A", "B"):
        pictures = sought if way == "A" else in_sequence
        result = usual_way(paths["video"], paths["model"], arguments["seconds"], pictures)
    else:
        result = WAYS[way](**paths)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"result": result, "peak_mb": peak_mb}))


def same_cuts(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(
        abs(a - b) < 0.002 for a, b in zip(one, other, strict=True)
    )


def compare(video: Path, model: Path) -> None:
    loads = {way: measure(way, model=str(model)) for way in ("load", "load C")}
    ours = measure("C", video=str(video), model=str(model))
    seconds = ours.result.pop("seconds")
    ways = {
        way: measure(way, video=str(video), model=str(model), seconds=seconds) for way in "AB"
    } | {"C": ours}
    counted = measure("packets", video=str(video)).result
    print(f"\n{video.name}: {len(seconds)} pictures, {len(ours.result['cuts'])} cuts")
    print(f"{'':6}{'CPU s':>8}{'less load':>11}{'peak MB':>9}{'worker MB':>11}  cuts as C")
    less = {
        way: one.cpu_seconds - loads["load C" if "C" in way else "load"].cpu_seconds
        for way, one in {**loads, **ways}.items()
    }
    for way, one in {**loads, **ways}.items():
        cuts = same_cuts(one.result["cuts"], ours.result["cuts"]) if one.result else ""
        print(
            f"{way:6}{one.cpu_seconds:8.1f}{less[way]:11.1f}{one.peak_mb:9.0f}"
            f"{one.worker_peak_mb:11.0f}  {cuts}"
        )
    for way in "AB":
        whole = ways[way].cpu_seconds / ours.cpu_seconds
        print(f"{way}/C {whole:.1f} (less load: {less[way] / less['C']:.1f})")
    print(f"packets decoded per packet: {counted['decoded'] / counted['read']:.3f}")


def compare_memory(folder: Path, minutes: int) -> None:
    peaks = {}
    for length in (1, minutes):
        film = folder / f"{length}.mp4"
        make_film(film, length * 60, 320, 180, "ultrafast")
        one = measure("memory", video=str(film))
        peaks[length] = one
        print(
            f"{length:3} min: {one.result['frames']} pictures, {one.result['scenes']} scenes, "
            f"peak {one.peak_mb:.0f} MB, worker {one.worker_peak_mb:.0f} MB"
        )
    more = [
        getattr(peaks[minutes], name) - getattr(peaks[1], name)
        for name in ("peak_mb", "worker_peak_mb")
    ]
    print(f"the longer takes {sum(more):.0f} MB more ({more[0]:.0f} here, {more[1]:.0f} worker)")


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vidqa-benchmark-") as folder:
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", nargs="*", type=Path, help="instead of a generated film")
    parser.add_argument("--seconds", type=int, default=60, help="length of the generated film")
    parser.add_argument("--memory", action="store_true", help="measure memory over length")
    parser.add_argument("--minutes", type=int, default=60, help="length of the long film")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, default={}, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.way:
        run_way(chosen.way, chosen.arguments)
        return
    with scratch() as folder:
        if chosen.memory:
            compare_memory(folder, chosen.minutes)
            return
        make_model(folder)
        videos = list(chosen.video)
        if not videos:
            videos = [folder / "generated-1080p.mp4"]
            make_film(videos[0], chosen.seconds)
            if SHARED_VIDEO.exists():
                videos.append(folder / f"{SHARED_VIDEO.stem}-joined.mp4")
                joined(SHARED_VIDEO, videos[-1], chosen.seconds)
        for video in videos:
            compare(video, folder)


if __name__ == "__main__":
    main()
