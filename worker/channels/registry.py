"""The channels that there are: an entry here and a package beside it make a new one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from worker.channels.email.kind import EMAIL, EMAIL_CONTENT
from worker.channels.null import NULL
from worker.domain.audience import any_address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.channels.protocol import Kind
    from worker.domain.delivery_file import ContentTable

CHANNELS: Final[Mapping[str, Kind]] = {kind.name: kind for kind in (EMAIL, NULL)}
"""Those that we send over, by name. Any other in the settings has a sender of somebody else's."""

_FOREIGN_CONTENT: Final = replace(EMAIL_CONTENT, required=False)


def address_rule(channel: str) -> Callable[[str], str]:
    """Returns what checks the addresses of a channel; those of another's only its sender can judge."""
    return CHANNELS[channel].address_rule if channel in CHANNELS else any_address


def content_table(channel: str) -> ContentTable:
    """Returns what a delivery file says to recipients over a channel."""
    return CHANNELS[channel].content if channel in CHANNELS else _FOREIGN_CONTENT
