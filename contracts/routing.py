"""Every string of the wire, once: exchanges, routing keys, queues, headers, message types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SCHEMA_VERSION: Final = 1
"""The version of the bodies, in the header `schema_version`; it is raised only when an old reader would
misread a body."""

CONTENT_TYPE: Final = "application/json"

# Exchanges. All are durable, and direct except EVENTS (topic) and DEAD (fanout).
COMMANDS: Final = "sendoff.commands"
SENDS: Final = "sendoff.sends"
CLAIMS: Final = "sendoff.claims"
RESULTS: Final = "sendoff.results"
TRACKING: Final = "sendoff.tracking"
EVENTS: Final = "sendoff.events"
DEAD: Final = "sendoff.dead"

# Routing keys of COMMANDS.
CONFIRM: Final = "delivery.confirm"
PAUSE: Final = "delivery.pause"
RESUME: Final = "delivery.resume"
STOP: Final = "delivery.stop"
COMPUTE_STATS: Final = "delivery.compute-stats"

# Routing keys of RESULTS.
SENT: Final = "sent"
BOUNCE: Final = "bounce"
ERROR: Final = "error"

# Routing keys of TRACKING.
OPEN: Final = "open"
CLICK: Final = "click"
MIRROR: Final = "mirror"
OPTOUT: Final = "optout"
COMPLAINT: Final = "complaint"

# Queues.
COMMANDS_QUEUE: Final = "sendoff.commands"
STATS_QUEUE: Final = "sendoff.stats"
CLAIMS_QUEUE: Final = "sendoff.claims"
SENT_QUEUE: Final = "sendoff.results.sent"
BOUNCE_QUEUE: Final = "sendoff.results.bounce"
ERROR_QUEUE: Final = "sendoff.results.error"
TRACKING_QUEUE: Final = "sendoff.tracking"
DEAD_QUEUE: Final = "sendoff.dead"

BINDINGS: Final = {
    COMMANDS_QUEUE: (COMMANDS, (CONFIRM, PAUSE, RESUME, STOP)),
    STATS_QUEUE: (COMMANDS, (COMPUTE_STATS,)),
    SENT_QUEUE: (RESULTS, (SENT,)),
    BOUNCE_QUEUE: (RESULTS, (BOUNCE,)),
    ERROR_QUEUE: (RESULTS, (ERROR,)),
    TRACKING_QUEUE: (TRACKING, (OPEN, CLICK, MIRROR, OPTOUT, COMPLAINT)),
}
"""The exchange and the routing keys of each queue, except send queues, the queue of claims and the dead
queue."""

RESULT_QUEUES: Final = tuple(queue for queue, (exchange, _) in BINDINGS.items() if exchange == RESULTS)

# Headers.
TRACEPARENT: Final = "traceparent"
AUTHORIZATION: Final = "authorization"
"""On a command: the operator's signed token, with or without `Bearer ` before it."""
HEADER_SCHEMA_VERSION: Final = "schema_version"
HEADER_REASON: Final = "x-sendoff-reason"
"""On a message in the dead queue: the sentence that says why it is there."""
HEADER_EXCHANGE: Final = "x-sendoff-exchange"
"""On a message in the dead queue: the exchange that it was first published to, for a replay."""
HEADER_ROUTING_KEY: Final = "x-sendoff-routing-key"
"""On a message in the dead queue: the routing key that it was first published with, for a replay."""

# The property `type` of messages whose routing key does not name their kind. Otherwise `type` is the routing
# key.
TYPE_SEND: Final = "send"
TYPE_CLAIM: Final = "claim"
TYPE_GRANT: Final = "grant"
TYPE_REPLY: Final = "reply"
TYPE_STATS: Final = "stats"


def send_queue(channel: str) -> str:
    """Names the queue of a channel's send messages; its routing key in SENDS is the channel itself."""
    return f"sendoff.send.{channel}"


def sharded(name: str, shards: int) -> list[str]:
    """Names the shards of a channel's send queue, or their routing keys: the first is as without shards.

    `sharded("email", 3)` is `email`, `email.1`, `email.2`.

    Args:
        name: A send queue, or a channel.
        shards: How many there are, at least one.
    """
    return [name, *(f"{name}.{shard}" for shard in range(1, shards))]


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one installation: those of this module behind its prefix.

    `Names("blue").queue(SENT_QUEUE)` is `blue.sendoff.results.sent`; without a prefix the names are those of
    this module.
    """

    prefix: str = ""

    def exchange(self, name: str) -> str:
        """Names an exchange of this installation."""
        return self._prefixed(name)

    def queue(self, name: str) -> str:
        """Names a queue of this installation."""
        return self._prefixed(name)

    def queue_behind(self, exchange: str, routing_key: str) -> str | None:
        """Returns the full name of our queue that takes the messages of an exchange and a routing key.

        Args:
            exchange: Its full name.
            routing_key: The routing key.

        Returns:
            None if none of our queues is bound there.
        """
        if exchange == self.exchange(SENDS):
            return self.queue(send_queue(routing_key))
        if exchange == self.exchange(CLAIMS):
            return self.queue(CLAIMS_QUEUE)
        for queue, (source, keys) in BINDINGS.items():
            if exchange == self.exchange(source) and routing_key in keys:
                return self.queue(queue)
        return None

    def _prefixed(self, name: str) -> str:
        return f"{self.prefix}.{name}" if self.prefix else name
