"""The one place where a library is changed for the whole process: as long as it needs to be."""

from __future__ import annotations

import hashlib
import inspect
from datetime import UTC, datetime
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode
from pamqp.commands import Basic

from worker.amqp import properties

MESSAGE_ID, TIMESTAMP = Basic.Properties.flags["message_id"], Basic.Properties.flags["timestamp"]
TIMES = st.integers(1, 2**37).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
AFTER_9999 = (2**62).to_bytes(8, "big")


@pytest.mark.parametrize(("flag", "data"), [(MESSAGE_ID, b"\x01\xff"), (TIMESTAMP, AFTER_9999)])
def test_pamqp_still_raises_over_a_property_that_it_cannot_read(
    flag: int, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another test of this process may have patched it.
    monkeypatch.setitem(decode.METHODS, "shortstr", properties.PAMQPS_SHORT_STRING)
    with pytest.raises((ValueError, OverflowError, OSError)):
        properties.PAMQPS_OWN(Basic.Properties(), flag, data)


def test_pamqp_still_raises_over_a_routing_key_that_it_cannot_read() -> None:
    with pytest.raises(UnicodeDecodeError):
        properties.PAMQPS_SHORT_STRING(b"\x01\xff")


def test_a_method_is_read_whatever_its_routing_key_is() -> None:
    properties.patch_pamqp()
    frame = Basic.Return()
    frame.unmarshal(b"\x01\x38" + b"\x02no" + b"\x01\xff" + b"\x02\xc3k")
    assert (frame.exchange, frame.routing_key) == ("\ufffd", "\ufffdk")


def test_pamqp_still_reads_properties_by_the_code_that_is_replaced() -> None:
    source = dedent(inspect.getsource(properties.PAMQPS_OWN))
    digest = hashlib.sha256(source.encode()).hexdigest()
    assert digest == "6dc3fcb6eff561fc4ab0eee10dba9499225b15d23f055052063e40e3f54686b8", (
        "pamqp has changed the method that is replaced. Compare it with worker/amqp/properties.py;"
        " where pamqp no longer raises, remove the replacement."
    )


@given(
    message_id=st.text(max_size=40),
    user_id=st.none() | st.text(min_size=1, max_size=20),
    timestamp=st.none() | TIMES,
    headers=st.none() | st.dictionaries(st.text(min_size=1, max_size=10), st.text(max_size=20), max_size=3),
)
def test_what_pamqp_can_read_is_read_as_pamqp_reads_it(**fields: object) -> None:
    written = Basic.Properties(**fields)
    data = written.marshal()
    flags, body = int.from_bytes(data[:2], "big"), data[2:]
    own, lenient = Basic.Properties(), Basic.Properties()
    properties.PAMQPS_OWN(own, flags, body)
    properties.unmarshal(lenient, flags, body)
    assert dict(own) == dict(lenient)


@given(octets=st.binary(min_size=1, max_size=255))
def test_octets_that_are_no_text_are_read_with_replacement_characters(octets: bytes) -> None:
    read = Basic.Properties()
    properties.unmarshal(read, MESSAGE_ID, bytes([len(octets)]) + octets)
    assert read.message_id == octets.decode(errors="replace")
