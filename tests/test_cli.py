"""The command line: what it prints, where, and with which exit code it ends."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import REPOSITORY
from fakes import FakeEmbedder, FakeEndpoint
from media import make_film, shot
from PIL import Image
from typer.testing import CliRunner, Result

from vidqa.cli import app
from vidqa.command import Run, printable, verb
from vidqa.config import SETTINGS, Settings
from vidqa.errors import LibraryError, NothingFound

VERBS = ["ingest", "search", "ask", "ground", "ls", "serve", "doctor", "demo", "eval"]
ENGINE_VERBS = ["status", "start", "stop", "logs"]


def vidqa(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def event(result: Result) -> dict[str, Any]:
    """The JSON object on the last line of what was printed."""
    loaded = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDQA_RUNTIME_DIR", str(tmp_path / "runtime"))


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The `vidqa` script in a process of its own."""
    code = "from vidqa.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--nope", "x"], "No such option: --nope"),
        (["ask"], "Missing argument 'QUESTION'."),
        (["search"], "Missing argument 'QUERY'"),
        (["nope"], "No such command 'nope'."),
    ],
)
def test_wrong_usage_is_an_object_with_json(arguments: list[str], message: str) -> None:
    done = script(*arguments, "--json")
    told = json.loads(done.stdout)
    assert (told["event"], told["error"], told["exit_code"]) == ("error", "UsageError", 2)
    assert told["message"].startswith(message)
    assert (done.returncode, done.stderr) == (2, "")


def test_other_ends_of_a_command_keep_their_exit_codes_with_json() -> None:
    assert script("ls", "--json", "--index", "nowhere").returncode == 1
    assert script("ls", "--json", "--help").returncode == 0


# ---------------------------------------------------------------- help


def test_help_shows_how_to_begin_and_the_exit_codes() -> None:
    result = vidqa("--help")
    assert result.exit_code == 0
    assert 'vidqa search "a red car at night"' in result.stdout
    assert "0 done, 1 something failed, 2 wrong usage, 3 nothing found" in result.stdout


@pytest.mark.parametrize("name", VERBS)
def test_every_command_explains_itself_by_example(name: str) -> None:
    result = vidqa(name, "--help")
    assert result.exit_code == 0
    assert f"  vidqa {name}" in result.stdout


@pytest.mark.parametrize("name", ENGINE_VERBS)
def test_every_engine_command_explains_itself_by_example(name: str) -> None:
    assert f"  vidqa engine {name}" in vidqa("engine", name, "--help").stdout


@pytest.mark.parametrize("name", [*VERBS, *(f"engine {name}" for name in ENGINE_VERBS)])
def test_every_command_takes_the_shared_options(name: str) -> None:
    text = vidqa(*name.split(), "--help").stdout
    for option in ("--index DIR", "--config FILE|cpu|gpu|demo", "--json", "-v,", "-q,", "-h,"):
        assert option in text


def test_help_says_what_a_flag_may_be_and_what_it_is_otherwise() -> None:
    text = " ".join(vidqa("search", "--help").stdout.split())
    assert "-k <int> Moments to find. (default: 5; 1 to 1000)" in text
    assert "(default: auto; one of auto, cpu, cuda, mps)" in text


def test_the_version_is_the_package_s() -> None:
    assert re.fullmatch(r"vidqa \d+\.\d+\.\d+\n", vidqa("--version").stdout)


# ---------------------------------------------------------------- wrong usage: 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serach", "x"], "Did you mean 'search'?"),
        (["search"], "Missing argument"),
        (["search", "x", "--kk"], "No such option"),
        (["search", "x", "-k", "many"], "'-k'"),
        (["ls", "--config", "gpuu"], "--config gpuu: No such file"),
        (["search", "x", "-k", "0"], "vidqa: -k: 0 is not allowed; 1 to 1000 is"),
        (["ingest", "x", "--fps", "0"], "vidqa: --fps: 0.0 is not allowed; 0.01 to 120 is"),
    ],
)
def test_wrong_usage_is_said_on_stderr_with_exit_code_2(arguments: list[str], message: str) -> None:
    result = vidqa(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_a_wrong_variable_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDQA_INDX", "here")
    result = vidqa("ls")
    assert result.exit_code == 2
    assert result.stderr == "vidqa: VIDQA_INDX: no such setting; did you mean VIDQA_INDEX?\n"


# ---------------------------------------------------------------- failures: 1 and 3


@pytest.mark.parametrize("arguments", [["ls"], ["search", "x"], ["ask", "x"]])
def test_a_missing_library_is_one_line_with_the_next_step(arguments: list[str]) -> None:
    result = vidqa(*arguments, "--config", "cpu")
    assert result.exit_code == 1
    assert re.fullmatch(r"vidqa: no library at indexes/default; make one: .*\n", result.stderr)
    assert result.stdout == ""


def test_with_json_an_error_is_an_object() -> None:
    result = vidqa("ls", "--json")
    assert result.exit_code == 1
    assert result.stderr == ""
    assert event(result) == {
        "event": "error",
        "error": "LibraryError",
        "message": "no library at indexes/default; make one: vidqa ingest PATH --index DIR",
        "exit_code": 1,
    }


def outcome(error: BaseException, *flags: str) -> Result:
    """How a command ends whose body raises this."""
    group = typer.Typer()

    @verb(group=group)
    def body(run: Run) -> None:
        raise error

    return CliRunner().invoke(group, list(flags))


def test_nothing_found_is_exit_code_3() -> None:
    result = outcome(NothingFound("no such thing"))
    assert (result.exit_code, result.stderr) == (3, "vidqa: no such thing\n")


def test_a_traceback_is_for_those_who_ask() -> None:
    assert "Traceback" not in outcome(LibraryError("broken")).stderr
    assert "Traceback" in outcome(LibraryError("broken"), "-v").stderr


def test_a_fault_of_ours_says_how_to_report_it() -> None:
    result = outcome(KeyError("x"))
    assert result.exit_code == 1
    assert result.stderr.startswith("vidqa: KeyError: 'x'; this is a fault of vidqa: ")
    assert "-v" in result.stderr
    assert "vidqa doctor" in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_the_file_system_refuses_is_no_fault_of_ours() -> None:
    refused = PermissionError(errno.EACCES, "Permission denied", "films/x.mp4")
    result = outcome(refused)
    assert (result.exit_code, result.stderr) == (
        1,
        "vidqa: films/x.mp4: permission denied; name another place, or change what may be done "
        "there\n",
    )


def test_of_what_several_tasks_raise_the_first_is_told() -> None:
    group = ExceptionGroup("tasks", [ExceptionGroup("more", [LibraryError("broken")])])
    assert outcome(group).stderr == "vidqa: broken\n"


def test_an_interrupt_is_exit_code_130() -> None:
    result = outcome(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (
        130,
        "vidqa: interrupted; what was finished is kept\n",
    )


def test_an_exit_code_of_a_command_is_kept() -> None:
    assert outcome(typer.Exit(1)).exit_code == 1


def test_names_and_answers_cannot_command_the_terminal() -> None:
    result = outcome(LibraryError("bad\x1b]0;title\x07\u202ename\x9b31m"))
    assert result.stderr == "vidqa: bad\ufffd]0;title\ufffd\ufffdname\ufffd31m\n"


def test_printable_text_stays_as_it_is() -> None:
    text = "Où? 雪が降る\tno 1\nné 🎬"
    assert printable(text) == text


# ---------------------------------------------------------------- as a process


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "vidqa.cli", "engine", "stop"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_ends_a_process_without_a_traceback() -> None:
    code = (
        "import time\nfrom vidqa.command import exit_codes\nimport typer\n"
        "try:\n    with exit_codes(json=False, verbose=False):\n"
        "        print('waiting', flush=True)\n        time.sleep(60)\n"
        "except typer.Exit as end:\n    raise SystemExit(end.exit_code)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "waiting\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (130, "vidqa: interrupted; what was finished is kept\n")


# ---------------------------------------------------------------- single commands


def test_doctor_prints_one_line_a_finding_and_the_command_that_mends() -> None:
    result = vidqa("doctor", "--config", "cpu")
    assert result.exit_code == 0
    assert re.search(r"^ok +Python +3\.", result.stdout, re.MULTILINE)
    assert re.search(
        r"^note +index +nothing at indexes/default yet\n +-> vidqa ingest PATH$",
        result.stdout,
        re.MULTILINE,
    )


def test_doctor_never_shows_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDQA_API_KEY", "hunter2")
    monkeypatch.setenv("VIDQA_BASE_URL", "http://user:hunter2@127.0.0.1:1/v1")
    result = vidqa("doctor", "--config", "cpu", "--json")
    assert "hunter2" not in result.output
    settings = event(result)["settings"]
    assert set(settings) == set(SETTINGS)
    assert (settings["api_key"], settings["base_url"]) == ("(set)", "http://127.0.0.1:1/v1")


def test_without_an_engine_its_status_is_nothing_found() -> None:
    result = vidqa("engine", "status")
    assert result.exit_code == 3
    assert "no engine is running" in result.stderr
    assert event(vidqa("engine", "status", "--json")) == {"running": False}


def test_stopping_no_engine_is_no_error() -> None:
    result = vidqa("engine", "stop")
    assert (result.exit_code, result.stdout) == (0, "no engine was running\n")


def test_without_an_engine_there_is_no_log() -> None:
    assert vidqa("engine", "logs").exit_code == 3


# ---------------------------------------------------------------- a library

MOMENT = {"video", "video_id", "start_seconds", "end_seconds", "score", "frame_seconds"}


def make_films(workplace: Path) -> Path:
    """Two films, one with a name that wants to command the terminal."""
    folder = workplace / "films"
    folder.mkdir()
    make_film(folder / "a \x1b[31m.mp4", [shot(1.5), shot(1.5, seed=5)])
    make_film(folder / "b.mp4", [shot(1, seed=7)])
    return folder


@pytest.fixture
def fake_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidqa.embed.load_embedder", lambda *_: FakeEmbedder())


@pytest.fixture
def films(tmp_path: Path, fake_embedder: None) -> Path:
    """Two good films and a bad one, not yet taken in."""
    folder = make_films(tmp_path)
    (folder / "bad.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the two films are in the library at the default place."""
    folder = tmp_path_factory.mktemp("workplace")
    make_films(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("vidqa.embed.load_embedder", lambda *_: FakeEmbedder())
        assert vidqa("ingest", "films", "--config", "cpu").exit_code == 0
    return folder


@pytest.fixture
def library(workplace: Path, fake_embedder: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The films of a library that must stay as it is; the current folder is above them."""
    monkeypatch.chdir(workplace)
    return workplace / "films"


@pytest.fixture
def no_model(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("vidqa.embed.load_embedder", refuse)


def test_ingest_says_a_line_per_file_and_one_for_all(films: Path) -> None:
    result = vidqa("ingest", "films")
    lines = sorted(result.stdout.splitlines())
    assert result.exit_code == 1
    assert re.match(r"3 videos: 2 ingested, 0 skipped, 1 failed; in [\d.]+ s, 3 scenes ", lines[0])
    assert lines[1].startswith("ingested  films/a \ufffd[31m.mp4  00:00:03, 2 scenes, ")
    assert re.fullmatch(r"failed    \S+/films/bad.mp4: .*\n", result.stderr)


def test_ingest_with_json_says_an_object_per_file_and_one_for_all(films: Path) -> None:
    result = vidqa("ingest", "films", "--json")
    *files, total = [json.loads(line) for line in result.stdout.splitlines()]
    assert (result.exit_code, result.stderr) == (1, "")
    assert [one["event"] for one in files] == ["file"] * 3
    [failed] = [one for one in files if one["state"] == "failed"]
    assert total == {
        "event": "summary",
        "videos": 3,
        "ingested": 2,
        "skipped": 0,
        "failed": 1,
        "scenes": 3,
        "frames": sum(one["frames"] for one in files),
        "seconds_video": 4.0,
        "seconds_wall": total["seconds_wall"],
        "failures": [{"path": str(films / "bad.mp4"), "error": failed["error"]}],
    }


def test_quiet_ingest_says_failures_alone(films: Path) -> None:
    result = vidqa("ingest", "films", "-q")
    assert result.stdout == ""
    assert result.stderr.startswith("failed    ")


def test_a_second_ingest_loads_no_model(no_model: None) -> None:
    result = vidqa("ingest", "films", "--json")
    assert result.exit_code == 0
    assert event(result)["skipped"] == 2


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_ingest_of_no_video_is_nothing_found(flags: list[str], films: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert vidqa("ingest", "empty", *flags).exit_code == 3


def test_ls_lists_videos_and_failures(films: Path) -> None:
    vidqa("ingest", "films")
    (films / "b.mp4").rename(films.parent / "elsewhere.mp4")
    lines = vidqa("ls").stdout.splitlines()
    assert lines[0].split() == ["duration", "scenes", "frames", "state", "video"]
    assert lines[1].split()[:2] == ["00:00:03", "2"]
    assert re.search(r"ready +films/a \ufffd\[31m.mp4$", lines[1])
    assert re.search(r"file away +films/b.mp4$", lines[2])
    assert re.search(r"failed +\S+bad.mp4: ", lines[3])


def test_ls_with_json_is_one_object(library: Path) -> None:
    listed = event(vidqa("ls", "--json"))
    assert [one["state"] for one in listed["videos"]] == ["ready", "ready"]
    assert listed["videos"][0]["video"] == str(library / "a \x1b[31m.mp4")
    assert listed["failures"] == []


def test_search_prints_a_table_best_first(library: Path) -> None:
    lines = vidqa("search", "red", "-k", "2").stdout.splitlines()
    assert lines[0].split() == ["#", "score", "time", "video"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2"]
    assert re.search(r"00:00:0\d-00:00:0\d +films/", lines[1])


def test_search_with_json_has_the_documented_shape(library: Path) -> None:
    found = event(vidqa("search", "red", "--json", "--video", "b.mp4"))
    assert set(found) == {"query", "moments"}
    assert found["query"] == "red"
    assert [set(one) for one in found["moments"]] == [MOMENT]
    assert found["moments"][0]["video"] == str(library / "b.mp4")


def test_search_writes_a_page_with_pictures(library: Path, tmp_path: Path) -> None:
    result = vidqa("search", "red", "--html", str(tmp_path / "pages/red.html"))
    assert result.exit_code == 0
    assert "data:image/jpeg;base64," in (tmp_path / "pages/red.html").read_text("utf-8")


def test_a_page_that_cannot_be_written_is_wrong_usage(library: Path, tmp_path: Path) -> None:
    result = vidqa("search", "red", "--html", str(tmp_path))
    assert result.exit_code == 2
    assert "--html" in result.stderr


def test_search_finds_what_a_picture_shows(library: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), (255, 0, 0)).save(tmp_path / "a red one.png")
    shown = event(vidqa("search", "--image", str(tmp_path / "a red one.png"), "-k", "1", "--json"))
    named = event(vidqa("search", "red", "-k", "1", "--json"))
    assert shown["moments"][0]["video_id"] == named["moments"][0]["video_id"]


def test_a_picture_that_is_none_is_wrong_usage_and_named(library: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    result = vidqa("search", "--image", str(tmp_path / "notes.txt"))
    assert result.exit_code == 2
    assert f"--image {tmp_path / 'notes.txt'}: " in result.stderr


def test_search_that_finds_nothing_says_so(library: Path) -> None:
    result = vidqa("search", "red", "--video", "nothing*")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "loosen --video or --where" in result.stderr


def test_search_with_json_that_finds_nothing_is_an_empty_list(library: Path) -> None:
    result = vidqa("search", "red", "--video", "nothing*", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {"query": "red", "moments": []}


def test_a_condition_that_is_no_sql_is_wrong_usage(library: Path) -> None:
    result = vidqa("search", "red", "--where", "colour = 'red'")
    assert result.exit_code == 2
    assert "--where" in result.stderr


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint(pieces=("It is ", "red [1", "]. Or [9] not.")) as serving:
        yield serving


def ask(endpoint: FakeEndpoint, *arguments: str) -> Result:
    return vidqa("ask", "Is it red?", "--base-url", endpoint.base_url, *arguments)


def test_ask_prints_the_answer_and_then_its_citations(
    library: Path, endpoint: FakeEndpoint
) -> None:
    answer, blank, *citations = ask(endpoint).stdout.splitlines()
    assert answer == "It is red [1]. Or not."
    assert blank == ""
    assert [
        bool(re.fullmatch(r"\[1\] films/\S.*  00:00:0\d-00:00:0\d", one)) for one in citations
    ] == [True]


def test_ask_with_json_has_the_documented_shape(library: Path, endpoint: FakeEndpoint) -> None:
    found = event(ask(endpoint, "--json"))
    assert (found["question"], found["answer"]) == ("Is it red?", "It is red [1]. Or not.")
    assert [set(one) for one in found["citations"]] == [MOMENT - {"frame_seconds"} | {"n"}]
    assert all(set(one) == MOMENT for one in found["moments"])
    assert found["model"] == "fake-vl"
    frames = sum(len(one["frame_seconds"]) for one in found["moments"])
    assert found["usage"] == {"prompt_tokens": 100, "completion_tokens": 3, "frames": frames}
    assert {"embed", "search", "frames", "model"} <= set(found["timings_ms"])


def test_ask_writes_a_page_with_the_frames_that_the_model_saw(
    library: Path, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    found = event(ask(endpoint, "--json", "--html", str(tmp_path / "answer.html"), "--frames", "4"))
    page = (tmp_path / "answer.html").read_text("utf-8")
    assert page.count("data:image/jpeg;base64,") == found["usage"]["frames"] == 4


def test_ask_of_a_whole_video_loads_no_embedder(
    library: Path, endpoint: FakeEndpoint, no_model: None
) -> None:
    found = event(ask(endpoint, "--json", "--whole", "b.mp4"))
    assert {one["video"] for one in found["moments"]} == {str(library / "b.mp4")}


def test_ask_that_finds_nothing_asks_no_model(library: Path, endpoint: FakeEndpoint) -> None:
    result = ask(endpoint, "--video", "nothing*")
    assert result.exit_code == 3
    assert endpoint.requests == []


def test_settings_reach_the_endpoint(library: Path, endpoint: FakeEndpoint) -> None:
    ask(endpoint, "--max-tokens", "7", "--temperature", "0.5")
    assert (endpoint.requests[0]["max_tokens"], endpoint.requests[0]["temperature"]) == (7, 0.5)


def test_a_wrong_key_is_said_without_showing_it(library: Path, endpoint: FakeEndpoint) -> None:
    endpoint.api_key = "right"
    result = ask(endpoint, "--api-key", "hunter2", "-v")
    assert result.exit_code == 1
    assert "refuses the key" in result.stderr
    assert "hunter2" not in result.output


def test_options_made_of_the_default_settings_are_the_defaults_of_the_modules() -> None:
    from vidqa.ask import AskOptions
    from vidqa.engine import EngineOptions
    from vidqa.ingest import IngestOptions
    from vidqa.wiring import ask_options, engine_options, ingest_options

    assert ingest_options(Settings()) == IngestOptions()
    assert ask_options(Settings()) == AskOptions()
    assert engine_options(Settings(model="m"), Path("m")) == EngineOptions(model="m", name="m")
