"""Claims over the wire: what a request is granted, what it is answered, and when nothing is claimed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from contracts.claims import ClaimAnswer
from contracts.states import State
from tests.support.fakes import FakeConsumer, FakeDead, FakePublisher, FakeRetrying, counts, incoming, metrics
from tests.support.fakes_send import FakeClaims
from worker.db.retrying import Unstorable
from worker.domain.failures import Broken, Busy
from worker.services.claims import ClaimsLimits, ClaimsParts, ClaimsService

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from worker.amqp.messages import Incoming

ONE = "0b9f6ac9-9f0e-4f67-9d1c-7f7f4b0b6a01"
OTHER = "0b9f6ac9-9f0e-4f67-9d1c-7f7f4b0b6a02"


def asked(*recipients: int, attempt: int = 1) -> list[dict[str, Any]]:
    return [{"recipient": r, "attempt": attempt, "address": f"+33 {r}"} for r in recipients]


def request(
    recipients: Any, name: str | None = ONE, key: str = "sms", delivery: object = 7, **properties: Any
) -> Incoming:
    body = json.dumps({"delivery_id": delivery, "recipients": recipients}).encode()
    given = {"reply_to": "answers", "correlation_id": "c1", "user_id": "gateway"} | properties
    return incoming(body, key, message_id=name, **given)


class FakeDeliveries:
    """Knows a running delivery 7 over the channel `sms`."""

    def __init__(self) -> None:
        self.known = {7: ("sms", State.IN_PROGRESS)}

    async def confirmed(self, delivery_id: int) -> tuple[str, State] | None:
        return self.known.get(delivery_id)


class FakeAnswers:
    """Knows the queue `answers`."""

    async def there(self, queue: str) -> bool:
        return queue == "answers"


class Setup:
    """The service on fakes."""

    def __init__(
        self,
        messages: Iterable[Incoming] = (),
        fails: Mapping[str, Exception] | None = None,
        times: int = 1,
        claims: FakeClaims | None = None,
    ) -> None:
        self.consumer = FakeConsumer(messages)
        self.publisher = FakePublisher()
        self.dead = FakeDead()
        self.claims = claims or FakeClaims()
        self.deliveries = FakeDeliveries()
        self.metrics = metrics()
        parts = ClaimsParts(
            consumer=self.consumer,
            publisher=self.publisher,
            answers=FakeAnswers(),
            dead=self.dead,
            claims=self.claims,
            deliveries=self.deliveries,
            retrying=FakeRetrying(fails, times),
            metrics=self.metrics,
        )
        limits = ClaimsLimits(channels=("sms", "email"), lease=700, at_once=2)
        self.service = ClaimsService(parts, limits)

    async def answer(self, message: Incoming) -> ClaimAnswer:
        """Returns the answer that was published, which is the one that `handle` returns."""
        handled = await self.service.handle(message)
        published = ClaimAnswer.model_validate_json(self.publisher.published[-1].message.body)
        assert published == handled
        return published

    @property
    def counted(self) -> dict[tuple[str, ...], float]:
        return {key[1:]: n for key, n in counts(self.metrics.commands).items() if key[0] == "claim"}


def granted(answer: ClaimAnswer) -> list[tuple[int, int]]:
    return [(one.recipient, one.attempt) for one in answer.granted]


async def test_what_is_granted_is_told_to_the_asker_and_counts_as_handed_over() -> None:
    setup = Setup()
    setup.claims.nobody = {(7, 3)}
    answer = await setup.answer(request(asked(2, 1, 3)))
    (claim,) = setup.claims.asked
    assert (claim.delivery_id, claim.lease, claim.handed_over) == (7, 700, True)
    assert claim.asked == {1: (1, "+33 1"), 2: (1, "+33 2"), 3: (1, "+33 3")}
    assert granted(answer) == [(1, 1), (2, 1)]
    assert (answer.status, answer.reason, answer.delivery_id) == ("accepted", None, 7)
    assert (answer.token, answer.lease_seconds) == (str(claim.token), 700)
    assert answer.message == "2 of 3 attempts are granted."
    (published,) = setup.publisher.published
    assert (published.exchange, published.routing_key, published.mandatory) == ("", "answers", False)
    assert (published.message.correlation_id, published.message.type) == ("c1", routing.TYPE_GRANT)
    assert setup.counted == {("accepted", ""): 1}
    assert counts(setup.metrics.sends_claimed) == {("sms",): 2}
    assert counts(setup.metrics.sends_refused) == {("sms",): 1}


async def test_the_same_request_finds_its_own_claims_and_no_other_request_does() -> None:
    claims = FakeClaims()
    first = await Setup(claims=claims).answer(request(asked(1, 2)))
    again = await Setup(claims=claims, times=2).answer(request(asked(1, 2)))
    assert (again.token, again.granted) == (first.token, first.granted)
    others = (
        request(asked(1, 2), OTHER),
        request(asked(1)),
        request(asked(1, 2), user_id="another"),
        request(asked(1, 2), user_id=None),
        request(asked(1, 2, attempt=2)),
    )
    for other in others:
        answer = await Setup(claims=claims).answer(other)
        assert answer.token != first.token
        assert (answer.granted, answer.lease_seconds) == ([], None)
    assert 0 <= int(first.token or -1) < 2**63


async def test_an_answer_says_why_nothing_is_granted_where_the_delivery_does_not_run() -> None:
    setup = Setup()
    setup.claims.nobody = {(7, 1)}
    setup.deliveries.known[7] = ("sms", State.PAUSED)
    answer = await setup.answer(request(asked(1)))
    assert (answer.status, answer.message) == (
        "accepted",
        "0 of 1 attempts are granted. Delivery 7 is paused.",
    )


@pytest.mark.parametrize(("delivery", "key"), [(8, "sms"), (7, "email")])
async def test_a_delivery_that_does_not_go_over_the_channel_is_refused(delivery: int, key: str) -> None:
    setup = Setup()
    answer = await setup.answer(request(asked(1), key=key, delivery=delivery))
    assert (answer.status, answer.reason, answer.delivery_id) == ("refused", "delivery_unknown", delivery)
    assert answer.message == f"No confirmed delivery {delivery} goes over the channel “{key}”."
    assert setup.claims.asked == []
    assert setup.counted == {("refused", "delivery_unknown"): 1}


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (incoming(b"{", "sms", message_id=ONE, reply_to="answers"), "could not be read: Invalid JSON"),
        (request([]), "at least 1 item"),
        (request(asked(*range(1, 1_002))), "at most 1000 items"),
        (request(asked(1, 2, 1)), "each recipient may be there only once"),
        (request(asked(0)), "recipients.0.recipient: Input should be greater than or equal to 1"),
        (request(asked(1), delivery="7"), "delivery_id: Input should be a valid integer"),
        (request(asked(1), None), "message_id must be a UUID"),
        (request(asked(1), "1"), "message_id must be a UUID"),
        (request(asked(1), key="fax"), "no such channel"),
        (request(asked(1), key="sendoff.claims"), "no such channel"),
    ],
)
async def test_what_does_not_fit_is_answered_with_a_sentence(message: Incoming, sentence: str) -> None:
    setup = Setup()
    answer = await setup.answer(message)
    assert (answer.status, answer.reason, answer.granted) == ("invalid", "malformed", [])
    assert sentence in answer.message
    assert (setup.claims.asked, setup.dead.buried) == ([], [])
    assert setup.counted == {("invalid", "malformed"): 1}


@pytest.mark.parametrize(
    ("where", "reason"), [(None, "names no queue"), ("", "names no queue"), ("gone", "Nobody waits")]
)
async def test_without_somebody_who_waits_nothing_is_claimed(where: str | None, reason: str) -> None:
    setup = Setup()
    message = request(asked(1), reply_to=where)
    assert await setup.service.handle(message) is None
    ((buried, why, _),) = setup.dead.buried
    assert buried is message
    assert reason in why
    assert (setup.claims.asked, setup.publisher.published, setup.counted) == ([], [], {})


@pytest.mark.parametrize("doing", ["looking for a delivery", "claiming recipients"])
@pytest.mark.parametrize("error", [Busy("too busy"), Unstorable("a value")])
async def test_where_the_database_is_too_busy_the_asker_is_told_to_ask_again(
    doing: str, error: Exception
) -> None:
    setup = Setup(fails={doing: error})
    answer = await setup.answer(request(asked(1)))
    assert (answer.status, answer.reason, answer.delivery_id) == ("refused", "busy", 7)
    assert setup.dead.buried == []


async def test_a_broken_database_ends_the_service_and_settles_nothing() -> None:
    setup = Setup([request(asked(1))], fails={"claiming recipients": Broken("forbidden")})
    with pytest.raises(ExceptionGroup) as died:
        await setup.service.run(asyncio.Event())
    assert died.group_contains(Broken)
    assert (setup.consumer.acknowledged, setup.publisher.published, setup.dead.buried) == ([], [], [])


async def test_requests_are_answered_and_acknowledged() -> None:
    messages = [
        request(asked(1)),
        request(asked(1), OTHER),
        request(asked(2), reply_to="gone"),
        request(asked(1)),
    ]
    setup = Setup(messages)
    await setup.service.run(asyncio.Event())
    answers = [ClaimAnswer.model_validate_json(p.message.body) for p in setup.publisher.published]
    assert sorted(len(answer.granted) for answer in answers) == [0, 1, 1]
    assert {id(m) for m in setup.consumer.acknowledged} == {id(m) for m in messages}
    assert len(setup.dead.buried) == 1
