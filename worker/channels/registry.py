"""The list of channels. A new channel is an entry here and a package beside this module."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from worker.channels.email.kind import EMAIL, EMAIL_CONTENT
from worker.channels.null import NULL
from worker.channels.webhook.kind import WEBHOOK
from worker.domain.audience import any_address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.channels.protocol import Kind
    from worker.domain.delivery_file import ContentTable

CHANNELS: Final[Mapping[str, Kind]] = {kind.name: kind for kind in (EMAIL, NULL, WEBHOOK)}
"""The channels that we send over, by name. Any other channel in the settings has a foreign sender."""

_FOREIGN_CONTENT: Final = replace(EMAIL_CONTENT, required=False)


def address_rule(channel: str) -> Callable[[str], str]:
    """Returns the check of a channel's addresses. Only a foreign sender can check those of its channel."""
    return CHANNELS[channel].address_rule if channel in CHANNELS else any_address


def content_table(channel: str) -> ContentTable:
    """Returns the content table of a channel's delivery files."""
    return CHANNELS[channel].content if channel in CHANNELS else _FOREIGN_CONTENT
