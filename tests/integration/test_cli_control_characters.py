"""No command prints a control character, or a mark of writing direction, that stands in the data."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aio_pika
import pytest

from contracts import routing
from tests.support.commands import COMMANDS, arguments

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.support.stack import Stack

    Sendoff = Callable[..., subprocess.CompletedProcess[str]]

EVIL = "=\x1b[31m\x07\x9b2J\x7f\u202eevil\u2028"
OTHERS = ("erase", "migrate", "prepare", "retention", "run", "dead drop", "dead replay")
"""They change what the others read, or have tests of their own with less to print."""


@pytest.fixture
async def planted(stack: Stack) -> Stack:
    """An installation whose data is evil wherever text may stand."""
    await stack.operator("ana", "prepare_deliveries", "start_deliveries", "administration")
    await stack.prepare(["zoe@example.org,crm-1,Zoë"], columns="address,profile_id,first_name")
    async with stack.db.session() as session:
        for statement in (
            "UPDATE sendoff.operator SET name = $1 WHERE name = 'ana'",
            "UPDATE sendoff.delivery_record SET label = $1, state_reason = $1, state = 'stopped'",
            "UPDATE sendoff.recipient SET address = $1",
            (
                "INSERT INTO sendoff.outcome"
                " (delivery_id, recipient, attempt, status, precedence, reason, reply)"
                " VALUES (1, 1, 1, 'error', 1, $1, $1)"
            ),
        ):
            await session.connection.execute(statement, EVIL)
    (stack.folder / "import.csv").write_text(f"address,profile_id\n{EVIL},{EVIL}\n", encoding="utf-8")
    target = await stack.channel.get_exchange(stack.names.exchange(routing.DEAD), ensure=False)
    headers = {routing.HEADER_REASON: EVIL, "other": EVIL}
    message = aio_pika.Message(EVIL.encode(), headers=headers, message_id=EVIL[:8], type=EVIL[:8])
    await target.publish(message, EVIL[:8], timeout=10)
    return stack


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in OTHERS])
async def test_what_a_command_prints_is_printable(planted: Stack, sendoff: Sendoff, name: str) -> None:
    command = arguments(name, planted.folder)
    options = [o for p in COMMANDS[name].params for o in p.opts if o in ("--json", "--csv")]
    for form in ([], *([option] for option in options)):
        done = await asyncio.to_thread(sendoff, *command, *form)
        assert "fault of Sendoff" not in done.stderr
        assert (done.stdout + done.stderr).replace("\n", "").isprintable()
