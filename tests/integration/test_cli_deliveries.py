"""The operator's commands against running services, as a user and as a program sees them."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.proxy import CutProxy
from tests.support.stack import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack

    Call = Callable[..., Any]

COMMAND = [sys.executable, "-m", "worker"]


@pytest.fixture
def call(sendoff: Sendoff) -> Call:
    """Runs a command while this loop goes on serving it."""

    async def run(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(sendoff, *args, **options)

    return run


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, stack: Stack, *args: object) -> None:
        self._end, other = pty.openpty()
        environment = {
            "SENDOFF_DATABASE_URL": stack.settings.database_url,
            "SENDOFF_QUEUE_PREFIX": stack.settings.queue_prefix,
            "TERM": "xterm",
        }
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, args)],
            stdin=other,
            stdout=other,
            stderr=other,
            env=os.environ | environment,
            start_new_session=True,
        )
        os.close(other)
        os.set_blocking(self._end, False)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    async def shows(self, text: str) -> None:
        async def is_there() -> bool:
            self._read()
            return text in self.seen

        await until(is_there)

    async def ended(self) -> int:
        async def is_over() -> bool:
            self._read()
            return self.process.poll() is not None

        try:
            await until(is_over)
        finally:
            self.process.kill()
            self.process.wait()
            self._read()
            os.close(self._end)
        return self.process.returncode

    def _read(self) -> None:
        try:
            while part := os.read(self._end, 65536):
                self.seen += part.decode()
        except (BlockingIOError, OSError):  # nothing more yet; and at the end Linux says EIO
            return


async def test_commands_take_a_delivery_from_its_summary_to_its_log(stack: Stack, call: Call) -> None:
    number = await stack.prepare(["a@example.org", "b@example.org", "b@example.org", "nobody"])
    async with stack.running():
        done = await call("confirm", number, "--operator", "ana", "--yes")
        assert (done.returncode, done.stderr) == (0, "")
        for line in ("delivery         Test", "goes to          2 recipients", "1 duplicate, 1 invalid"):
            assert line in done.stdout
        assert done.stdout.endswith("Confirmed: sending has begun.\n")

        watched = await call("watch", number, "--until", "finished", "--interval", "0.1")
        assert watched.returncode == 0
        assert watched.stdout.splitlines()[-1].startswith("finished  2 of 2")

        again = await call("confirm", number, "--operator", "ana", "--yes", "--json")
        assert again.returncode == 1
        assert json.loads(again.stdout)["reason"] == "already_confirmed"

        table = await call("stats", number)
        assert table.returncode == 0
        assert "100.00 %  of to deliver" in table.stdout
        assert "left out by the preparation: 2 (1 duplicate, 1 invalid)" in table.stdout
        answer = json.loads((await call("stats", number, "--json")).stdout)
        assert (answer["sent"], answer["pending"], answer["exact"], answer["drift"]) == (2, 0, True, {})

    rows = list(csv.DictReader(io.StringIO((await call("log", number, "--csv")).stdout)))
    assert [(r["recipient"], r["address"], r["status"]) for r in rows] == [
        ("1", "a@example.org", "sent"),
        ("2", "b@example.org", "sent"),
    ]
    async with stack.db.transaction() as tx:
        view = await tx.connection.fetchrow(
            "SELECT * FROM sendoff.sending_log WHERE delivery_id = $1", number
        )
    assert list(rows[0]) == list(view.keys())
    lines = [json.loads(x) for x in (await call("log", number, "--json")).stdout.splitlines()]
    assert [(r["recipient"], r["delivery_id"], list(r)) for r in lines] == [
        (1, number, list(rows[0])),
        (2, number, list(rows[0])),
    ]
    none = await call("log", number, "--status", "bounced", "--csv")
    assert none.stdout.splitlines() == [",".join(rows[0])]
    shown = (await call("log", number)).stdout.splitlines()
    assert shown[1].split()[:4] == ["1", "a@example.org", "sent", "1"]


async def test_control_is_answered_and_shown_and_a_refusal_is_status_1(stack: Stack, call: Call) -> None:
    number = await stack.prepare(3)
    options = ("--operator", "ana", "--reason", "typo")
    async with stack.running("confirm", "stats"):
        early = await call("pause", number, *options)
        assert (early.returncode, early.stdout) == (1, "")
        assert "It cannot be paused: the delivery is" in early.stderr
        await call("confirm", number, "--operator", "ana", "--yes")
        assert (await call("pause", number, *options)).stdout == "The delivery is paused.\n"
        held = await call("watch", number, "--until", "paused")
        assert held.returncode == 0
        assert held.stdout.endswith("Reason: typo\n")
        resumed = await call("resume", number, *options, "--json")
        assert json.loads(resumed.stdout)["state"] == "in_progress"
        assert (await call("stop", number, *options)).stdout == "The delivery is stopped.\n"
        over = await call("watch", number, "--until", "finished")
        assert over.returncode == 1
        assert over.stderr == "The delivery is stopped, it will not be finished.\n"
        assert "cancelled 3" in over.stdout
        unknown = await call("stats", 999)
        assert (unknown.returncode, unknown.stderr) == (1, "There is no delivery 999.\n")


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["confirm", 1, "--operator", "ana"], 2, "no terminal to ask for the OK in"),
        (["confirm", 1, "--operator", "ana", "--yes", "--timeout", 2], 3, "Nothing was confirmed"),
        (["confirm", 1, "--operator", "", "--yes"], 2, "operator: String should have at least 1 character"),
        (["stop", 1, "--operator", "ana"], 2, "Missing option '--reason'"),
        (["stats", 0], 2, "greater than or equal to 1"),
        (
            ["pause", 1, "--operator", "ana", "--reason", "x", "--timeout", 2],
            3,
            "Nobody answered within 2 s",
        ),
        (["watch", 999], 1, "There is no delivery 999."),
        (["log", 999], 1, "There is no delivery 999."),
        (["log", 999, "--csv", "--json"], 2, "Choose one of --csv and --json."),
    ],
)
async def test_what_a_delivery_command_cannot_do_is_a_sentence_and_a_status(
    stack: Stack,  # noqa: ARG001 - the queues, with nobody behind them
    call: Call,
    arguments: list[object],
    status: int,
    sentence: str,
) -> None:
    done = await call(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_broker_that_is_away_is_one_sentence_and_status_3(call: Call) -> None:
    done = await call("stats", 1, env={"SENDOFF_AMQP_URL": "amqp://u:secret@127.0.0.1:1/"})
    assert done.returncode == 3
    assert done.stderr.startswith("The broker is out of reach: ")
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("key", "status", "state", "sentence"),
    [
        ("y\n", 0, "in_progress", "Confirmed: sending has begun."),
        ("n\n", 1, "ready", "Nothing was confirmed, and nothing is sent."),
        ("\x03", 130, "ready", "Nothing was confirmed, and nothing is sent."),
    ],
)
async def test_confirm_asks_for_the_ok_in_a_terminal(
    stack: Stack, key: str, status: int, state: str, sentence: str
) -> None:
    number = await stack.prepare(3)
    async with stack.running("confirm"):
        terminal = Terminal(stack, "confirm", number, "--operator", "ana")
        await terminal.shows("Send it to 3 recipients?")
        assert (await stack.deployment(number))["state"] == "ready"
        terminal.type(key) if key != "\x03" else terminal.process.send_signal(signal.SIGINT)
        assert await terminal.ended() == status
    assert sentence in terminal.seen
    assert "Traceback" not in terminal.seen
    assert (await stack.deployment(number))["state"] == state


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_an_interrupted_watch_leaves_the_terminal_with_its_cursor(
    stack: Stack, number: signal.Signals, status: int
) -> None:
    terminal = Terminal(stack, "watch", await stack.prepare(3))
    await terminal.shows("Waits for its confirmation.")
    assert "\x1b[?25l" in terminal.seen
    terminal.process.send_signal(number)
    assert await terminal.ended() == status
    assert terminal.seen.rindex("\x1b[?25h") > terminal.seen.rindex("\x1b[?25l")
    assert "Traceback" not in terminal.seen


async def test_watch_goes_on_after_an_outage_of_the_database(stack: Stack) -> None:
    number = await stack.prepare(3)
    async with CutProxy(stack.settings.database_url).running() as proxy:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *("watch", str(number), "--interval", "0.1"),
            env=os.environ | {"SENDOFF_DATABASE_URL": proxy.url},
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert (await process.stdout.readline()).startswith(b"ready")
            proxy.cut()
            assert await process.stdout.readline() == b"The database is out of reach; waiting for it.\n"
            proxy.mend()
            assert (await process.stdout.readline()).startswith(b"ready")
            async with stack.running():
                await stack.confirm(number)
                rest = await process.stdout.read()
            assert rest.splitlines()[-1].startswith(b"finished  3 of 3")
            assert await process.wait() == 0


@pytest.mark.parametrize("options", ["", "--csv", "--json"])
async def test_a_reader_of_the_log_that_has_seen_enough_is_no_error(stack: Stack, options: str) -> None:
    number = await stack.prepare(5_000)
    script = f"set -o pipefail; {sys.executable} -m worker log {number} {options} | head -n 2"
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", script],
        env=os.environ | {"SENDOFF_DATABASE_URL": stack.settings.database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2


async def test_the_table_ends_after_a_thousand_rows_and_says_how_many_are_left(
    stack: Stack, call: Call
) -> None:
    number = await stack.prepare(2_345)
    lines = (await call("log", number, "--status", "pending")).stdout.splitlines()
    assert len(lines) == 1 + 1_000 + 1
    assert lines[-1] == "… and 1,345 more: --csv and --json print all of them."
    everything = await call("log", number, "--json")
    assert [json.loads(x)["recipient"] for x in everything.stdout.splitlines()] == list(range(1, 2_346))


async def test_the_log_is_filtered_by_the_time_of_what_stands(stack: Stack, call: Call) -> None:
    number = await stack.prepare(4)
    async with stack.db.session() as session:
        query = (
            "INSERT INTO sendoff.outcome (delivery_id, recipient, attempt, status, precedence, sent_at)"
            " VALUES ($1, $2, 1, 'sent', 1, $3)"
        )
        for recipient, moment in ((1, "10:59:59"), (2, "11:00:00"), (3, "11:30:00")):
            sent_at = datetime.fromisoformat(f"2026-01-01T{moment}+00:00")
            await session.connection.execute(query, number, recipient, sent_at)

    async def only(*options: str) -> list[int]:
        done = await call("log", number, "--json", *options)
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line)["recipient"] for line in done.stdout.splitlines()]

    assert await only("--since", "2026-01-01T12:00+01:00") == [2, 3]
    assert await only("--until", "2026-01-01T11:00") == [1]
    assert await only("--since", "2026-01-01T11:00Z", "--until", "2026-01-01 11:30") == [2]
    assert await only("--since", "2026-01-02") == []
    refused = await call("log", number, "--since", "yesterday")
    assert refused.returncode == 2
    assert "“yesterday” is no time such as" in refused.stderr
