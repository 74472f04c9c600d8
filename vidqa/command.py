"""What every command shares: options made from the settings, how it speaks, how it ends.

    @verb("k", "max_frames")
    def search(run: Run, query: ...) -> None: ...

makes a command with its own arguments, a flag for each named setting, and the options that all
have in common. Exceptions become one line and an exit code here and nowhere else. The commands
themselves are in `cli`; how results look is in `output`.
"""

from __future__ import annotations

import errno
import functools
import inspect
import json as jsonlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from vidqa.config import SETTINGS, Settings
from vidqa.errors import NothingFound, VidqaError
from vidqa.fields import Table, flag_in

FAILED = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells count
BROKEN_PIPE = 141  # 128 + SIGPIPE
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


command_group = functools.partial(
    typer.Typer,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich costs --help a third of a second
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@dataclass(frozen=True)
class Run:
    """What a command is told besides its own arguments: its settings, and how to speak.

    `config` is the profile or file that was named; `flags` are those of the command's own fields,
    None where one was not given.
    """

    settings: Settings
    json: bool
    verbose: bool
    quiet: bool
    config: str | None = None
    flags: Mapping[str, object] = field(default_factory=dict)

    def emit(self, value: object) -> None:
        """One JSON object on one line, at once: whoever reads it may be waiting."""
        print(jsonlib.dumps(value), flush=True)

    def say(self, text: str) -> None:
        """A result."""
        print(printable(text), flush=True)

    def write(self, piece: str) -> None:
        """A piece of a result that comes bit by bit, without a line's end."""
        print(printable(piece), end="", flush=True)

    def fail(self, text: str) -> None:
        """One thing of several that went wrong; the command goes on."""
        typer.secho(printable(text), fg="red", err=True)

    def found_nothing(self, text: str) -> NoReturn:
        """Ends a command that has no result; with --json an empty one was printed already."""
        if self.json:
            raise typer.Exit(NothingFound.exit_code)
        raise NothingFound(text)

    def note(self, text: str) -> None:
        """What is good to know while waiting; on stderr, so that results can be piped."""
        if not self.quiet and not self.json:
            print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text without control characters: names, subtitles and answers may carry a terminal's."""
    return "".join(
        one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text
    )


_SHARED: dict[str, tuple[Any, object]] = {
    "index": (
        Annotated[
            Path | None,
            typer.Option(
                "--index",
                metavar="DIR",
                show_default=False,
                help="Folder of the library (default: VIDQA_INDEX, else indexes/default).",
            ),
        ],
        None,
    ),
    "config": (
        Annotated[
            str | None,
            typer.Option(
                "--config",
                metavar="FILE|cpu|gpu|demo",
                show_default=False,
                help="YAML file or profile (default: VIDQA_CONFIG, else what fits this machine).",
            ),
        ],
        None,
    ),
    "json": (
        Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")],
        False,
    ),
    "verbose": (
        Annotated[bool, typer.Option("-v", "--verbose", help="Say more; show tracebacks.")],
        False,
    ),
    "quiet": (
        Annotated[bool, typer.Option("-q", "--quiet", help="Print results and errors alone.")],
        False,
    ),
}


def verb(
    *settings: str,
    group: typer.Typer,
    name: str | None = None,
    profile: str | None = None,
    fields: Table | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers `body(run, own parameters)` as a command of `group`; see the module's docstring.

    `profile` is where its settings start when the user names no configuration. `fields` are values
    of another record than `Settings`: each gets a flag, and a configuration file may name them.
    """
    table = fields or {}

    def register(body: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
        parameters = [
            *own,
            *(_parameter(one, _flag(SETTINGS, one), None) for one in settings),
            *(_parameter(one, _flag(table, one), None) for one in table),
            *(_parameter(one, option, default) for one, (option, default) in _SHARED.items()),
        ]

        @functools.wraps(body)
        def command(**given: Any) -> None:
            shared = {one: given.pop(one) for one in _SHARED}
            flags = {one: given.pop(one) for one in settings} | {"index": shared.pop("index")}
            own_flags = {one: given.pop(one) for one in table}
            config = shared.pop("config") or os.environ.get("VIDQA_CONFIG") or profile
            with exit_codes(json=shared["json"], verbose=shared["verbose"]):
                _quieten(verbose=shared["verbose"])
                chosen = Settings.load(config, flags, others=table)
                body(Run(chosen, **shared, config=config, flags=own_flags), **given)

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        group.command(name)(command)
        return body

    return register


def _parameter(name: str, option: Any, default: object) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=option)


def _flag(table: Table, name: str) -> Any:
    """The option of a setting; its flag, help, bounds and default are those of its field."""
    one: Field[Any] = table[name]
    kind, bounds = one.metadata["kind"], str(one.metadata["bounds"])
    flag = flag_in(table, name)
    flags = f"{flag}/--no{flag[1:]}" if kind is bool else flag
    help_text = one.metadata["help"]
    if one.default is not None:
        default = str(one.default).lower() if kind is bool else one.default
        help_text += f" (default: {default}{f'; {bounds}' if bounds else ''})"
    return Annotated[kind | None, typer.Option(flags, help=help_text, show_default=False)]


@contextmanager
def exit_codes(*, json: bool, verbose: bool) -> Iterator[None]:
    """Turns what a command raises into one line and an exit code.

    0 done, 1 something failed, 2 wrong usage, 3 nothing found, 130 interrupted, 141 the reader of
    our output has left.
    """
    try:
        with _first_of_a_group():
            yield
        sys.stdout.flush()
    except typer.Exit:
        raise
    except BrokenPipeError:
        # Not even the interpreter may flush what is left when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(BROKEN_PIPE) from None
    except KeyboardInterrupt:
        tell("Interrupted", "interrupted; what was finished is kept", INTERRUPTED, json=json)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if verbose:
            traceback.print_exception(error)
        code = error.exit_code if isinstance(error, VidqaError) else VidqaError.exit_code
        known = str(error) if isinstance(error, VidqaError) else _refusal(error)
        name = type(error).__name__ if known else "InternalError"
        tell(name, known or _unexpected(error), code, json=json)
        raise typer.Exit(code) from None


@contextmanager
def _first_of_a_group() -> Iterator[None]:
    """Of what several tasks have raised together, the first is told."""
    try:
        yield
    except ExceptionGroup as group:
        first: Exception = group
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from group


def _refusal(error: Exception) -> str:
    """What the file system refuses is for the user to mend; nothing where it is something else."""
    if not isinstance(error, OSError) or error.errno not in _REFUSALS or not error.filename:
        return ""
    reason = (error.strerror or type(error).__name__).lower()
    return f"{error.filename}: {reason}; name another place, or change what may be done there"


def _unexpected(error: Exception) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"{reason}; this is a fault of vidqa: run the command again with -v and report the "
        "traceback together with the output of `vidqa doctor`"
    )


def tell(name: str, message: str, exit_code: int, *, json: bool) -> None:
    """An error as one line on stderr, or with `json` as an object on stdout."""
    if json:
        event = {"event": "error", "error": name, "message": message, "exit_code": exit_code}
        print(jsonlib.dumps(event), flush=True)
    else:
        typer.secho(f"vidqa: {printable(message)}", fg="red", err=True)


def _quieten(*, verbose: bool) -> None:
    """Other libraries' chatter is for those who ask; a name that no encoding has, no crash."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    level = logging.INFO if verbose else logging.ERROR
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    if not verbose:
        warnings.simplefilter("ignore")
