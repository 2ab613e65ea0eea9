"""Starting and stopping: every service is one task; a dead one stops the process, a signal stops them all."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

log = structlog.get_logger(__name__)


class ServiceDied(Exception):  # noqa: N818 - the name is the sentence
    """A service ended by itself, or did not stop in time."""


class Service(Protocol):
    """What the process runs."""

    name: str

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then finishes what is in flight and returns."""


async def run_services(services: Sequence[Service], stop: asyncio.Event, *, grace: float) -> None:
    """Runs services until `stop` is set or one of them dies.

    Args:
        services: What to run, each in a task of its own.
        stop: Set by a signal or by a test.
        grace: Seconds that the services may take to finish what is in flight; then they are cut off, which
            loses nothing: what was not settled is delivered again, and claims keep it from being sent twice.

    Raises:
        ServiceDied: one ended before it was asked to, or was cut off; the message says which and why.
    """
    tasks = {asyncio.create_task(s.run(stop), name=s.name): s.name for s in services}
    stopped = asyncio.create_task(stop.wait(), name="wait for stop")
    await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
    early = [t for t in tasks if t.done()] if not stop.is_set() else []
    stop.set()
    done, late = await asyncio.wait(tasks, timeout=grace)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=5)
    failed = {tasks[t]: t.exception() for t in done if not t.cancelled() and t.exception() is not None}
    for name, fault in failed.items():
        log.error("service died", service=name, exc_info=fault)
    if failed:
        name, fault = next(iter(failed.items()))
        raise ServiceDied(f"The service “{name}” died: {fault!r}.") from fault
    if early:
        raise ServiceDied(f"The service “{tasks[early[0]]}” ended by itself.")
    if late:
        names = ", ".join(sorted(tasks[t] for t in late))
        raise ServiceDied(f"Cut off after {grace:g} s: {names}. What was in flight is taken up by others.")


@asynccontextmanager
async def on_stop(stop: asyncio.Event, action: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs an action as soon as `stop` is set, while the block goes on."""

    async def watch() -> None:
        await stop.wait()
        await action()

    watcher = asyncio.create_task(watch(), name="on stop")
    try:
        yield
    finally:
        if not stop.is_set():
            watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Waits, and returns whether `stop` came meanwhile."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()


def stop_on_signals(stop: asyncio.Event) -> None:
    """Sets `stop` at SIGTERM and SIGINT; a second signal ends the process at once."""
    loop = asyncio.get_running_loop()

    def ask(number: signal.Signals) -> None:
        log.info("stopping", signal=number.name)
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask, number)
