"""What a channel is to the send service, and the channel that sends nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from worker.domain.verdicts import Accepted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from contracts.sends import Send
    from worker.domain.verdicts import Verdict


class Channel(Protocol):
    """Carries messages to recipients."""

    @property
    def concurrency(self) -> int | None:
        """How many sends make sense at a time; None where a send never waits."""

    async def ready(self) -> None:
        """Returns once sends can be made; raises the channel's own exception where they cannot now."""

    def prepare(self, content: Mapping[str, Any]) -> Any:  # noqa: ANN401 - each channel's own
        """Compiles a content, once per delivery."""

    async def send(self, compiled: Any, send: Send) -> Verdict:  # noqa: ANN401 - what prepare returned
        """Tries one recipient."""

    async def close(self) -> None:
        """Lets go of what it holds."""


class NullChannel:
    """Accepts everything and sends nothing: for rehearsals and the bench."""

    concurrency = None
    _accepted = Accepted("null channel")

    async def ready(self) -> None:
        """Always ready."""

    def prepare(self, content: Mapping[str, Any]) -> None:
        """Needs no content."""

    async def send(self, compiled: None, send: Send) -> Verdict:  # noqa: ARG002 - the protocol's
        """Accepts."""
        return self._accepted

    async def close(self) -> None:
        """Holds nothing."""
