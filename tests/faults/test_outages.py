"""The broker or the database goes away in the middle of a delivery, and comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.channels import Counting
from tests.support.proxy import CutProxy
from tests.support.stack import until

if TYPE_CHECKING:
    from tests.support.stack import Stack

RECIPIENTS = 12_000


@pytest.mark.parametrize("server", ["amqp_url", "database_url"])
async def test_an_outage_is_waited_for_and_nobody_is_sent_to_twice(stack: Stack, server: str) -> None:
    number = await stack.prepare(RECIPIENTS)
    channel = Counting()
    async with CutProxy(getattr(stack.settings, server)).running() as proxy:
        # Short, since a lease or a claim whose commit was cut off is nobody's until it runs out.
        leases = {"page_lease": 2, "claim_lease": 3, "result_lease": 3, "page_look_after": 1}
        changes = {server: proxy.url, "page_size": 100, "tick": 0.1, **leases}
        async with stack.running(channel=channel, **changes):
            await stack.confirm(number)
            for share in (0.1, 0.4, 0.7):
                await until(lambda s=share: _sent(stack, number, s))  # type: ignore[misc]
                proxy.cut()
                before = (await stack.deployment(number))["pending"]
                assert before > 0
                proxy.mend()
            row = await stack.finished(number, seconds=60)
    # A claim whose commit was cut off is nobody's: it is counted as unknown, and never sent by itself.
    assert row["sent"] + row["unknown"] == RECIPIENTS
    assert max(channel.tries.values()) == 1
    assert row["sent"] == len(channel.tries)
    if server == "amqp_url":
        assert row["unknown"] == 0


async def _sent(stack: Stack, number: int, share: float) -> bool:
    row = await stack.deployment(number)
    return bool(row["sent"] >= share * RECIPIENTS)
