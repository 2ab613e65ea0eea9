"""The channel that sends nothing: for rehearsals and the bench."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from worker.channels.email.kind import EMAIL_CONTENT
from worker.channels.protocol import Kind
from worker.domain.audience import mail_address
from worker.domain.verdicts import Accepted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from contracts.sends import Send
    from worker.channels.protocol import HandOver
    from worker.domain.verdicts import Verdict


class NullChannel:
    """Accepts everything and sends nothing."""

    concurrency = None
    lanes = None
    _accepted = Accepted("null channel")

    async def ready(self) -> None:
        """Always ready."""

    def prepare(self, content: Mapping[str, Any]) -> None:
        """Needs no content."""

    async def send(self, compiled: None, send: Send, hand_over: HandOver) -> Verdict:  # noqa: ARG002
        """Accepts."""
        return self._accepted

    def stop_waiting(self) -> None:
        """Nothing waits."""

    async def close(self) -> None:
        """Closes nothing."""


NULL: Final = Kind(
    "null",
    # A rehearsal checks what the email channel would check.
    address_rule=mail_address,
    content=replace(EMAIL_CONTENT, required=False),
    open=lambda _: NullChannel(),
)
