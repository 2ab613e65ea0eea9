"""Adds to the quarantine and the denylist, and removes from them, for an operator."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from contracts.commands import Reply, Status
from worker.db import commands, suppression
from worker.domain.authority import acting_operator
from worker.domain.operators import Role, refuse_operator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from worker.db.pool import Database, Transaction
    from worker.db.suppression import Entry, Kind
    from worker.domain.authority import Bearer

_AT_ONCE: Final = 5_000
"""Entries of one statement."""


class SuppressionRefused(Exception):
    """The operator may not change the list; the message says why."""


@dataclass(frozen=True, slots=True)
class Act:
    """Who changes which list."""

    kind: Kind
    channel: str
    operator: str
    bearer: Bearer | None = None
    """The bearer of a verified token, if tokens are required."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What an act changed."""

    given: int
    """Entries that were named."""
    changed: int
    """Entries that were added, hold for longer now, or were removed."""


async def add(db: Database, act: Act, entries: Iterable[Entry]) -> Changed:
    """Adds entries, all or none, in constant memory; what is there keeps its cause.

    Raises:
        SuppressionRefused: The operator may not.
    """
    rows = iter(entries)

    async def change(tx: Transaction) -> Changed:
        given = changed = 0
        while some := list(islice(rows, _AT_ONCE)):
            given += len(some)
            changed += await suppression.add(tx, act.kind, act.channel, act.operator, some)
        return Changed(given, changed)

    return await _act(db, act, "add", change)


async def remove(db: Database, act: Act, keys: Iterable[str]) -> Changed:
    """Removes entries, all or none.

    Raises:
        SuppressionRefused: The operator may not.
    """
    some = list(dict.fromkeys(keys))

    async def change(tx: Transaction) -> Changed:
        return Changed(len(some), await suppression.remove(tx, act.kind, act.channel, some))

    return await _act(db, act, "remove", change)


async def _act(
    db: Database, act: Act, what: str, change: Callable[[Transaction], Awaitable[Changed]]
) -> Changed:
    """Changes a list and writes the act into the command log, without the entries: they are personal."""
    done = Changed(0, 0)
    async with db.transaction() as tx:
        operator = acting_operator(await commands.read_operator(tx, act.operator), act.bearer)
        refused = refuse_operator(operator, act.operator, Role.ADMINISTRATION, f"change the {act.kind}")
        if refused is None:
            done = await change(tx)
        reply = Reply(
            command_id=str(uuid.uuid4()),
            status=Status.ACCEPTED if refused is None else Status.REFUSED,
            reason=refused.reason if refused else None,
            message=refused.message if refused else f"{what}: {done.changed} of {done.given} entries.",
        )
        body = {"operator": act.operator, "channel": act.channel, **asdict(done)}
        await commands.record(
            tx,
            command=f"{act.kind}.{what}",
            operator=act.operator,
            publisher=None,
            body=json.dumps(body, ensure_ascii=False),
            reply=reply,
        )
    if refused is not None:
        raise SuppressionRefused(refused.message)
    return done
