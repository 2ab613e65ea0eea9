"""Waits for a channel that is out of reach, and says so once."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

import structlog

from worker.channels.protocol import ChannelUnreachable
from worker.domain.failures import Failure, Stopped
from worker.lifecycle import pause, unless_stopped

if TYPE_CHECKING:
    from worker.channels.protocol import Channel

log = structlog.get_logger(__name__)

_SHORTEST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 10.0


class Reaching:
    """Asks one channel whether it is ready."""

    def __init__(self, channel: Channel, name: str) -> None:
        """Takes the channel, and its name for the log."""
        self._channel = channel
        self._name = name
        self.unreachable = ""
        """Why nothing can be sent over the channel now; empty if the channel works."""

    async def reach(self, stop: asyncio.Event, patience: float | None = None) -> None:
        """Waits for the channel. Await it before any claim, so that recipients lose no attempt in an outage.

        It also waits for a channel that refuses us: other services do not need this channel.

        Args:
            stop: Ends the wait.
            patience: The most seconds to wait; None for no limit.

        Raises:
            ChannelUnreachable: the channel was unreachable for `patience` seconds.
            Stopped: `stop` is set.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        wait = _SHORTEST_PAUSE
        while not stop.is_set():
            try:
                await unless_stopped(stop, self._channel.ready())
            except ChannelUnreachable as error:
                self._away(error)
                if patience is not None and loop.time() - began >= patience:
                    raise
                wait = min(2 * wait, _LONGEST_PAUSE)
                await pause(stop, wait * random.uniform(0.5, 1))  # noqa: S311 - not all at once
            else:
                if self.unreachable:
                    log.info("channel is back", channel=self._name)
                self.unreachable = ""
                return
        raise Stopped("The process stops, and nothing more is claimed.")

    def _away(self, error: ChannelUnreachable) -> None:
        if not self.unreachable:
            log.warning(
                "channel refuses us, waiting"
                if error.failure is Failure.BROKEN
                else "channel out of reach, waiting",
                channel=self._name,
                because=str(error),
            )
        self.unreachable = str(error)
