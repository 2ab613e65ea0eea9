"""The law of outcomes: whatever the order, doubling and lateness of results, rows and counters end alike.

Random pools of results are recorded in random batches by several recorders at once, beside claims, leases
that run out, a finish and a stop. The model knows nothing of order: of a recipient it keeps the set of what
was granted and of what was reported, and the weightiest of them stands.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts import routing
from tests.support.claims import claim, expire
from tests.support.reports import MAX_ATTEMPTS, NOON, RANKS, RETRIES, STATUS, Report, snapshot
from worker.amqp.messages import Incoming
from worker.bootstrap import open_worker
from worker.db.accounts import Accounts
from worker.db.deliveries import Deliveries
from worker.domain.outcomes import fold

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from tests.support.stack import Stack
    from worker.bootstrap import Worker

RECIPIENTS: Final = 5


@dataclass
class Model:
    """What is known of a delivery, without any order."""

    reported: set[Report] = field(default_factory=set)
    granted: dict[tuple[int, int], int] = field(default_factory=dict)
    """By recipient and attempt, the round in which it was granted."""
    expiries: set[int] = field(default_factory=set)
    """The rounds in which leases ran out."""

    def standing(self, recipient: int, *, ended: bool) -> tuple[int, set[str]] | None:
        """The attempt that stands and the statuses that it may have; None where nothing is known."""
        reports = [r for r in self.reported if r.recipient == recipient]
        claims = [a for r, a in self.granted if r == recipient]
        top = max(reports, key=lambda r: r.weight, default=None)
        last = max(claims, default=0)
        if top is None and not last:
            return None
        if top is None or (top.kind != "hard" and top.attempt < last):
            since = self.granted[recipient, last]
            if any(ran > since for ran in self.expiries):
                return last, {"unknown"}
            return last, {"sending", "unknown"} if since in self.expiries else {"sending"}
        if top.kind in ("soft", "flaky") and top.attempt < MAX_ATTEMPTS and not ended:
            return top.attempt, {"retrying"}
        return top.attempt, {STATUS[top.kind]}


kinds = st.sampled_from([*RANKS, "soft", "flaky"])
reports = st.builds(
    Report,
    st.integers(1, RECIPIENTS),
    st.sampled_from([1, 1, 2, 3]),
    kinds,
    st.integers(0, 5),
    st.sampled_from(["", "a", "b"]),
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Report], list[list[Any]]]:
    """Draws a pool of reports, and rounds of what happens at the same time."""
    pool = draw(st.lists(reports, min_size=1, max_size=16))
    batch = st.tuples(st.just("record"), st.lists(st.sampled_from(pool), min_size=1, max_size=8))
    claim = st.tuples(st.just("claim"), st.sampled_from([1, 1, 2, 3]))
    rare = st.sampled_from([("expire", 0), ("expire", 0), ("finish", 0), ("finish", 0), ("stop", 0)])
    action = st.one_of(batch, batch, batch, claim, claim, rare)
    rounds = draw(st.lists(st.lists(action, min_size=1, max_size=4), min_size=1, max_size=7))
    opening = draw(st.sampled_from([[], [[("claim", 1)]], [[("claim", 1)], [("expire", 0)]]]))
    # Whatever was left out comes in the end, all at once and over every recorder, part of it again.
    order = draw(st.permutations([*pool, *pool[::2]]))
    cut = draw(st.integers(1, 6))
    last = [("record", order[i : i + cut]) for i in range(0, len(order), cut)]
    return pool, [*opening, *rounds, last, [("expire", 0)]]


class Trial:
    """One history on a delivery of its own."""

    def __init__(self, stack: Stack, worker: Worker, number: int) -> None:
        self.stack = stack
        self.worker = worker
        self.number = number
        self.model = Model()
        self.round = 0
        (self.commands,) = worker.build("confirm")

    async def run(self, rounds: list[list[Any]]) -> None:
        for self.round, actions in enumerate(rounds):
            over = asyncio.Event()
            watching = asyncio.create_task(self.watch(over))
            try:
                async with asyncio.TaskGroup() as group:
                    for name, what in actions:
                        group.create_task(getattr(self, name)(what))
            finally:
                over.set()
                await watching
            await self.compare()

    async def record(self, batch: Sequence[Report]) -> None:
        folded = fold(r.result(self.number) for r in batch)
        known = {recipient: f for (_, recipient), f in folded.items()}
        await Accounts(self.stack.db).record(self.number, known, RETRIES)
        self.model.reported.update(batch)

    async def claim(self, attempt: int) -> None:
        asked = {r: (attempt, f"user{r}@example.org") for r in range(1, RECIPIENTS + 1)}
        for recipient in await claim(self.stack.db, self.number, asked):
            assert (recipient, attempt) not in self.model.granted, "granted twice"
            self.model.granted[recipient, attempt] = self.round

    async def expire(self, _: int) -> None:
        self.model.expiries.add(self.round)
        await expire(self.stack.db, self.number)

    async def finish(self, _: int) -> None:
        await Deliveries(self.stack.db).finish(self.number)

    async def stop(self, _: int) -> None:
        body = json.dumps({"delivery_id": self.number, "operator": "ana", "reason": "a test"}).encode()
        name = f"{self.number}-{self.round}-{id(body)}"
        message = Incoming(body, "", routing.STOP, name, None, None, None, {}, 1, None)
        await self.commands.handle(message)  # type: ignore[attr-defined]

    async def watch(self, over: asyncio.Event) -> None:
        """At every look, rows and counters agree in one snapshot, and the accounts balance."""
        while not over.is_set():
            await snapshot(self.stack, self.number)

    async def compare(self) -> None:
        while await Accounts(self.stack.db).end_retries(self.number):
            pass
        row, rows = await snapshot(self.stack, self.number)
        ended = row["state"] in ("finished", "stopped")
        expected = {r: self.model.standing(r, ended=ended) for r in range(1, RECIPIENTS + 1)}
        assert rows.keys() == {r for r, known in expected.items() if known is not None}
        for recipient, known in expected.items():
            if known is not None:
                self.fits(rows[recipient], *known)
        left = RECIPIENTS - len(rows)
        assert (row["cancelled"], row["pending"]) == ((left, 0) if row["state"] == "stopped" else (0, left))

    def fits(self, row: dict[str, Any], attempt: int, statuses: set[str]) -> None:
        recipient = row["recipient"]
        assert row["status"] in statuses, recipient
        assert row["attempt"] == attempt, recipient
        assert (row["status"] == "retrying") == (row["retry_at"] is not None), recipient
        own = [r for r in self.model.reported if r.recipient == recipient]
        for fact, fitting in (
            ("sent_at", {"sent"}),
            ("error_at", {"error", "flaky"}),
            ("bounced_at", {"hard", "soft", "ignored"}),
        ):
            at = {NOON + timedelta(hours=r.hour) for r in own if r.kind in fitting}
            assert row[fact] in at if at else row[fact] is None, (recipient, fact)
        if row["status"] not in ("sending", "unknown"):
            top = max(r.weight for r in own)
            assert (row["reply"] or "") in {r.words for r in own if r.weight == top}, recipient


@pytest.fixture
async def loop() -> asyncio.AbstractEventLoop:
    """The loop of the test's fixtures, at rest while a test that is no coroutine runs."""
    return asyncio.get_running_loop()


@pytest.fixture
async def worker(stack: Stack) -> AsyncIterator[Worker]:
    async with open_worker(stack.settings) as opened:
        yield opened


@pytest.mark.timeout(300)
def test_every_history_ends_in_the_same_rows_and_counters(
    stack: Stack, worker: Worker, loop: asyncio.AbstractEventLoop
) -> None:
    def do(action: Coroutine[Any, Any, Any]) -> Any:
        return loop.run_until_complete(action)

    async def begin() -> int:
        number = await stack.prepare(RECIPIENTS)
        async with stack.db.transaction() as tx:
            await tx.connection.execute(
                "UPDATE sendoff.delivery_record SET state = 'in_progress', confirmed_at = now(),"
                " started_at = now(), valid_until = now() + interval '1 day' WHERE delivery_id = $1",
                number,
            )
        return number

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(histories())
    def law(history: tuple[list[Report], list[list[Any]]]) -> None:
        pool, rounds = history
        trial = Trial(stack, worker, do(begin()))
        do(trial.run(rounds))
        assert trial.model.reported == set(pool)

    law()
