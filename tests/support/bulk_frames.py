"""Frames of the bulk transport, written by pamqp, and what a reader hears in them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pamqp.body
import pamqp.frame
import pamqp.header
import pamqp.heartbeat
from hypothesis import strategies as st
from pamqp import commands

from worker.amqp.bulk.reader import Reader

if TYPE_CHECKING:
    from pamqp.base import Frame

    from worker.amqp.messages import Incoming


FRAME_MAX = 4096


class Heard:
    """Keeps what a reader says, in one order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def delivered(self, batch: list[Incoming]) -> None:
        self.events += [
            (
                "delivered",
                m.tag,
                m.exchange,
                m.routing_key,
                m.message_id,
                m.correlation_id,
                m.reply_to,
                m.user_id,
                m.priority,
                dict(m.headers),
                m.body,
            )
            for m in batch
        ]

    def confirmed(self, tag: int, *, multiple: bool, positive: bool) -> None:
        self.events.append(("confirmed", tag, multiple, positive))

    def returned(self, frame: commands.Basic.Return) -> None:
        self.events.append(("returned", frame.reply_code, frame.exchange, frame.routing_key))

    def method(self, channel: int, frame: Frame) -> None:
        self.events.append(("method", channel, frame.name))


def read(data: bytes, cuts: list[int] | None = None, *, frame_max: int = FRAME_MAX) -> list[tuple[Any, ...]]:
    heard = Heard()
    reader = Reader(heard, None)
    reader.frame_max = frame_max
    reader.open_channel()
    edges = [0, *sorted(c for c in cuts or [] if c < len(data)), len(data)]
    for start, stop in itertools.pairwise(edges):
        reader.feed(data[start:stop])
    return heard.events


def method(frame: Frame, channel: int = 1) -> bytes:
    return pamqp.frame.marshal(frame, channel)


# Short strings are at most 255 bytes; a character takes up to four.
short = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
tags = st.integers(1, 2**63 - 1)


def content(frame: Frame, given: dict[str, Any], body: bytes, noise: bytes = b"") -> bytes:
    """A method that carries content, with frames of the connection itself in between."""
    header = pamqp.header.ContentHeader(0, len(body), commands.Basic.Properties(**given))
    piece = FRAME_MAX - 8
    parts = [method(frame), pamqp.frame.marshal(header, 1)]
    parts += [
        pamqp.frame.marshal(pamqp.body.ContentBody(body[at : at + piece]), 1)
        for at in range(0, len(body), piece)
    ]
    return noise.join(parts)


def raw(kind: int, channel: int, payload: bytes) -> bytes:
    return bytes((kind, 0, channel)) + len(payload).to_bytes(4, "big") + payload + b"\xce"
