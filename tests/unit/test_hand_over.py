"""Hand-overs: what is marked together, and what each claim is answered."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.stack import until
from worker.db.hand_over import Claimed, HandOvers
from worker.domain.failures import Broken
from worker.lifecycle import beside

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

TOKEN, OTHER = 7, 8


def claimed(recipient: int, delivery_id: int = 1, token: int = TOKEN) -> Claimed:
    return Claimed(delivery_id, recipient, token)


class FakeMark:
    """Marks every claim, but for those that another holds; raises for a broken delivery."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, dict[int, int]]] = []
        self.others: set[tuple[int, int]] = set()
        self.broken: int | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def __call__(self, delivery_id: int, claims: Mapping[int, int]) -> set[int]:
        self.asked.append((delivery_id, dict(claims)))
        await self.answers.wait()
        if delivery_id == self.broken:
            raise Broken("forbidden")
        return {r for r in claims if (delivery_id, r) not in self.others}

    async def under_way(self) -> bool:
        return bool(self.asked)


@asynccontextmanager
async def marking(mark: FakeMark, at_most: int = 100) -> AsyncIterator[HandOvers]:
    hand_overs = HandOvers(mark, at_most)
    async with asyncio.timeout(10), beside(hand_overs.run(), "mark"):
        yield hand_overs


async def test_what_is_asked_together_is_marked_together_by_delivery_in_their_order() -> None:
    mark = FakeMark()
    async with marking(mark) as hand_overs:
        asked = [claimed(5, delivery_id=2), claimed(9), claimed(4, delivery_id=2)]
        assert await asyncio.gather(*map(hand_overs.begin, asked)) == [True] * 3
    assert mark.asked == [(1, {9: TOKEN}), (2, {5: TOKEN, 4: TOKEN})]


async def test_each_claim_is_answered_for_itself() -> None:
    mark = FakeMark()
    mark.others = {(1, 2), (2, 1)}
    async with marking(mark) as hand_overs:
        asked = [claimed(r, d) for d in (1, 2) for r in (1, 2)]
        assert await asyncio.gather(*map(hand_overs.begin, asked)) == [True, False, False, True]


async def test_the_time_in_doubt_is_told_of_what_was_marked_and_of_nothing_else() -> None:
    mark, told = FakeMark(), list[float]()
    mark.others = {(1, 2)}
    hand_overs = HandOvers(mark, 100, told.append)
    async with asyncio.timeout(10), beside(hand_overs.run(), "mark"):
        asked = [claimed(1), claimed(2)]
        assert await asyncio.gather(*map(hand_overs.begin, asked)) == [True, False]
        for one in asked:
            hand_overs.end(one)
            hand_overs.end(one)
    assert len(told) == 1
    assert told[0] >= 0


async def test_what_asks_while_a_mark_is_under_way_is_marked_with_the_next() -> None:
    mark = FakeMark()
    mark.answers.clear()
    async with marking(mark) as hand_overs:
        first = hand_overs.begin(claimed(1))
        await until(mark.under_way)
        later = [hand_overs.begin(claimed(r)) for r in (2, 3)]
        assert not first.done()
        mark.answers.set()
        assert await asyncio.gather(first, *later) == [True] * 3
    assert mark.asked == [(1, {1: TOKEN}), (1, {2: TOKEN, 3: TOKEN})]


async def test_of_two_tokens_of_a_recipient_the_later_alone_is_marked() -> None:
    mark = FakeMark()
    async with marking(mark) as hand_overs:
        asked = [claimed(1), claimed(1, token=OTHER)]
        assert await asyncio.gather(*map(hand_overs.begin, asked)) == [False, True]
    assert mark.asked == [(1, {1: OTHER})]


async def test_an_exception_answers_everybody_who_is_not_marked_and_ends_the_marking() -> None:
    mark = FakeMark()
    mark.broken = 2
    hand_overs = HandOvers(mark, 100)
    answers = [hand_overs.begin(claimed(1, delivery_id)) for delivery_id in (1, 2, 3)]
    with pytest.raises(Broken):
        await asyncio.wait_for(hand_overs.run(), 10)
    assert [answer.done() and answer.result() for answer in answers] == [True, False, False]
    assert [delivery_id for delivery_id, _ in mark.asked] == [1, 2]


async def test_marking_that_is_cancelled_leaves_nobody_without_an_answer() -> None:
    mark = FakeMark()
    mark.answers.clear()
    async with marking(mark) as hand_overs:
        answer = hand_overs.begin(claimed(1))
        await until(mark.under_way)
    assert answer.done()
    assert answer.result() is False


async def test_who_does_not_wait_any_more_keeps_no_other_from_an_answer() -> None:
    mark = FakeMark()
    async with marking(mark) as hand_overs:
        gone, there = hand_overs.begin(claimed(1)), hand_overs.begin(claimed(2))
        gone.cancel()
        assert await there is True
        assert await hand_overs.begin(claimed(3)) is True


async def test_no_more_are_marked_than_may_be_in_doubt_until_results_are_reported() -> None:
    mark = FakeMark()
    async with marking(mark, at_most=2) as hand_overs:
        asked = [claimed(r) for r in range(1, 6)]
        answers = [hand_overs.begin(one) for one in asked]
        assert await asyncio.gather(*answers[:2]) == [True] * 2
        hand_overs.end(asked[0])
        assert await answers[2] is True
        hand_overs.end(asked[3])  # refused before it was marked
        hand_overs.end(asked[1])
        hand_overs.end(asked[2])
        assert await answers[4] is True
    assert [sorted(claims) for _, claims in mark.asked] == [[1, 2], [3], [5]]


async def test_who_was_not_marked_takes_no_room() -> None:
    mark = FakeMark()
    mark.others = {(1, 1)}
    async with marking(mark, at_most=1) as hand_overs:
        theirs, ours = claimed(1), claimed(2)
        refused, granted = hand_overs.begin(theirs), hand_overs.begin(ours)
        assert await refused is False
        hand_overs.end(theirs)
        assert await granted is True
