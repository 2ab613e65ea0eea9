"""Deliveries that are alike, read at once: the same is heard as frame by frame."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands

from tests.support.bulk_frames import FRAME_MAX, Heard, content, raw, read, short, tags
from worker.amqp.bulk.errors import ProtocolError
from worker.amqp.bulk.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable


def heard_until_fault(data: bytes, cuts: list[int]) -> tuple[list[tuple[Any, ...]], bool]:
    heard = Heard()
    reader = Reader(heard, None)
    reader.frame_max = FRAME_MAX
    reader.open_channel()
    fed = 0
    try:
        for cut in [*cuts, len(data)]:
            reader.feed(data[fed:cut])
            fed = cut
    except ProtocolError:
        return heard.events, True
    return heard.events, False


def alike(tag: int, message_id: str, body: bytes, **more: Any) -> bytes:
    given = {"message_id": message_id, "timestamp": datetime(2026, 1, tag % 28 + 1, tzinfo=UTC), **more}
    return content(commands.Basic.Deliver("c", tag, False, "x", "k"), given, body)


@given(
    st.lists(st.tuples(tags, short, st.binary(max_size=60)), min_size=2, max_size=6),
    st.sampled_from(
        [
            {},
            {"message_type": "send", "headers": {"schema_version": 1}, "content_type": "a/b"},
            {"message_type": "send", "priority": 5},
        ]
    ),
    st.lists(st.integers(0, 1_000), max_size=2),
)
def test_deliveries_that_are_alike_are_read_as_each_alone_would_be(
    told: list[tuple[int, str, bytes]], more: dict[str, Any], cuts: list[int]
) -> None:
    data = b"".join(alike(*one, **more) for one in told)
    headers, priority = more.get("headers", {}), more.get("priority", 0)
    assert read(data, cuts) == [
        ("delivered", tag, "x", "k", message_id or None, None, None, None, priority, headers, body)
        for tag, message_id, body in told
    ]


@pytest.mark.parametrize("change", [bool, lambda b: b | 255, lambda b: b ^ 1, lambda b: (b + 1) % 256])
def test_a_byte_that_is_wrong_is_found_though_all_else_is_alike(change: Callable[[int], int]) -> None:
    """Whole, where what is alike is read at once, and byte by byte: the same is heard, or it is no AMQP."""
    more = {"message_type": "send", "headers": {"schema_version": 1}}
    first, second = alike(1, "2-17-1", b"body", **more), alike(2, "2-18-1", b"bodies", **more)
    for at, byte in enumerate(second):
        data = first + second[:at] + bytes((change(byte),)) + second[at + 1 :] + first
        (whole, fault), (by_byte, fault_then) = (
            heard_until_fault(data, cuts) for cuts in ([], list(range(len(data))))
        )
        assert fault == fault_then, at
        # A fault ends the reading before what came together with it is handed over.
        assert fault or whole == by_byte, at


def test_the_body_of_one_that_is_alike_has_the_bounds_of_any() -> None:
    first = alike(1, "a", b"body")
    whole = alike(2, "b", b"x" * FRAME_MAX)
    pieces = raw(3, 1, b"x" * (FRAME_MAX - 8)), raw(3, 1, b"x" * 8)
    one = whole.replace(b"".join(pieces), raw(3, 1, b"x" * FRAME_MAX))
    assert len(read(first + whole)) == 2
    with pytest.raises(ProtocolError, match="agreed"):
        read(first + one)
    with pytest.raises(ProtocolError, match="where type 1 belongs"):
        read(first + alike(2, "b", b"") + raw(3, 1, b""))
