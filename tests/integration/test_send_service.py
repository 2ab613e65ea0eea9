"""The send service over a mail server that misbehaves: what is counted is what the server did."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from tests.support.scripted_smtp import DROP, Server
from tests.support.stack import until
from worker.domain.window import ClaimWindow
from worker.services import send

if TYPE_CHECKING:
    import pytest

    from tests.support.stack import Stack

RECIPIENTS = 40


class Watched(ClaimWindow):
    """Counts what it is told."""

    ended = 0

    def done(self) -> None:
        super().done()
        Watched.ended += 1


async def test_counts_are_the_servers_and_every_send_that_ended_widens_the_window(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "ClaimWindow", Watched)
    monkeypatch.setattr(Watched, "ended", 0)
    server = Server(
        RCPT=["", "550 5.1.1 User unknown", DROP, ""],
        DATA=["", "", DROP, ""],
        DOT=["", "", "", "", DROP, "451 4.3.0 try later", ""],
    )
    server.pipelining = True
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    url = f"smtp://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    number = await stack.prepare(RECIPIENTS, "email")

    async def told() -> bool:
        row = await stack.deployment(number)
        return (row["pending"], row["sending"], row["retrying"]) == (0, 1, 0)

    async with stack.running(smtp_url=url, smtp_connections=1, retry_delays=(1,)):
        await stack.confirm(number)
        await until(told)
    listening.close()
    row = await stack.deployment(number)
    assert (row["sent"], row["bounced"], row["errors"]) == (RECIPIENTS - 2, 1, 0)
    found = [re.search(rb"To: (\S+)", body) for body, answer in server.ends if answer.startswith("250")]
    accepted = [match[1].decode() for match in found if match]
    log = await stack.rows("SELECT address, status, attempt FROM sendoff.sending_log")
    assert sorted(accepted) == sorted(r["address"] for r in log if r["status"] == "sent")
    assert Watched.ended == sum(r["attempt"] for r in log) > RECIPIENTS, "each counts once, however it ended"
