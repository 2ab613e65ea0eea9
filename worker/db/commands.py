"""Commands: each is executed once, and its answer is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from contracts.commands import Reply
from worker.domain.operators import Operator, Role

if TYPE_CHECKING:
    from worker.db.pool import Transaction


@dataclass(frozen=True, slots=True)
class RecordedCommand:
    """A command that was answered before."""

    command: str
    publisher: str | None
    body: str
    reply: Reply


async def recorded(tx: Transaction, command_id: str) -> RecordedCommand | None:
    """Looks up an answer. Until the transaction ends, nobody else answers the same command."""
    await tx.execute("lock_command", command_id=command_id)
    row = await tx.fetchrow("read_answer", command_id=command_id)
    if row is None:
        return None
    return RecordedCommand(
        row["command"], row["publisher"], row["body"], Reply.model_validate_json(row["reply"])
    )


async def record(
    tx: Transaction, *, command: str, operator: str | None, publisher: str | None, body: str, reply: Reply
) -> None:
    """Records a command with its answer."""
    await tx.execute(
        "record_answer",
        command_id=reply.command_id,
        command=command,
        delivery_id=reply.delivery_id,
        operator=operator,
        publisher=publisher,
        body=body,
        status=reply.status.value,
        reason=reply.reason and reply.reason.value,
        reply=reply.model_dump_json(),
    )


async def conclude(tx: Transaction, reply: Reply) -> None:
    """Records how a command ended that was recorded when it began."""
    await tx.execute(
        "conclude_answer",
        command_id=reply.command_id,
        status=reply.status.value,
        reason=reply.reason and reply.reason.value,
        reply=reply.model_dump_json(),
    )


async def read_operator(tx: Transaction, name: str) -> Operator | None:
    """Reads and locks an operator. It waits for a revocation under way; a later one waits for us."""
    await tx.execute("share_operator", name=name)
    row = await tx.fetchrow("read_operator", name=name)
    if row is None:
        return None
    return Operator(row["name"], row["active"], frozenset(Role(r) for r in row["roles"]))
