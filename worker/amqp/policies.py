"""The values of our queues that may change are a policy of the broker. Pure.

An argument belongs to a queue for its life. So a queue keeps only what never changes: that it is a quorum
queue, and where its dead messages go. A queue that an earlier version declared has its delivery limit as an
argument too. It is used as it is, with all its messages: the broker takes the lower of both limits, which are
equal.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from worker.amqp.versions import CONSUMER_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from contracts.routing import Names
    from worker.amqp.versions import Version

DELIVERY_LIMIT: Final = 50
"""How often a message may return to its queue before the broker moves it to the dead queue. It is a safety
net and does not count attempts: on RabbitMQ 3.10 to 4.2 each restart of a worker that had prefetched the
message counts too."""

_HOLD_MILLISECONDS: Final = 3_600_000
"""How long a consumer may hold a message before the broker takes it back. A sender holds 1,000 at most, so
this is enough for a relay that takes one in 3.6 s; RabbitMQ's own half an hour is not."""

_PRIORITY: Final = 1
"""One policy applies to a queue, the one with the highest priority: ours goes before those that name none."""


class Policy(NamedTuple):
    """A policy of the broker for some queues."""

    name: str
    pattern: str
    """Matches the names of the queues, as a regular expression."""
    definition: Mapping[str, str | int]

    def command(self, vhost: str) -> str:
        """Returns the command that sets it, for the shell of an operator."""
        return shlex.join(
            [
                *("rabbitmqctl", "set_policy", "-p", vhost, "--priority", str(_PRIORITY)),
                *("--apply-to", "queues", self.name, self.pattern, json.dumps(self.definition)),
            ]
        )

    def body(self) -> dict[str, Any]:
        """Returns it as the management API and the definitions of a broker have it."""
        return {
            "pattern": self.pattern,
            "apply-to": "queues",
            "priority": _PRIORITY,
            "definition": dict(self.definition),
        }

    def missing(self, effective: Mapping[str, Any]) -> list[str]:
        """Returns what of it is not in force at a queue, in words.

        Args:
            effective: What is in force there, by key.
        """
        return [
            f"{key} is {effective.get(key, 'not set')} and should be {value}"
            for key, value in self.definition.items()
            if effective.get(key) != value
        ]


def queue_policy(names: Names, version: Version) -> Policy:
    """Returns the policy for all our queues but the dead queue, which nothing may leave by itself.

    At-least-once: the broker keeps a dead message until the dead queue has confirmed it, and needs
    `reject-publish` for it.

    Args:
        names: The installation's names.
        version: The broker's version. Keys that it does not know would make it refuse the policy.
    """
    ours = re.escape(names.queue("sendoff."))
    definition: dict[str, str | int] = {
        "delivery-limit": DELIVERY_LIMIT,
        "dead-letter-strategy": "at-least-once",
        "overflow": "reject-publish",
    }
    if version >= CONSUMER_TIMEOUT:
        definition["consumer-timeout"] = _HOLD_MILLISECONDS
    pattern = rf"^{ours}(commands|stats|claims|tracking|results\..+|send\..+)$"
    return Policy(names.queue("sendoff"), pattern, definition)
