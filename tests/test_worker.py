"""One video through the worker: what it hands over, and how its death is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.media import Format, add_subtitles, make_film, shot, three_shots
from tests.waiting import runs, until
from vidqa.scenes import SceneOptions
from vidqa.worker import Done, Failed, Job, Message, Progress, Samples, Worker, read_video


def job(path: Path) -> Job:
    return Job(str(path), image_width=32, image_height=24, resize_mode="squash")


def read(one: Job) -> tuple[list[Samples], Done]:
    messages = list(read_video(one))
    last = messages[-1]
    assert isinstance(last, Done), last
    return [message for message in messages if isinstance(message, Samples)], last


def failure(messages: list[Message]) -> str:
    last = messages[-1]
    assert isinstance(last, Failed), last
    return last.error


def held_job(path: Path) -> Job:
    """A job that stops at its first sample, which is larger than a socket holds, until we read."""
    film = three_shots(path)
    return replace(job(film.path), image_width=1024, image_height=1024, batch_frames=1)


def test_scenes_and_samples_of_a_film(tmp_path: Path) -> None:
    samples, done = read(job(three_shots(tmp_path / "a.mp4").path))
    assert [(scene.start_seconds, scene.end_seconds) for scene in done.scenes] == [
        pytest.approx((0, 2)),
        pytest.approx((2, 4)),
        pytest.approx((4, 6)),
    ]
    seconds = sorted(np.concatenate([one.seconds for one in samples]))
    for scene in done.scenes:
        inside = [at for at in seconds if scene.start_seconds <= at < scene.end_seconds]
        assert len(inside) == 3


def test_each_sample_has_its_picture_and_its_jpeg(tmp_path: Path) -> None:
    samples, _ = read(job(three_shots(tmp_path / "a.mp4").path))
    for one in samples:
        assert one.images.shape == (len(one.seconds), 24, 32, 3)
        assert len(one.jpegs) == len(one.seconds)
        assert all(jpeg.startswith(b"\xff\xd8") for jpeg in one.jpegs)


def test_samples_show_their_own_scene(tmp_path: Path) -> None:
    samples, _ = read(job(three_shots(tmp_path / "a.mp4").path))
    shots = {}
    for one in samples:
        for at, image in zip(one.seconds, one.images, strict=True):
            shots.setdefault(int(at // 2), []).append(image.mean((0, 1)))
    for colours in shots.values():
        assert np.ptp(np.array(colours), axis=0).max() < 12
    means = np.array([np.mean(shots[n], axis=0) for n in range(3)])
    assert min(np.abs(means[a] - means[b]).max() for a, b in ((0, 1), (1, 2))) > 12


def test_batches_are_bounded(tmp_path: Path) -> None:
    path = three_shots(tmp_path / "a.mp4").path
    samples, _ = read(replace(job(path), sample_fps=12, batch_frames=8))
    assert max(len(one.seconds) for one in samples) <= 8 + 3
    assert sum(len(one.seconds) for one in samples) == 72


def test_without_kept_frames_there_are_no_jpegs(tmp_path: Path) -> None:
    samples, _ = read(replace(job(three_shots(tmp_path / "a.mp4").path), keep_frames=False))
    assert all(one.jpegs == () for one in samples)


def test_a_sparse_grid_still_gives_each_part_of_a_split_scene_three(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [shot(20)])
    options = SceneOptions(max_scene_seconds=6)
    samples, done = read(replace(job(film.path), sample_fps=0.05, scenes=options))
    seconds = np.concatenate([one.seconds for one in samples])
    assert len(done.scenes) == 4
    for scene in done.scenes:
        assert np.sum((seconds >= scene.start_seconds) & (seconds < scene.end_seconds)) >= 3


def test_the_duration_is_what_was_decoded(tmp_path: Path) -> None:
    form = Format(container_options={"movflags": "frag_keyframe+empty_moov"})
    _, done = read(job(three_shots(tmp_path / "a.mp4", form).path))
    assert done.video.duration_seconds == pytest.approx(6.0, abs=0.01)
    assert done.scenes[-1].end_seconds == done.video.duration_seconds


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [shot(0.04)], frame_seconds=[0.0])
    samples, done = read(job(film.path))
    assert len(samples[0].seconds) == len(done.scenes) == 1


def test_every_packet_is_decoded_once(tmp_path: Path) -> None:
    _, done = read(job(three_shots(tmp_path / "a.mp4").path))
    assert done.packets_decoded == done.packets_read == 144


def test_a_sidecar_goes_before_the_text_inside(tmp_path: Path) -> None:
    film = three_shots(tmp_path / "plain.mp4")
    path = add_subtitles(film.path, tmp_path / "a.mp4", "mov_text", [(1, 2, "inside")])
    assert [span.text for span in read(job(path))[1].texts] == ["inside"]
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nbeside\n")
    assert [span.text for span in read(job(path))[1].texts] == ["beside"]


def test_a_bad_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"nothing of a video" * 100)
    assert "is not a video" in failure(list(read_video(job(tmp_path / "a.mp4"))))


def test_a_file_that_grows_while_it_is_read_has_failed(tmp_path: Path) -> None:
    path = three_shots(tmp_path / "a.mp4").path
    messages = read_video(job(path))
    seen = [next(messages)]
    with open(path, "ab") as file:
        file.write(b"more")
    seen += messages
    assert failure(seen).endswith(
        "changed while it was being read; ingest it again once it is whole"
    )


def test_a_file_that_goes_away_while_it_is_read_has_failed(tmp_path: Path) -> None:
    path = three_shots(tmp_path / "a.mp4").path
    messages = read_video(replace(job(path), batch_frames=1))
    seen = [next(messages), next(messages)]
    path.unlink()
    seen += messages
    assert failure(seen).endswith("went away while it was being read")


def test_a_process_reads_one_video_after_the_other(tmp_path: Path) -> None:
    path = three_shots(tmp_path / "a.mp4").path
    worker = Worker()
    try:
        for one in (job(path), job(tmp_path / "no.mp4"), job(path)):
            worker.submit(one)
            message: Message = Progress(0, 0)
            while isinstance(message, Progress | Samples):
                message = worker.receive()
            assert isinstance(message, Failed if "no.mp4" in one.path else Done)
    finally:
        worker.close()
    assert not runs(worker.pid)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, r"the decoder crashed \(SIGSEGV\)"),
        (signal.SIGKILL, "SIGKILL, perhaps for lack of memory"),
    ],
)
def test_the_death_of_a_process_is_told(tmp_path: Path, number: int, reason: str) -> None:
    worker = Worker()
    worker.submit(held_job(tmp_path / "a.mp4"))
    assert isinstance(worker.receive(), Progress)
    os.kill(worker.pid, number)
    message: Message = Progress(0, 0)
    while not isinstance(message, Failed):
        message = worker.receive()
    worker.close()
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(message.error)


def test_a_process_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidqa.worker._CHILD", "raise SystemExit('libgl is missing')")
    worker = Worker()
    message = worker.receive()
    worker.close()
    assert message == Failed("the decoder process failed: libgl is missing")


def test_a_module_in_the_users_folder_does_not_shadow_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "av.py").write_text("raise SystemExit('shadowed')")
    film = three_shots(tmp_path / "a.mp4")
    monkeypatch.chdir(tmp_path)
    worker = Worker()
    worker.submit(job(film.path))
    message = worker.receive()
    worker.close()
    assert isinstance(message, Progress)


PARENT = """
import sys
from vidqa.worker import Job, Worker
worker = Worker()
worker.submit(Job(sys.argv[1], 1024, 1024, "squash", batch_frames=1))
worker.receive()
print(worker.pid, flush=True)
sys.stdin.read()
"""


def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    film = three_shots(tmp_path / "a.mp4")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(film.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    pid = int(parent.stdout.readline())
    assert runs(pid)
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    until(lambda: not runs(pid))


def test_a_worker_loads_no_torch() -> None:
    code = "import sys, vidqa.worker; sys.exit('torch' in sys.modules or 'faiss' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
