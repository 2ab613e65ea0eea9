"""Where returned mail comes from, as the service sees it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

AT_ONCE: Final = 20
"""Mails that one source gives at the same time: each waits for a confirm of the broker."""


class Answer(Enum):
    """What became of a mail."""

    TAKEN = "taken"
    """It is safe: published and confirmed, kept for a person, or of no use. The source forgets it."""
    LATER = "later"
    """It cannot be made safe now. The source keeps it and offers it again."""


class Take(Protocol):
    """Takes one mail."""

    async def __call__(self, mail: bytes, recipients: Sequence[str]) -> Answer:
        """Returns what became of a mail.

        Args:
            mail: The mail, or its beginning.
            recipients: The addresses that it was sent to, as the envelope or the last server names them.
        """


class Source(Protocol):
    """Brings returned mail."""

    async def run(self, take: Take, stop: asyncio.Event) -> None:
        """Gives each mail to `take` until `stop`."""
