"""Publishes now or says no, for callers who come again: their mail or their call is answered by it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from worker.amqp.bulk.errors import ConnectionLost
from worker.amqp.errors import BLOCKED, BrokerForbids
from worker.amqp.messages import MessageRefused, Unroutable
from worker.domain.failures import Stopped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.amqp.messages import Outgoing, Publisher

log = structlog.get_logger(__name__)

_TOLD_SECONDS: Final = 60.0
"""For so long a refusal is told: with nothing to publish, nobody would see that it is over."""


class PromptPublisher:
    """Publishes with confirms, within a time."""

    def __init__(self, publisher: Publisher, *, seconds: float) -> None:
        """Takes what publishes, and how long a confirm may take."""
        self._publisher = publisher
        self._seconds = seconds
        self._refusal = ""
        self._refused_at = 0.0

    @property
    def trouble(self) -> str:
        """A sentence that says why nothing is taken now; empty if something is, as far as is known."""
        if self._refusal and asyncio.get_running_loop().time() - self._refused_at < _TOLD_SECONDS:
            return self._refusal  # some refusals cost the connection too
        if not self._publisher.connected:
            return "There is no connection to the broker."
        return BLOCKED if self._publisher.blocked else ""

    @property
    def takes(self) -> bool:
        """Whether it is worth while to publish: the broker is there, and takes publishes."""
        return self._publisher.connected and not self._publisher.blocked

    async def publish(self, exchange: str, routing_key: str, messages: Sequence[Outgoing]) -> bool:
        """Returns whether the broker has confirmed all messages. If not, some may be published."""
        if not self.takes:
            return False
        try:
            async with asyncio.timeout(self._seconds):
                await self._publisher.publish(exchange, routing_key, messages)
        except (Unroutable, MessageRefused, BrokerForbids) as error:
            # It may be right again soon: an operator declares a queue, or gives a permission back.
            if str(error) != self._refusal:
                log.warning("the broker does not take what came in", because=str(error))
            self._refusal, self._refused_at = str(error), asyncio.get_running_loop().time()
            return False
        except TimeoutError:
            log.warning("the broker is slow: what came in is to come again", seconds=self._seconds)
            return False
        except (Stopped, ConnectionLost):
            return False
        self._refusal = ""
        return True
