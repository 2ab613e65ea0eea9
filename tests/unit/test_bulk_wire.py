"""The wire of the bulk transport against pamqp: what one writes the other reads."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

import pamqp.body
import pamqp.frame
import pamqp.header
import pamqp.heartbeat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands

from contracts.routing import CONTENT_TYPE, SCHEMA_VERSION
from tests.support.bulk_frames import FRAME_MAX, Heard, content, method, raw, read, short, tags
from worker.amqp.bulk.encoding import Publishes, acknowledgement
from worker.amqp.bulk.errors import ProtocolError
from worker.amqp.bulk.reader import MOST_BODY, Reader
from worker.amqp.messages import Outgoing

HEARTBEAT = pamqp.heartbeat.Heartbeat().marshal()
BLOCKED = method(commands.Connection.Blocked("low on memory"), 0)

name = st.text("abcXYZ09-_.:", max_size=60)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
bodies = st.one_of(
    st.binary(max_size=200), st.integers(0, 3 * FRAME_MAX).map(lambda n: bytes(n % 251 for n in range(n)))
)
outgoing = st.builds(
    Outgoing,
    bodies,
    short,
    st.none() | short,
    st.none() | short,
    st.dictionaries(short.filter(lambda k: len(k.encode()) <= 128), texts, max_size=3),
    st.none() | st.integers(0, 9),
)
fields = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=40)
    | st.none()
    | st.integers(1, 4_000_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=6,
)
properties = st.fixed_dictionaries(
    {},
    optional={
        "content_type": short,
        "content_encoding": short,
        "headers": st.dictionaries(st.text(min_size=1, max_size=20), fields, max_size=4),
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 255),
        "correlation_id": short,
        "reply_to": short,
        "expiration": short,
        "message_id": short,
        "timestamp": st.just(datetime(2026, 1, 1, tzinfo=UTC)),
        "message_type": short,
        "user_id": short,
        "app_id": short,
    },
)


@st.composite
def spoken(draw: st.DrawFn) -> tuple[bytes, list[tuple[Any, ...]]]:
    """Something that a broker says, and what is to be heard."""
    noise = draw(st.sampled_from([b"", HEARTBEAT, HEARTBEAT + HEARTBEAT]))
    kind = draw(st.sampled_from(["deliver", "deliver", "confirm", "return", "blocked", "heartbeat"]))
    if kind == "deliver":
        tag, exchange, key, given, body = draw(st.tuples(tags, name, short, properties, bodies))
        data = content(
            commands.Basic.Deliver(draw(short), tag, draw(st.booleans()), exchange, key), given, body, noise
        )
        # pamqp does not send what is empty.
        ids = [given.get(p) or None for p in ("message_id", "correlation_id", "reply_to", "user_id")]
        rest = given.get("priority", 0), given.get("headers") or {}, body
        return data, [("delivered", tag, exchange, key, *ids, *rest)]
    if kind == "confirm":
        tag, multiple, positive = draw(st.tuples(tags, st.booleans(), st.booleans()))
        frame = commands.Basic.Ack(tag, multiple) if positive else commands.Basic.Nack(tag, multiple)
        return method(frame), [("confirmed", tag, multiple, positive)]
    if kind == "return":
        exchange, key, given, body = draw(st.tuples(name, short, properties, bodies))
        data = content(commands.Basic.Return(312, "NO_ROUTE", exchange, key), given, body, noise)
        return data, [("returned", 312, exchange, key)]
    if kind == "blocked":
        return BLOCKED, [("method", 0, "Connection.Blocked")]
    return HEARTBEAT, []


@given(st.lists(spoken(), max_size=5), st.lists(st.integers(0, 20_000), max_size=8))
def test_whatever_pamqp_writes_is_read_the_same_however_it_is_cut(
    said: list[tuple[bytes, list[tuple[Any, ...]]]], cuts: list[int]
) -> None:
    data = b"".join(part for part, _ in said)
    assert read(data, cuts) == [event for _, events in said for event in events]


@settings(max_examples=20)
@given(st.lists(spoken(), min_size=1, max_size=2))
def test_whatever_pamqp_writes_is_read_the_same_byte_by_byte(
    said: list[tuple[bytes, list[tuple[Any, ...]]]],
) -> None:
    data = b"".join(part for part, _ in said)
    assert read(data, list(range(len(data)))) == [event for _, events in said for event in events]


def unmarshal(data: bytes) -> list[Any]:
    frames = []
    while data:
        used, channel, frame = pamqp.frame.unmarshal(data)
        assert channel == 1
        frames.append(frame)
        data = data[used:]
    return frames


@given(name, short, st.booleans(), st.lists(outgoing, min_size=1, max_size=5), st.integers(1, 5))
def test_whatever_is_published_pamqp_reads(
    exchange: str,
    key: str,
    mandatory: bool,  # noqa: FBT001
    messages: list[Outgoing],
    most: int,
) -> None:
    encoder = Publishes(exchange, key, mandatory=mandatory)
    frames, at = [], 0
    while at < len(messages):
        data, count = encoder.encode(messages, at, most, FRAME_MAX)
        assert 1 <= count <= most
        frames += unmarshal(data)
        at += count
    now = datetime.now(UTC)
    for message in messages:
        publish, header = frames.pop(0), frames.pop(0)
        assert (publish.exchange, publish.routing_key) == (exchange, key)
        assert (publish.mandatory, publish.immediate) == (mandatory, False)
        body = b""
        while len(body) < header.body_size:
            piece = frames.pop(0)
            assert len(piece) <= FRAME_MAX - 8
            body += piece.value
        assert body == message.body
        found = header.properties
        assert found.headers == {"schema_version": SCHEMA_VERSION, **message.headers}
        assert (found.content_type, found.delivery_mode, found.app_id) == (CONTENT_TYPE, 2, "sendoff")
        assert (found.message_id or None) == (message.message_id or None)
        assert (found.correlation_id or None) == (message.correlation_id or None)
        assert (found.message_type or "") == message.type
        assert abs((now - found.timestamp).total_seconds()) < 60
        assert (found.reply_to, found.user_id, found.expiration) == (None, None, None)
        assert found.priority == message.priority
    assert not frames


@given(tags, st.booleans())
def test_an_acknowledgement_is_read_by_pamqp(tag: int, multiple: bool) -> None:  # noqa: FBT001
    (frame,) = unmarshal(acknowledgement(tag, multiple=multiple))
    assert isinstance(frame, commands.Basic.Ack)
    assert (frame.delivery_tag, frame.multiple) == (tag, multiple)


def test_much_is_not_encoded_at_once() -> None:
    data, count = Publishes("x", "y", mandatory=True).encode(
        [Outgoing(b"b" * 400_000, "t")] * 10, 0, 10, 131_072
    )
    assert count == 3
    assert len(data) < 2 << 20


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (Outgoing(b"", "t", "i" * 256), "message_id"),
        (Outgoing(b"", "t", None, "i" * 256), "correlation_id"),
        (Outgoing(b"", "t" * 256), "type"),
        (Outgoing(b"", "t", headers={"n" * 256: ""}), "name"),
        (Outgoing(b"", "t", headers={"n": "v" * FRAME_MAX}), "headers"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_sent(message: Outgoing, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Publishes("x", "y", mandatory=True).encode([message], 0, 1, FRAME_MAX)


DELIVERY = commands.Basic.Deliver("c", 1, False, "x", "k")
SHORT_HEADER = pamqp.frame.marshal(pamqp.header.ContentHeader(0, 3), 1)
BODY = pamqp.frame.marshal(pamqp.body.ContentBody(b"abc"), 1)
LONG_BODY = pamqp.frame.marshal(pamqp.body.ContentBody(b"abcd"), 1)
EMPTY_BODY = b"\x03\x00\x01\x00\x00\x00\x00\xce"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (HEARTBEAT[:-1] + b"\x00", "ends with the byte 0"),
        (raw(7, 1, b"x"), "type 7"),
        (raw(2, 0, b"x"), "channel 0"),
        (raw(8, 1, b""), "type 8"),
        (raw(8, 0, b"x"), "type 8"),
        (raw(1, 2, b"x"), "channel 2"),
        (raw(3, 1, b"x" * FRAME_MAX), "agreed"),
        (b"AMQP\x00\x00\x09\x01", "does not speak AMQP"),
        (SHORT_HEADER, "where type 1 belongs"),
        (BODY, "where type 1 belongs"),
        (method(DELIVERY) + BODY, "where type 2 belongs"),
        (method(DELIVERY) + method(DELIVERY), "where type 2 belongs"),
        (method(DELIVERY) + SHORT_HEADER + method(DELIVERY), "where type 3 belongs"),
        (method(DELIVERY) + SHORT_HEADER + LONG_BODY, "longer than announced"),
        (method(DELIVERY) + SHORT_HEADER + EMPTY_BODY, "empty frame"),
        (
            method(DELIVERY) + pamqp.frame.marshal(pamqp.header.ContentHeader(0, MOST_BODY + 1), 1),
            "announced",
        ),
        (method(DELIVERY) + raw(2, 1, b"\x00\x3c"), "header cannot be read"),
        (method(DELIVERY) + raw(2, 1, b"\x00\x0a" + bytes(12)), "no kind"),
        (raw(1, 1, b"\x00\x3c\x00\x3c"), "too short"),
        (raw(1, 1, b"\x00\x3c\x00\x3c" + bytes(13)), "route"),
        (raw(1, 1, b"\x00\x3c\x00\x50\x00"), "confirm"),
        (raw(1, 1, b"\x00\x3c\x00\xff"), "method cannot be read"),
        (raw(1, 0, b"\x00"), "method cannot be read"),
    ],
)
def test_what_is_no_amqp_ends_the_reading_with_a_sentence(data: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        read(data)


@pytest.mark.parametrize(
    ("route", "properties"),
    [
        (b"\x01x\x01k", b"\x00\x04\x01c"),  # a cluster_id
        (b"\x01x\x01k", b"\x80\x00"),  # none of what is announced
        (b"\x01x\x01k", b"\x80\x00\x05"),  # too short
        (b"\x01x\x01k", b"\x20\x00\x00\x00\x00\x03aX"),  # a table that is too short
        (b"\x01\xff\x01\xff", b"\x00\x00"),
    ],
)
def test_fields_that_cannot_be_read_cost_only_themselves(route: bytes, properties: bytes) -> None:
    deliver = raw(1, 1, b"\x00\x3c\x00\x3c\x01c" + (1).to_bytes(8, "big") + b"\x00" + route)
    header = raw(2, 1, b"\x00\x3c\x00\x00" + (3).to_bytes(8, "big") + properties)
    first, second = read(deliver + header + BODY + method(DELIVERY) + SHORT_HEADER + BODY)
    assert (first[-1], second[-1]) == (b"abc", b"abc")


def test_a_channel_that_is_not_open_says_nothing() -> None:
    with pytest.raises(ProtocolError, match="channel 1"):
        Reader(Heard(), None).feed(method(commands.Basic.CancelOk("c")))


damages = st.tuples(st.integers(0, 9_999), st.sampled_from("sdi"), st.binary(min_size=1, max_size=4))


def damage(data: bytes, done: list[tuple[int, str, bytes]]) -> bytes:
    """Overwrites, deletes and inserts."""
    broken = bytearray(data)
    for place, kind, new in done:
        at = place % (len(broken) + 1)
        if kind == "s":
            broken[at : at + len(new)] = new
        elif kind == "d":
            del broken[at : at + len(new)]
        else:
            broken[at:at] = new
    return bytes(broken)


@settings(max_examples=400)
@given(
    st.lists(spoken(), min_size=1, max_size=4),
    st.lists(damages, min_size=1, max_size=6),
    st.lists(st.integers(0, 9_999), max_size=5),
)
def test_broken_bytes_end_in_the_one_error_or_in_waiting_for_more(
    said: list[tuple[bytes, list[tuple[Any, ...]]]], done: list[tuple[int, str, bytes]], cuts: list[int]
) -> None:
    data = damage(b"".join(part for part, _ in said), done)
    with contextlib.suppress(ProtocolError):
        events = read(data, cuts)
        # No body is made out of nothing.
        assert sum(len(event[-1]) for event in events if event[0] == "delivered") <= len(data)


@settings(max_examples=400)
@given(st.binary(max_size=300))
def test_any_bytes_in_any_place_end_in_the_one_error_or_in_waiting_for_more(data: bytes) -> None:
    header = b"\x00\x3c" + bytes(10)
    for stream in (
        data,
        raw(1, 0, data),
        raw(1, 1, data),
        raw(1, 1, b"\x00\x3c\x00\x3c" + data),
        method(DELIVERY) + raw(2, 1, data),
        method(DELIVERY) + raw(2, 1, header + data),
        method(DELIVERY) + raw(2, 1, header + b"\x20\x00" + len(data).to_bytes(4, "big") + data),
    ):
        with contextlib.suppress(ProtocolError):
            read(stream)


@pytest.mark.parametrize("given", ["message_id", "correlation_id", "reply_to", "user_id"])
def test_a_property_that_is_not_utf8_costs_only_itself(given: str) -> None:
    # Ending the connection over it would bring all that is prefetched back, until the broker drops it.
    delivered = content(commands.Basic.Deliver("c", 1, False, "x", "k"), {given: "MARK"}, b"body")
    ((kind, *told, body),) = read(delivered.replace(b"MARK", b"\xff\xfeRK"))
    assert (kind, body) == ("delivered", b"body")
    assert "\ufffd\ufffdRK" in told


@pytest.mark.parametrize("header", [{"MARK": "value"}, {"key": "MARK"}])
def test_a_header_that_is_not_utf8_costs_only_itself(header: dict[str, str]) -> None:
    delivered = content(commands.Basic.Deliver("c", 1, False, "x", "k"), {"headers": header}, b"body")
    ((kind, *_, body),) = read(delivered.replace(b"MARK", b"\xff\xfeRK"))
    assert (kind, body) == ("delivered", b"body")
