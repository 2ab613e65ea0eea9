"""The law of tracking: whatever the order, doubling and batching of events, facts and counters end alike.

Random pools of events are recorded in random batches by two recorders at once. The model knows no order: of a
recipient it keeps the set of events.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts import routing
from contracts.tracking import TrackingEvent, TrackingKind, encode
from tests.support.stack import until
from worker.amqp.messages import Incoming
from worker.bootstrap import open_worker
from worker.domain.tracking import DENYLISTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from tests.support.stack import Stack
    from worker.bootstrap import Worker

PEOPLE: Final = ["ana@example.org,p1", "bob@example.org,p2", "carl@example.org,p1", "Dora@example.org,"]
"""Two of them are one profile, and one has none."""
PROFILES: Final = {1: "p1", 2: "p2", 3: "p1"}
NOON: Final = datetime(2026, 11, 23, 12, tzinfo=UTC)
MACHINES: Final = {"Mozilla/5.0", "Barracuda"}
COLUMNS: Final = ("opened", "clicked", "mirror", "optout", "human_opened", "human_clicked", "complained")


@dataclass(frozen=True)
class Act:
    """What somebody did."""

    recipient: int
    kind: TrackingKind
    hour: int
    user_agent: str | None

    @property
    def human(self) -> bool:
        return self.user_agent not in MACHINES

    def times(self) -> dict[str, datetime]:
        """What the act says of its recipient: who complains has opened nothing."""
        if self.kind is TrackingKind.COMPLAINT:
            return {"complained": NOON + timedelta(hours=self.hour)}
        named = {"opened": True, self.kind.value + "ed": True, self.kind.value: True}
        named |= {"human_opened": self.human, "human_clicked": self.human and self.kind is TrackingKind.CLICK}
        return {name: NOON + timedelta(hours=self.hour) for name in COLUMNS if named.get(name)}


acts = st.builds(
    Act,
    st.sampled_from([1, 1, 1, 1, 2, 3, 4]),
    st.sampled_from(TrackingKind),
    st.integers(-9, 9),
    st.sampled_from([None, "Mozilla/5.0", "Barracuda", "Firefox"]),
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Act], list[list[list[int]]]]:
    """Draws acts, and rounds of batches, by their numbers, that are recorded at the same time."""
    pool = draw(st.lists(acts, min_size=1, max_size=16))
    batches = st.lists(st.integers(0, len(pool) - 1), min_size=1, max_size=8)
    rounds = draw(st.lists(st.lists(batches, min_size=1, max_size=4), max_size=4))
    # Whatever was left out comes in the end, part of it again.
    order = draw(st.permutations([*range(len(pool)), *range(0, len(pool), 2)]))
    cut = draw(st.integers(1, 6))
    return pool, [*rounds, [order[i : i + cut] for i in range(0, len(order), cut)]]


def facts(seen: Sequence[Act]) -> dict[int, dict[str, datetime]]:
    """The earliest time of everything that is known, by recipient."""
    known: dict[int, dict[str, datetime]] = {}
    for act in seen:
        own = known.setdefault(act.recipient, {})
        for name, at in act.times().items():
            own[name] = min(own.get(name, at), at)
    return known


def counts(known: dict[int, dict[str, datetime]]) -> dict[str, int]:
    return {name: sum(name in own for own in known.values()) for name in COLUMNS}


class Trial:
    """One history on a delivery of its own."""

    def __init__(self, stack: Stack, workers: Sequence[Worker], number: int, pool: list[Act]) -> None:
        self.stack = stack
        self.recorders: list[Any] = [worker.build("tracking")[0] for worker in workers]
        self.number = number
        self.pool = pool
        self.seen: set[int] = set()

    async def run(self, rounds: list[list[list[int]]]) -> None:
        for batches in rounds:
            async with asyncio.TaskGroup() as group:
                for at, batch in enumerate(batches):
                    recorder = self.recorders[at % len(self.recorders)]
                    group.create_task(recorder.handle(self.messages(batch)))
            self.seen |= {number for batch in batches for number in batch}
            await self.compare()

    def messages(self, batch: list[int]) -> list[Incoming]:
        """Puts the first half into one message, the others each into its own."""
        events = [self.event(number) for number in batch]
        half = len(events) // 2
        bodies = [events[:half], *([event] for event in events[half:])]
        return [
            Incoming(encode(body), "", routing.OPEN, None, None, None, None, {}, 1, None) for body in bodies
        ]

    def event(self, number: int) -> TrackingEvent:
        act = self.pool[number]
        return TrackingEvent(
            event_id=f"e{number}",
            delivery_id=self.number,
            recipient=act.recipient,
            kind=act.kind,
            at=NOON + timedelta(hours=act.hour),
            user_agent=act.user_agent,
        )

    async def compare(self) -> None:
        known = facts([self.pool[number] for number in self.seen])
        row = await self.stack.deployment(self.number)
        assert {name: row[name] for name in COLUMNS} == counts(known)
        rows = await self.stack.rows(
            "SELECT recipient, opened_at AS opened, clicked_at AS clicked, mirror_at AS mirror,"
            " optout_at AS optout, human_opened_at AS human_opened, human_clicked_at AS human_clicked,"
            " complained_at AS complained"
            " FROM sendoff.tracked_recipient WHERE delivery_id = $1",
            self.number,
        )
        found = {row.pop("recipient"): {k: at for k, at in row.items() if at} for row in rows}
        assert found == known
        log = await self.stack.rows(
            "SELECT event_id FROM sendoff.tracking_log WHERE delivery_id = $1", self.number
        )
        assert {row["event_id"] for row in log} == {f"e{number}" for number in self.seen}


async def lists(stack: Stack) -> tuple[set[str], set[str]]:
    """Takes everybody off the denylist and out of quarantine; returns who was there."""
    async with stack.db.session() as session:
        denied = await session.connection.fetch("DELETE FROM sendoff.denylisted_profile RETURNING profile_id")
        held = await session.connection.fetch("DELETE FROM sendoff.quarantined_address RETURNING address")
    return {row["profile_id"] for row in denied}, {row["address"] for row in held}


@pytest.fixture
async def loop() -> asyncio.AbstractEventLoop:
    """The loop of the test's fixtures, at rest while a test that is no coroutine runs."""
    return asyncio.get_running_loop()


@pytest.fixture
async def workers(stack: Stack) -> AsyncIterator[list[Worker]]:
    async with open_worker(stack.settings) as one, open_worker(stack.settings) as other:
        yield [one, other]


@pytest.mark.timeout(300)
def test_every_history_ends_in_the_same_facts_counters_and_lists(
    stack: Stack, workers: list[Worker], loop: asyncio.AbstractEventLoop
) -> None:
    def do(action: Coroutine[Any, Any, Any]) -> Any:
        return loop.run_until_complete(action)

    async def begin() -> int:
        number = await stack.prepare(PEOPLE, columns="address,profile_id")
        async with stack.db.transaction() as tx:
            await tx.connection.execute(
                "UPDATE sendoff.delivery_record SET state = 'finished', confirmed_at = now()"
                " WHERE delivery_id = $1",
                number,
            )
        return number

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(histories())
    def law(history: tuple[list[Act], list[list[list[int]]]]) -> None:
        pool, rounds = history
        trial = Trial(stack, workers, do(begin()), pool)
        do(trial.run(rounds))
        assert trial.seen == set(range(len(pool)))
        heeded = [a for a in pool if a.kind is TrackingKind.COMPLAINT or a.user_agent != "Barracuda"]
        out = {a.recipient for a in heeded if a.kind in DENYLISTS}
        profiles = {PROFILES[r] for r in out if r in PROFILES}
        assert do(lists(stack)) == (profiles, {"Dora@example.org"} if 4 in out else set())

    law()


async def test_two_consumers_of_one_queue_record_what_comes_doubled_and_out_of_order(stack: Stack) -> None:
    number = await stack.prepare(40)
    async with stack.running("confirm"):
        await stack.confirm(number)
    pool = [
        Act(1 + n * 7 % 40, list(TrackingKind)[n % 5], n % 5, [None, "Mozilla/5.0"][n % 3 == 0])
        for n in range(90)
    ]
    trial = Trial(stack, [], number, pool)
    order = [n * 31 % 90 for n in range(90)]
    async with (
        stack.running("tracking", tracking_batch=7, tracking_batch_age=0),
        stack.running("tracking", tracking_batch=3),
    ):
        for number_of in (*order, *reversed(order)):
            await stack.publish(routing.TRACKING, routing.OPEN, trial.event(number_of))
        expected = counts(facts(pool))

        async def there() -> bool:
            row = await stack.deployment(number)
            return {name: row[name] for name in COLUMNS} == expected

        await until(there)
        await until(lambda: _drained(stack))
    trial.seen = set(range(90))
    await trial.compare()


async def _drained(stack: Stack) -> bool:
    return not await stack.depth(routing.TRACKING_QUEUE)
