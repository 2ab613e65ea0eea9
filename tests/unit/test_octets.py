"""Octets of AMQP: whatever they are, they are read; whatever is written fits."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode, encode

from worker.amqp import octets

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=20)
    | st.binary(max_size=20).map(bytearray)
    | st.integers(0, 2**33).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


@given(st.dictionaries(st.text(max_size=20), VALUES, max_size=5))
def test_a_table_is_read_as_pamqp_reads_it(table: dict[str, object]) -> None:
    data = encode.field_table(table)
    assert octets.table(data[4:]) == decode.field_table(data)[1]


@given(st.binary(max_size=300))
def test_any_octets_are_a_table(data: bytes) -> None:
    octets.table(data)
    octets.table(b"\x01nF" + len(data).to_bytes(4, "big") + data)
    octets.table(b"\x01nA" + len(data).to_bytes(4, "big") + data)


def test_a_name_that_is_no_text_and_a_value_that_is_none_cost_only_themselves() -> None:
    after_9999 = b"T" + b"\x7f" * 8
    data = b"\x01\xff" + after_9999 + b"\x01k" + b"S\x00\x00\x00\x01\xff" + b"\x01l" + b"?"
    assert octets.table(data) == {"\ufffd": None, "k": b"\xff"}


def test_tables_within_tables_end_somewhere() -> None:
    data = b"\x01nV"
    for _ in range(10_000):
        data = b"\x01nF" + len(data).to_bytes(4, "big") + data
    octets.table(data)


@given(st.text(st.characters()))
def test_a_short_string_fits_and_is_text(text: str) -> None:
    cut = octets.short(text * 50)
    assert len(cut.encode()) <= octets.SHORT
