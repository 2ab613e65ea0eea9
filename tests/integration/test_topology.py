from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from contracts import routing
from worker.amqp import topology

if TYPE_CHECKING:
    from tests.support.stack import Stack


async def test_declaring_the_topology_twice_changes_nothing(stack: Stack) -> None:
    first = await topology.declare(stack.connection, stack.names, stack.settings.channels)
    assert await topology.declare(stack.connection, stack.names, stack.settings.channels) == first
    await topology.check(stack.connection, stack.names, stack.settings.channels)


async def test_a_missing_queue_is_named(stack: Stack) -> None:
    await stack.channel.queue_delete(stack.names.queue(routing.STATS_QUEUE))
    with pytest.raises(topology.TopologyMismatch, match=r"sendoff\.stats.*Run “sendoff migrate”"):
        await topology.check(stack.connection, stack.names, stack.settings.channels)


async def test_a_queue_with_other_properties_is_not_touched(stack: Stack) -> None:
    name = stack.names.queue(routing.STATS_QUEUE)
    await stack.channel.queue_delete(name)
    await stack.channel.declare_queue(name, durable=True)
    with pytest.raises(topology.TopologyMismatch, match="other properties"):
        await topology.declare(stack.connection, stack.names, stack.settings.channels)


async def test_the_depth_of_a_queue_is_that_of_its_shards(stack: Stack) -> None:
    queue = stack.names.queue(routing.send_queue("null"))
    await topology.declare(stack.connection, stack.names, ("null",), 3)
    await topology.check(stack.connection, stack.names, ("null",), 3)
    depth = topology.QueueDepth(stack.connection, 3)
    for key in routing.sharded("null", 3):
        await stack.publish(routing.SENDS, key, b"{}")
    assert await depth.ready(queue) == 3
    assert await topology.QueueDepth(stack.connection).ready(queue) == 1
    for shard in routing.sharded(queue, 3)[1:]:
        await stack.channel.queue_delete(shard)
    assert await depth.ready(queue) is None


async def test_the_depth_of_a_queue_is_told(stack: Stack) -> None:
    depth = topology.QueueDepth(stack.connection)
    queue = stack.names.queue(routing.send_queue("null"))
    assert await depth.ready(queue) == 0
    await stack.publish(routing.SENDS, "null", b"{}")
    assert await depth.ready(queue) == 1
