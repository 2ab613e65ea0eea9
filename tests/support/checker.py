"""Checks the laws of a whole installation: what each recipient got, what is recorded of it, what is left.

One holds at every moment and is sampled: each account balances. The others hold at the end: nobody is lost,
nobody got two, `unknown` are only mails whose sender died or was cut off, the counters have no drift, each
command was executed once, and nothing is left in a queue or in the outbox.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from contracts import routing
from contracts.states import State
from tests.support.processes import received
from tests.support.stack import until
from worker.db.stats import Statistics
from worker.domain.states import OVER
from worker.lifecycle import pause

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.stack import Stack

_EVERY = 0.05
_SECONDS = 20
_UNBALANCED = """
SELECT delivery_id, to_deliver,
       sent + bounced + errors + unknown + excluded_late + cancelled + retrying + sending + pending AS parts,
       pending
FROM sendoff.deployment
WHERE delivery_id = ANY ($1)
"""
_IN_DOUBT = """
SELECT o.delivery_id, o.recipient
FROM sendoff.claim_lease l
JOIN sendoff.outcome o ON o.delivery_id = l.delivery_id AND o.claim_token = l.token
WHERE o.recipient = ANY (l.handed_over) AND o.status = 'sending'
"""
_BUSY = """
SELECT pid
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
  AND application_name <> 'sendoff tests'
"""
_TWICE = """
SELECT command_id AS name FROM sendoff.delivery_transition WHERE command_id IS NOT NULL
GROUP BY command_id HAVING count(*) > 1
UNION ALL
SELECT 'confirm of ' || delivery_id FROM sendoff.delivery_transition WHERE from_state = 'ready'
GROUP BY delivery_id HAVING count(*) > 1
"""


@dataclass
class Findings:
    """What was found at the end; each law that was broken has its words in `violations`."""

    recipients: int = 0
    mails: int = 0
    unknown: int = 0
    doubted: int = 0
    """Of the unknown ones, those who got the mail."""
    samples: int = 0
    dead: list[str] = field(default_factory=list)
    """The reasons of the messages in the dead queue."""
    violations: list[str] = field(default_factory=list)


class Checker:
    """Watches some deliveries, whose recipients all have addresses of their own."""

    def __init__(self, stack: Stack, index: Path | None = None) -> None:
        """Takes the installation, and the index of the sink that the mails go to."""
        self._stack = stack
        self._index = index
        self._mailed: dict[int, bool] = {}
        self._in_doubt: set[tuple[int, int]] = set()
        self._unbalanced: list[str] = []
        self._samples = 0

    def add(self, number: int, *, mailed: bool = True) -> int:
        """Watches one more delivery, whose mails go to the sink or not; returns its number."""
        self._mailed[number] = mailed
        return number

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[Checker]:
        """Samples the balances while the block runs."""
        ended = asyncio.Event()
        task = asyncio.create_task(self._watch(ended))
        try:
            yield self
        finally:
            ended.set()
            await task

    async def _watch(self, ended: asyncio.Event) -> None:
        while not await pause(ended, _EVERY):
            await self.sample()

    async def sample(self) -> None:
        """Looks whether each account balances now."""
        for row in await self._stack.rows(_UNBALANCED, list(self._mailed)):
            self._samples += 1
            if row["to_deliver"] != row["parts"] or row["pending"] < 0:
                self._unbalanced.append(f"the account does not balance: {row}")

    async def interrupted(self, *, alone: bool = True) -> None:
        """Notes who is in doubt because a sender died or was cut off just now.

        Args:
            alone: Whether no other worker runs, so that we can wait for the last statements of the dead one.
        """
        if alone:
            await until(self._quiet)
        rows = await self._stack.rows(_IN_DOUBT)
        self._in_doubt |= {(row["delivery_id"], row["recipient"]) for row in rows}

    @property
    def deliveries(self) -> int:
        """How many are watched."""
        return len(self._mailed)

    async def _quiet(self) -> bool:
        return not await self._stack.rows(_BUSY)

    async def at_rest(self, seconds: float = 60) -> None:
        """Waits until nothing is left to be done."""
        try:
            await until(self._rests, seconds)
        except TimeoutError:
            raise AssertionError(f"not at rest: {await self._left()}") from None

    async def _rests(self) -> bool:
        return not await self._left()

    async def _left(self) -> list[str]:
        """Says what is left to be done."""
        query = "SELECT delivery_id, state FROM sendoff.delivery WHERE delivery_id = ANY ($1)"
        rows = await self._stack.rows(query, list(self._mailed))
        left = [f"delivery {r['delivery_id']} is {r['state']}" for r in rows if State(r["state"]) not in OVER]
        if left:
            return left
        if events := await self._stack.rows("SELECT 1 FROM sendoff.event"):
            left.append(f"{len(events)} in the outbox")
        sends = (routing.send_queue(channel) for channel in self._stack.settings.channels)
        depths = {q: await self._stack.depth(q) for q in (*routing.BINDINGS, routing.CLAIMS_QUEUE, *sends)}
        return left + [f"{depth} in {queue}" for queue, depth in depths.items() if depth]

    async def findings(self) -> Findings:
        """Reads everything, when no worker runs any more: what came back to a queue counts too."""
        await self.sample()
        await until(self._quiet)
        found = Findings(samples=self._samples, violations=self._unbalanced + await self._left())
        found.dead = [reason for _, reason in await self._stack.dead()]
        got = received(self._index) if self._index is not None else None
        for number, mailed in self._mailed.items():
            await self._check(number, got if mailed else None, found)
        found.violations += [f"executed twice: {r['name']}" for r in await self._stack.rows(_TWICE)]
        if got is not None:
            found.mails = got.total()
            found.violations += [f"{address} got {n} mails" for address, n in got.items() if n > 1]
        return found

    async def _check(self, number: int, got: Counter[str] | None, found: Findings) -> None:
        row = await self._stack.deployment(number)
        found.recipients += row["to_deliver"]
        open_ = {part: row[part] for part in ("pending", "sending", "retrying") if row[part]}
        if open_ and row["state"] == State.FINISHED:
            found.violations.append(f"delivery {number} is finished and has {open_}")
        recount = await Statistics(self._stack.db).recount(number, deadline=_SECONDS)
        if recount is None or recount.drift:
            found.violations.append(f"delivery {number} has drifted: {recount and recount.drift}")
        log = await self._stack.rows(
            "SELECT recipient, address, status FROM sendoff.sending_log WHERE delivery_id = $1", number
        )
        for one in log:
            who, status = f"{one['address']} of delivery {number}", one["status"]
            mails = got.get(one["address"], 0) if got is not None else None
            if status == "unknown":
                found.unknown += 1
                found.doubted += bool(mails)
                if (number, one["recipient"]) not in self._in_doubt:
                    found.violations.append(f"{who} is unknown, and its sender was not interrupted")
            elif status == "sent" and mails == 0:
                found.violations.append(f"{who} is sent, and got nothing")
            elif status not in {"sent", "bounced"} and mails:
                found.violations.append(f"{who} is {status}, and got a mail")
