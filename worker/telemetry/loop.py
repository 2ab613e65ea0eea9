"""The lag of the event loop: how late it comes to what is due."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from worker.telemetry.metrics import Metrics

_EVERY: Final = 0.25
"""Seconds between two samples."""


class LoopLag:
    """Measures it, as long as the process runs."""

    name = "the lag of the event loop"

    def __init__(self, metrics: Metrics) -> None:
        """Takes the metrics."""
        self._lag = metrics.loop_lag

    async def run(self, stop: asyncio.Event) -> None:
        """Measures until `stop`."""
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            due = loop.time() + _EVERY
            await asyncio.sleep(_EVERY)
            self._lag.observe(max(0, loop.time() - due))
