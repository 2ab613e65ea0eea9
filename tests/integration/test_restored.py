"""A restored database, and a standby that took over, send nothing until an operator says so."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import signal
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from tests.support.database import administer, change
from tests.support.stack import Stack, until
from worker.db import server
from worker.db.identity import RESTORED
from worker.db.migrate import migrate
from worker.db.pool import DatabaseUnreachable, open_database
from worker.domain.standbys import Durability, doubt

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Iterator

    from tests.support.processes import Sendoff

DEV = Path(__file__).parents[2] / "dev"
SECONDS = 60


async def going(stack: Stack) -> int:
    """Returns a delivery that is in progress, of which nothing is claimed."""
    number = await stack.prepare(20)
    async with stack.running("confirm", "schedule", tick=0.05):
        await stack.confirm(number)
        await stack.finished(number, "in_progress")
    return number


async def test_a_database_of_another_server_sends_nothing_until_it_is_resumed(stack: Stack) -> None:
    numbers = [await going(stack) for _ in range(2)]
    ready = await stack.prepare(1)
    await change(stack, "UPDATE sendoff.server SET timeline = timeline + 1")
    async with stack.running(tick=0.05):
        for number in numbers:
            (row,) = await stack.rows(
                "SELECT state, state_reason FROM sendoff.deployment WHERE delivery_id = $1", number
            )
            assert row == {"state": "paused", "state_reason": RESTORED}
        # The operator's word, and a delivery that was not under way, are heeded as ever.
        await stack.control(routing.RESUME, numbers[0])
        await stack.confirm(ready)
        assert (await stack.finished(numbers[0]))["sent"] == 20
        assert (await stack.finished(ready))["sent"] == 1
        assert (await stack.deployment(numbers[1]))["pending"] == 20
    async with stack.running(tick=0.05):
        await stack.control(routing.RESUME, numbers[1])
        assert (await stack.finished(numbers[1]))["sent"] == 20
    paused = "SELECT count(*) AS n FROM sendoff.delivery_transition WHERE to_state = 'paused'"
    assert await stack.rows(paused) == [{"n": 2}]


async def test_after_a_failover_to_a_synchronous_standby_it_goes_on_where_the_settings_say_so(
    stack: Stack,
) -> None:
    number = await going(stack)
    await change(stack, "UPDATE sendoff.server SET timeline = timeline + 1")
    async with stack.running(tick=0.05, after_failover="continue"):
        assert (await stack.finished(number))["sent"] == 20
    number = await going(stack)
    await change(stack, "UPDATE sendoff.server SET system_identifier = system_identifier + 1")
    async with stack.running(tick=0.05, after_failover="continue"):
        assert (await stack.deployment(number))["state"] == "paused"


async def test_all_are_paused_while_no_worker_runs(stack: Stack, sendoff: Sendoff) -> None:
    numbers = [await going(stack) for _ in range(2)]
    await stack.prepare(1)
    command = ("pause", "--all", "--reason", "restored", "--operator")
    refused = await asyncio.to_thread(sendoff, *command, "eve")
    assert (refused.returncode, refused.stderr.strip()) == (1, "The operator “eve” is not known.")
    done = await asyncio.to_thread(sendoff, *command, "ana", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"paused": numbers})
    again = await asyncio.to_thread(sendoff, *command, "ana")
    assert again.stdout.strip() == "Nothing to pause: no delivery could go on."
    rows = await stack.rows(
        "SELECT operator, status FROM sendoff.command_log ORDER BY received_at DESC LIMIT 3"
    )
    assert [tuple(row.values()) for row in rows] == [
        ("ana", "accepted"),
        ("ana", "accepted"),
        ("eve", "refused"),
    ]
    for wrong in (("pause", "1", *command[1:], "ana"), ("pause", *command[2:], "ana")):
        done = await asyncio.to_thread(sendoff, *wrong)
        assert done.returncode == 2
        assert "Name one delivery, or --all." in done.stderr


async def test_stats_are_counted_here_where_no_worker_runs(stack: Stack, sendoff: Sendoff) -> None:
    number = await going(stack)
    done = await asyncio.to_thread(sendoff, "stats", number, "--json")
    assert (done.returncode, done.stderr.strip()) == (0, "No worker answers; counted here.")
    answer = json.loads(done.stdout)
    assert (answer["exact"], answer["pending"]) == (True, 20)
    async with stack.running("stats"):
        done = await asyncio.to_thread(sendoff, "stats", number, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == answer | {"as_of": json.loads(done.stdout)["as_of"]}
    nowhere = {"SENDOFF_DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    done = await asyncio.to_thread(sendoff, "stats", number, env=nowhere)
    assert done.returncode == 3
    assert "No worker runs that takes requests for stats. Nor could it be counted here." in done.stderr
    done = await asyncio.to_thread(sendoff, "stats", 999)
    assert (done.returncode, done.stderr.strip()) == (1, "There is no delivery 999.")


@pytest.mark.parametrize(
    ("durability", "hosts", "words"),
    [
        (Durability("on", "", 0, 0), 1, ""),
        (Durability("on", "*", 1, 0), 2, ""),
        (Durability("remote_write", "ANY 1 (a, b)", 2, 2), 3, ""),
        (Durability("off", "*", 1, 0), 1, "a crash of the server loses claims"),
        (Durability("on", "", 1, 0), 1, "(1 receives its log), and a commit does not wait for it"),
        (Durability("on", "", 2, 1), 1, "(2 receive its log, it keeps its log for 1 by a slot)"),
        (Durability("local", "*", 1, 0), 1, "(synchronous_commit is local)"),
        (Durability("on", "", 0, 0), 2, "SENDOFF_DATABASE_URL names 2 hosts"),
    ],
)
def test_when_a_commit_can_be_lost(durability: Durability, hosts: int, words: str) -> None:
    because = doubt(durability, hosts)
    assert words in because
    assert bool(because) == bool(words)


class Pair:
    """A primary and an asynchronous standby of it."""

    def __init__(self, servers: Any, programs: Path) -> None:
        self._servers = servers
        self._programs = programs
        self._port = servers.smtp  # no sink runs here
        self.primary = self._url(servers.postgres)
        self.standby = self._url(self._port)
        self._process: subprocess.Popen[bytes] | None = None

    def _url(self, port: int) -> str:
        return f"postgresql://sendoff:{self._servers.secret}@127.0.0.1:{port}/sendoff"

    def follow(self) -> None:
        data = self._servers.folder / "standby"
        data.mkdir(mode=0o700)
        if self._servers.owner:
            shutil.chown(data, self._servers.owner, self._servers.owner)
        command = [
            self._programs / "pg_basebackup",
            "-D",
            data,
            "-R",
            "--checkpoint=fast",
            "-d",
            self.primary,
        ]
        assert self._servers.spawn("postgres", command).wait(SECONDS) == 0
        # As many connections as the primary takes, or it does not start.
        settings = [f"-cport={self._port}", "-cunix_socket_directories=", "-cmax_connections=200"]
        command = [self._programs / "postgres", "-D", data, *settings]
        self._process = self._servers.spawn("postgres", command)

    def lose_the_primary(self) -> None:
        process, *_ = self._servers.running["postgres"]
        process.send_signal(signal.SIGQUIT)
        process.wait(SECONDS)

    def end(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(SECONDS)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DEV)
        backends = importlib.import_module("backends")
    programs = backends.find(backends.POSTGRES)
    if programs is None:
        pytest.skip("the programs of Postgres are not on this machine")
    with tempfile.TemporaryDirectory(prefix="sendoff-pair-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # Postgres runs as a user of its own
        servers = backends.Servers(folder)
        pair = Pair(servers, programs)
        try:
            servers.start_postgres()
            yield pair
        finally:
            pair.end()
            servers.end()


@asynccontextmanager
async def on(stack: Stack, url: str) -> AsyncIterator[Stack]:
    """The same installation with another database."""
    db = await open_database(url, size=2, connect_timeout=20, command_timeout=20, application="sendoff tests")
    try:
        other = Stack(
            stack.settings.model_copy(update={"database_url": url}), db, stack.connection, stack.folder
        )
        other.channel = stack.channel
        yield other
    finally:
        await db.close()


async def test_a_real_standby_is_told_of_before_and_recognised_when_it_takes_over(
    pair: Pair, stack: Stack
) -> None:
    await migrate(pair.primary, timeout=SECONDS)
    async with on(stack, pair.primary) as before:
        await before.operator("ana", "start_deliveries")
        number = await going(before)
        pair.follow()

        async def followed() -> bool:
            return bool((await server.durability(before.db)).followers)

        await until(followed, SECONDS)
        with pytest.raises(DatabaseUnreachable, match=r"1 receives its log.* SENDOFF_ASYNC_STANDBY=warn"):
            async with before.running("stats", async_standby="refuse"):
                pass
        async with before.running("stats"):
            pass

        async def replayed() -> bool:
            behind = "SELECT count(*) AS n FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()"
            return bool((await before.rows(behind))[0]["n"])

        await until(replayed, SECONDS)
    pair.lose_the_primary()
    await administer(pair.standby, "SELECT pg_promote()")
    async with on(stack, pair.standby) as after:
        assert (await after.deployment(number))["state"] == "in_progress"
        async with after.running(tick=0.05):
            row = await after.deployment(number)
            assert (row["state"], row["state_reason"], row["sent"]) == ("paused", RESTORED, 0)
            await after.control(routing.RESUME, number)
            assert (await after.finished(number))["sent"] == 20
