"""Two connections to the broker: one consumes, one publishes.

A broker with too little memory or disk stops reading from connections that publish. Acknowledgements must not
wait for that.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import aio_pika
import aiormq.exceptions

from worker.amqp import properties
from worker.amqp.errors import BLOCKED, RECONNECT_INTERVAL, BrokerUnreachable, no_virtual_host
from worker.amqp.pika.failures import ERRORS, ignoring_outage
from worker.domain.servers import places
from worker.lifecycle import beside

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from aio_pika.abc import AbstractRobustConnection

T = TypeVar("T")

_LOOK_SECONDS: Final = 0.05
_TRIAL_SECONDS: Final = 10
_FAREWELL_SECONDS: Final = 2


@dataclass(frozen=True, slots=True)
class Broker:
    """A connection that consumes and one that publishes. Both reconnect by themselves."""

    consuming: AbstractRobustConnection
    publishing: AbstractRobustConnection

    @property
    def connected(self) -> bool:
        """Whether both connections are open now."""
        return all(c.connected.is_set() for c in (self.consuming, self.publishing))

    async def close(self) -> None:
        """Closes both."""
        await asyncio.gather(self.publishing.close(), self.consuming.close(), return_exceptions=True)


class _Connection(aio_pika.RobustConnection):
    """Stops connecting when its caller stops.

    aio-pika's own class tries forever, and the loop cannot end.
    """

    async def connect(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aio-pika's own
        try:
            await super().connect(timeout)
        except BaseException:
            await self.close()
            raise


async def open_broker(url: str, *, name: str, timeout: float) -> Broker:  # noqa: ASYNC109 - passed on
    """Connects twice.

    Args:
        url: `amqp://…` or `amqps://…`.
        name: What operators see in the broker's list of connections.
        timeout: Seconds for each attempt.

    Raises:
        BrokerUnreachable: there is no broker at the address, or it refuses our login.
    """
    consuming = await _connect(url, f"{name} consume", timeout)
    try:
        publishing = await _connect(url, f"{name} publish", timeout)
    except BrokerUnreachable:
        await consuming.close()
        raise
    return Broker(consuming, publishing)


async def open_connection(url: str, *, name: str, timeout: float) -> AbstractRobustConnection:  # noqa: ASYNC109
    """Connects once, for a short conversation.

    Raises:
        BrokerUnreachable: as `open_broker`.
    """
    return await _connect(url, name, timeout)


def blocked(connection: AbstractRobustConnection) -> bool:
    """Says whether the broker, short of memory or disk, has told a connection that it takes no publishes.

    It does at the first publish. aiormq keeps it to itself, in an event under this name.
    """
    if connection.transport is None or not connection.connected.is_set():
        return False
    return not vars(connection.transport.connection)["_Connection__connection_unblocked"].is_set()


async def unless_blocked(
    connection: AbstractRobustConnection, work: Coroutine[Any, Any, T], doubt: str = ""
) -> T:
    """Returns what some work returns that publishes.

    Args:
        connection: The one that it publishes over.
        work: What is done.
        doubt: What is added to the sentence of the error.

    Raises:
        BrokerUnreachable: the broker takes no publishes, and the work was cancelled.
    """
    async with beside(work, "work") as task, beside(_told_blocked(connection), "told blocked") as told:
        await asyncio.wait([task, told], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise BrokerUnreachable(f"{BLOCKED}{doubt}")
        return task.result()


async def _told_blocked(connection: AbstractRobustConnection) -> None:
    # Who waits for it cancels it. Nothing would wake us: aiormq's event is set when an alarm ends.
    while not blocked(connection):  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)


async def try_publishing(connection: AbstractRobustConnection) -> bool:
    """Publishes two messages that nobody gets, as a broker tells of its alarms only those who publish.

    The first may still be confirmed: it is what makes the broker tell.

    Returns:
        Whether our user may publish to the default exchange, over which answers go.

    Raises:
        BrokerUnreachable: the broker takes no publishes, or does not answer in time.
    """

    async def work() -> None:
        channel = await connection.channel()
        nowhere = f"sendoff-{uuid.uuid4()}"
        for _ in range(2):
            await channel.default_exchange.publish(aio_pika.Message(b""), nowhere, mandatory=False)

    try:
        async with asyncio.timeout(_TRIAL_SECONDS):
            await unless_blocked(connection, work())
    except aiormq.exceptions.ChannelAccessRefused:
        return False  # it answers
    except BrokerUnreachable:
        raise  # it is blocked, and the sentence says so
    except ERRORS as error:
        reason = str(error) or type(error).__name__
        raise BrokerUnreachable(f"The broker confirms no publish: {reason}") from error
    return True


async def close_soon(connection: AbstractRobustConnection) -> None:
    """Says goodbye, and waits for no answer for long: a broker that is short of memory reads none."""
    with ignoring_outage():
        async with asyncio.timeout(_FAREWELL_SECONDS):
            await connection.close()


async def _connect(url: str, name: str, timeout: float) -> AbstractRobustConnection:  # noqa: ASYNC109
    properties.patch_pamqp()
    try:
        async with asyncio.timeout(timeout):
            return await aio_pika.connect_robust(
                url,
                timeout=timeout,
                client_properties={"connection_name": name},
                reconnect_interval=RECONNECT_INTERVAL,
                connection_class=_Connection,
            )
    except (
        aiormq.exceptions.AuthenticationError,
        aiormq.exceptions.ProbableAuthenticationError,
    ) as error:
        raise BrokerUnreachable(
            f"The broker refuses the user or password of SENDOFF_AMQP_URL: {error}"
        ) from error
    except aiormq.exceptions.InvalidFrameError as error:
        # A broker answers Connection.Open with OpenOk, or it ends the connection.
        if "Connection.OpenOk" in str(error):
            raise BrokerUnreachable(no_virtual_host(url)) from error
        raise BrokerUnreachable(f"What answers at SENDOFF_AMQP_URL is no broker: {error}") from error
    except ERRORS as error:
        reason = str(error) or type(error).__name__
        raise BrokerUnreachable(f"The broker is out of reach: {places(url)}: {reason}") from error
