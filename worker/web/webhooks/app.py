"""Answers the calls of mail providers: each is verified, read, made safe, and only then answered with 200."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from contracts.results import Bounce
from contracts.tracking import TrackingEvent, TrackingKind
from worker.web.webhooks.notices import Bounced, Call, Ignored, NotNow, NotSigned, Tracked, Unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from worker.domain.return_path import Reference
    from worker.telemetry.metrics import Metrics
    from worker.web.webhooks.notices import Parsed, Provider

log = structlog.get_logger(__name__)

_LONGEST_URL: Final = 8_192
"""Characters of the address of a link (contracts/tracking.py)."""
_AGAIN_SECONDS: Final = "5"


class References(Protocol):
    """Knows our own names: `worker.domain.return_path.ReturnPath`."""

    def read(self, name: str) -> Reference | None:
        """Returns the attempt that a name belongs to; None if it is not signed by us."""


class Safe(Protocol):
    """Makes facts safe: `worker.web.webhooks.outlet.Outlet`."""

    async def put(self, facts: Sequence[Bounce | TrackingEvent]) -> bool:
        """Returns whether the broker has confirmed the facts."""


@dataclass(frozen=True, slots=True)
class WebhookParts:
    """What the application works with."""

    providers: Sequence[Provider]
    """Those that may call."""
    references: References
    """Says which attempt an event is about."""
    outlet: Safe
    """Makes events safe."""
    metrics: Metrics
    """The metrics."""


def webhook_app(parts: WebhookParts) -> Starlette:
    """Returns the application, with a path `/<provider>` for each provider."""
    hooks = [_Hook(provider, parts) for provider in parts.providers]
    return Starlette(routes=[Route(f"/{hook.name}", hook.answer, methods=["POST"]) for hook in hooks])


class _Hook:
    """One provider's path."""

    def __init__(self, provider: Provider, parts: WebhookParts) -> None:
        self.name = provider.name
        self._provider = provider
        self._references = parts.references
        self._outlet = parts.outlet
        self._calls = parts.metrics.webhook_calls
        self._events = parts.metrics.webhook_events

    async def answer(self, request: Request) -> PlainTextResponse:
        """Answers a call: 200 if what it says is safe, and 503 if it is to come again."""
        try:
            call = Call(request.headers, await request.body(), datetime.now(UTC))
        except ClientDisconnect:
            # Nobody reads the answer. A line in the log for each is for nobody either.
            return PlainTextResponse("", 408)
        try:
            return await self._take(call)
        except NotSigned as error:
            # Counted, and no line in the log: anybody on the internet could fill it so.
            return self._done(error.outcome, 401, str(error), {"www-authenticate": self._provider.challenge})
        except Unreadable as error:
            return self._unreadable(str(error))
        except NotNow as error:
            log.warning("a webhook cannot be verified", provider=self.name, because=str(error))
            return self._later(str(error))

    async def _take(self, call: Call) -> PlainTextResponse:
        await self._provider.verify(call)
        parsed = self._provider.parse(call)
        facts, outcomes = self._facts(parsed, call.now)
        if not await self._outlet.put(facts):
            return self._later("The broker does not take events now.")
        for outcome in outcomes:
            self._events.labels(self.name, outcome).inc()
        if parsed.faults:
            return self._unreadable(parsed.told())
        return self._done("taken", 200, f"{len(facts)} of {len(outcomes)} events are recorded.")

    def _facts(self, parsed: Parsed, now: datetime) -> tuple[list[Bounce | TrackingEvent], list[str]]:
        facts: list[Bounce | TrackingEvent] = []
        outcomes: list[str] = []
        for notice in parsed.notices:
            if isinstance(notice, Ignored):
                outcomes.append(notice.outcome)
                continue
            found = (self._references.read(name) for name in notice.names if name)
            attempt = next((reference for reference in found if reference is not None), None)
            if attempt is None:
                outcomes.append("unknown")
                continue
            fact = (
                _bounce(attempt, notice, now) if isinstance(notice, Bounced) else _event(attempt, notice, now)
            )
            facts.append(fact)
            outcomes.append("bounce" if isinstance(notice, Bounced) else notice.kind.value)
        return facts, outcomes

    def _unreadable(self, because: str) -> PlainTextResponse:
        log.warning("a webhook could not be read", provider=self.name, because=because)
        return self._done("unreadable", 400, because)

    def _later(self, because: str) -> PlainTextResponse:
        return self._done("later", 503, because, {"retry-after": _AGAIN_SECONDS})

    def _done(
        self, outcome: str, status: int, sentence: str, headers: dict[str, str] | None = None
    ) -> PlainTextResponse:
        self._calls.labels(self.name, outcome).inc()
        return PlainTextResponse(f"{sentence}\n", status, {"cache-control": "no-store", **(headers or {})})


def _bounce(attempt: Reference, notice: Bounced, now: datetime) -> Bounce:
    verdict = notice.verdict
    return Bounce(
        **attempt._asdict(),
        at=_moment(notice.at, now),
        kind=verdict.kind,
        reason=verdict.reason,
        status=verdict.status,
        reply=notice.reply or None,
        fault=verdict.fault,
    )


def _event(attempt: Reference, notice: Tracked, now: datetime) -> TrackingEvent:
    event_id = notice.event_id
    if notice.kind is TrackingKind.COMPLAINT:
        # As a complaint that comes by mail (worker/services/returned.py), so that both count once.
        event_id = f"complaint-{attempt.recipient}-{attempt.attempt}"
    url = notice.url if notice.url and len(notice.url) <= _LONGEST_URL and "\0" not in notice.url else None
    return TrackingEvent(
        event_id=event_id,
        delivery_id=attempt.delivery_id,
        recipient=attempt.recipient,
        kind=notice.kind,
        url=url,
        at=_moment(notice.at, now),
        user_agent=notice.user_agent,
    )


def _moment(at: datetime, now: datetime) -> datetime:
    """Returns when something happened: not later than now, whatever the clock of a provider says."""
    return max(min(at.astimezone(UTC), now), _EPOCH)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
