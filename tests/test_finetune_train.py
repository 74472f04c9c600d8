"""`vidqa finetune`: from a data file to an adapter, what it says, and what it refuses."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from media import make_film, shot
from rich.console import Console
from safetensors.torch import save_file
from training_parts import TINY, free_port, losses
from typer.testing import CliRunner, Result

from finetune.finish import commands, notes
from finetune.identity import file_digest
from finetune.order import Order, Prepared, look_of
from finetune.progress import _Bar, _bar, duration, line_text
from finetune.recipe import Recipe
from finetune.run_folder import (
    Run,
    check_output,
    check_same,
    cut_log,
    last_checkpoint,
    locked,
    mark_whole,
    read_log,
    read_run,
    told_when_full,
    write_run,
)
from finetune.train import prepare_rows, run_of, train
from finetune.training_report import TrainingReport, draw_curves, page, smoothed
from vidqa import adapters, model_card
from vidqa.adapters import as_name, check_name
from vidqa.cli import app
from vidqa.errors import UsageError, VidqaError

VIDQA = [sys.executable, "-m", "vidqa.cli"]
# The environment of processes that share the cores with other tests.
ALONE = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
STEPS = ["--max-steps", "2", "--batch", "2", "--accumulation", "1", "--eval-steps", "1"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rows about three films of two seconds."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for n in range(3):
        make_film(folder / f"film{n}.mp4", [shot(2, seed=n)])
        for question, answer in (("What colour is the star?", "red"), ("How many?", "two")):
            user = [{"type": "video", "video": f"film{n}.mp4"}, {"type": "text", "text": question}]
            said = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
            rows.append({"vidqa": 1, "messages": said})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def finetune(data: Path | None, output: Path, *more: str) -> Result:
    given = ["--data", str(data)] if data else []
    cache = str(output.parent / "cache")
    arguments = ["finetune", *given, "--output", str(output), "--config", "demo", "--cache", cache]
    return CliRunner().invoke(app, [*arguments, *more])


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    output = tmp_path_factory.mktemp("runs") / "birds"
    return output, finetune(data, output, *STEPS)


# ---------------------------------------------------------------- a whole run


def test_a_run_leaves_an_adapter_with_its_card(trained: tuple[Path, Result], data: Path) -> None:
    output, result = trained
    assert result.exit_code == 0, result.output
    card = adapters.read(output)
    assert (card.name, card.rank, card.base_model) == ("birds", 16, str(TINY))
    assert card.look["max_pixels"] == 9408
    assert [(one.file, one.rows) for one in card.data] == [(str(data), 6)]
    assert (
        card.metrics["before"].keys()
        == card.metrics["after"].keys()
        == {
            "loss",
            "token_accuracy",
        }
    )
    assert not (output / "checkpoints").exists()
    assert not list(output.glob("*.bin"))


def test_a_run_prints_its_plan_and_then_how_to_use_what_it_made(
    trained: tuple[Path, Result],
) -> None:
    output, result = trained
    assert re.search(r"^rows +4 used", result.stdout)
    assert f"--adapter {output}" in result.stdout
    assert result.stdout.index("tokens") < result.stdout.index("vidqa ask")
    assert "step 1/2  loss" in result.stderr


def test_the_rows_that_were_held_out_are_kept_and_named_in_the_command_that_measures(
    trained: tuple[Path, Result], data: Path
) -> None:
    from finetune.formats import read

    output, result = trained
    kept = output / "validation.jsonl"
    assert f"vidqa finetune eval --model {TINY} --adapter {output} --data {kept}" in result.stdout
    rows, given = read(kept), {row.media[0].paths[0] for row in read(data)}
    assert len(rows) == 2
    assert {row.media[0].paths[0] for row in rows} < given


def test_a_run_leaves_curves_and_a_page_that_stands_alone(trained: tuple[Path, Result]) -> None:
    output, _ = trained
    text = (output / "report.html").read_text()
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in text
    assert re.findall(r"(?:src|href)=\"(?!data:|#)", text) == []
    assert "<script" not in text
    assert list((output / "tensorboard").glob("events.*"))


def test_what_is_saved_is_what_was_best(trained: tuple[Path, Result]) -> None:
    from safetensors.torch import load_file

    output, _ = trained
    weights = load_file(output / "adapter_model.safetensors")
    assert all("language_model" in name for name in weights)
    assert any(one.abs().max() > 0 for name, one in weights.items() if "lora_B" in name)


def test_a_finished_run_is_refused_and_with_resume_says_so(
    trained: tuple[Path, Result], data: Path
) -> None:
    output, _ = trained
    refused = finetune(data, output)
    assert refused.exit_code == 2
    assert "holds a finished run; name another folder with --output" in refused.stderr
    again = finetune(None, output, "--resume")
    assert again.exit_code == 0, again.output
    assert "finished at step 2; nothing is left to do" in again.stdout


def test_json_is_one_object_a_line(data: Path, tmp_path: Path) -> None:
    result = finetune(data, tmp_path / "birds", *STEPS, "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [one["event"] for one in events]
    assert (kinds[0], kinds[-1]) == ("plan", "summary")
    assert set(kinds[1:-1]) == {"log"}
    assert events[-1]["commands"]


def test_a_dry_run_prints_the_plan_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    result = finetune(data, tmp_path / "birds", "--dry-run")
    assert result.exit_code == 0, result.output
    assert re.search(r"language +256,000 of [\d,]+ parameters are trained", result.stdout)
    assert "memory" in result.stdout
    assert not (tmp_path / "birds").exists()


def test_a_whole_model_that_was_trained_loads_as_the_base_does(data: Path, tmp_path: Path) -> None:
    from finetune.dataset import load_processor
    from finetune.model import load_base

    output = tmp_path / "whole"
    result = finetune(data, output, *STEPS, "--full", "--lr", "1e-3")
    assert result.exit_code == 0, result.output
    saved = json.loads((output / "config.json").read_text())
    assert saved["dtype"] == json.loads((TINY / "config.json").read_text())["dtype"]
    load_processor(str(output))
    ours, base = (dict(load_base(one, Recipe()).named_parameters()) for one in (output, TINY))
    changed = {name for name in base if not torch.equal(ours[name], base[name])}
    assert changed
    assert all("visual" not in name for name in changed)
    assert f"vidqa ask --model {output}" in result.stdout
    assert model_card.look_of(str(output))["max_frames"] == 12


def test_a_run_on_what_an_earlier_one_made_keeps_its_own_records(
    data: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for output, more in ((first, ["--lr", "1e-3"]), (second, ["--model", str(first)])):
        result = finetune(data, output, *STEPS, "--full", *more)
        assert result.exit_code == 0, result.output
    begun = read_run(second)
    assert begun is not None
    assert begun.model == str(first)
    assert read_log(second) != read_log(first)


def test_a_run_that_was_interrupted_prints_the_command_that_goes_on_to_its_end(
    data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "my runs" / "birds"
    given = ["--data", str(data), "--output", str(output), "--cache", str(tmp_path / "cache")]
    steps = ["--max-steps", "20", "--batch", "2", "--accumulation", "1", "--eval-steps", "20"]
    command = [*VIDQA, "finetune", *given, "--config", "demo", *steps]
    with subprocess.Popen(
        command, env=ALONE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any(line.startswith("step 1/20  loss") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    stopped = re.search(r"stopped after step (\d+) of 20; go on with: vidqa (.+)", said)
    assert stopped is not None, said
    assert int(stopped[1]) < 20

    again = subprocess.run(
        [*VIDQA, *shlex.split(stopped[2])], env=ALONE, capture_output=True, text=True, timeout=240
    )
    assert again.returncode == 0, again.stderr
    assert adapters.read(output).name == "birds"
    assert [step for step, _ in losses(output)] == list(range(1, 21))


def test_a_lock_on_a_file_that_is_gone_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed_meanwhile(*_: Any) -> None:
        (tmp_path / ".lock").rename(tmp_path / "removed")
        (tmp_path / ".lock").touch()

    monkeypatch.setattr("fcntl.flock", removed_meanwhile)
    with pytest.raises(VidqaError, match="another training is at work in it"), locked(tmp_path):
        pass


def test_two_processes_write_one_adapter_once_with_the_losses_of_one_process(
    data: Path, tmp_path: Path
) -> None:
    """As docs/finetune.md starts them on several cards, here on processors."""
    single, together = tmp_path / "single", tmp_path / "together"
    same = ["--max-steps", "3", "--accumulation", "1", "--eval-steps", "1", "--dropout", "0"]
    alone = finetune(data, single, *same, "--batch", "2")
    assert alone.exit_code == 0, alone.output

    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port"]
    launch += [free_port(), "--config_file", str(REPOSITORY / "configs" / "accelerate-ddp.yaml")]
    given = ["--data", str(data), "--output", str(together), "--config", "demo"]
    given += ["--cache", str(tmp_path / "cache"), *same, "--batch", "1"]
    done = subprocess.run(
        [*launch, *VIDQA[1:], "finetune", *given], env=ALONE | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved to") == 1
    assert adapters.read(together).name == "together"
    assert {one.name for one in together.iterdir()} == {one.name for one in single.iterdir()}
    assert [step for step, _ in losses(together)] == [1, 2, 3]
    for (_, two), (_, one_process) in zip(losses(together), losses(single), strict=True):
        assert two == pytest.approx(one_process, rel=1e-3)


# ---------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dora"], "dora: vLLM cannot serve DoRA"),
        (["--qlora"], "qlora: weights in 4 bits need an NVIDIA card, and torch sees none"),
        (["--rank", "12"], "--rank: 12 is not allowed; one of 1, 8, 16"),
        (["--attention", "flash"], "attention: flash needs an NVIDIA card"),
        (["--targets", "nothing"], "targets: 'nothing' fits no layer of this model"),
        (["--targets", ".*qkv"], r"targets: '.\*qkv' fits model.visual.blocks.0.attn.qkv, outside"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_made(
    flags: list[str], message: str, data: Path, tmp_path: Path
) -> None:
    if torch.cuda.is_available() and flags[0] in ("--qlora", "--attention"):
        pytest.skip("this machine has a card")
    result = finetune(data, tmp_path / "birds", *flags)
    assert result.exit_code in (1, 2)
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(message, last)
    assert not (tmp_path / "birds").exists()


def test_data_must_be_named(tmp_path: Path) -> None:
    result = finetune(None, tmp_path / "birds")
    assert result.exit_code == 2
    assert "--data is missing" in result.stderr


def test_wrong_rows_are_named_with_file_and_line(data: Path, tmp_path: Path) -> None:
    rows = data.read_text().splitlines()
    wrong = data.with_name("wrong.jsonl")
    wrong.write_text("\n".join([rows[0], rows[1].replace("film0", "film9")]))
    result = finetune(wrong, tmp_path / "birds")
    assert result.exit_code == 2
    assert re.search(r"wrong\.jsonl:2: .*film9\.mp4: there is no such file", result.stderr)


def test_rows_with_faults_of_their_own_are_dropped_with_file_line_and_reason(
    data: Path, tmp_path: Path
) -> None:
    rows = data.read_text().splitlines()
    late = json.loads(rows[3])
    late["messages"][0]["content"][0]["start"] = 9.0
    empty = rows[4].replace('"red"', '" "')
    (data.parent / "torn.mp4").write_bytes((data.parent / "film0.mp4").read_bytes()[:500])
    torn = rows[1].replace("film0", "torn")
    some = data.with_name("some.jsonl")
    some.write_text("\n".join([rows[0], rows[0], "{", json.dumps(late), empty, torn, *rows[1:3]]))
    held = data.with_name("held.jsonl")
    held.write_text("\n".join([*rows[4:], rows[4]]))
    result = finetune(some, tmp_path / "birds", "--dry-run", "--eval-data", str(held))
    assert result.exit_code == 0, result.output
    assert re.search(r"^rows +3 used, 0 of them with less to see, 5 dropped", result.stdout)
    assert re.search(r"^held out +2 rows, 1 dropped", result.stdout, re.MULTILINE)
    for line, reason in (
        (2, rf"is the same row as {re.escape(str(some))}:1"),
        (3, ".+"),
        (4, "start 9 is beyond the video's end"),
        (5, "an answer is empty"),
        (6, ".*torn.mp4: is not a video, or is truncated or damaged"),
    ):
        assert re.search(rf"^dropped +{re.escape(str(some))}:{line}: {reason}", result.stdout, re.M)
    assert f"{held}:3: is the same row as {held}:1" in result.stdout


def test_a_held_out_video_that_is_trained_on_ends_it(data: Path, tmp_path: Path) -> None:
    held = data.with_name("leak.jsonl")
    held.write_text(data.read_text().splitlines()[0])
    result = finetune(data, tmp_path / "birds", "--dry-run", "--eval-data", str(held))
    assert result.exit_code == 2
    assert re.search(r"leak\.jsonl:1: .*film0\.mp4 is trained on too", result.stderr)


def test_held_out_rows_of_which_none_can_be_used_end_it(data: Path, tmp_path: Path) -> None:
    held = data.with_name("nothing.jsonl")
    row = json.loads(data.read_text().splitlines()[0])
    row["messages"][1]["content"] = ""
    held.write_text(json.dumps(row))
    result = finetune(data, tmp_path / "birds", "--dry-run", "--eval-data", str(held))
    assert result.exit_code == 3
    assert re.search(r"no row of --eval-data .*nothing\.jsonl:1: an answer is empty", result.stderr)


def test_an_adapter_is_named_after_its_data_as_far_as_it_may_be(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = data.with_name("my rows (é).jsonl")
    odd.write_text(data.read_text())
    arguments = ["finetune", "--data", str(odd), "--config", "demo", "--dry-run"]
    result = CliRunner().invoke(app, [*arguments, "--cache", str(tmp_path / "cache")])
    assert result.exit_code == 0, result.output
    assert as_name(odd.stem) == "my-rows"
    assert check_name(as_name("…")) == "adapter"


@pytest.mark.parametrize("place", ["there.txt", "there.txt/below"])
def test_a_place_where_no_folder_can_be_is_told_before_media_are_read(
    place: str, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "there.txt").touch()
    result = finetune(data, tmp_path / place)
    assert result.exit_code == 2
    assert result.stderr.strip().endswith("there.txt: is a file; name a new folder with --output")


def test_a_place_that_may_not_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UsageError, match="nothing may be written there; name another folder"):
        check_output(tmp_path / "new" / "birds", resume=False)


def test_a_media_folder_that_is_not_there_is_wrong_usage(data: Path, tmp_path: Path) -> None:
    result = finetune(data, tmp_path / "birds", "--media-dir", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def test_an_adapter_s_name_is_one_that_can_be_called(data: Path, tmp_path: Path) -> None:
    result = finetune(data, tmp_path / "a bird")
    assert result.exit_code == 2
    assert "adapter name 'a bird'" in result.stderr


# ---------------------------------------------------------------- the folder


BEGUN = Run(recipe=Recipe().public(), model="base", data={"a": "1"}, eval_data={}, batch=16,
            base_digest="1" * 32)  # fmt: skip


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UsageError, match=r"holds holiday.jpg; name a new folder with --output"):
        check_output(tmp_path, resume=False)


def test_a_stopped_run_is_refused_without_resume_and_says_where_it_stands(tmp_path: Path) -> None:
    write_run(tmp_path, BEGUN)
    with pytest.raises(UsageError, match="stopped before its first checkpoint; add --resume"):
        check_output(tmp_path, resume=False)
    (tmp_path / "checkpoints" / "checkpoint-40").mkdir(parents=True)
    mark_whole(tmp_path / "checkpoints" / "checkpoint-40")
    with pytest.raises(UsageError, match="stopped at step 40; add --resume to go on"):
        check_output(tmp_path, resume=False)
    assert check_output(tmp_path, resume=True) == BEGUN


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run to resume"):
        check_output(tmp_path / "nothing", resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": Recipe(rank=8).public()}, "rank 8: the run in .* began with 16"),
        ({"model": "other"}, "--model other: the run in .* began with base"),
        ({"data": {"b": "2"}}, r"--data b: not the rows that the run in .* began with \(a\)"),
        (
            {"base_digest": "2" * 32},
            "--model base: holds other weights than when the run in .* began",
        ),
        ({"batch": 32}, "32 rows a step: the run in .* began with 16"),
    ],
)
def test_a_run_goes_on_only_as_it_began(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_same(Path("out"), BEGUN, dataclasses.replace(BEGUN, **changes))


def test_what_belongs_to_the_machine_may_change_when_a_run_goes_on() -> None:
    recipe = Recipe(cache_gib=1.0, loader_workers=2, attention="eager").public()
    moved = dataclasses.replace(BEGUN, recipe=recipe, data={"elsewhere/a": "1"})
    check_same(Path("out"), BEGUN, moved)


def test_a_checkpoint_counts_when_it_is_whole(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        (tmp_path / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
    assert last_checkpoint(tmp_path) is None
    for step in (2, 4):
        mark_whole(tmp_path / "checkpoints" / f"checkpoint-{step}")
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-4"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt"])
def test_a_checkpoint_whose_files_were_damaged_since_is_passed_over(
    name: str, tmp_path: Path
) -> None:
    for step in (2, 4):
        place = tmp_path / "checkpoints" / f"checkpoint-{step}"
        place.mkdir(parents=True)
        save_file({"a": torch.zeros(64)}, place / "adapter_model.safetensors")
        torch.save({"a": torch.zeros(64)}, place / "optimizer.pt")
        mark_whole(place)
    newest = tmp_path / "checkpoints" / "checkpoint-4"
    assert last_checkpoint(tmp_path) == newest
    (newest / name).write_bytes((newest / name).read_bytes()[:-100])
    assert last_checkpoint(tmp_path) == newest.with_name("checkpoint-2")


def test_a_log_is_cut_to_the_step_from_which_a_run_goes_on(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"step": 4, "lo']))
    cut_log(tmp_path, 2)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(VidqaError, match="another training is at work")
    with locked(tmp_path), refused, locked(tmp_path):
        pass


def test_what_a_kill_at_the_beginning_leaves_is_in_nobody_s_way(tmp_path: Path) -> None:
    (tmp_path / "run.json.4711").write_text("{")
    (tmp_path / ".lock").touch()
    assert check_output(tmp_path, resume=False) is None


def test_the_order_of_data_files_belongs_to_a_run() -> None:
    begun = dataclasses.replace(BEGUN, data={"a": "1", "b": "2"})
    turned = dataclasses.replace(BEGUN, data={"b": "2", "a": "1"})
    with pytest.raises(UsageError, match=r"--data b a: not the rows"):
        check_same(Path("out"), begun, turned)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["Python", "safetensors"],
)
def test_a_full_disk_is_one_line_that_says_how_to_go_on(error: Exception, tmp_path: Path) -> None:
    with (
        pytest.raises(VidqaError, match="the disk is full; make room, then go on with --resume"),
        told_when_full(tmp_path),
    ):
        raise error


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), told_when_full(tmp_path):
        raise RuntimeError("shapes differ")


def prepared_order(data: Path, output: Path) -> tuple[Order, Prepared]:
    recipe = Recipe(
        max_steps=2, batch=2, accumulation=1, eval_steps=1, max_pixels=9408, max_frames=4,
        rank=8, cache=output.parent / "cache",
    )  # fmt: skip
    order = Order(data=(data,), model=str(TINY), output=output, recipe=recipe)
    return order, prepare_rows(order)


def test_decoding_and_planning_tell_how_far_they_are(data: Path, tmp_path: Path) -> None:
    order, prepared = prepared_order(data, tmp_path / "birds")
    told: list[tuple[str, int, int]] = []
    prepare_rows(order, on_progress=lambda *one: told.append(one))
    for which, plan in (("training", prepared.plan), ("held-out", prepared.held_out_plan)):
        rows = len(plan.used)
        media = len({one for planned in plan.used for one in planned.row.media})
        assert rows
        expected = [(f"media of {which} rows", n, media) for n in range(1, media + 1)]
        expected += [(f"{which} rows", n, rows) for n in range(1, rows + 1)]
        assert [one for one in told if which in one[0]] == expected


def test_a_training_tells_on_stderr_how_far_decoding_is(data: Path, tmp_path: Path) -> None:
    result = finetune(data, tmp_path / "birds", "--dry-run")
    assert re.search(r"^media of training rows: (\d+) of \1$", result.stderr, re.MULTILINE)
    assert re.search(r"^held-out rows: (\d+) of \1$", result.stderr, re.MULTILINE)


def test_data_that_is_edited_meanwhile_changes_nothing_of_a_run(data: Path, tmp_path: Path) -> None:
    rows = data.with_name("edited.jsonl")
    rows.write_text(data.read_text())
    ordered = prepared_order(rows, tmp_path / "birds")
    rows.unlink()
    train(*ordered)
    begun = read_run(tmp_path / "birds")
    assert begun is not None
    assert begun.finished == 2
    assert begun.data == {str(rows): file_digest(data)}
    assert [one.sha256 for one in adapters.read(tmp_path / "birds").data] == [file_digest(data)]


def test_a_run_does_not_enter_a_folder_that_another_took_while_it_was_prepared(
    data: Path, tmp_path: Path
) -> None:
    order, prepared = prepared_order(data, tmp_path / "birds")
    other = run_of(dataclasses.replace(order, recipe=Recipe(rank=64)))
    write_run(tmp_path / "birds", other)
    with pytest.raises(UsageError, match=r"the run in .* began with"):
        train(order, prepared)
    write_run(tmp_path / "birds", dataclasses.replace(run_of(order), finished=3))
    with pytest.raises(UsageError, match="another run has finished in it"):
        train(order, prepared)


# ---------------------------------------------------------------- what one sees


def test_a_line_tells_loss_rate_speed_and_what_is_left() -> None:
    line = {"step": 40, "first_step": 20, "loss": 1.5, "learning_rate": 5e-5, "seconds": 10.0}
    text = line_text(line | {"tokens_per_second": 1234.5}, 60)
    assert text == "step 40/60  loss 1.5000  lr 5.00e-05  1,234 tokens/s  10 s left"


def test_an_evaluation_has_a_line_of_its_own() -> None:
    line = {"step": 40, "eval_loss": 1.5, "eval_token_accuracy": 0.5, "seconds": 10.0}
    assert line_text(line, 60) == "step 40/60  held-out loss 1.5000  right tokens 0.500"


def test_on_a_terminal_the_steps_are_a_bar_and_evaluations_stay_above_it() -> None:
    screen = io.StringIO()
    progress = _bar(Console(file=screen, force_terminal=True, width=120))
    with progress:
        bar = _Bar(progress, 60)
        bar(
            {"step": 30, "loss": 1.5, "learning_rate": 5e-5, "seconds": 10.0}
            | {"tokens_per_second": 1234.5}
        )
        progress.refresh()
        assert [(task.completed, task.total) for task in progress.tasks] == [(30, 60)]
        bar({"step": 40, "eval_loss": 1.25, "eval_token_accuracy": 0.5, "seconds": 12.0})
        assert progress.tasks[0].completed == 30
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"training .* 30/60 loss 1\.5000  lr 5\.00e-05  1,234 tokens/s", shown)
    assert "step 40/60  held-out loss 1.2500  right tokens 0.500\n" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (89, "89 s"), (600, "10 min"), (12_000, "3 h 20 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_smoothed_curve_begins_where_the_curve_does_and_forgets() -> None:
    assert smoothed([4.0]) == pytest.approx([4.0])
    assert smoothed([4.0] + [2.0] * 50)[-1] == pytest.approx(2.0, abs=0.02)


def test_names_in_a_report_are_text_and_nothing_else() -> None:
    hostile = "<script>alert(1)</script>"
    text = page(TrainingReport(hostile, [hostile], {}, {}, {hostile: {hostile: hostile}},
                               [hostile], [hostile], b""))  # fmt: skip
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_a_log_without_steps_draws_nothing(tmp_path: Path) -> None:
    assert not draw_curves([{"step": 0, "eval_loss": 1.0}], tmp_path / "loss.png")


def test_an_adapter_of_the_vision_tower_tells_what_serving_needs() -> None:
    order = Order(
        data=(), model="base", output=Path("adapters/birds"), recipe=Recipe(train_vision=True)
    )
    assert "--enable-tower-connector-lora" in commands(order)[-1]
    assert "vLLM serves it only with" in notes(order)[0]


def test_an_adapter_of_plain_questions_tells_who_asks_such() -> None:
    order = Order(
        data=(), model="base", output=Path("adapters/birds"), recipe=Recipe(layout="plain")
    )
    assert "vidqa infer asks such" in notes(order)[0]
    assert not notes(replace(order, recipe=Recipe()))


def test_the_command_that_measures_reads_what_was_held_out_as_the_training_did() -> None:
    order = Order(
        data=(), model="my/base@abc", output=Path("adapters/birds"), recipe=Recipe(),
        eval_data=(Path("e.json"),), format="llama-factory", media_dir=Path("/my videos"),
    )  # fmt: skip
    assert commands(order)[0].endswith(
        "--data e.json --format llama-factory --media-dir '/my videos'"
    )
    assert "vllm serve my/base --revision abc --enable-lora" in commands(order)[-1]


def test_the_look_is_what_of_the_recipe_decides_the_pixels() -> None:
    look = look_of(Recipe(max_frames=6, sample_fps=3.0, cite=False))
    assert (look.max_frames, look.sample_fps, look.cite) == (6, 3.0, False)
