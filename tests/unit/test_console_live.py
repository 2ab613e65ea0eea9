"""Live updates: one look at the database a second, for any number of viewers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog.testing

from worker.domain.operators import Operator
from worker.lifecycle import wait_any
from worker.web.console.live import Live
from worker.web.console.parts import Directory, Shared

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from worker.domain.sentences import Speed

SECONDS = 10


class Board:
    """Deliveries as a database would have them."""

    def __init__(self) -> None:
        self.sent = dict.fromkeys((1, 2), 0)
        self.state = "in_progress"
        self.asked: list[list[int]] = []
        self.fails = False
        self.drawn = 0

    async def read(self, wanted: Sequence[int]) -> dict[int, dict[str, Any]]:
        self.asked.append(sorted(wanted))
        if self.fails:
            raise ConnectionError("away")
        rest = dict.fromkeys(("bounced", "errors", "unknown", "excluded_late", "cancelled"), 0)
        return {
            number: rest
            | {
                "delivery_id": number,
                "state": self.state,
                "sent": self.sent[number],
                "to_deliver": 100,
                "started_at": None,
                "finished_at": None,
                "as_of": datetime.now(UTC),
            }
            for number in wanted
        }

    def draw(self, row: dict[str, Any], _: Speed) -> str:
        self.drawn += 1
        return f"<b>{row['delivery_id']}</b>\n<i>{row['sent']}</i>"


@asynccontextmanager
async def running(board: Board) -> AsyncIterator[tuple[Live, asyncio.Event]]:
    live, stop = Live(board.read, board.draw, seconds=0.01), asyncio.Event()
    task = asyncio.create_task(live.run(stop))
    try:
        yield live, stop
    finally:
        stop.set()
        await asyncio.wait_for(task, SECONDS)


async def take(events: AsyncIterator[bytes], wanted: bytes) -> bytes:
    async with asyncio.timeout(SECONDS):
        async for event in events:
            if wanted in event:
                return event
    raise AssertionError("the stream ended")


async def test_all_viewers_of_all_deliveries_cost_one_read() -> None:
    board = Board()
    async with running(board) as (live, _):
        streams = [live.stream(1 + at % 2, "in_progress") for at in range(50)]
        await asyncio.gather(*(take(stream, b"<b>") for stream in streams))
        before, drawn = live.reads, board.drawn
        board.sent[1] = 7
        found = await asyncio.gather(*(take(stream, b"<i>7") for stream in streams[::2]))
        assert set(found) == {b"data: <b>1</b>\ndata: <i>7</i>\n\n"}
        assert board.asked[before] == [1, 2]
        assert board.drawn - drawn < 5, "a delivery is drawn once for all its viewers"
        assert live.viewers == 50
        for stream in streams:
            await stream.aclose()
        assert live.viewers == 0


async def test_nobody_looks_and_nothing_is_read() -> None:
    board = Board()
    async with running(board) as (live, _):
        stream = live.stream(1, "ready")
        await take(stream, b"<b>")
        await stream.aclose()
        asked = len(board.asked)
        await wait_any(asyncio.Event(), seconds=0.05)
        assert len(board.asked) <= asked + 1


async def test_a_state_that_the_page_does_not_show_is_told_and_what_stays_is_not_drawn_again() -> None:
    board = Board()
    async with running(board) as (live, _):
        stream = live.stream(1, "ready")
        assert await take(stream, b"event: state") == b"event: state\ndata: in_progress\n\n"
        board.state = "paused"  # its pace does not change either
        await take(stream, b"paused")
        drawn = board.drawn
        following = [await anext(stream) for _ in range(4)]
        assert all(event.startswith(b"event: beat") for event in following)
        assert board.drawn == drawn
        board.state = "in_progress"
        assert b"in_progress" in await take(stream, b"event: state")
        await stream.aclose()


async def test_a_viewer_who_comes_later_sees_at_once_what_there_is() -> None:
    board = Board()
    async with running(board) as (live, _):
        first = live.stream(1, "in_progress")
        await take(first, b"event: beat")
        later = live.stream(1, "finished")
        await take(later, b"<b>1</b>")
        assert b"in_progress" in await take(later, b"event: state")
        await first.aclose()
        await later.aclose()


async def test_a_database_that_is_away_silences_and_does_not_end() -> None:
    board = Board()
    async with running(board) as (live, _):
        stream = live.stream(1, "in_progress")
        await take(stream, b"<b>")
        board.fails = True
        while not board.asked[-1:] or live.reads < 5:
            await wait_any(asyncio.Event(), seconds=0.01)
        board.fails, board.sent[1] = False, 42
        await take(stream, b"<i>42")
        await stream.aclose()


async def test_a_delivery_that_cannot_be_drawn_troubles_no_other() -> None:
    board = Board()
    draw = board.draw

    def fail(row: dict[str, Any], speed: Speed) -> str:
        if row["delivery_id"] == 1:
            raise ValueError("a fault of ours")
        return draw(row, speed)

    board.draw = fail  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as logged:
        async with running(board) as (live, _):
            broken, whole = live.stream(1, "ready"), live.stream(2, "ready")
            waiting = asyncio.create_task(take(broken, b"<b>"))
            assert b"<b>2</b>" in await take(whole, b"<b>")
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await whole.aclose()
            await broken.aclose()
    assert {line["event"] for line in logged} == {"delivery not drawn"}


async def test_a_stop_ends_the_streams() -> None:
    board = Board()
    async with running(board) as (live, stop):
        stream = live.stream(1, "in_progress")
        await take(stream, b"<b>")
        stop.set()
        async with asyncio.timeout(SECONDS):
            async for _ in stream:
                pass


async def test_who_asks_the_same_at_the_same_time_shares_the_answer() -> None:
    shared, going, reads = Shared(), asyncio.Event(), 0

    async def read() -> int:
        nonlocal reads
        reads += 1
        await going.wait()
        return reads

    asked = [asyncio.create_task(shared.get("key", read, seconds=60)) for _ in range(20)]
    asked[0].cancel()
    await asyncio.sleep(0)
    going.set()
    assert set(await asyncio.gather(*asked[1:])) == {1}
    assert await shared.get("key", read, seconds=60) == 1
    assert await shared.get("other", read, seconds=60) == 2


async def test_an_answer_that_fails_is_not_kept() -> None:
    shared = Shared()

    async def fail() -> int:
        raise ConnectionError

    async def work() -> int:
        return 1

    for _ in range(2):
        try:
            await shared.get("key", fail, seconds=60)
        except ConnectionError:
            continue
        raise AssertionError
    assert await shared.get("key", work, seconds=60) == 1


async def test_all_viewers_cost_one_look_at_the_operators_and_who_acts_is_looked_up_anew() -> None:
    reads, known = 0, [Operator("ana", active=True, roles=frozenset())]

    async def read() -> list[Operator]:
        nonlocal reads
        reads += 1
        return list(known)

    directory = Directory(read)
    found = await asyncio.gather(*(directory.find("ana") for _ in range(500)))
    assert {one.name for one in found if one} == {"ana"}
    assert reads == 1
    assert await directory.find("bob") is None
    known.append(Operator("bob", active=True, roles=frozenset()))
    assert await directory.find("bob") is None, "a second has not passed"
    directory.forget()
    assert await directory.find("bob") is not None


async def test_the_latest_look_is_there_while_somebody_looks() -> None:
    board = Board()
    async with running(board) as (live, _):
        assert live.latest(1) is None
        stream = live.stream(1, "in_progress")
        await take(stream, b"<b>")
        latest = live.latest(1)
        assert latest is not None
        assert latest["delivery_id"] == 1
        await stream.aclose()
        assert live.latest(1) is None
