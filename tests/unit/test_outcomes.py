from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.results import Bounce, BounceKind, Error, Sent
from tests.support.reports import NOON, bounce, error, sent
from worker.domain.outcomes import REPLY_LIMIT, OutcomeStatus, facts, fold, precedence


def standing(*results: Sent | Bounce | Error) -> OutcomeStatus:
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
    assert standing(*results) is status


def test_within_an_attempt_every_outcome_wins_over_the_one_before() -> None:
    order = ("sending", "unknown", "error", "sent", "bounced_ignored", "bounced_soft", "bounced_hard")
    weights = [precedence(OutcomeStatus(status), 1) for status in order]
    assert all(low < high for low, high in pairwise(weights))
    # The SQL of claims and of expired claims has these two by hand.
    assert weights[:2] == [16, 17]
    assert precedence(OutcomeStatus.BOUNCED_SOFT, 32_767) < precedence(OutcomeStatus.BOUNCED_HARD, 1) < 2**31


def test_facts_are_kept_beside_the_one_that_stands() -> None:
    later = NOON + timedelta(hours=1)
    known = fold([bounce(BounceKind.HARD, at=later, reply="550 no"), sent(at=NOON, reply="250 ok")])[1, 1]
    assert (known.sent_at, known.bounced_at, known.reply) == (NOON, later, "550 no")


def test_long_replies_are_cut() -> None:
    assert facts(sent(reply="x" * 5_000)).reply == "x" * REPLY_LIMIT


_times = st.integers(0, 5).map(lambda h: NOON + timedelta(hours=h))
_attempts = st.integers(1, 3)
_texts = st.sampled_from([None, "a", "b"])
_results = st.one_of(
    st.builds(lambda a, t, r: sent(a, at=t, reply=r), _attempts, _times, _texts),
    st.builds(
        lambda k, a, t, r: bounce(k, a, at=t, reply=r), st.sampled_from(BounceKind), _attempts, _times, _texts
    ),
    st.builds(lambda a, d: error(a, detail=d), _attempts, _texts),
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
