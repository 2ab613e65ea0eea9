"""Live updates: one look at the database a second, for everybody who looks at whatever page."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog

from contracts.states import State
from worker.db.failures import ERRORS
from worker.domain.pace import Pace
from worker.domain.sentences import Speed, average, settled
from worker.domain.states import RUNNING
from worker.lifecycle import pause

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from worker.db.console import Row

log = structlog.get_logger(__name__)

_STREAM_SECONDS: Final = 600
"""How long one stream lasts. The browser asks for the next, and whether it may is checked anew."""
_WAIT_SECONDS: Final = 15
"""After so long without news, something is sent: a connection that is gone is noticed."""
_PACES: Final = 1_000
"""Deliveries whose pace is remembered."""


@dataclass(slots=True)
class Topic:
    """What several viewers look at."""

    viewers: int = 0
    version: int = 0
    drawn: bytes = b""
    """The event that is swapped into the page."""
    state: bytes = b""
    """The event that says in which state the delivery is."""
    beat: bytes = b""
    """The event that says when this was looked at."""
    facts: object = None
    """What the newest version was drawn from."""
    row: Row | None = None
    """The delivery, as it was at the last look."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Gives the viewers the new version; one who is slow skips those in between."""
        self.version += 1
        told, self.changed = self.changed, asyncio.Event()
        told.set()


class Paces:
    """How fast deliveries go, as far as somebody looks."""

    def __init__(self) -> None:
        self._paces: dict[int, Pace] = {}

    def note(self, row: Mapping[str, Any]) -> None:
        """Notes how far a delivery is."""
        if State(row["state"]) in RUNNING:
            if len(self._paces) >= _PACES:
                self._paces.clear()
            self._paces.setdefault(row["delivery_id"], Pace()).note(time.monotonic(), settled(row))
        else:
            self._paces.pop(row["delivery_id"], None)

    def speed(self, row: Mapping[str, Any]) -> Speed:
        """Returns how fast it goes; of one that is over, how fast it went."""
        pace = self._paces.get(row["delivery_id"])
        if pace is None:
            return Speed(average(row))
        return Speed(pace.rate, pace.left(int(row["to_deliver"]) - settled(row)))


class Live:
    """Feeds the viewers."""

    name = "console live"

    def __init__(
        self,
        read: Callable[[Sequence[int]], Awaitable[dict[int, Row]]],
        draw: Callable[[Row, Speed], str],
        *,
        seconds: float = 1,
    ) -> None:
        """Takes how to read deliveries, and how to draw one."""
        self._read = read
        self._draw = draw
        self._seconds = seconds
        self._topics: dict[int, Topic] = {}
        self._asked = asyncio.Event()
        self._stopping = asyncio.Event()
        self.paces = Paces()
        self.reads = 0
        """How often the database was asked."""

    async def run(self, stop: asyncio.Event) -> None:
        """Looks while anybody does, until `stop`; then all streams end."""
        try:
            while not await pause(stop, self._seconds):
                if self._topics:
                    await self._look()
        finally:
            self._stopping.set()
            for topic in self._topics.values():
                topic.changed.set()

    async def _look(self) -> None:
        watched = list(self._topics)
        self.reads += 1
        try:
            rows = await self._read(watched)
        except ERRORS as error:
            log.info("nothing live while the database is away", because=str(error) or type(error).__name__)
            return
        for number in watched:
            topic, row = self._topics.get(number), rows.get(number)
            if topic is not None and row is not None:
                try:
                    self._tell(topic, row)
                except Exception:
                    # A fault of ours with one delivery must not end the console for all others.
                    log.exception("delivery not drawn", delivery_id=number)

    def _tell(self, topic: Topic, row: Row) -> None:
        """Draws a delivery once for all its viewers; only the time, where nothing else has changed."""
        self.paces.note(row)
        topic.row = row
        speed = self.paces.speed(row)
        facts = ({k: v for k, v in row.items() if k != "as_of"}, speed)
        topic.beat = _event(row["as_of"].isoformat(), "beat")
        if facts != topic.facts:
            topic.facts = facts
            topic.drawn = _event(self._draw(row, speed))
            topic.state = _event(row["state"], "state")
        topic.tell()

    def latest(self, number: int) -> Row | None:
        """Returns a delivery as it was at the last look, if somebody looks at it."""
        topic = self._topics.get(number)
        return topic.row if topic else None

    async def stream(self, number: int, state: str) -> AsyncIterator[bytes]:
        """Yields the events of a delivery as they come.

        Args:
            number: The delivery.
            state: The state that the viewer has seen: another one is told as the event `state`.
        """
        topic = self._topics.setdefault(number, Topic())
        topic.viewers += 1
        try:
            async for chunk in _events(topic, state, self._stopping):
                yield chunk
        finally:
            topic.viewers -= 1
            if not topic.viewers:
                self._topics.pop(number, None)

    @property
    def viewers(self) -> int:
        """How many look."""
        return sum(topic.viewers for topic in self._topics.values())


async def _events(topic: Topic, state: str, stopping: asyncio.Event) -> AsyncIterator[bytes]:
    seen, drawn, until = 0, None, time.monotonic() + _STREAM_SECONDS
    told = _event(state, "state")
    yield b"retry: 1000\n\n"
    while not stopping.is_set() and time.monotonic() < until:
        if topic.version == seen:
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    await topic.changed.wait()
            except TimeoutError:
                yield b": still there\n\n"
            continue
        seen = topic.version
        if topic.drawn is not drawn:
            drawn = topic.drawn
            yield drawn
        if topic.state != told:
            told = topic.state
            yield told
        yield topic.beat


def _event(data: str, name: str = "") -> bytes:
    """Writes an event (HTML Living Standard, 9.2)."""
    lines = [f"event: {name}"] if name else []
    return "\n".join([*lines, *(f"data: {line}" for line in data.splitlines()), "", ""]).encode()
