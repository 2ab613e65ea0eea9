"""Claims over the wire: a sender in another language asks what it may send.

What is granted counts as handed over from then on, as if a relay had it: nobody tells us when such a sender
begins. So pause, stop, quarantine, denylist, validity and doubles hold for it as for our own senders, and a
claim without a result becomes `unknown` when its lease expires.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from pydantic import ValidationError

from contracts import routing
from contracts.base import explain
from contracts.claims import ClaimAnswer, ClaimReason, ClaimRequest, GrantedAttempt
from contracts.commands import Status
from worker.amqp.dead import Letter
from worker.amqp.octets import short
from worker.amqp.requests import reply_to, take_each
from worker.crashing import crash_point
from worker.db.retrying import Idempotent, Unstorable
from worker.domain.audience import address_key
from worker.domain.failures import Busy
from worker.domain.states import RUNNING

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

    from contracts.states import State
    from worker.amqp.dead import Burying
    from worker.amqp.messages import Consumer, Incoming, Publisher
    from worker.db.holding import Claiming
    from worker.db.retrying import Retrying
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

PREFETCH: Final = 16
"""Requests that a process holds."""


class Deliveries(Protocol):
    """Reads confirmed deliveries: `worker.db.deliveries.Deliveries`."""

    async def confirmed(self, delivery_id: int) -> tuple[str, State] | None:
        """Returns the channel and the state of a delivery; None if it was never confirmed."""


class Answers(Protocol):
    """Says whether somebody waits for an answer: `worker.amqp.topology.AnswerQueues`."""

    async def there(self, queue: str) -> bool:
        """Returns whether the queue is known to be there."""


@dataclass(frozen=True, slots=True)
class ClaimsParts:
    """The parts of the service."""

    consumer: Consumer
    """Reads the queue of requests."""
    publisher: Publisher
    """Publishes the answers."""
    answers: Answers
    """Says whether the sender still waits."""
    dead: Burying
    """Takes requests that cannot be answered."""
    claims: Claiming
    """Grants attempts."""
    deliveries: Deliveries
    """Says which channel a delivery goes over."""
    retrying: Retrying
    """Executes transactions."""
    metrics: Metrics
    """The metrics."""


@dataclass(frozen=True, slots=True)
class ClaimsLimits:
    """The limits of the service."""

    channels: Collection[str]
    """The installation's channels."""
    lease: float
    """Seconds within which the results must come."""
    at_once: int
    """Requests that are answered at the same time, each over one connection."""


class ClaimsService:
    """Consumes requests for claims."""

    name = "claims"

    def __init__(self, parts: ClaimsParts, limits: ClaimsLimits) -> None:
        """Takes its parts and its limits."""
        self._parts = parts
        self._limits = limits
        self._room = asyncio.Semaphore(limits.at_once)

    async def run(self, stop: asyncio.Event) -> None:
        """Answers requests until `stop`."""
        await take_each(self._parts.consumer, self._parts.dead, self.handle, self._place, stop)

    def _place(self, message: Incoming) -> tuple[Hashable, asyncio.Semaphore]:
        return message.message_id, self._room  # a repeat waits for the request before it

    async def handle(self, message: Incoming) -> ClaimAnswer | None:
        """Claims what a request asks for, and answers.

        A request is only carried out while somebody waits for the answer. Otherwise a request that waited in
        the queue, or came back from the dead queue, would leave claims that nobody knows of.

        Args:
            message: The request. The same request again gets the same claims again.

        Returns:
            The answer; None if nobody waits for it. Then the request is in the dead queue.

        Raises:
            Broken, Stopped: as `worker.db.retrying.Retrier.until_done`.
        """
        if not message.reply_to:
            await self._parts.dead.bury(
                Letter(message, "The request names no queue for its answer (reply_to).")
            )
            return None
        if not await self._parts.answers.there(short(message.reply_to)):
            reason = "Nobody waits for the answer: the queue of reply_to is not there. Nothing was claimed."
            await self._parts.dead.bury(Letter(message, reason))
            return None
        answer = await self._answer(message)
        reason = answer.reason.value if answer.reason else ""
        log.info(
            "claims",
            channel=message.routing_key,
            delivery_id=answer.delivery_id,
            status=answer.status.value,
            reason=reason or None,
            granted=len(answer.granted),
        )
        self._parts.metrics.commands.labels(routing.TYPE_CLAIM, answer.status.value, reason).inc()
        body = answer.model_dump_json().encode()
        await reply_to(self._parts.publisher, message, body, routing.TYPE_GRANT)
        return answer

    async def _answer(self, message: Incoming) -> ClaimAnswer:
        channel = message.routing_key
        if channel not in self._limits.channels:
            return _malformed("This installation has no such channel as the routing key names.")
        if not _is_uuid(message.message_id):
            return _malformed("The property message_id must be a UUID, a new one for each request.")
        try:
            request = ClaimRequest.model_validate_json(message.body)
        except ValidationError as error:
            return _malformed(f"The request could not be read: {explain(error)}")
        number = request.delivery_id
        looking = Idempotent(lambda: self._parts.deliveries.confirmed(number))
        try:
            found = await self._parts.retrying.until_done(looking, "looking for a delivery")
            if found is None or found[0] != channel:
                return _refused(
                    request,
                    ClaimReason.DELIVERY_UNKNOWN,
                    f"No confirmed delivery {number} goes over the channel “{channel}”.",
                )
            return await self._claim(message, request, found[1])
        except (Busy, Unstorable):
            # The database refuses a value only if several senders claim the same recipient now.
            return _refused(
                request, ClaimReason.BUSY, "The database is too busy. Make the same request again later."
            )

    async def _claim(self, message: Incoming, request: ClaimRequest, state: State) -> ClaimAnswer:
        wanted = {a.recipient: (a.attempt, address_key(a.address)) for a in request.recipients}
        token = _token(message, request)
        claiming = Idempotent(
            lambda: self._parts.claims.claim(
                request.delivery_id, wanted, token, lease=self._limits.lease, handed_over=True
            )
        )
        metrics, channel = self._parts.metrics, message.routing_key
        with metrics.claim_seconds.time():
            granted = await self._parts.retrying.until_done(claiming, "claiming recipients")
        crash_point("grant.committed")
        metrics.claim_recipients.observe(len(wanted))
        metrics.sends_claimed.labels(channel).inc(len(granted))
        metrics.sends_refused.labels(channel).inc(len(wanted) - len(granted))
        sentence = f"{len(granted)} of {len(wanted)} attempts are granted."
        if state not in RUNNING:
            sentence += f" Delivery {request.delivery_id} is {state.value}."
        return ClaimAnswer(
            delivery_id=request.delivery_id,
            status=Status.ACCEPTED,
            message=sentence,
            token=str(token),
            granted=[GrantedAttempt(recipient=r, attempt=wanted[r][0]) for r in sorted(granted)],
            lease_seconds=self._limits.lease if granted else None,
        )


def _token(message: Incoming, request: ClaimRequest) -> int:
    """Derives the token of the claims: a repeat of the same request has the same, and nothing else has it."""
    parts = (message.user_id or "", message.message_id or "", message.routing_key, request.model_dump_json())
    digest = hashlib.blake2b("\0".join(parts).encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # a bigint that is not negative


def _is_uuid(text: str | None) -> bool:
    try:
        return bool(uuid.UUID(text or ""))
    except ValueError:
        return False


def _malformed(sentence: str) -> ClaimAnswer:
    return ClaimAnswer(status=Status.INVALID, reason=ClaimReason.MALFORMED, message=sentence)


def _refused(request: ClaimRequest, reason: ClaimReason, sentence: str) -> ClaimAnswer:
    return ClaimAnswer(
        delivery_id=request.delivery_id, status=Status.REFUSED, reason=reason, message=sentence
    )
