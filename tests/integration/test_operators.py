"""The directory of operators, from the command line, and its locks."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from worker.db import commands, operators
from worker.domain.operators import Operator, Role

if TYPE_CHECKING:
    from tests.support.processes import Sendoff
    from worker.db.pool import Database, Transaction


async def test_an_operator_can_be_added_twice_and_keeps_their_roles(db: Database) -> None:
    assert await operators.add_operator(db, "ana", [Role.PREPARE_DELIVERIES])
    assert not await operators.add_operator(db, "ana", [Role.START_DELIVERIES])
    both = frozenset({Role.PREPARE_DELIVERIES, Role.START_DELIVERIES})
    assert await operators.list_operators(db) == [Operator("ana", active=True, roles=both)]


async def test_every_change_says_whether_it_was_one(db: Database) -> None:
    await operators.add_operator(db, "ana", [])
    role = Role.START_DELIVERIES
    assert [await operators.grant_role(db, "ana", role) for _ in range(2)] == [True, False]
    assert [await operators.revoke_role(db, "ana", role) for _ in range(2)] == [True, False]
    assert [await operators.set_operator_active(db, "ana", active=False) for _ in range(2)] == [True, False]
    assert [await operators.set_operator_active(db, "ana", active=True) for _ in range(2)] == [True, False]


async def test_a_change_to_an_unknown_operator_is_told_from_no_change(db: Database) -> None:
    assert await operators.grant_role(db, "eve", Role.START_DELIVERIES) is None
    assert await operators.revoke_role(db, "eve", Role.START_DELIVERIES) is None
    assert await operators.set_operator_active(db, "eve", active=False) is None


@pytest.mark.parametrize("change", ["revoke", "deactivate"])
async def test_what_takes_a_right_away_waits_for_the_command_that_relies_on_it(
    db: Database, change: str
) -> None:
    await operators.add_operator(db, "ana", [Role.START_DELIVERIES])
    async with db.transaction() as tx:
        await commands.read_operator(tx, "ana")
        if change == "revoke":
            task = asyncio.create_task(operators.revoke_role(db, "ana", Role.START_DELIVERIES))
        else:
            task = asyncio.create_task(operators.set_operator_active(db, "ana", active=False))
        async with asyncio.timeout(10):
            while not await someone_waits(tx):
                assert not task.done()
    assert await task


async def test_a_command_that_waited_for_a_revocation_sees_it(db: Database) -> None:
    await operators.add_operator(db, "ana", [Role.START_DELIVERIES])

    async def command() -> Operator | None:
        async with db.transaction() as tx:
            return await commands.read_operator(tx, "ana")

    async with asyncio.timeout(10):
        async with db.transaction() as tx:
            await tx.fetchval("lock_operator", name="ana")
            await tx.fetchval("revoke_role", name="ana", role=Role.START_DELIVERIES)
            task = asyncio.create_task(command())
            while not await someone_waits(tx):
                assert not task.done()
        assert await task == Operator("ana", active=True, roles=frozenset())


async def someone_waits(tx: Transaction) -> bool:
    """Whether another session waits for a lock that this one holds."""
    return bool(
        await tx.connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_locks"
            " WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))"
        )
    )


def test_the_command_line_is_idempotent_and_speaks_in_sentences(sendoff: Sendoff) -> None:
    said = [
        sendoff("operator", *words.split())
        for words in (
            "add ana --role start_deliveries --role administration",
            "add ana",
            "grant ana prepare_deliveries",
            "grant ana prepare_deliveries",
            "revoke ana administration",
            "deactivate ana",
            "list",
        )
    ]
    assert [(p.returncode, p.stderr) for p in said] == [(0, "")] * len(said)
    assert [p.stdout for p in said] == [
        "“ana” is now an operator, with: start_deliveries, administration.\n",
        "“ana” was an operator already.\n",
        "“ana” now holds the role prepare_deliveries.\n",
        "“ana” held already the role prepare_deliveries.\n",
        "“ana” no longer holds the role administration.\n",
        "“ana” is now deactivated.\n",
        "ana: prepare_deliveries, start_deliveries (deactivated)\n",
    ]
    listed = sendoff("operator", "list", "--json")
    assert json.loads(listed.stdout) == [
        {"name": "ana", "active": False, "roles": ["prepare_deliveries", "start_deliveries"]}
    ]


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["grant", "eve", "administration"], 1, "The operator “eve” is not known."),
        (["grant", "eve", "nonsense"], 2, "'nonsense' is not one of"),
        (["add", " "], 2, "printable characters"),
        (["add", "a\nb"], 2, "printable characters"),
    ],
)
def test_a_wrong_name_or_role_is_refused(
    sendoff: Sendoff, words: list[str], status: int, reason: str
) -> None:
    refused = sendoff("operator", *words)
    assert refused.returncode == status
    assert reason in refused.stderr
    assert "Traceback" not in refused.stderr
