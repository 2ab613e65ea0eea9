"""`sendoff list`: what is shown of the deliveries, by page and by filter; and `sendoff watch --json`."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from contracts import routing
from worker.cli import app

if TYPE_CHECKING:
    from typer.testing import Result

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack


@pytest.fixture(autouse=True)
def environment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDOFF_DATABASE_URL", stack.settings.database_url)
    monkeypatch.setenv("SENDOFF_QUEUE_PREFIX", stack.settings.queue_prefix)


async def called(*args: object) -> Result:
    """Runs a command in a thread of this process: each would take half a second to load."""
    return await asyncio.to_thread(CliRunner().invoke, app, [*map(str, args)])


async def listed(*args: object) -> list[dict[str, Any]]:
    done = await called("list", "--json", *args)
    assert (done.exit_code, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


async def test_each_delivery_says_what_it_does_and_waits_for(stack: Stack) -> None:
    assert (await called("list")).stdout == "There are no deliveries yet.\n"
    ready, late, paused = await stack.prepare(3), await stack.prepare(1_200), await stack.prepare(2)
    scheduled = await stack.prepare(2, extra="[schedule]\ncontact_date = 2099-12-01T09:00:00Z\n")
    async with stack.running("confirm"):
        for number in (scheduled, paused):
            assert (await stack.confirm(number))["status"] == "accepted"
        assert (await stack.control(routing.PAUSE, paused))["status"] == "accepted"

    found = {row["delivery_id"]: row for row in await listed()}
    assert list(found) == [scheduled, paused, late, ready]
    assert found[ready]["sentence"].startswith("Waits for its confirmation by an operator")
    assert "it goes to 1,200 recipients" in found[late]["sentence"]
    assert found[scheduled]["sentence"].endswith("Waits for its contact date, 2099-12-01 09:00:00 UTC.")
    assert found[paused]["sentence"].startswith("Paused: a test.")
    assert (found[ready]["to_deliver"], found[ready]["sent"], found[ready]["sent_pct"]) == (3, 0, 0)

    text = (await called("list")).stdout
    assert "0 of 1,200 (0.00 %)" in text
    assert "start pending" in text


async def test_filters_and_pages_find_what_they_say(stack: Stack) -> None:
    numbers = [await stack.prepare(1) for _ in range(3)]
    mail = await stack.prepare(1, channel="email")

    async def ids(*args: object) -> list[int]:
        return [row["delivery_id"] for row in await listed(*args)]

    assert await ids("--channel", "email") == [mail]
    assert await ids("--search", "tEs") == [mail, *reversed(numbers)]
    assert await ids("--search", numbers[1]) == [numbers[1]]
    assert await ids("--state", "paused", "--state", "ready", "--limit", 2) == [mail, numbers[2]]
    assert await ids("--state", "paused") == []
    assert await ids("--before", numbers[2]) == [numbers[1], numbers[0]]
    assert (await called("list", "--state", "paused")).stdout == "No delivery is like that.\n"
    page = (await called("list", "--limit", 2)).stdout
    assert page.endswith(f"Older ones: --before {numbers[2]}\n")
    assert "Older" not in (await called("list", "--limit", 4)).stdout
    assert (await called("list", "--state", "sent")).exit_code == 2


async def test_a_program_can_watch(stack: Stack, sendoff: Sendoff) -> None:
    number = await stack.prepare(4)
    async with stack.running():
        await stack.confirm(number)
        done = await asyncio.to_thread(sendoff, "watch", number, "--json", "--interval", 0.1)
    assert (done.returncode, done.stderr) == (0, "")
    last = [json.loads(line) for line in done.stdout.splitlines()][-1]
    shown = {name: last[name] for name in ("state", "sent", "settled", "to_deliver", "database_away")}
    assert shown == {"state": "finished", "sent": 4, "settled": 4, "to_deliver": 4, "database_away": False}


async def test_the_version_and_the_schema_are_said(sendoff: Sendoff) -> None:
    done = sendoff("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("sendoff ")
    assert "schema " in done.stdout


async def test_a_shell_gets_its_completion(sendoff: Sendoff) -> None:
    assert "_SENDOFF_COMPLETE" in sendoff("--show-completion", "bash").stdout
    found = sendoff(env={"_SENDOFF_COMPLETE": "complete_bash", "COMP_WORDS": "sendoff qu", "COMP_CWORD": "1"})
    assert found.stdout.split() == ["quarantine"]
