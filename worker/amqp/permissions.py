"""Says what our broker user may do, and which services it may run, without a message and without a change.

The management interface would say it, but not every installation has it, and a user needs a tag for it.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from contracts import routing
from worker.amqp import topology

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from aio_pika.abc import AbstractRobustConnection
    from aiormq.abc import AbstractChannel
    from pamqp.common import FieldTable

    from contracts.routing import Names

ANSWERS: Final = ""
"""The default exchange."""
_ANOTHER: Final = "amq.direct"
"""An exchange that every virtual host has."""


class Needs(NamedTuple):
    """What a service needs: names without the prefix."""

    writes: tuple[str, ...] = ()
    """The exchanges that it publishes to."""
    reads: tuple[str, ...] = ()
    """The queues that it consumes from."""


def needs(channels: Sequence[str], shards: int = 1) -> Mapping[str, Needs]:
    """Returns what each service needs, by its name; those of deploy/rabbitmq/definitions.json."""
    sends = [key for channel in channels for key in routing.sharded(channel, shards)]
    answering = (ANSWERS, routing.DEAD)
    told = (routing.RESULTS, routing.TRACKING)
    return {
        "confirm": Needs(answering, (routing.COMMANDS_QUEUE,)),
        "fanout": Needs((routing.SENDS,)),
        "send": Needs((routing.RESULTS, routing.DEAD), tuple(map(routing.send_queue, sends))),
        "claims": Needs(answering, (routing.CLAIMS_QUEUE,)),
        "results": Needs((routing.DEAD,), routing.RESULT_QUEUES),
        "tracking": Needs((routing.DEAD,), (routing.TRACKING_QUEUE,)),
        "stats": Needs(answering, (routing.STATS_QUEUE,)),
        "schedule": Needs(),
        "events": Needs((routing.EVENTS,)),
        "returned": Needs(told),
        "webhooks": Needs(told),
        "tracker": Needs((routing.TRACKING,)),
        "console": Needs(),
    }


class Permissions(NamedTuple):
    """What our user may do."""

    writes: frozenset[str]
    reads: frozenset[str]
    wide: bool
    """Whether it may declare what is not ours."""

    def lacks(self, needed: Needs) -> list[str]:
        """Returns what is missing for a service, in words."""
        named = {ANSWERS: "amq.default (for answers)"}
        return [
            *(f"write to {named.get(name, name)}" for name in needed.writes if name not in self.writes),
            *(f"read {name}" for name in needed.reads if name not in self.reads),
        ]


async def look(
    connection: AbstractRobustConnection, names: Names, needs: Collection[Needs], *, answers: bool
) -> Permissions:
    """Asks what our user may do with the exchanges and queues of an installation, which are all there.

    Args:
        connection: The connection to the broker, which takes publishes.
        names: The installation's names.
        needs: What its services need.
        answers: Whether it may publish to the default exchange.
    """
    asking = _Asking(connection)
    writes = {name for each in needs for name in each.writes} - {ANSWERS}
    reads = {name for each in needs for name in each.reads}
    return Permissions(
        frozenset({name for name in writes if await asking.may_write(names.exchange(name))})
        | ({ANSWERS} if answers else frozenset()),
        frozenset({name for name in reads if await asking.may_read(names.queue(name))}),
        await asking.may_declare_another(),
    )


async def differing(
    connection: AbstractRobustConnection, names: Names, channels: Sequence[str], shards: int
) -> list[str] | None:
    """Compares the queues of an installation, which are all there, with how Sendoff declares them.

    Queues of an earlier version do not differ: they are used as they are.

    Returns:
        The broker's words on each queue that has other arguments; None if our user may not ask.
    """
    asking = _Asking(connection)
    found = []
    for name, kinds in topology.arguments(names, channels, shards).items():
        faults = []
        for own in kinds:
            try:
                await asking.ask(partial(_declare, queue=name, arguments=own))
            except ChannelAccessRefused:
                return None
            except ChannelPreconditionFailed as error:
                faults.append(str(error))
            else:
                break
        else:
            found.append(faults[0])
    return found


class _Asking:
    """Asks on a channel, which the broker closes with each refusal."""

    def __init__(self, connection: AbstractRobustConnection) -> None:
        self._connection = connection
        self._channel: AbstractChannel | None = None

    async def ask(self, question: Callable[[AbstractChannel], Awaitable[object]]) -> None:
        if self._channel is None or self._channel.is_closed:
            assert self._connection.transport is not None  # noqa: S101 - it was used before
            # aiormq's own: aio-pika's would open itself again.
            self._channel = await self._connection.transport.connection.channel(publisher_confirms=False)
        try:
            await question(self._channel)
        except BaseException:
            self._channel = None
            raise

    async def may_write(self, exchange: str) -> bool:
        """Removes a binding that is not there: that needs write, and then read of the other exchange."""
        key = f"sendoff-check-{uuid.uuid4()}"
        try:
            await self.ask(lambda c: c.exchange_unbind(exchange, _ANOTHER, key))
        except ChannelAccessRefused as error:
            return f"'{_ANOTHER}'" in str(error)
        return True

    async def may_read(self, queue: str) -> bool:
        """Asks to consume with an argument that is none: the broker looks at the permission first."""
        try:
            await self.ask(
                lambda c: c.basic_consume(queue, _refuse, arguments={"x-priority": "none"}, exclusive=False)
            )
        except ChannelAccessRefused:
            return False
        except ChannelPreconditionFailed:
            return True
        return True

    async def may_declare_another(self) -> bool:
        """Declares what every virtual host has: that needs the permission to configure it."""
        with suppress(ChannelAccessRefused, ChannelPreconditionFailed, ChannelNotFoundEntity):
            await self.ask(lambda c: c.exchange_declare(_ANOTHER, exchange_type="direct", durable=True))
            return True
        return False


async def _declare(channel: AbstractChannel, *, queue: str, arguments: FieldTable) -> None:
    await channel.queue_declare(queue, durable=True, arguments=arguments)


async def _refuse(message: object) -> None:
    """Takes nothing: the broker never lets this consumer in."""
