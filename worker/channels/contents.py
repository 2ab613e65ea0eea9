"""The contents of deliveries, compiled: read once and kept, since a confirmed content never changes."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import structlog

from worker.domain.content import ContentInvalid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from worker.channels.protocol import Channel

log = structlog.get_logger(__name__)

_KEPT: Final = 64
"""The most deliveries whose content is kept."""


class Contents:
    """The compiled contents of the deliveries that are sent over one channel."""

    def __init__(
        self, channel: Channel, read: Callable[[int], Awaitable[tuple[str, dict[str, Any]] | None]]
    ) -> None:
        """Takes the channel, which compiles, and the function that reads a delivery's channel and content."""
        self._channel = channel
        self._read = read
        self._kept: OrderedDict[int, Any] = OrderedDict()

    async def compiled(self, delivery_id: int) -> Any:  # noqa: ANN401 - each channel's own
        """Returns the compiled content of a confirmed delivery, or ContentInvalid as a value.

        Raises:
            Busy: the content cannot be read now.
        """
        if delivery_id not in self._kept:
            found = await self._read(delivery_id)
            try:
                compiled = self._channel.prepare(found[1]) if found else None
            except ContentInvalid as error:
                compiled = error
            except Exception as error:
                # A fault of ours with one content must not stop the other deliveries, again and again.
                log.exception("content not compiled", delivery_id=delivery_id)
                compiled = ContentInvalid(repr(error))
            if len(self._kept) >= _KEPT:
                self._kept.popitem(last=False)
            self._kept[delivery_id] = compiled
        self._kept.move_to_end(delivery_id)
        return self._kept[delivery_id]
