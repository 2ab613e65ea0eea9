"""The exit statuses of a command that could not do what was asked."""

from __future__ import annotations

from typing import Final

from worker.amqp.errors import BrokerForbids, BrokerUnreachable, ManagementFailed
from worker.amqp.messages import Unroutable
from worker.amqp.pika.client import NoAnswer
from worker.amqp.topology import TopologyMismatch
from worker.cli.common import CommandRefused
from worker.cli.streams import OutputClosed, OutputLost
from worker.db.pool import DatabaseUnreachable, SchemaMismatch
from worker.lifecycle import ServiceDied
from worker.operations.prepare import PreparationRefused
from worker.settings import SettingsError
from worker.web.server import AddressUnavailable
from worker.web.tracker.spool import SpoolUnusable

STATUS: Final[dict[type[Exception], int]] = {
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
    ManagementFailed: 3,
    Unroutable: 3,
    ServiceDied: 1,
}
"""The exit status of each exception that a command may raise. Any other exception is a fault of the
program."""
