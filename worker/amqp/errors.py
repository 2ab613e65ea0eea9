"""The errors of both transports: the broker cannot be reached, or refuses."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote, urlsplit

from worker.domain.failures import Broken

RECONNECT_INTERVAL: Final = 1
"""Seconds between attempts to connect again."""


BLOCKED: Final = (
    "The broker takes no publishes: it is short of memory or disk (see “rabbitmqctl list_alarms” there, or"
    " “rabbitmq-diagnostics alarms”)."
)
"""What is said while an alarm of the broker is in force."""


class BrokerUnreachable(Exception):
    """The broker cannot be reached."""


class ManagementFailed(Exception):
    """The broker's management API cannot be reached, or refuses; the message says which and what to do."""


class BrokerForbids(Broken):
    """The broker user of SENDOFF_AMQP_URL lacks a permission; the message names it."""

    def __init__(self, error: Exception) -> None:
        """Takes the broker's error, which names the user and the object that they may not use."""
        super().__init__(
            f"The broker does not allow it: {error}. See which user this needs, and its permissions."
        )


def no_virtual_host(url: str) -> str:
    """Returns the sentence for a broker that accepts the user of a URL, and then ends the connection."""
    name = unquote(urlsplit(url).path[1:]) or "/"
    return (
        f"The broker does not let the user of SENDOFF_AMQP_URL into the virtual host “{name}”:"
        " it does not exist, the user has no permission for it, or it takes no further connections."
    )
