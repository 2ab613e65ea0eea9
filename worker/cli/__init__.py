"""The command line. A command is a function in a module of its own here, registered by one line below.

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
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sql import migrations
from worker.amqp.errors import BrokerForbids, BrokerUnreachable
from worker.amqp.messages import Unroutable
from worker.amqp.pika.client import NoAnswer
from worker.amqp.topology import TopologyMismatch
from worker.cli import (
    alerts,
    check,
    control,
    dead,
    deliveries,
    erase,
    history,
    log,
    migrate,
    operators,
    preflight,
    prepare,
    proof,
    retention,
    run,
    stats,
    suppression,
    unknown,
    watch,
)
from worker.cli.common import CommandRefused
from worker.cli.streams import OutputClosed, OutputLost, close_output, discard_output, open_streams
from worker.db.pool import DatabaseUnreachable, SchemaMismatch
from worker.domain.text import plain
from worker.lifecycle import ServiceDied
from worker.operations.prepare import PreparationRefused
from worker.settings import SettingsError
from worker.version import VERSION
from worker.web.server import AddressUnavailable
from worker.web.tracker.spool import SpoolUnusable

if TYPE_CHECKING:
    from collections.abc import Callable

_STATUS: Final[dict[type[Exception], int]] = {
    OutputClosed: 0,
    OutputLost: 1,
    CommandRefused: 1,
    PreparationRefused: 1,
    BrokerForbids: 1,
    SettingsError: 2,
    AddressUnavailable: 2,
    SpoolUnusable: 2,
    BrokerUnreachable: 3,
    DatabaseUnreachable: 3,
    SchemaMismatch: 3,
    TopologyMismatch: 3,
    NoAnswer: 3,
    Unroutable: 3,
    ServiceDied: 1,
}
"""The exit status of each exception that a command may raise. Any other exception is a fault of the
program."""

_FAULT: Final = 1
_USAGE: Final = 2


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sendoff {VERSION} (schema {len(migrations())}, Python {platform.python_version()})")
        raise typer.Exit


app = typer.Typer(
    name="sendoff",
    help="Carries out the confirm send step of campaign messaging.",
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


app.command("migrate")(migrate.migrate)
app.add_typer(operators.app, name="operator")
app.command("prepare")(prepare.prepare)
app.command("preflight")(preflight.preflight)
app.command("proof")(proof.proof)
app.command("run")(run.run)
app.command("check")(check.check)
app.add_typer(dead.app, name="dead")
app.add_typer(alerts.app, name="alert")
app.add_typer(suppression.quarantine, name="quarantine")
app.add_typer(suppression.denylist, name="denylist")
app.command("confirm")(control.confirm)
app.command("pause")(control.pause)
app.command("resume")(control.resume)
app.command("stop")(control.stop)
app.command("stats")(stats.stats)
app.command("list")(deliveries.list_)
app.command("watch")(watch.watch)
app.command("log")(log.log)
app.command("unknown")(unknown.unknown)
app.command("retention")(retention.retention)
app.command("history")(history.history)
app.command("export")(history.export)
app.command("erase")(erase.erase)


def main() -> None:
    """Runs the command of the arguments, and exits."""
    open_streams()
    # The clients of the broker also log their errors. One sentence on stderr is enough.
    for library in ("aio_pika", "aiormq"):
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
    except tuple(_STATUS) as error:
        if str(error):
            _say(str(error))
        return next(status for kind, status in _STATUS.items() if isinstance(error, kind))
    except Exception as error:  # noqa: BLE001 - any error becomes a sentence
        _say(f"This is a fault of Sendoff: {error!r}.")
        if os.environ.get("SENDOFF_LOG_LEVEL", "").lower() == "debug":
            traceback.print_exc()
        return _FAULT
    return None


def _say(sentence: str) -> None:
    """Writes a sentence on standard error, without control characters of foreign text."""
    sys.stderr.write("\n".join(map(plain, sentence.split("\n"))) + "\n")
