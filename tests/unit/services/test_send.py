"""The send service: who is claimed, what is said of each, and what becomes of a message that is not sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from contracts import results, routing
from contracts.results import BounceKind, BounceReason, Fault
from tests.support.fakes import SilentPublisher, counts, incoming
from tests.support.fakes_send import LIMITS, RELAY, Setup, Tried, wanted
from tests.support.stack import until
from worker.db import hand_over, holding
from worker.db.retrying import Unstorable
from worker.domain.failures import Broken, Busy
from worker.domain.verdicts import Accepted, Bounced, Failed, Unsure, Withheld
from worker.lifecycle import beside

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from worker.domain.verdicts import Verdict

CLAIMED, MARKED, GIVEN_BACK = "claiming recipients", "marking hand-overs", "giving a claim back"


@pytest.fixture(params=[None, RELAY], ids=["instant", "relay"])
def concurrency(request: pytest.FixtureRequest) -> Iterator[int | None]:
    """A test that asks for it holds for both kinds of channels."""
    return request.param  # type: ignore[no-any-return]


async def test_what_is_granted_is_sent_in_the_order_of_deliveries_and_recipients(
    concurrency: int | None,
) -> None:
    messages = [wanted(2, 9), wanted(1, 30, 2), wanted(2, 1), wanted(1, 4)]
    setup = Setup(*messages, concurrency=concurrency)
    await setup.run()
    assert [(claim.delivery_id, claim.asked) for claim in setup.claims.asked] == [
        (1, {30: (2, "ana@example.org"), 4: (1, "ana@example.org")}),
        (2, {9: (1, "ana@example.org"), 1: (1, "ana@example.org")}),
    ]
    assert setup.tried == [(1, 4, 1), (1, 30, 2), (2, 1, 1), (2, 9, 1)]
    assert [tried.text for tried in setup.channel.tried] == ["of 1", "of 1", "of 2", "of 2"]
    assert setup.contents.read == [1, 2]
    assert [(r.delivery_id, r.recipient, r.attempt) for r in setup.results] == setup.tried
    assert {m.message_id for m in setup.consumer.acknowledged} == {m.message_id for m in messages}
    assert counts(setup.metrics.sends_claimed) == {("email",): 4}
    assert counts(setup.metrics.sends_refused) == {}
    assert counts(setup.metrics.results_published) == {("email", routing.SENT): 4}
    assert setup.channel.closed


async def test_a_body_that_cannot_be_read_is_buried_and_settled_and_its_neighbours_are_sent(
    concurrency: int | None,
) -> None:
    broken = incoming(b'{"delivery_id": 1}', "email")
    setup = Setup(broken, wanted(1, 4), concurrency=concurrency)
    await setup.run()
    ((message, reason, _),) = setup.dead.buried
    assert message is broken
    assert reason.startswith("The send message could not be read: ")
    assert broken in setup.consumer.acknowledged
    assert setup.tried == [(1, 4, 1)]


@pytest.mark.parametrize("attempts", [(1, 2), (2, 1), (2, 2)])
async def test_of_two_messages_for_a_recipient_the_later_attempt_is_tried_and_both_are_settled(
    attempts: tuple[int, int], concurrency: int | None
) -> None:
    messages = [wanted(1, 4, attempt) for attempt in attempts]
    setup = Setup(*messages, wanted(2, 4), concurrency=concurrency)
    await setup.run()
    assert setup.claims.asked[0].asked == {4: (2, "ana@example.org")}
    assert setup.tried == [(1, 4, 2), (2, 4, 1)]
    assert all(message in setup.consumer.acknowledged for message in messages)
    assert len(setup.consumer.acknowledged) == 3
    assert not setup.dead.buried


async def test_the_earlier_of_two_is_settled_at_once_and_the_later_with_its_result() -> None:
    earlier, later = wanted(1, 4, 1), wanted(1, 4, 2)
    setup = Setup(later, earlier, publisher=SilentPublisher())

    async def published() -> bool:
        return bool(setup.publisher.published)

    async with beside(setup.run(), "send"):
        await until(published)
        assert setup.consumer.acknowledged == [earlier]


async def test_who_is_not_granted_is_settled_and_not_sent_to(concurrency: int | None) -> None:
    refused = wanted(1, 4)
    setup = Setup(refused, wanted(1, 5), concurrency=concurrency)
    setup.claims.held[1, 4] = -1
    await setup.run()
    assert setup.tried == [(1, 5, 1)]
    assert refused in setup.consumer.acknowledged
    assert [r.recipient for r in setup.results] == [5]
    assert not setup.dead.buried
    assert counts(setup.metrics.sends_refused) == {("email",): 1}
    assert counts(setup.metrics.sends_claimed) == {("email",): 1}


async def test_a_message_for_a_recipient_that_does_not_exist_is_buried(concurrency: int | None) -> None:
    held, absent = wanted(1, 4), wanted(1, 5)
    setup = Setup(held, absent, concurrency=concurrency, sizes={1: 4})
    setup.claims.held[1, 4] = -1
    await setup.run()
    assert setup.dead.buried == [(absent, "The delivery has 4 recipients, and none of this number.", None)]
    assert setup.consumer.acknowledged == [absent, held]
    assert setup.contents.read == [], "of a delivery that is not confirmed it may still change"


async def test_messages_for_many_unknown_deliveries_are_looked_up_and_buried_together(
    concurrency: int | None,
) -> None:
    strangers = [wanted(number, 1) for number in range(100, 198)]
    setup = Setup(*strangers, wanted(1, 1), concurrency=concurrency, sizes=dict.fromkeys(range(100, 198), 0))
    await setup.run()
    assert [letter.message for letter in setup.dead.buried] == strangers
    assert (setup.sizes.calls, setup.dead.calls) == (1, 1)
    assert [claim.delivery_id for claim in setup.claims.asked] == [1]
    assert setup.tried == [(1, 1, 1)]
    assert len(setup.consumer.acknowledged) == 99


async def test_where_nobody_can_look_who_exists_all_are_refused_and_none_is_buried() -> None:
    setup = Setup(wanted(1, 99), sizes={1: Busy("too busy")})
    setup.claims.nobody = {(1, 99)}
    await setup.run()
    assert len(setup.consumer.acknowledged) == 1
    assert not setup.dead.buried


@pytest.mark.parametrize("error", [Busy("too busy"), Unstorable("a doubled key")])
async def test_claims_that_the_database_refuses_are_settled_with_a_warning_and_others_go_on(
    error: Exception, concurrency: int | None, logged: list[Any]
) -> None:
    refused = [wanted(1, 4), wanted(1, 5)]
    setup = Setup(*refused, wanted(2, 4), concurrency=concurrency)
    setup.claims.refusing[1] = error
    await setup.run()
    assert all(message in setup.consumer.acknowledged for message in refused)
    assert setup.tried == [(2, 4, 1)]
    assert [r.delivery_id for r in setup.results] == [2]
    (line,) = [line for line in logged if line["event"] == "claims refused"]
    assert (line["log_level"], line["because"]) == ("warning", str(error))
    assert counts(setup.metrics.sends_refused) == {("email",): 2}


async def test_a_claim_and_a_mark_that_are_repeated_have_the_same_token(concurrency: int | None) -> None:
    setup = Setup(wanted(1, 4), wanted(2, 4), concurrency=concurrency, times=2)
    await setup.run()
    first, again, other, _ = setup.claims.asked
    assert first == again
    assert first.token != other.token
    assert setup.tried == [(1, 4, 1), (2, 4, 1)]
    assert [marks[1] for marks in setup.claims.marked] == (
        [{4: first.token}] * 2 + [{4: other.token}] * 2 if concurrency else []
    )


async def test_a_channel_that_never_waits_claims_for_the_result_and_marks_nothing() -> None:
    setup = Setup(wanted(1, 4))
    await setup.run()
    (claim,) = setup.claims.asked
    assert (claim.lease, claim.handed_over) == (LIMITS.result_lease, True)
    assert setup.claims.marked == []


async def test_a_relay_claims_for_the_hand_over_and_marks_each_once() -> None:
    setup = Setup(wanted(1, 4), wanted(1, 5), concurrency=RELAY)
    await setup.run()
    (claim,) = setup.claims.asked
    assert (claim.lease, claim.handed_over) == (LIMITS.claim_lease, False)
    ((delivery_id, claims, margin),) = setup.claims.marked
    assert (delivery_id, claims) == (1, {4: claim.token, 5: claim.token})
    assert margin == pytest.approx(0.1 * LIMITS.claim_lease)


@pytest.mark.parametrize(("spent", "expired"), [(8.9, False), (9.1, True)])
async def test_nine_tenths_of_a_lease_count_from_before_the_claim(
    spent: float, monkeypatch: pytest.MonkeyPatch, *, expired: bool
) -> None:
    clock = [100.0]
    for module in (holding, hand_over):
        monkeypatch.setattr(module, "seconds_since_boot", lambda: clock[0])
    setup = Setup(wanted(1, 4), concurrency=RELAY)
    claim = setup.claims.claim

    async def slow(*args: Any, **options: Any) -> set[int]:
        clock[0] += spent
        return await claim(*args, **options)

    monkeypatch.setattr(setup.claims, "claim", slow)
    await setup.run()
    assert setup.channel.tried == [Tried(1, 4, 1, "of 1", expired)]


@pytest.mark.parametrize(
    ("verdict", "key", "said"),
    [
        (Accepted("250 ok", "4F6B"), routing.SENT, {"reply": "250 ok", "provider_id": "4F6B"}),
        (
            Bounced(BounceKind.HARD, BounceReason.USER_UNKNOWN, "5.1.1", "550 who?", Fault.RECIPIENT),
            routing.BOUNCE,
            {
                "kind": "hard",
                "reason": "user_unknown",
                "status": "5.1.1",
                "reply": "550 who?",
                "fault": "recipient",
            },
        ),
        (
            Failed("connection", retryable=True, detail="It was lost."),
            routing.ERROR,
            {"reason": "connection", "retryable": True, "detail": "It was lost."},
        ),
    ],
)
async def test_what_the_channel_says_is_published_word_for_word(
    verdict: Verdict, key: str, said: dict[str, Any], concurrency: int | None
) -> None:
    setup = Setup(wanted(1, 4, 3), concurrency=concurrency)
    setup.channel.told[4] = verdict
    await setup.run()
    (published,) = setup.publisher.published
    assert (published.exchange, published.routing_key) == ("p.results", key)
    (result,) = setup.results
    assert (
        result.model_dump(mode="json", exclude={"at"})
        == {"delivery_id": 1, "recipient": 4, "attempt": 3} | said
    )
    assert result.at.utcoffset() is not None


async def test_of_an_outcome_that_nobody_knows_nothing_is_said_and_the_message_is_settled(
    concurrency: int | None, logged: list[Any]
) -> None:
    setup = Setup(wanted(1, 4), wanted(1, 5), concurrency=concurrency)
    setup.channel.told[4] = Unsure("no answer")
    await setup.run()
    assert [r.recipient for r in setup.results] == [5]
    assert len(setup.consumer.acknowledged) == 2
    assert setup.claims.given_back == [], "it may have been sent"
    (line,) = [line for line in logged if line["event"] == "outcome unknown"]
    assert (line["log_level"], line["recipient"], line["because"]) == ("warning", 4, "no answer")


@pytest.mark.parametrize("fails", [{}, {GIVEN_BACK: Busy("too busy")}], ids=["given back", "left to expire"])
async def test_what_is_withheld_is_given_back_and_settled_and_nothing_is_said(
    fails: dict[str, Exception],
) -> None:
    setup = Setup(wanted(1, 4), wanted(1, 5), concurrency=RELAY, fails=fails)
    setup.channel.told[4] = Withheld()
    await setup.run()
    (claim,) = setup.claims.asked
    assert setup.claims.given_back == ([] if fails else [(1, {4: claim.token})])
    assert [r.recipient for r in setup.results] == [5]
    assert len(setup.consumer.acknowledged) == 2


async def test_a_claim_that_another_took_over_is_not_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(wanted(1, 4), wanted(1, 5), concurrency=RELAY)
    hand_over = setup.claims.hand_over

    async def late(delivery_id: int, claims: Mapping[int, int], *, margin: float) -> set[int]:
        setup.claims.held[1, 4] = -1
        return await hand_over(delivery_id, claims, margin=margin)

    monkeypatch.setattr(setup.claims, "hand_over", late)
    await setup.run()
    assert setup.tried == [(1, 5, 1)]
    assert [list(claims) for _, claims in setup.claims.given_back] == [[4]]
    assert len(setup.consumer.acknowledged) == 2


async def test_where_marks_are_given_up_nothing_is_sent_and_all_is_given_back(logged: list[Any]) -> None:
    setup = Setup(wanted(1, 4), wanted(1, 5), concurrency=RELAY, fails={MARKED: Busy("too busy")})
    await setup.run()
    assert (setup.tried, setup.results) == ([], [])
    assert sorted(r for _, claims in setup.claims.given_back for r in claims) == [4, 5]
    assert len(setup.consumer.acknowledged) == 2
    (line,) = [line for line in logged if line["event"] == "not handed over"]
    assert (line["log_level"], line["claims"], line["because"]) == ("warning", 2, "too busy")


async def test_a_content_that_nobody_can_be_sent_is_an_error_for_good(concurrency: int | None) -> None:
    setup = Setup(wanted(1, 4), wanted(2, 4), concurrency=concurrency)
    setup.contents.changed[1] = {"broken": "no subject"}
    await setup.run()
    assert setup.tried == [(2, 4, 1)]
    (error,) = [r for r in setup.results if r.delivery_id == 1]
    assert (error.reason, error.retryable, error.detail) == ("content", False, "no subject")
    assert setup.claims.given_back == []


async def test_a_content_that_cannot_be_read_now_is_an_error_to_be_retried_and_of_its_batch_alone(
    concurrency: int | None,
) -> None:
    first = [wanted(1, recipient) for recipient in range(1, 101)]
    setup = Setup(*first, wanted(1, 101), concurrency=concurrency)
    setup.contents.raising[1] = Busy("too busy")
    await setup.run()
    errors = [r for r in setup.results if isinstance(r, results.Error)]
    assert [r.recipient for r in errors] == list(range(1, 101))
    assert {(r.reason, r.retryable, r.detail) for r in errors} == {("internal", True, "too busy")}
    assert setup.tried == [(1, 101, 1)]


async def test_a_fault_of_ours_with_one_message_is_an_error_and_stops_no_other(
    concurrency: int | None,
) -> None:
    setup = Setup(wanted(1, 4), wanted(1, 5), concurrency=concurrency)
    setup.channel.told[4] = ValueError("a bug")
    await setup.run()
    (error,) = [r for r in setup.results if r.recipient == 4]
    assert (error.reason, error.retryable, error.detail) == ("internal", False, "ValueError('a bug')")
    assert [r.recipient for r in setup.results if isinstance(r, results.Sent)] == [5]
    assert len(setup.consumer.acknowledged) == 2


async def test_no_message_is_settled_before_its_result_is_confirmed(concurrency: int | None) -> None:
    setup = Setup(wanted(1, 4), concurrency=concurrency, publisher=SilentPublisher())

    async def published() -> bool:
        return bool(setup.publisher.published)

    async with beside(setup.run(), "send") as running:
        await until(published)
        assert setup.consumer.acknowledged == []
        assert not running.done(), "a stop waits for the broker's word"


@pytest.mark.parametrize("doing", [CLAIMED, MARKED, "reading the content"])
async def test_a_broken_database_ends_the_service_and_what_is_in_hand_stays_unsettled(doing: str) -> None:
    setup = Setup(wanted(1, 4), concurrency=RELAY, fails={doing: Broken("forbidden")})
    with pytest.raises(ExceptionGroup) as caught:
        await setup.run()
    assert caught.group_contains(Broken)
    assert (setup.consumer.acknowledged, setup.tried, setup.dead.buried) == ([], [], [])


async def test_what_a_channel_says_is_broken_is_no_messages_fault(concurrency: int | None) -> None:
    setup = Setup(wanted(1, 4), concurrency=concurrency)
    setup.channel.told[4] = Broken("forbidden")
    with pytest.raises(ExceptionGroup) as caught:
        await setup.run()
    assert caught.group_contains(Broken)
    assert (setup.consumer.acknowledged, setup.results) == ([], [])
