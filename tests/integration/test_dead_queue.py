"""The dead queue: looking changes nothing, a replay goes back to where it came from, a drop is asked for."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from aio_pika import DeliveryMode, Message
from hypothesis import given
from hypothesis import strategies as st

from contracts import routing
from tests.support.raw_frames import RawPublisher, odd
from tests.support.stack import until
from worker.amqp.pika.connection import open_connection
from worker.amqp.pika.dead import open_dead_letters, origin
from worker.amqp.policies import DELIVERY_LIMIT

if TYPE_CHECKING:
    import subprocess

    from aio_pika.abc import AbstractIncomingMessage

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack
    from worker.settings import Settings


class Dead:
    """The dead queue of a test's stack, by its commands and by itself."""

    def __init__(self, stack: Stack, sendoff: Sendoff) -> None:
        self.stack = stack
        self._sendoff = sendoff

    async def run(self, *args: object) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(self._sendoff, "dead", *args)

    async def list(self, *args: object) -> dict[str, Any]:
        ran = await self.run("list", "--json", *args)
        assert (ran.returncode, ran.stderr) == (0, "")
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    async def bury(
        self, *bodies: bytes, exchange: str | None = None, key: str = "sent", **changes: Any
    ) -> None:
        """Puts messages in as a worker does."""
        target = await self.stack.channel.get_exchange(self.stack.names.exchange(routing.DEAD), ensure=False)
        headers = {
            routing.HEADER_REASON: "It could not be read.",
            routing.HEADER_EXCHANGE: exchange or self.stack.names.exchange(routing.RESULTS),
            routing.HEADER_ROUTING_KEY: key,
            "traceparent": "00-1",
        }
        for body in bodies:
            message = Message(
                body,
                headers=headers,
                delivery_mode=DeliveryMode.PERSISTENT,
                **{"message_id": f"id-{body.decode('latin-1')}", "type": key, **changes},
            )
            await target.publish(message, key, timeout=10)

    async def depth(self, queue: str = routing.DEAD_QUEUE) -> int:
        return await self.stack.depth(queue)

    async def only(self, queue: str) -> AbstractIncomingMessage:
        source = await self.stack.channel.get_queue(self.stack.names.queue(queue), ensure=False)
        message = await source.get(no_ack=True, timeout=10)
        assert await source.get(no_ack=True, fail=False) is None
        return message


@pytest.fixture
def dead(stack: Stack, sendoff: Sendoff) -> Dead:
    return Dead(stack, sendoff)


async def test_looking_changes_neither_what_is_there_nor_its_order(dead: Dead) -> None:
    await dead.bury(b"1", b"2", b"3", b"4", b"5")
    for _ in range(3):
        found = await dead.list("--limit", 3)
        assert found["total"] == 5
        assert [m["message_id"] for m in found["messages"]] == ["id-1", "id-2", "id-3"]
    assert found["messages"][0] == {
        "position": 1,
        "reason": "It could not be read.",
        "exchange": dead.stack.names.exchange(routing.RESULTS),
        "routing_key": "sent",
        "vouched": False,
        "bytes": 1,
        "message_id": "id-1",
    }
    text = (await dead.run("list", "--limit", 3)).stdout
    assert "It could not be read." in text
    assert "3 of 5" in text
    assert await dead.depth() == 5


async def test_more_looks_than_a_broker_allows_by_itself_lose_nothing(dead: Dead) -> None:
    await dead.bury(b"1")
    queue = dead.stack.names.queue(routing.DEAD_QUEUE)
    for _ in range(DELIVERY_LIMIT + 5):
        async with dead.stack.connection.channel() as channel:
            assert await (await channel.get_queue(queue, ensure=False)).get(fail=False)
    assert (await dead.list())["total"] == 1


async def test_what_was_looked_at_is_back_in_its_place_before_the_next_look(
    dead: Dead, settings: Settings
) -> None:
    await dead.bury(b"1", b"2", b"3", b"4", b"5")
    seen: list[bytes] = []
    expected: list[bytes] = []
    for n in range(60):
        connection = await open_connection(settings.amqp_url, name="test", timeout=10)
        async with connection, open_dead_letters(connection, dead.stack.names, timeout=10) as letters:
            for position in range(1, n % 4 + 2):
                letter = await letters.take()
                assert letter is not None
                seen.append(letter.message.body)
                expected.append(b"%d" % position)
    assert seen == expected


async def test_an_empty_queue_is_said_to_be(dead: Dead) -> None:
    assert (await dead.run("list")).stdout == "The dead queue is empty.\n"
    ran = await dead.run("show", 1)
    assert (ran.returncode, ran.stderr) == (1, "The dead queue is empty: there is none at position 1.\n")
    assert json.loads((await dead.run("replay", "--all", "--json")).stdout) == {"replayed": 0, "kept": []}


async def test_one_is_shown_wholly_and_obeyed_by_no_terminal(dead: Dead) -> None:
    await dead.bury(b"1", b"\x1b[31mred\nline", correlation_id="c-1")
    ran = await dead.run("show", 2)
    assert "c-1" in ran.stdout
    assert "traceparent" in ran.stdout
    assert "[31mred\nline" in ran.stdout
    assert "\x1b" not in ran.stdout
    assert json.loads((await dead.run("show", 1, "--json")).stdout)["body"] == "1"
    await dead.bury(b"\xff")
    assert json.loads((await dead.run("show", 3, "--json")).stdout)["body_base64"] == "/w=="


async def test_one_is_replayed_to_where_it_came_from_as_it_was(dead: Dead) -> None:
    await dead.bury(b"1", b"2", b"3", correlation_id="c", content_type="application/json")
    ran = await dead.run("replay", 2, "--json")
    assert json.loads(ran.stdout) == {"replayed": 1, "kept": []}
    message = await dead.only(routing.SENT_QUEUE)
    assert (message.body, message.message_id, message.type) == (b"2", "id-2", "sent")
    assert (message.correlation_id, message.content_type) == ("c", "application/json")
    assert message.delivery_mode == DeliveryMode.PERSISTENT
    assert {**message.headers, "x-delivery-count": 0} == {"traceparent": "00-1", "x-delivery-count": 0}
    assert [m["message_id"] for m in (await dead.list())["messages"]] == ["id-1", "id-3"]


async def test_what_the_broker_gave_up_goes_back_to_where_it_was_published(dead: Dead) -> None:
    await dead.stack.publish(routing.SENDS, "null", b"{}", message_id="1-1-1")
    name = dead.stack.names.queue(routing.send_queue("null"))
    async with dead.stack.connection.channel() as channel:
        queue = await channel.get_queue(name, ensure=False)
        await (await queue.get(timeout=10)).reject(requeue=False)

    async def there() -> bool:
        return await dead.depth() == 1

    await until(there)
    (found,) = (await dead.list())["messages"]
    assert (found["exchange"], found["routing_key"]) == (dead.stack.names.exchange(routing.SENDS), "null")
    assert found["reason"] == f"The broker gave it up (rejected), from the queue {name}."
    assert (await dead.run("replay", 1)).returncode == 0
    message = await dead.only(routing.send_queue("null"))
    assert (message.body, message.message_id) == (b"{}", "1-1-1")
    assert not [h for h in message.headers if h.startswith("x-") and h != "x-delivery-count"]


async def test_what_cannot_go_back_is_kept_and_the_rest_goes(dead: Dead) -> None:
    await dead.bury(b"1", key="no-such-key")
    await dead.bury(b"2", exchange="no-such-exchange")
    await dead.bury(b"3")
    target = await dead.stack.channel.get_exchange(dead.stack.names.exchange(routing.DEAD), ensure=False)
    await target.publish(Message(b"4"), "", timeout=10)
    await dead.bury(b"5")
    ran = await dead.run("replay", "--all", "--json")
    assert ran.returncode == 1
    answer = json.loads(ran.stdout)
    assert answer["replayed"] == 2
    assert [k["position"] for k in answer["kept"]] == [1, 2, 4]
    unroutable, gone, nameless = (k["because"] for k in answer["kept"])
    results = dead.stack.names.exchange(routing.RESULTS)
    claim = "Its headers claim the exchange “{}” with the key “{}”: no queue of ours is behind them."
    assert unroutable == claim.format(results, "no-such-key")
    assert gone == claim.format("no-such-exchange", "sent")
    assert nameless == "Nobody vouches for where it was first published to."
    assert await dead.depth(routing.SENT_QUEUE) == 2
    assert (await dead.list())["total"] == 3


async def test_a_replay_of_all_ends_though_everything_dies_again(dead: Dead) -> None:
    await dead.bury(*(b"%d" % i for i in range(20)))
    async with dead.stack.running("results"):
        ran = await dead.run("replay", "--all", "--json")
        assert json.loads(ran.stdout) == {"replayed": 20, "kept": []}

        async def all_are_back() -> bool:
            return await dead.depth() == 20

        await until(all_are_back)


async def die(dead: Dead, exchange: str, key: str, queue: str, **properties: Any) -> None:
    """Publishes a message, and has the broker give it up."""
    await dead.stack.publish(exchange, key, b"{}", **properties)
    async with dead.stack.connection.channel() as channel:
        source = await channel.get_queue(dead.stack.names.queue(queue), ensure=False)
        await (await source.get(timeout=10)).reject(requeue=False)

    async def there() -> bool:
        return await dead.depth() == 1

    await until(there)


async def test_a_publisher_cannot_have_its_message_replayed_to_anothers_exchange(dead: Dead) -> None:
    names = dead.stack.names
    forged = {
        routing.HEADER_REASON: "All is well.",
        routing.HEADER_EXCHANGE: names.exchange(routing.SENDS),
        routing.HEADER_ROUTING_KEY: "null",
    }
    await die(dead, routing.TRACKING, routing.OPEN, routing.TRACKING_QUEUE, headers=forged)
    (found,) = (await dead.list())["messages"]
    assert (found["exchange"], found["routing_key"], found["vouched"]) == (
        names.exchange(routing.TRACKING),
        routing.OPEN,
        True,
    )
    assert found["reason"].startswith("The broker gave it up")
    assert (await dead.run("replay", 1)).returncode == 0
    assert await dead.depth(routing.TRACKING_QUEUE) == 1
    assert await dead.depth(routing.send_queue("null")) == 0


async def test_nor_by_an_entry_of_its_own_among_the_brokers(dead: Dead) -> None:
    names = dead.stack.names
    death = {
        "queue": names.queue(routing.TRACKING_QUEUE),
        "reason": "rejected",
        "exchange": names.exchange(routing.SENDS),
        "routing-keys": ["null"],
        "count": 1,
    }
    await die(dead, routing.TRACKING, routing.OPEN, routing.TRACKING_QUEUE, headers={"x-death": [death]})
    (found,) = (await dead.list())["messages"]
    assert found["exchange"] in (None, names.exchange(routing.TRACKING))
    await dead.run("replay", 1)
    assert await dead.depth(routing.send_queue("null")) == 0


async def test_a_drop_needs_a_yes(dead: Dead) -> None:
    await dead.bury(b"1", b"2", b"3")
    ran = await dead.run("drop", 2)
    assert ran.returncode == 2
    assert "--yes" in ran.stderr
    assert (await dead.run("drop", 2, "--yes")).stdout == "Dropped: 1.\n"
    assert [m["message_id"] for m in (await dead.list())["messages"]] == ["id-1", "id-3"]
    assert json.loads((await dead.run("drop", "--all", "--yes", "--json")).stdout) == {"dropped": 2}
    assert await dead.depth() == 0


@pytest.mark.parametrize("args", [("replay",), ("drop", "--yes"), ("replay", 1, "--all"), ("show", 0)])
async def test_neither_or_both_of_one_and_all_is_bad_usage(dead: Dead, args: tuple[object, ...]) -> None:
    assert (await dead.run(*args)).returncode == 2


async def test_it_is_looked_into_and_emptied_whatever_is_in_it(stack: Stack, sendoff: Sendoff) -> None:
    random = Random(1)  # noqa: S311 - repeatable
    dead = stack.names.queue(routing.DEAD_QUEUE)
    raw = RawPublisher(stack.settings.amqp_url)
    taken = 0
    for _ in range(120):
        taken += await raw.publish(odd(random, stack.names.exchange(routing.DEAD), routing.SENT, dead))
    await raw.close()

    async def run(*args: object) -> dict[str, Any]:
        ran = await asyncio.to_thread(sendoff, "dead", *args, "--json")
        assert (ran.returncode in (0, 1), ran.stderr) == (True, "")
        answer: dict[str, Any] = json.loads(ran.stdout)
        return answer

    assert (await run("list", "--limit", 1_000))["total"] == taken
    text = await asyncio.to_thread(sendoff, "dead", "list", "--limit", 1_000)
    assert (text.returncode, "\x1b" in text.stdout) == (0, False)
    for position in (1, taken // 2, taken):
        assert (await run("show", position))["position"] == position
    answer = await run("replay", "--all")
    assert answer["replayed"] + len(answer["kept"]) == taken
    assert (await run("drop", 1, "--yes"))["dropped"] == 1
    assert (await run("drop", "--all", "--yes"))["dropped"] == len(answer["kept"]) - 1
    assert (await run("list"))["total"] == 0


async def test_a_broker_out_of_reach_is_status_3(stack: Stack, sendoff: Sendoff) -> None:
    ran = await asyncio.to_thread(sendoff, "dead", "list", env={"SENDOFF_AMQP_URL": "amqp://127.0.0.1:1/"})
    assert ran.returncode == 3
    assert ran.stderr.startswith("The broker is out of reach")
    other = {"SENDOFF_QUEUE_PREFIX": f"{stack.names.prefix}x"}
    ran = await asyncio.to_thread(sendoff, "dead", "list", env=other)
    assert ran.returncode == 3
    assert "sendoff migrate" in ran.stderr


_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["reason", "exchange"]), inner)
    ),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(["x-death", *vars(routing)["BINDINGS"], routing.HEADER_REASON]), _JSON)
)
def test_no_headers_break_the_reading_of_their_origin(headers: dict[str, Any]) -> None:
    reason, exchange, key, _ = origin(headers, routing.Names())
    assert reason
    assert (exchange is None) == (key is None)
