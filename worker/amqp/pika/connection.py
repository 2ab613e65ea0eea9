"""Two connections to the broker: one consumes, one publishes.

A broker with too little memory or disk stops reading from connections that publish. Acknowledgements must not
wait for that.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aio_pika
import aiormq.exceptions

from worker.amqp.errors import RECONNECT_INTERVAL, BrokerUnreachable, no_virtual_host
from worker.amqp.pika import properties
from worker.amqp.pika.failures import ERRORS

if TYPE_CHECKING:
    from aio_pika.abc import AbstractRobustConnection


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
    except (*ERRORS, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise BrokerUnreachable(f"The broker is out of reach: {reason}") from error
