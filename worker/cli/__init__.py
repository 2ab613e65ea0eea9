"""The command line. A command is a function in a module of its own here, registered by one line below.

Exit status: 0 done; 1 refused; 2 bad usage or a wrong setting; 3 the broker or the database is out of reach,
or does not have the schema or topology that this Sendoff needs; 130 interrupted. What is wrong is said in a
sentence on standard error.
"""

from __future__ import annotations

import sys
from typing import Final

import typer

from worker.amqp.connection import BrokerUnreachable
from worker.amqp.topology import TopologyMismatch
from worker.cli import migrate, operators, prepare
from worker.cli.common import CommandRefused
from worker.db.pool import DatabaseUnreachable, SchemaMismatch
from worker.services.prepare import PreparationRefused
from worker.settings import SettingsError

_STATUS: Final[dict[type[Exception], int]] = {
    CommandRefused: 1,
    PreparationRefused: 1,
    SettingsError: 2,
    BrokerUnreachable: 3,
    DatabaseUnreachable: 3,
    SchemaMismatch: 3,
    TopologyMismatch: 3,
}
"""The exit status for what a command may raise; anything else is a fault of the program, with a traceback."""

app = typer.Typer(
    name="sendoff",
    help="Carries out the confirm send step of campaign messaging.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("migrate")(migrate.migrate)
app.add_typer(operators.app, name="operator")
app.command("prepare")(prepare.prepare)


def main() -> None:
    """Runs the command that the arguments name, and exits."""
    try:
        app(prog_name="sendoff")
    except tuple(_STATUS) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(next(status for kind, status in _STATUS.items() if isinstance(error, kind)))
