"""The messages that wait in a consumer: in their order, or those with a priority first."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fakes import incoming
from worker.amqp.buffer import Buffer, has_priority


@pytest.mark.parametrize(("by_priority", "order"), [(True, "bdac"), (False, "abcd")])
async def test_messages_with_a_priority_overtake_only_where_they_may(by_priority: bool, order: str) -> None:  # noqa: FBT001
    buffer = Buffer(has_priority if by_priority else None)
    buffer.add(incoming(name.encode(), priority=p) for name, p in zip("abcd", (0, 5, 4, 9), strict=True))
    taken = await buffer.batch(3, 0) + await buffer.batch(3, 0)
    assert b"".join(message.body for message in taken).decode() == order


async def test_a_wait_for_many_ends_with_all_of_them_together() -> None:
    buffer = Buffer(has_priority)
    waiting = asyncio.create_task(buffer.batch(2, 10))
    await asyncio.sleep(0)
    buffer.add([incoming(priority=5), incoming()])
    assert len(await asyncio.wait_for(waiting, 5)) == 2


async def test_a_stop_drops_both_kinds() -> None:
    buffer = Buffer(has_priority)
    buffer.add([incoming(priority=5), incoming()])
    buffer.stop()
    buffer.add([incoming(priority=5)])
    assert await buffer.batch(5, 0) == []


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 7))
async def test_nothing_is_lost_and_each_kind_keeps_its_order(priorities: list[int], size: int) -> None:
    buffer = Buffer(has_priority)
    buffer.add(incoming(priority=p, tag=tag) for tag, p in enumerate(priorities))
    taken = []
    while len(taken) < len(priorities):
        taken += await buffer.batch(size, 0)
    tags = [message.tag for message in taken]
    usual = [tag for tag, p in enumerate(priorities) if p <= 4]
    assert tags == [tag for tag, p in enumerate(priorities) if p > 4] + usual
