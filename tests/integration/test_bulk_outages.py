"""What the bulk transport does when the broker refuses, fails, is silent or talks nonsense."""

from __future__ import annotations

import asyncio
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing
import uvloop
from pamqp import commands

from tests.support.bulk_peers import SECONDS, FakeBroker, Proxy, until
from tests.support.transports import present
from worker.amqp.bulk.consumer import BulkConsumer
from worker.amqp.bulk.errors import ConnectionLost
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.errors import RECONNECT_INTERVAL, BrokerUnreachable
from worker.amqp.messages import MessageRefused, Outgoing, QueueMissing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.bulk_peers import Peer
    from worker.settings import Settings

PUBLISH = (60, 40)
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"


@asynccontextmanager
async def publishing(
    broker: FakeBroker, *, window: int = 100, confirm: float = SECONDS, query: str = "", **welcome: int
) -> AsyncIterator[tuple[BulkPublisher, Peer]]:
    publisher = BulkPublisher(
        broker.url + query, name="test", window=window, timeout=confirm, connect_timeout=SECONDS
    )
    starting = asyncio.create_task(publisher.start())
    peer = await broker.peer()
    await peer.welcome_publisher(**welcome)
    await starting
    try:
        yield publisher, peer
    finally:
        peer.send(commands.Connection.CloseOk(), channel=0)
        await publisher.close()


def numbered(count: int) -> list[Outgoing]:
    return [Outgoing(b"%d" % n, "t") for n in range(count)]


@asynccontextmanager
async def underway(publisher: BulkPublisher, messages: list[Outgoing]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(publisher.publish("x", "k", messages))
    try:
        yield task
        async with asyncio.timeout(SECONDS):
            await task
    finally:
        task.cancel()


async def test_the_client_introduces_itself_and_agrees_on_limits() -> None:
    async with FakeBroker() as broker, publishing(broker, query="?heartbeat=9", frame_max=4096) as (_, peer):
        properties = peer.login.client_properties
        assert properties["connection_name"] == "test"
        assert all(properties["capabilities"].values())
        assert {"publisher_confirms", "connection.blocked", "consumer_cancel_notify"} <= set(
            properties["capabilities"]
        )
        assert (peer.tuned.frame_max, peer.tuned.heartbeat) == (4096, 9)


@pytest.mark.parametrize(("ours", "theirs", "agreed"), [(9, 30, 9), (30, 9, 9), (9, 0, 9), (0, 9, 0)])
async def test_the_shorter_heartbeat_counts_and_none_at_our_wish(ours: int, theirs: int, agreed: int) -> None:
    async with (
        FakeBroker() as broker,
        publishing(broker, query=f"?heartbeat={ours}", heartbeat=theirs) as (_, peer),
    ):
        assert peer.tuned.heartbeat == agreed


async def test_no_frame_is_larger_than_agreed() -> None:
    async with FakeBroker() as broker, publishing(broker, frame_max=4096) as (publisher, peer):
        large = Outgoing(b"x" * 20_000, "t")
        async with underway(publisher, [large]):
            await peer.expect("Basic.Publish")
            await peer.expect("ContentHeader")
            sizes = [len((await peer.expect("ContentBody")).value) for _ in range(5)]
            assert sizes == [4088, 4088, 4088, 4088, 3648]
            peer.send(commands.Basic.Ack(1, False))


async def test_no_more_is_under_way_than_the_window() -> None:
    async with FakeBroker() as broker, publishing(broker, window=10) as (publisher, peer):
        messages = numbered(25)
        async with underway(publisher, messages):
            for _ in range(10):
                await peer.publish()
            # One write follows when half the window is open, so four confirms bring nothing.
            peer.send(*(commands.Basic.Ack(tag, False) for tag in (4, 2, 1, 3)))
            peer.send(commands.Basic.Ack(5, False))
            for _ in range(5):
                await peer.publish()
            peer.send(commands.Basic.Ack(15, True))
            for _ in range(10):
                await peer.publish()
            peer.send(commands.Basic.Ack(25, True))
        assert peer.publishes == [m.body for m in messages]


async def test_what_the_broker_refuses_is_published_again_and_nothing_else() -> None:
    async with FakeBroker() as broker, publishing(broker) as (publisher, peer):
        messages = numbered(6)
        async with underway(publisher, messages):
            for _ in range(6):
                await peer.publish()
            peer.send(commands.Basic.Nack(2, False, False), commands.Basic.Ack(3, True))
            peer.send(commands.Basic.Nack(5, True, False), commands.Basic.Ack(6, False))
            assert [await peer.publish() for _ in range(3)] == [b"1", b"3", b"4"]
            peer.send(commands.Basic.Ack(9, True))


async def test_while_the_broker_is_short_publishers_wait_and_heartbeats_go_on() -> None:
    query = "?heartbeat=1"
    async with FakeBroker() as broker, publishing(broker, confirm=0.5, query=query) as (publisher, peer):
        before = asyncio.create_task(publisher.publish("x", "k", [Outgoing(b"before", "t")]))
        assert await peer.publish() == b"before"
        with structlog.testing.capture_logs() as logs:
            peer.send(commands.Connection.Blocked("low on memory"), channel=0)
            await until(lambda: logs)
            async with underway(publisher, [Outgoing(b"meanwhile", "t")]) as task:
                reading = asyncio.create_task(peer.publish())

                def kept_waiting() -> bool:
                    peer.send_bytes(HEARTBEAT)
                    return peer.heartbeats >= 2

                # That takes longer than a confirm may take otherwise.
                await until(kept_waiting)
                assert not any(waiting.done() for waiting in (reading, task, before))
                peer.send(commands.Connection.Unblocked(), channel=0)
                assert await reading == b"meanwhile"
                peer.send(commands.Basic.Ack(2, True))
            await before
        assert [log["event"] for log in logs] == [
            "the broker takes no publishes",
            "the broker takes publishes again",
        ]


async def test_the_time_in_which_the_broker_was_short_does_not_count_against_a_confirm() -> None:
    async with FakeBroker() as broker, publishing(broker, confirm=0.3) as (publisher, peer):
        loop = asyncio.get_running_loop()
        end = loop.time() + 1
        async with underway(publisher, numbered(1)):
            await peer.publish()

            def short_again_and_again() -> bool:
                peer.send(commands.Connection.Blocked("low"), commands.Connection.Unblocked(), channel=0)
                return loop.time() > end

            await until(short_again_and_again)
            assert publisher.connected
            peer.send(commands.Basic.Ack(1, False))


async def test_a_confirm_that_does_not_come_is_not_waited_for_for_ever() -> None:
    async with FakeBroker() as broker, publishing(broker, confirm=0.2) as (publisher, peer):
        async with underway(publisher, numbered(3)):
            for _ in range(3):
                await peer.publish()
            peer.send(commands.Basic.Ack(2, False))
            second = await broker.peer()
            await second.welcome_publisher()
            # What was confirmed is not published again.
            assert [await second.publish() for _ in range(2)] == [b"0", b"2"]
            second.send(commands.Basic.Ack(2, True), commands.Connection.CloseOk())
        second.send(commands.Connection.CloseOk(), channel=0)


async def test_a_peer_that_does_not_read_costs_no_memory() -> None:
    async with FakeBroker() as broker, publishing(broker, window=1_000) as (publisher, peer):
        body = b"x" * 1_000_000
        tracemalloc.start()
        try:
            # 200 MB are wanted; the peer reads one message and stops.
            publish = asyncio.create_task(publisher.publish("x", "k", [Outgoing(body, "t")] * 200))
            await peer.publish()
            for _ in range(100):
                await asyncio.sleep(0)
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
            publish.cancel()
        finally:
            tracemalloc.stop()


async def test_a_message_that_the_broker_finds_too_large_is_an_error() -> None:
    async with FakeBroker() as broker, publishing(broker) as (publisher, peer):
        publish = asyncio.create_task(publisher.publish("x", "k", numbered(1)))
        await peer.publish()
        peer.send(
            commands.Channel.Close(406, "PRECONDITION_FAILED - message size 9 is larger than 8", *PUBLISH)
        )
        await peer.expect("Channel.CloseOk")
        with pytest.raises(MessageRefused, match="larger than 8"):
            await publish
        await peer.expect("Connection.Close")


async def test_a_queue_that_is_not_there_is_an_error_at_the_start(server_settings: Settings) -> None:
    consumer = BulkConsumer(
        server_settings.amqp_url, "not.there", name="test", prefetch=1, connect_timeout=SECONDS
    )
    with pytest.raises(QueueMissing, match=r"no queue 'not\.there'"):
        await consumer.start()


async def test_a_closed_publisher_says_so(server_settings: Settings) -> None:
    publisher = BulkPublisher(
        server_settings.amqp_url, name="test", window=1, timeout=SECONDS, connect_timeout=SECONDS
    )
    await publisher.start()
    await publisher.close()
    with pytest.raises(ConnectionLost, match="was closed"):
        await publisher.publish("", "k", numbered(1))


async def test_closing_ends_the_wait_of_who_still_publishes() -> None:
    async with FakeBroker() as broker, publishing(broker) as (publisher, peer):
        waiting = asyncio.create_task(publisher.publish("x", "k", numbered(1)))
        await peer.publish()
        peer.send(commands.Connection.CloseOk(), channel=0)
        closing = asyncio.create_task(publisher.close())
        with pytest.raises(ConnectionLost, match="was closed"):
            await waiting
        await closing


NONSENSE = [
    pytest.param(b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\x50\x00", id="bad end of a frame"),
    pytest.param(b"\x02\x00\x01\x00\x00\x00\x00\xce", id="header without a method"),
    pytest.param(b"\x01\x00\x05\x00\x00\x00\x04\x00\x14\x00\x29\xce", id="channel that is not open"),
    pytest.param(b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\x0b\xce", id="answer that nobody asked for"),
    pytest.param(
        b"\x01\x00\x01\x00\x00\x00\x0d\x00\x3c\x00\x50" + bytes(7) + b"\x63\x00\xce", id="false confirm"
    ),
    pytest.param(b"\x01\x00\x01\xff\x00\x00\x00", id="huge frame"),
]


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_a_broken_frame_ends_the_connection_and_what_is_in_doubt_is_published_again(
    nonsense: bytes,
) -> None:
    async with FakeBroker() as broker, publishing(broker) as (publisher, peer):
        with structlog.testing.capture_logs() as logs:
            async with underway(publisher, numbered(2)):
                await peer.publish()
                await peer.publish()
                peer.send_bytes(nonsense)
                farewell = await peer.expect("Connection.Close")
                assert farewell.reply_code == 502
                second = await broker.peer()
                await second.welcome_publisher()
                assert [await second.publish() for _ in range(2)] == [b"0", b"1"]
                second.send(commands.Basic.Ack(2, True))
        events = [log["event"] for log in logs]
        assert events.count("connection to the broker lost") == 1
        assert events.count("connection to the broker is back") == 1
        second.send(commands.Connection.CloseOk(), channel=0)


async def test_what_the_broker_says_at_the_end_is_logged_once_however_long_the_outage() -> None:
    async with FakeBroker() as broker, publishing(broker) as (publisher, peer):
        with structlog.testing.capture_logs() as logs:
            peer.send(commands.Connection.Close(320, "CONNECTION_FORCED - by an operator", 0, 0), channel=0)
            await peer.expect("Connection.CloseOk")
            refused = await broker.peer()
            refused.send(commands.Connection.Close(541, "INTERNAL_ERROR", 0, 0), channel=0)
            began = asyncio.get_running_loop().time()
            third = await broker.peer()
            # The broker is not stormed.
            assert asyncio.get_running_loop().time() - began > RECONNECT_INTERVAL / 2
            await third.welcome_publisher()
            await until(lambda: publisher.connected)
        said = [log for log in logs if log["log_level"] != "debug"]
        assert [log["event"] for log in said] == [
            "connection to the broker lost",
            "connection to the broker is back",
        ]
        assert said[0]["because"] == "320 CONNECTION_FORCED - by an operator"
        third.send(commands.Connection.CloseOk(), channel=0)


@pytest.mark.parametrize("answer", [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
async def test_a_peer_that_is_no_broker_is_out_of_reach(answer: bytes) -> None:
    async with FakeBroker() as broker:
        publisher = BulkPublisher(broker.url, name="test", window=1, timeout=1, connect_timeout=0.5)
        starting = asyncio.create_task(publisher.start())
        peer = await broker.peer()
        peer.send_bytes(answer)
        with pytest.raises(BrokerUnreachable, match="out of reach"):
            await starting


async def test_heartbeats_go_both_ways_and_a_silent_broker_is_noticed(server_settings: Settings) -> None:
    async with Proxy(server_settings.amqp_url) as proxy:
        options: dict[str, Any] = {"name": "test", "connect_timeout": SECONDS}
        publisher = BulkPublisher(f"{proxy.url}?heartbeat=1", window=1, timeout=SECONDS, **options)
        await publisher.start()
        # The broker would have hung up after two seconds without ours.
        await until(lambda: min(proxy.heartbeats.values()) >= 3)
        assert publisher.connected
        assert proxy.connections == 1
        with structlog.testing.capture_logs() as logs:
            proxy.hold()
            await until(lambda: not publisher.connected)
        assert "silent" in logs[0]["because"]
        await publisher.close()


async def test_deliveries_of_a_lost_connection_are_dropped_and_come_again() -> None:
    async with FakeBroker() as broker:
        consumer = BulkConsumer(broker.url, "q", name="test", prefetch=10, connect_timeout=SECONDS)
        starting = asyncio.create_task(consumer.start())
        peer = await broker.peer()
        await peer.welcome_consumer()
        await starting

        for tag in (1, 2, 3):
            peer.deliver("sendoff", tag)
        old = await consumer.batch(1)
        await asyncio.wait_for(consumer.batch(1), SECONDS)
        peer.send(commands.Connection.Close(320, "shutdown", 0, 0), channel=0)
        await peer.expect("Connection.CloseOk")
        second = await broker.peer()
        await second.welcome_consumer()
        second.deliver("sendoff", 1)
        new = await asyncio.wait_for(consumer.batch(10), SECONDS)
        assert [m.tag for m in new] == [1]
        assert new[0].channel is not old[0].channel
        # The tag of the old one is one that the new connection knows, and it is not acknowledged there.
        consumer.acknowledge(old)
        stopping = asyncio.create_task(consumer.stop())
        await second.expect("Basic.Cancel")
        second.send(commands.Basic.CancelOk("sendoff"))
        await stopping
        consumer.acknowledge(new)
        closing = asyncio.create_task(consumer.close())
        ack = await second.expect("Basic.Ack")
        assert (ack.delivery_tag, ack.multiple) == (1, True)
        await second.expect("Connection.Close")
        second.send(commands.Connection.CloseOk(), channel=0)
        await closing


@pytest.mark.parametrize("answers", [False, True], ids=["3.10 to 4.3.6", "since 4.3.7"])
async def test_a_consumer_that_the_broker_ends_consumes_again_and_keeps_its_connection(answers: bool) -> None:  # noqa: FBT001
    async with FakeBroker() as broker:
        consumer = BulkConsumer(broker.url, "q", name="test", prefetch=10, connect_timeout=SECONDS)
        starting = asyncio.create_task(consumer.start())
        peer = await broker.peer()
        await peer.welcome_consumer({"accept_consumer_cancel_ok": True} if answers else {})
        await starting
        peer.deliver("sendoff", 1)
        held = await asyncio.wait_for(consumer.batch(1), SECONDS)
        peer.send(commands.Basic.Cancel("sendoff", nowait=True))
        if answers:
            assert (await peer.expect("Basic.CancelOk")).consumer_tag == "sendoff"
        await present(consumer, is_it=False)
        again = await peer.expect("Basic.Consume")
        assert (again.queue, again.consumer_tag, again.nowait) == ("q", "sendoff-2", True)
        peer.deliver("sendoff-2", 2)
        held += await asyncio.wait_for(consumer.batch(1), SECONDS)
        await present(consumer)
        consumer.acknowledge(held)
        ack = await peer.expect("Basic.Ack")
        assert (ack.delivery_tag, ack.multiple) == (2, True)
        stopping = asyncio.create_task(consumer.stop())
        assert (await peer.expect("Basic.Cancel")).consumer_tag == "sendoff-2"
        peer.send(commands.Basic.CancelOk("sendoff-2"))
        await stopping
        closing = asyncio.create_task(consumer.close())
        await peer.expect("Connection.Close")
        peer.send(commands.Connection.CloseOk(), channel=0)
        await closing


def test_publishing_and_consuming_work_on_uvloop(server_settings: Settings) -> None:
    async def scenario() -> None:
        async with Proxy(server_settings.amqp_url) as proxy:
            publisher = BulkPublisher(
                proxy.url, name="test", window=100, timeout=SECONDS, connect_timeout=SECONDS
            )
            await publisher.start()
            proxy.cut_after = 100_000
            async with asyncio.timeout(SECONDS):
                await publisher.publish("amq.fanout", "k", numbered(5_000), mandatory=False)
            assert proxy.connections == 2
            await publisher.close()

    uvloop.run(scenario())
