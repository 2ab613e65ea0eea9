from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.results import Bounce, BounceKind, BounceReason, Error, Fault, Sent
from tests.support.reports import NOON, bounce, error, sent
from worker.domain.outcomes import Facts, OutcomeStatus, facts, fold, precedence


def status_of(*results: Sent | Bounce | Error) -> OutcomeStatus:
    return fold(results)[1, 1].status


@pytest.mark.parametrize(
    ("results", "status"),
    [
        ([sent(), bounce(BounceKind.HARD)], OutcomeStatus.BOUNCED_HARD),
        ([bounce(BounceKind.HARD), sent(attempt=2)], OutcomeStatus.BOUNCED_HARD),
        ([sent(), bounce(BounceKind.SOFT)], OutcomeStatus.BOUNCED_SOFT),
        ([bounce(BounceKind.SOFT), sent(attempt=2)], OutcomeStatus.SENT),
        ([error(), sent()], OutcomeStatus.SENT),
        ([sent(), error()], OutcomeStatus.SENT),
        ([sent(), error(attempt=2)], OutcomeStatus.ERROR),
        ([bounce(BounceKind.IGNORED), sent()], OutcomeStatus.BOUNCED_IGNORED),
    ],
)
def test_the_weightiest_fact_stands_whatever_came_first(
    results: list[Sent | Bounce | Error], status: OutcomeStatus
) -> None:
    assert status_of(*results) is status


def test_within_an_attempt_every_outcome_wins_over_the_one_before() -> None:
    order = ("sending", "unknown", "error", "sent", "bounced_ignored", "bounced_soft", "bounced_hard")
    weights = [precedence(OutcomeStatus(status), 1) for status in order]
    assert all(low < high for low, high in pairwise(weights))
    # Rows hold these weights, and the SQL of claims and of expired claims writes the first two by hand.
    assert weights == [16, 17, 19, 20, 21, 22, 23 + 2**20]
    assert precedence(OutcomeStatus.BOUNCED_SOFT, 32_767) < precedence(OutcomeStatus.BOUNCED_HARD, 1) < 2**31


def test_facts_are_kept_beside_the_one_that_stands() -> None:
    later = NOON + timedelta(hours=1)
    known = fold([bounce(BounceKind.HARD, at=later, reply="550 no"), sent(at=NOON, reply="250 ok")])[1, 1]
    assert (known.sent_at, known.bounced_at, known.reply) == (NOON, later, "550 no")


def test_long_replies_are_cut() -> None:
    assert facts(sent(reply="x" * 5_000)).reply == "x" * 1_000


_times = st.integers(0, 5).map(lambda h: NOON + timedelta(hours=h))
_attempts = st.integers(1, 3)
_texts = st.sampled_from([None, "a", "b"])
_reasons = st.sampled_from([BounceReason.SPAM, BounceReason.POLICY])
_faults = st.sampled_from([None, Fault.SENDER, Fault.CONTENT])
_codes = st.sampled_from([None, "5.1.1", "5.7.1"])
_results = st.one_of(
    st.builds(lambda a, t, r, i: sent(a, at=t, reply=r, provider_id=i), _attempts, _times, _texts, _texts),
    st.builds(
        lambda k, a, t, **more: bounce(k, a, at=t, **more),
        st.sampled_from(BounceKind),
        _attempts,
        _times,
        reply=_texts,
        reason=_reasons,
        fault=_faults,
        status=_codes,
    ),
    st.builds(lambda a, d, r: error(a, detail=d, reason=r), _attempts, _texts, st.sampled_from("xy")),
)


@given(
    st.lists(_results, min_size=1, max_size=6).flatmap(
        lambda r: st.tuples(st.just(r), st.permutations(r + r))
    )
)
def test_order_and_repetition_do_not_change_what_is_folded(
    case: tuple[list[Sent | Bounce | Error], list[Sent | Bounce | Error]],
) -> None:
    once, shuffled_twice = case
    assert fold(once) == fold(shuffled_twice)


def test_a_result_keeps_its_details_beside_its_status() -> None:
    taken = facts(sent(2, reply="250 ok", provider_id="p"))
    assert taken == Facts(2, OutcomeStatus.SENT, 36, NOON, sent_at=NOON, reply="250 ok", provider_id="p")
    back = facts(
        bounce(
            BounceKind.SOFT,
            reason=BounceReason.MAILBOX_FULL,
            status="4.2.2",
            fault=Fault.RECIPIENT,
            reply="r",
        )
    )
    assert back == Facts(
        1, OutcomeStatus.BOUNCED_SOFT, 22, NOON, bounced_at=NOON, reason="mailbox_full", code="4.2.2",
        fault="recipient", reply="r", retryable=True,
    )  # fmt: skip
    failed = facts(error(reason="connection", detail="d"))
    assert failed == Facts(
        1, OutcomeStatus.ERROR, 18, NOON, error_at=NOON, reason="connection", reply="d", retryable=True
    )


def test_every_text_that_a_server_gives_is_cut() -> None:
    endless = "x" * 5_000
    assert facts(sent(provider_id=endless)).provider_id == "x" * 1_000
    assert facts(bounce(BounceKind.HARD, reply=endless)).reply == "x" * 1_000
    assert facts(error(detail=endless)).reply == "x" * 1_000
    assert facts(sent(reply="")).reply is None


def test_of_one_fact_told_twice_the_earlier_stands_with_its_words() -> None:
    later = NOON + timedelta(hours=1)
    known = fold([bounce(BounceKind.HARD, at=later, reply="a"), bounce(BounceKind.HARD, reply="b")])[1, 1]
    assert (known.at, known.bounced_at, known.reply) == (NOON, NOON, "b")


def test_an_error_for_good_wins_over_one_that_may_pass() -> None:
    weights = [precedence(OutcomeStatus.ERROR, 1, retryable=r) for r in (True, False)]
    assert precedence(OutcomeStatus.UNKNOWN, 1) < weights[0] < weights[1] < precedence(OutcomeStatus.SENT, 1)
    assert precedence(OutcomeStatus.SENT, 1, retryable=True) == precedence(OutcomeStatus.SENT, 1)


_weighed = st.sampled_from(sorted(set(OutcomeStatus) - {OutcomeStatus.EXCLUDED, OutcomeStatus.RETRYING}))


@given(_attempts, _attempts, _weighed, _weighed)
def test_a_later_attempt_wins_over_all_but_a_hard_bounce(
    attempt: int, later: int, status: OutcomeStatus, before: OutcomeStatus
) -> None:
    hard = OutcomeStatus.BOUNCED_HARD
    wins = precedence(status, attempt + later) > precedence(before, attempt)
    assert wins == (before is not hard or status is hard)


def test_the_statuses_that_the_tables_hold_stay() -> None:
    assert [status.value for status in OutcomeStatus] == [status.name.lower() for status in OutcomeStatus]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("reason", (BounceReason.POLICY, BounceReason.SPAM)),
        ("status", ("5.1.1", "5.7.1")),
        ("fault", (Fault.CONTENT, Fault.SENDER)),
        ("reply", ("a", "b")),
    ],
)
def test_of_one_fact_told_twice_at_one_moment_the_same_words_stand_whichever_came_first(
    field: str, values: tuple[str, str]
) -> None:
    told = [bounce(BounceKind.HARD, **{field: value}) for value in values]
    assert fold(told) == fold(told[::-1])
