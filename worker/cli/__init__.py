"""The command line. A command is a function in a module of its own here, named by one line below.

Exit status: 0 done, or nobody reads the output any more; 1 refused, or the output cannot be written; 2 bad
usage or a wrong setting; 3 the broker or the database cannot be reached, or lacks the schema or the topology
that this Sendoff needs; 130 interrupted. Standard error gets a sentence that says what is wrong. A fault of
the program gives a sentence too, with status 1; SENDOFF_LOG_LEVEL=debug adds the traceback.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import traceback
from collections import UserDict
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from sql import migrations
from worker.cli.streams import close_output, discard_output, open_streams
from worker.domain.text import plain
from worker.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

_COMMANDS: Final = {
    "migrate": "migrate:migrate",
    "operator": "operators:app",
    "prepare": "prepare:prepare",
    "preflight": "preflight:preflight",
    "proof": "proof:proof",
    "run": "run:run",
    "check": "check:check",
    "dead": "dead:app",
    "alert": "alerts:app",
    "flow": "flow:flow",
    "quarantine": "suppression:quarantine",
    "denylist": "suppression:denylist",
    "confirm": "control:confirm",
    "pause": "control:pause",
    "resume": "control:resume",
    "stop": "control:stop",
    "stats": "stats:stats",
    "list": "deliveries:list_",
    "watch": "watch:watch",
    "log": "log:log",
    "unknown": "unknown:unknown",
    "retention": "retention:retention",
    "history": "history:history",
    "export": "history:export",
    "erase": "erase:erase",
}
"""Where each command is: a module here, and the function or the group of commands in it."""

_FAULT: Final = 1
_USAGE: Final = 2


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sendoff {VERSION} (schema {len(migrations())}, Python {platform.python_version()})")
        raise typer.Exit


class _Loaded(UserDict[str, Any]):
    """The commands. One is loaded when it is looked up: to load all takes twice the time of most commands."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - Typer keeps its copy of Click's types to itself
        module, _, attribute = self.data[name].partition(":")
        part = getattr(import_module(f"worker.cli.{module}"), attribute)
        parent = typer.Typer(rich_markup_mode=None)
        if isinstance(part, typer.Typer):
            parent.add_typer(part, name=name)
        else:
            parent.command(name)(part)
        return typer.main.get_group(parent).commands[name]


class _Commands(TyperGroup):
    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 - the same
        super().__init__(**attributes)
        self.commands = _Loaded(_COMMANDS)


app = typer.Typer(
    name="sendoff",
    help="Carries out the confirm send step of campaign messaging.",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Carry out the confirm send step of campaign messaging."""


def main() -> None:
    """Runs the command of the arguments, and exits."""
    open_streams()
    # The broker's clients also log their errors, and asyncio what Ctrl-C cut off. One sentence is enough.
    for library in ("aio_pika", "aiormq", "asyncio"):
        logging.getLogger(library).addHandler(logging.NullHandler())
    status = _guarded(_run)
    unwritten = _guarded(close_output)
    if unwritten is not None:
        discard_output()
    sys.exit(status or unwritten or 0)


def _run() -> None:
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            _say(f"The argument “{argument}” is not text in the encoding of your locale.")
            sys.exit(_USAGE)
    app(prog_name="sendoff")


def _guarded(action: Callable[[], None]) -> int | None:
    """Runs an action. If it fails, prints the reason and returns the exit status."""
    try:
        action()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else _FAULT if end.code else 0
    except Exception as error:  # noqa: BLE001 - any error becomes a sentence
        from worker.cli.statuses import STATUS  # noqa: PLC0415 - it takes a third of a second to load

        for kind, status in STATUS.items():
            if isinstance(error, kind):
                if str(error):
                    _say(str(error))
                return status
        _say(f"This is a fault of Sendoff: {error!r}.")
        if os.environ.get("SENDOFF_LOG_LEVEL", "").lower() == "debug":
            traceback.print_exc()
        return _FAULT
    return None


def _say(sentence: str) -> None:
    """Writes a sentence on standard error, without control characters of foreign text."""
    sys.stderr.write("\n".join(map(plain, sentence.split("\n"))) + "\n")
