"""The kinds of server failures, and the exceptions for them.

Each boundary has a table, `classify`, from its library's errors to a `Failure`: `worker.db.failures`,
`worker.amqp.pika.failures`, `worker.amqp.bulk.failures` and `worker.channels.email.failures`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Failure(StrEnum):
    """What to do about an error of a server."""

    AWAY = "away"
    """The server cannot be reached, or serves nobody now: wait for it."""
    BUSY = "busy"
    """The server is reachable and did not do this in time: try again a few times, then give up."""
    BROKEN = "broken"
    """Waiting and another attempt do not help: stop the process with the reason."""


class Busy(Exception):
    """A server was too busy for one piece of work, several times; the message says which and why.

    The caller answers in another way, or buries the work, and goes on with the next.
    """


class Broken(Exception):
    """A server refuses what we ask permanently; the message says which and why."""


class Stopped(Exception):
    """The process stops while it waits for a server. Its messages stay unacknowledged."""


NO_MESSAGES_FAULT: Final = (Broken, Stopped)
"""Errors that no message causes. Code that buries messages must re-raise them."""
