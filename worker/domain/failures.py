"""What a failure of a server means for us: one enum, and the exceptions that carry a decision on.

Each boundary has a table, `classify`, from its library's errors to a `Failure`: `worker.db.failures`,
`worker.amqp.pika.failures`, `worker.amqp.bulk.failures` and `worker.channels.email.failures`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Failure(StrEnum):
    """What to do about an error of a server."""

    AWAY = "away"
    """The server is not there, or serves nobody now: wait for it."""
    BUSY = "busy"
    """The server is there and did not carry this out in time: try again a few times, then give it up."""
    BROKEN = "broken"
    """Neither time nor another try mends it: stop the process with the reason."""


class Busy(Exception):  # noqa: N818 - the name is the sentence
    """A server was too busy for one piece of work, several times; the message is a sentence for its owner.

    Whoever gets it answers in another way, or sets the work apart, and goes on with the next.
    """


class Broken(Exception):  # noqa: N818 - the name is the sentence
    """A server refuses what we ask, whatever we wait for; the message says which and why."""


class Stopped(Exception):  # noqa: N818 - the name is the sentence
    """The process was told to stop while it waited for a server; what was in hand stays unsettled."""


NO_MESSAGES_FAULT: Final = (Broken, Stopped)
"""Not to be blamed on the message in hand: whoever sets messages apart lets these pass."""
