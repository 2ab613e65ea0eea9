"""Returned mail: reads what comes back, and publishes it as results and tracking events.

A mail is answered for only after the broker has confirmed what it says. It may come again: a bounce is a fact
that is set once, and a complaint an event that counts once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import structlog

from contracts import results, routing, tracking
from contracts.tracking import TrackingEvent, TrackingKind
from worker.amqp.messages import Outgoing
from worker.crashing import crash_point
from worker.returned.reading import (
    AutomaticAnswer,
    Bounce,
    Complaint,
    Loop,
    NoFailure,
    NothingOfOurs,
    read_mail,
)
from worker.returned.sources import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from contracts.routing import Names
    from worker.amqp.prompt import PromptPublisher
    from worker.domain.return_path import Reference
    from worker.returned.reading import Reading, Returned
    from worker.returned.sources import Source
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class References(Protocol):
    """Knows our own names: `worker.domain.return_path.ReturnPath`."""

    def read(self, name: str) -> Reference | None:
        """Returns the attempt that an address or a Message-ID belongs to; None if it is not signed by us."""


class Keeping(Protocol):
    """Keeps mails for a person: `worker.returned.keeping.Kept`."""

    def keep(self, mail: bytes, because: str) -> Path | None:
        """Keeps a mail; None if there is no more room. It may raise OSError."""


@dataclass(frozen=True, slots=True)
class ReturnedParts:
    """The parts of the service."""

    sources: Sequence[Source]
    """Bring the mails."""
    references: References
    """Says which attempt a mail is about."""
    kept: Keeping
    """Keeps what cannot be read."""
    publisher: PromptPublisher
    """Publishes with confirms, or says that it cannot now."""
    names: Names
    """The exchanges of this installation."""
    metrics: Metrics
    """The metrics."""
    read: Callable[[bytes], Reading] = read_mail
    """Reads a mail."""


class ReturnedService:
    """Takes returned mail from its sources."""

    name = "returned"

    def __init__(self, parts: ReturnedParts) -> None:
        """Takes its parts."""
        self._parts = parts
        for outcome in ("kept", "lost"):  # what calls for a person: there from the start, at 0
            parts.metrics.returned_mails.labels(outcome)

    async def run(self, stop: asyncio.Event) -> None:
        """Takes mails until `stop`."""
        async with asyncio.TaskGroup() as group:
            for source in self._parts.sources:
                group.create_task(source.run(self.take, stop))

    async def take(self, mail: bytes, recipients: Sequence[str]) -> Answer:
        """Reads one mail and makes safe what it says.

        Args:
            mail: The mail, or its beginning.
            recipients: The addresses that it was sent to.

        Returns:
            Whether it is safe. Nothing is raised for what a mail holds.
        """
        try:
            reading = await asyncio.to_thread(self._parts.read, mail)
        except Exception:
            # Whatever a mail makes our code or a library raise, it must not stop the mails behind it.
            log.exception("a returned mail made its reader fail")
            return await self._keep(mail, "Sendoff's reader failed; the log says how.")
        addressed = self._attempt(recipients)
        match reading:
            case Bounce():
                return await self._bounce(mail, reading, addressed or self._attempt(reading.references))
            case Complaint():
                return await self._complaint(reading, addressed or self._attempt(reading.references))
            case NothingOfOurs() if addressed is not None:
                return await self._keep(
                    mail, f"It came for {_words(addressed)} and is no report that is known."
                )
            case AutomaticAnswer() | Loop() | NoFailure() | NothingOfOurs():
                return self._done(_OUTCOMES[type(reading)])

    def _attempt(self, names: Iterable[str]) -> Reference | None:
        found = (self._parts.references.read(name) for name in names)
        return next((reference for reference in found if reference is not None), None)

    async def _bounce(self, mail: bytes, bounce: Bounce, attempt: Reference | None) -> Answer:
        if attempt is None:
            return self._done("unknown")
        if not bounce.returned:
            return await self._keep(mail, f"It returns {_words(attempt)}, and no reason was found.")
        # A message goes to one recipient. A server that forwards it may name several: the first is theirs.
        final = next((one for one in bounce.returned if one.final), None)
        if final is None:
            return self._done("delayed")
        body = results.encode([_result(attempt, final)])
        return await self._publish(routing.RESULTS, routing.BOUNCE, body, "bounce")

    async def _complaint(self, complaint: Complaint, attempt: Reference | None) -> Answer:
        if attempt is None:
            return self._done("unknown")
        event = TrackingEvent(
            event_id=f"complaint-{attempt.recipient}-{attempt.attempt}",
            delivery_id=attempt.delivery_id,
            recipient=attempt.recipient,
            kind=TrackingKind.COMPLAINT,
            at=datetime.now(UTC),
        )
        log.info("complaint", **attempt._asdict(), feedback_type=complaint.feedback_type)
        return await self._publish(routing.TRACKING, routing.COMPLAINT, tracking.encode([event]), "complaint")

    async def _publish(self, exchange: str, key: str, body: bytes, outcome: str) -> Answer:
        whole = self._parts.names.exchange(exchange)
        if await self._parts.publisher.publish(whole, key, [Outgoing(body, key)]):
            crash_point("returned.confirmed")
            return self._done(outcome)
        return self._done("later", Answer.LATER)

    async def _keep(self, mail: bytes, because: str) -> Answer:
        """Keeps a mail for a person. If that is not possible it is lost, since it must not block others."""
        try:
            file = await asyncio.to_thread(self._parts.kept.keep, mail, because)
        except OSError as error:
            log.warning("a returned mail could not be kept", because=str(error))
            return self._done("lost")
        if file is None:
            log.warning("a returned mail could not be kept", because="the folder is full")
            return self._done("lost")
        crash_point("returned.kept")
        log.warning("a returned mail was kept for a person", file=str(file), because=because)
        return self._done("kept")

    def _done(self, outcome: str, answer: Answer = Answer.TAKEN) -> Answer:
        self._parts.metrics.returned_mails.labels(outcome).inc()
        return answer


_OUTCOMES: dict[type, str] = {
    AutomaticAnswer: "automatic",
    Loop: "looping",
    NoFailure: "no_failure",
    NothingOfOurs: "other",
}


def _words(attempt: Reference) -> str:
    return f"delivery {attempt.delivery_id}, recipient {attempt.recipient}, attempt {attempt.attempt}"


def _result(attempt: Reference, returned: Returned) -> results.Bounce:
    return results.Bounce(
        **attempt._asdict(),
        at=datetime.now(UTC),
        kind=returned.verdict.kind,
        reason=returned.verdict.reason,
        status=returned.verdict.status,
        reply=returned.reply or None,
        fault=returned.verdict.fault,
    )
