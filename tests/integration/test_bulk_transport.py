"""One suite for both transports, on the real broker: what one promises the other promises."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import subprocess
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aio_pika
import pamqp.body
import pamqp.frame
import pamqp.header
import pytest
from pamqp import commands

from tests.support.bulk_peers import SECONDS, Proxy
from tests.support.transports import Transport, declare, delete, finish, numbered, present, ready, take
from worker.amqp.buffer import CALM
from worker.amqp.bulk.connection import Events, connect
from worker.amqp.errors import BrokerUnreachable
from worker.amqp.messages import Outgoing, Unroutable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aio_pika.abc import AbstractConnection

    from worker.settings import Settings


@pytest.fixture(params=["bulk", "aio-pika"])
async def transport(request: pytest.FixtureRequest, server_settings: Settings) -> AsyncIterator[Transport]:
    async with AsyncExitStack() as stack:
        yield Transport(request.param, server_settings.amqp_url, stack)


@pytest.fixture
async def admin(server_settings: Settings) -> AsyncIterator[AbstractConnection]:
    connection = await aio_pika.connect(server_settings.amqp_url, timeout=SECONDS)
    async with connection:
        yield connection


@pytest.fixture
async def queue(admin: AbstractConnection) -> AsyncIterator[str]:
    name = f"test.bulk.{secrets.token_hex(6)}"
    await declare(admin, name)
    yield name
    await delete(admin, name)


async def test_ten_thousand_messages_arrive_in_order_and_intact(
    transport: Transport, queue: str, admin: AbstractConnection
) -> None:
    publisher, consumer = await transport.publisher(), await transport.consumer(queue)
    messages = [
        Outgoing(b'{"n": %d}' % n, "t", f"id-{n}", f"co-{n}", {"part": str(n % 3)}) for n in range(10_000)
    ]
    await publisher.publish("", queue, messages)
    taken = await take(consumer, len(messages))
    assert [(m.body, m.message_id, m.correlation_id, m.headers["part"]) for m in taken] == [
        (m.body, m.message_id, m.correlation_id, m.headers["part"]) for m in messages
    ]
    assert {(m.exchange, m.routing_key, m.reply_to, m.user_id) for m in taken} == {("", queue, None, None)}
    await finish(consumer)
    assert await ready(admin, queue, consumers=0) == 0


@pytest.mark.parametrize("size", [0, 1, 131_063, 131_064, 131_065, 262_128, 1_000_000])
async def test_bodies_of_any_size_arrive(transport: Transport, queue: str, size: int) -> None:
    publisher, consumer = await transport.publisher(), await transport.consumer(queue)
    body = secrets.token_bytes(size)
    await publisher.publish("", queue, [Outgoing(body, "t"), Outgoing(b"next", "t")])
    assert [m.body for m in await take(consumer, 2)] == [body, b"next"]


async def test_identifiers_and_headers_may_be_of_any_script(transport: Transport, queue: str) -> None:
    publisher, consumer = await transport.publisher(), await transport.consumer(queue)
    sent = Outgoing("né".encode(), "тип", "消息-1", "ü" * 127, {"Straße": "naïve – ✓", "long": "x" * 5_000})
    await publisher.publish("", queue, [sent, Outgoing(b"", "t")])
    full, bare = await take(consumer, 2)
    assert (full.message_id, full.correlation_id) == (sent.message_id, sent.correlation_id)
    assert dict(full.headers) == {"schema_version": 1, **sent.headers}
    # aio-pika invents an identifier where there is none.
    assert (bare.correlation_id, dict(bare.headers)) == (None, {"schema_version": 1})


def odd(queue: str, number: int, given: dict[str, Any], was: bytes, becomes: bytes) -> bytes:
    """A publish whose properties no client of good manners would write."""
    header = pamqp.header.ContentHeader(0, 3, commands.Basic.Properties(**given))
    frames = (commands.Basic.Publish(0, "", queue), header, pamqp.body.ContentBody(b"%03d" % number))
    data = b"".join(pamqp.frame.marshal(frame, 1) for frame in frames)
    assert data.count(was) == 1
    return data.replace(was, becomes)


TEXTS = (
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "message_id",
    "message_type",
    "app_id",
)
ODD: list[tuple[dict[str, Any], bytes, bytes]] = [
    *(({text: "MARK"}, b"MARK", b"M\xff\xfeK") for text in TEXTS),
    ({"headers": {"MARK": "value"}}, b"MARK", b"M\xff\xfeK"),
    ({"headers": {"key": "MARK"}}, b"MARK", b"M\xff\xfeK"),
    ({"headers": {"key": datetime.fromtimestamp(1, UTC)}}, b"T" + bytes(7) + b"\x01", b"T\x7f" + b"\xff" * 7),
    ({"timestamp": datetime.fromtimestamp(0x4D41524B, UTC)}, bytes(4) + b"MARK", b"\x7f" + b"\xff" * 7),
    ({"priority": 9, "correlation_id": "MARK"}, b"\x09\x04MARK", b"\xff\x04MARK"),
]


async def test_properties_that_cannot_be_read_cost_only_themselves(
    transport: Transport, queue: str, server_settings: Settings
) -> None:
    # Were they to cost the connection, all that is prefetched would come back, and in the end be dropped.
    raw = Events()
    await connect(server_settings.amqp_url, raw, [], name="test", timeout=SECONDS)
    for number, case in enumerate(ODD):
        raw.connection.write(odd(queue, number, *case))
    consumer = await transport.consumer(queue)
    # RabbitMQ 4 delivers the one with a priority first.
    taken = sorted(await take(consumer, len(ODD)), key=lambda message: message.body)
    assert [int(m.body) for m in taken] == list(range(len(ODD)))
    assert [taken[i].correlation_id for i in (2, -1)] == ["M\ufffd\ufffdK", "MARK"]
    assert taken[4].message_id == "M\ufffd\ufffdK"
    assert [dict(taken[i].headers) for i in (7, 9)] == [{"M\ufffd\ufffdK": "value"}, {"key": None}]
    await raw.connection.close()


async def test_what_no_queue_takes_is_an_error_for_its_publisher_alone(
    transport: Transport, queue: str
) -> None:
    publisher, consumer = await transport.publisher(), await transport.consumer(queue)
    lost, fine = await asyncio.gather(
        publisher.publish("", f"{queue}.not", numbered(700)),
        publisher.publish("", queue, numbered(700)),
        return_exceptions=True,
    )
    assert isinstance(lost, Unroutable)
    assert f"{queue}.not" in str(lost)
    assert fine is None
    await take(consumer, 700)
    await publisher.publish("", f"{queue}.not", numbered(3), mandatory=False)
    await publisher.publish("", queue, numbered(3))
    await take(consumer, 3)


async def test_an_exchange_that_is_not_there_is_an_error_for_its_publisher_alone(
    transport: Transport, queue: str
) -> None:
    publisher, consumer = await transport.publisher(), await transport.consumer(queue)
    async with asyncio.timeout(SECONDS):
        with pytest.raises(Unroutable, match=r"no exchange 'not\.there'"):
            await publisher.publish("not.there", "k", numbered(5))
        # It closes the AMQP channel of both.
        lost, fine = await asyncio.gather(
            publisher.publish("not.there", "k", numbered(5)),
            publisher.publish("", queue, numbered(3_000)),
            return_exceptions=True,
        )
    assert isinstance(lost, Unroutable)
    assert fine is None
    seen = {m.message_id for m in await take(consumer, 3_000)}
    while len(seen) < 3_000:
        seen |= {m.message_id for m in await take(consumer, 1)}


async def test_many_tasks_publish_at_once(transport: Transport, queue: str) -> None:
    publisher, consumer = await transport.publisher(window=50), await transport.consumer(queue)
    parts = [[Outgoing(b"%d %d" % (task, n), "t") for n in range(task)] for task in range(60)]
    await asyncio.gather(*(publisher.publish("", queue, part) for part in parts))
    sent = [m.body for part in parts for m in part]
    assert sorted(m.body for m in await take(consumer, len(sent))) == sorted(sent)


async def test_no_more_is_delivered_than_prefetch(
    transport: Transport, queue: str, admin: AbstractConnection
) -> None:
    publisher, consumer = await transport.publisher(), await transport.consumer(queue, prefetch=10)
    await publisher.publish("", queue, numbered(50))
    first = await take(consumer, 10, settle=False)
    assert await ready(admin, queue) == 40
    consumer.acknowledge(first[:5])
    second = await take(consumer, 5, settle=False)
    assert [m.message_id for m in first + second] == [f"id-{n}" for n in range(15)]
    assert await ready(admin, queue) == 35


async def test_what_is_not_settled_comes_again(
    transport: Transport, queue: str, admin: AbstractConnection
) -> None:
    publisher, consumer = await transport.publisher(), await transport.consumer(queue)
    await publisher.publish("", queue, numbered(10))
    taken = await take(consumer, 10, settle=False)
    # Neither a prefix nor a suffix, so ranges do not help.
    consumer.acknowledge([taken[0], taken[1], taken[4], taken[9]])
    await finish(consumer)
    assert await ready(admin, queue, consumers=0) == 6
    again = await take(await transport.consumer(queue), 6)
    assert sorted(m.message_id or "" for m in again) == [f"id-{n}" for n in (2, 3, 5, 6, 7, 8)]


async def test_settling_in_any_order_empties_the_queue(
    transport: Transport, queue: str, admin: AbstractConnection
) -> None:
    publisher, consumer = await transport.publisher(), await transport.consumer(queue, prefetch=40)
    await publisher.publish("", queue, numbered(400))
    oldest = await asyncio.wait_for(consumer.batch(1), SECONDS)
    left = 399
    while left:
        async with asyncio.timeout(SECONDS):
            batch = await consumer.batch(7)
        left -= len(batch)
        consumer.acknowledge(reversed(batch))
    consumer.acknowledge(oldest)
    await finish(consumer)
    assert await ready(admin, queue, consumers=0) == 0


async def test_after_a_calm_the_first_delivery_waits_for_no_others(transport: Transport, queue: str) -> None:
    publisher, consumer = await transport.publisher(), await transport.consumer(queue, prefetch=40)
    waiting = asyncio.create_task(consumer.batch(10, age=10 * SECONDS))
    await asyncio.wait([waiting], timeout=3 * CALM)
    await publisher.publish("", queue, numbered(1))
    assert len(await asyncio.wait_for(waiting, SECONDS)) == 1


async def test_stopping_ends_the_wait_and_keeps_what_was_settled(
    transport: Transport, queue: str, admin: AbstractConnection
) -> None:
    publisher, consumer = await transport.publisher(), await transport.consumer(queue, prefetch=5)
    waiting = asyncio.create_task(consumer.batch(10))
    await publisher.publish("", queue, numbered(8))
    async with asyncio.timeout(SECONDS):
        batch = await waiting
        batch += await take(consumer, 5 - len(batch), settle=False)
        waiting = asyncio.create_task(consumer.batch(10))
        await consumer.stop()
        assert await waiting == []
    consumer.acknowledge(batch)
    await consumer.close()
    assert await ready(admin, queue, consumers=0) == 3


async def test_a_queue_that_was_deleted_and_made_again_is_consumed_again_over_the_same_connection(
    transport: Transport, queue: str, server_settings: Settings, admin: AbstractConnection
) -> None:
    """The broker cancels the consumer, and what it holds is acknowledged in vain."""
    async with Proxy(server_settings.amqp_url) as proxy:
        publisher, consumer = await transport.publisher(), await transport.consumer(queue, url=proxy.url)
        connections = proxy.connections
        await publisher.publish("", queue, numbered(3))
        before = await take(consumer, 3, settle=False)
        await delete(admin, queue)
        await present(consumer, is_it=False)
        consumer.acknowledge(before)
        await declare(admin, queue)
        await present(consumer)
        await publisher.publish("", queue, [Outgoing(b"after", "t")])
        (after,) = await take(consumer, 1)
        assert (after.body, proxy.connections) == (b"after", connections)
        assert after.channel is before[0].channel
        await finish(consumer)
        assert await ready(admin, queue, consumers=0) == 0


async def test_a_connection_that_breaks_while_publishing_loses_nothing(
    transport: Transport, queue: str, server_settings: Settings
) -> None:
    count = 50_000 if transport.kind == "bulk" else 5_000
    messages = numbered(count)
    async with Proxy(server_settings.amqp_url) as proxy:
        publisher = await transport.publisher(proxy.url, window=1_000)
        proxy.cut_after = count * 60
        await asyncio.gather(*(publisher.publish("", queue, messages[n::4]) for n in range(4)))
        assert proxy.cut_after is None
        assert proxy.connections >= 2
        seen: set[str] = set()
        consumer = await transport.consumer(queue)
        async with asyncio.timeout(SECONDS):
            while len(seen) < count:
                batch = await consumer.batch(500)
                seen.update(m.message_id or "" for m in batch)
                consumer.acknowledge(batch)
        assert seen == {m.message_id for m in messages}


async def test_a_connection_that_breaks_while_consuming_delivers_again(
    transport: Transport, queue: str, server_settings: Settings, admin: AbstractConnection
) -> None:
    async with Proxy(server_settings.amqp_url) as proxy:
        publisher, consumer = await transport.publisher(), await transport.consumer(queue, 20, proxy.url)
        await publisher.publish("", queue, numbered(20))
        before = await take(consumer, 20, settle=False)
        proxy.cut()
        await present(consumer, is_it=False)
        await present(consumer)
        consumer.acknowledge(before)
        again = await take(consumer, 20)
        assert {m.message_id for m in again} == {m.message_id for m in before}
        assert {id(m.channel) for m in again}.isdisjoint({id(m.channel) for m in before})
        consumer.acknowledge(before)
        await finish(consumer)
        assert await ready(admin, queue, consumers=0) == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"netloc": "nobody:wrong@{place}"}, "refuses the user or password of SENDOFF_AMQP_URL"),
        ({"netloc": "127.0.0.1:1"}, "out of reach"),
        ({"path": "/no-such-host"}, "does not let the user of SENDOFF_AMQP_URL into .*“no-such-host”"),
    ],
)
async def test_a_broker_that_does_not_let_us_in_is_a_sentence(
    transport: Transport, server_settings: Settings, change: dict[str, str], sentence: str
) -> None:
    parts = urlsplit(server_settings.amqp_url)
    place = parts.netloc.rpartition("@")[2]
    url = parts._replace(**{k: v.format(place=place) for k, v in change.items()}).geturl()
    with pytest.raises(BrokerUnreachable, match=sentence):
        await transport.publisher(url)
    with pytest.raises(BrokerUnreachable, match=sentence):
        await transport.consumer("any", url=url)


def make_certificate(folder: Path) -> ssl.SSLContext:
    """A certificate for localhost that vouches for itself: `folder/cert.pem`."""
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *name, *files],
        check=True,
        capture_output=True,
        timeout=SECONDS,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


async def test_tls_is_spoken_and_the_certificate_is_checked(
    transport: Transport, queue: str, server_settings: Settings, tmp_path: Path
) -> None:
    async with Proxy(server_settings.amqp_url, make_certificate(tmp_path)) as proxy:
        with pytest.raises(BrokerUnreachable, match=r"(?i)certificate"):
            await transport.publisher(proxy.url)
        with pytest.raises(BrokerUnreachable, match="No such file"):
            await transport.publisher(f"{proxy.url}?cafile={tmp_path}/missing.pem")
        for trust in (f"cafile={tmp_path}/cert.pem", "no_verify_ssl=1"):
            publisher = await transport.publisher(f"{proxy.url}?{trust}")
            consumer = await transport.consumer(queue, url=f"{proxy.url}?{trust}")
            await publisher.publish("", queue, [*numbered(999), Outgoing(b"x" * 500_000, "t")])
            assert len((await take(consumer, 1_000))[-1].body) == 500_000
            await finish(consumer)
