"""Random faults over running deliveries, by a seed: `make chaos SEED=… MINUTES=…`.

Two whole workers run on real servers, over proxies that can be cut, and send to an SMTP sink. A plan of
faults is drawn from the seed before anything runs, so that the same seed brings the same faults in the same
order. In the end the checker says which laws were broken, and the exit status is 1 if there is one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import secrets
import signal
import statistics
import sys
import tempfile
import uuid
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contracts import routing
from contracts.commands import Confirm, Control
from tests.support.checker import Checker
from tests.support.database import change
from tests.support.processes import sink, worker
from tests.support.proxy import CutProxy
from tests.support.stack import installation, until
from worker.crashing import POINTS, VARIABLE
from worker.lifecycle import pause

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Awaitable, Callable

    from tests.support.checker import Findings
    from tests.support.stack import Stack

WORKERS: Final = 2
LEASE: Final = 4
ENV: Final[dict[str, Any]] = {
    "PAGE_SIZE": 50,
    "PAGE_LEASE": 2,
    "EVENT_LEASE": 4,
    "CLAIM_LEASE": 3,
    "RESULT_LEASE": LEASE,
    "PAGE_LOOK_AFTER": 0.5,
    "TICK": 0.2,
    "RETRY_DELAYS": "0.5",
    "MAX_ATTEMPTS": 6,
    "SMTP_CONNECTIONS": 4,
    "RELAY_PATIENCE": 2,
    "LOG_FORMAT": "json",
}
WEIGHTS: Final = {
    "killed": 3,
    "crash points": 3,
    "stood still": 2,
    "stopped": 2,
    "broker cut": 2,
    "broker mute": 1,
    "database cut": 2,
    "relay cut": 2,
    "sessions ended": 2,
    "queue purged": 1,
    "paused": 1,
}
"""The faults, and how often each is drawn."""
PASSED: Final = (
    "command",
    "request",
    "page",
    "publish",
    "claim",
    "hand-over",
    "smtp",
    "send",
    "result",
    "outcome",
)
REACHED: Final = sorted(
    p for p in POINTS if p.startswith((*PASSED, "batch", "claims", "event", "delivery", "alerts"))
)
"""The points that a whole worker passes here."""
REST_SECONDS: Final = 180


@dataclass(frozen=True)
class Fault:
    """One fault of the plan."""

    kind: str
    worker: int
    seconds: float
    points: tuple[str, str]
    wait: float


def plan(seed: int, count: int) -> list[Fault]:
    """Draws faults."""
    drawn = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    return [
        Fault(
            kind=drawn.choices(list(WEIGHTS), list(WEIGHTS.values()))[0],
            worker=drawn.randrange(WORKERS),
            seconds=drawn.uniform(0.05, 1.5),
            points=(f"{drawn.choice(REACHED)}:{drawn.randint(1, 3)}", f"{drawn.choice(REACHED)}:1"),
            wait=drawn.uniform(0.1, 1),
        )
        for _ in range(count)
    ]


@dataclass
class Outcome:
    """What a run came to."""

    seed: int
    findings: Findings
    deliveries: int
    recovered: dict[str, list[float]] = field(default_factory=dict)
    """By kind of fault, the seconds until somebody was sent to again."""

    def table(self) -> str:
        """Draws it for the documentation."""
        rows = [
            f"| {kind} | {len(s)} | {statistics.median(s):.1f} | {max(s):.1f} |"
            for kind, s in sorted(self.recovered.items())
        ]
        found = self.findings
        faults = sum(map(len, self.recovered.values()))
        end = (
            f"Seed {self.seed}: {faults} faults, {self.deliveries} deliveries, "
            f"{found.recipients} recipients, {found.mails} mails, "
            f"{found.unknown} unknown (of them {found.doubted} have the mail), "
            f"{found.samples} balances, {len(found.dead)} in the dead queue, "
            f"{len(found.violations)} laws broken."
        )
        head = ["| fault | times | s to go on, median | worst |", "|---|---|---|---|"]
        return "\n".join([*head, *rows, "", end, *found.violations])


@dataclass(frozen=True)
class Running:
    """A worker process."""

    process: subprocess.Popen[bytes]
    log: Path
    opened: ExitStack

    async def runs_or_died(self) -> bool:
        """Whether it has started, or will not."""
        return self.process.poll() is not None or '"event": "running"' in self.log.read_text("utf-8")


class Chaos:
    """Workers, their proxies, and what happens to them."""

    def __init__(self, stack: Stack, checker: Checker, proxies: dict[str, CutProxy], folder: Path) -> None:
        """Takes the installation, who checks it, and the proxies by server."""
        self._stack = stack
        self._checker = checker
        self._proxies = proxies
        self._folder = folder
        self._running: list[Running | None] = [None] * WORKERS
        self._started = 0
        self.violations: list[str] = []
        self._faults: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "killed": self._kill,
            "crash points": self._crash,
            "stood still": self._stand_still,
            "stopped": self._stop,
            "broker cut": lambda f: self._cut("amqp", f),
            "broker mute": self._mute,
            "database cut": lambda f: self._cut("database", f),
            "relay cut": lambda f: self._cut("smtp", f),
            "sessions ended": self._end_sessions,
            "queue purged": self._purge,
            "paused": self._pause,
        }

    async def start(self, number: int, point: str = "") -> None:
        """Starts a worker in the place of one that is gone; returns when it runs, or has died already."""
        urls = {f"{server}_URL".upper(): proxy.url for server, proxy in self._proxies.items()}
        urls["SMTP_URL"] = urls["SMTP_URL"].replace("None:None@", "")
        self._started += 1
        log = self._folder / f"worker-{self._started}.log"
        own = ENV | urls | {VARIABLE.removeprefix("SENDOFF_"): point}
        with ExitStack() as opened:
            process = opened.enter_context(worker(self._stack.settings, log=log, **own))
            here = self._running[number] = Running(process, log, opened.pop_all())
        await until(here.runs_or_died, REST_SECONDS)

    async def end(self, number: int, by: signal.Signals | None = signal.SIGTERM) -> None:
        """Ends a worker, or waits for its end; notes the recipients that it left in doubt."""
        here = self._running[number]
        if here is None:
            return
        if by is not None:
            here.process.send_signal(by)
        status = await asyncio.to_thread(here.process.wait, REST_SECONDS)
        here.opened.close()
        self._running[number] = None
        if status == -signal.SIGKILL:
            await self._doubted()
        elif status != 0:
            self.violations.append(f"{here.log.name} ended with {status}")

    async def _doubted(self) -> None:
        """Twice, since a statement of the dead worker may still be under way."""
        for _ in range(2):
            await self._checker.interrupted(alone=False)
            await pause(asyncio.Event(), 0.2)

    async def do(self, fault: Fault) -> None:
        """Lets one fault happen; returns when its cause is gone."""
        for number, here in enumerate(self._running):
            if here is not None and here.process.poll() is not None:
                self.violations.append(f"{here.log.name} ended by itself before “{fault.kind}”")
                await self.end(number, None)
                await self.start(number)
        await self._faults[fault.kind](fault)

    async def _kill(self, fault: Fault) -> None:
        await self.end(fault.worker, signal.SIGKILL)
        await self.start(fault.worker)

    async def _stop(self, fault: Fault) -> None:
        await self.end(fault.worker)
        await self.start(fault.worker)

    async def _crash(self, fault: Fault) -> None:
        """Both workers are replaced by some that die at points, and those by some that do not."""
        for number, point in enumerate(fault.points):
            await self.end(number)
            await self.start(number, point)
        died: set[int] = set()
        with contextlib.suppress(TimeoutError):
            await until(lambda: self._all_dead(died), 2 * LEASE)
        for number in range(WORKERS):
            await self.end(number)
            await self.start(number)

    async def _all_dead(self, died: set[int]) -> bool:
        """Looks which workers died; notes the recipients they left in doubt, before the leases run out."""
        now = {
            n for n, here in enumerate(self._running) if here is not None and here.process.poll() is not None
        }
        if now - died:
            died |= now
            await self._doubted()
        return len(died) == WORKERS

    async def _stand_still(self, fault: Fault) -> None:
        here = self._running[fault.worker]
        assert here is not None
        here.process.send_signal(signal.SIGSTOP)
        await self._doubted()
        await pause(asyncio.Event(), LEASE + fault.seconds)
        here.process.send_signal(signal.SIGCONT)

    async def _cut(self, server: str, fault: Fault) -> None:
        proxy = self._proxies[server]
        proxy.cut()
        if server == "smtp":
            await self._doubted()
        await pause(asyncio.Event(), fault.seconds)
        proxy.mend()

    async def _mute(self, fault: Fault) -> None:
        proxy = self._proxies["amqp"]
        proxy.mute()
        await pause(asyncio.Event(), fault.seconds)
        proxy.cut()
        proxy.mend()

    async def _end_sessions(self, _: Fault) -> None:
        await change(
            self._stack,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name <> 'sendoff tests'",
        )

    async def _purge(self, _: Fault) -> None:
        name = self._stack.names.queue(routing.send_queue("email"))
        queue = await self._stack.channel.get_queue(name, ensure=False)
        await queue.purge()

    async def _pause(self, fault: Fault) -> None:
        query = "SELECT max(delivery_id) AS number FROM sendoff.delivery WHERE state = 'in_progress'"
        (row,) = await self._stack.rows(query)
        if row["number"] is not None:
            control = Control(delivery_id=row["number"], operator="ana", reason="chaos")
            await self.ask(routing.PAUSE, control)
            await pause(asyncio.Event(), fault.seconds)
            await self.ask(routing.RESUME, control)

    async def ask(self, routing_key: str, command: Confirm | Control) -> None:
        """Asks until there is an answer, as upstream does, and once more: the answer must be the same."""
        name = str(uuid.uuid4())
        answers: list[dict[str, Any]] = []
        while len(answers) < 2:
            with contextlib.suppress(TimeoutError):
                answers.append(await self._stack.request(routing_key, command, message_id=name))
        if answers[0] != answers[1]:
            self.violations.append(f"two answers to one command: {answers}")

    async def feed(self, ended: asyncio.Event, seed: int) -> None:
        """Keeps deliveries coming."""
        drawn = random.Random(seed)  # noqa: S311 - as above
        number = 0
        while not ended.is_set():
            (row,) = await self._stack.rows(
                "SELECT coalesce(sum(pending), 0) AS left FROM sendoff.deployment"
            )
            if row["left"] < 100:
                number += 1
                fates = drawn.choices(["", "unknown-", "full-"], [97, 2, 1], k=drawn.randint(50, 300))
                addresses = [f"{fate}c{number}-{i}@example.org" for i, fate in enumerate(fates)]
                made = self._checker.add(await self._stack.prepare(addresses, "email"))
                await self.ask(
                    routing.CONFIRM,
                    Confirm(delivery_id=made, operator="ana", preparation=1, definitive=True),
                )
            await pause(ended, 0.1)

    async def accounted(self) -> int:
        """How many have an outcome."""
        query = "SELECT coalesce(sum(sent + bounced + errors + unknown), 0) AS done FROM sendoff.deployment"
        (row,) = await self._stack.rows(query)
        return int(row["done"])


async def run(stack: Stack, folder: Path, seed: int, seconds: float) -> Outcome:
    """Lets faults happen for some seconds, waits until all is at rest, and says what came of it."""
    recovered: dict[str, list[float]] = {}
    loop = asyncio.get_running_loop()
    with sink(folder / "sink") as (smtp_url, index):
        checker = Checker(stack, index)
        servers = {"amqp": stack.settings.amqp_url, "database": stack.settings.database_url, "smtp": smtp_url}
        async with AsyncExitStack() as opened:
            proxies = {n: await opened.enter_async_context(CutProxy(u).running()) for n, u in servers.items()}
            chaos = Chaos(stack, checker, proxies, folder)
            await opened.enter_async_context(checker.watching())
            for number in range(WORKERS):
                await chaos.start(number)
            ended = asyncio.Event()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(chaos.feed(ended, seed))
                    await until(lambda: _more(chaos, 0), REST_SECONDS)
                    until_then = loop.time() + seconds
                    for fault in plan(seed, 100_000):
                        if loop.time() >= until_then:
                            break
                        await pause(ended, fault.wait)
                        await chaos.do(fault)
                        before, since = await chaos.accounted(), loop.time()
                        await until(lambda b=before: _more(chaos, b), REST_SECONDS)  # type: ignore[misc]
                        recovered.setdefault(fault.kind, []).append(loop.time() - since)
                    ended.set()
                await checker.at_rest(REST_SECONDS)
            finally:
                for number in range(WORKERS):
                    await chaos.end(number)
        found = await checker.findings()
    found.violations += chaos.violations
    return Outcome(seed, found, checker.deliveries, recovered)


async def _more(chaos: Chaos, before: int) -> bool:
    return await chaos.accounted() > before


async def main() -> int:
    """Reads the command line, runs, prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--minutes", type=float, default=2)
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.minutes:g} minutes", flush=True)  # noqa: T201 - it talks to a person
    folder = Path(tempfile.mkdtemp(prefix="sendoff-chaos-"))
    async with installation(folder) as stack:
        outcome = await run(stack, folder, given.seed, given.minutes * 60)
    print(outcome.table())  # noqa: T201 - as above
    if outcome.findings.violations:
        print(f"The workers' logs are in {folder}.")  # noqa: T201 - as above
    return 1 if outcome.findings.violations else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
