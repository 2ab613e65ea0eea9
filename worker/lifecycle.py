"""Starts and stops services: each is one task. If one dies, the process stops; a signal stops all.

Every task has an owner. Outside this module all tasks belong to a TaskGroup. This module makes the other
tasks, and their owners await them.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog

from worker.domain.failures import Stopped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence

log = structlog.get_logger(__name__)

T = TypeVar("T")


class ServiceDied(Exception):
    """A service ended by itself, or did not stop in time."""


class Service(Protocol):
    """A part of the process that runs until the stop."""

    name: str

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then finishes its open work and returns."""


async def run_services(services: Sequence[Service], stop: asyncio.Event, *, grace: float) -> None:
    """Runs services until `stop` is set or one of them dies.

    A service that raises `Stopped` after `stop` was set waited for a server that is away. This is no error.

    Args:
        services: The services to run, each in a task of its own.
        stop: Set by a signal or by a test.
        grace: Seconds that the services may take to finish their open work. Then they are cancelled. Nothing
            is lost: the broker delivers unacknowledged messages again, and claims prevent a second send.

    Raises:
        ServiceDied: a service ended before the stop, or was cancelled; the message says which and why.
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
    failed = {}
    for task in done:
        fault = None if task.cancelled() else task.exception()
        if fault is not None and _only_stopped(fault):
            log.info(
                "stopped while a server is away: what was in hand is taken up later", service=tasks[task]
            )
        elif fault is not None:
            failed[tasks[task]] = fault
            log.error("service died", service=tasks[task], exc_info=fault)
    if failed:
        name, fault = next(iter(failed.items()))
        raise ServiceDied(f"The service “{name}” died: {_first(fault)!r}.") from fault
    if early:
        raise ServiceDied(f"The service “{tasks[early[0]]}” ended by itself.")
    if late:
        names = ", ".join(sorted(tasks[t] for t in late))
        raise ServiceDied(f"Cut off after {grace:g} s: {names}. What was in flight is taken up by others.")


def _only_stopped(fault: BaseException) -> bool:
    if isinstance(fault, BaseExceptionGroup):
        return fault.split(Stopped)[1] is None
    return isinstance(fault, Stopped)


def _first(fault: BaseException) -> BaseException:
    """Returns the cause: in a group, the first exception that is not `Stopped`."""
    while isinstance(fault, BaseExceptionGroup):
        fault = next((f for f in fault.exceptions if not _only_stopped(f)), fault.exceptions[0])
    return fault


class Background:
    """A task that runs beside its owner until the owner ends it. `watch` raises its error."""

    def __init__(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Starts it.

        Args:
            work: The coroutine to run.
            name: The task's name, for debugging.
        """
        self._task = asyncio.create_task(work, name=name)
        self._ending = False

    async def watch(self) -> None:
        """Returns when the task has ended, or raises its error.

        Raises:
            ServiceDied: somebody other than its owner cancelled it.
        """
        await self.wait()
        if not self._task.cancelled():
            self._task.result()
        elif not self._ending:
            raise ServiceDied(f"The task “{self._task.get_name()}” was cancelled.")

    async def wait(self) -> None:
        """Returns when the task has ended. It never raises the task's error: `watch` does."""
        await asyncio.wait([self._task])

    async def end(self) -> None:
        """Cancels the task, and waits for its end."""
        self._ending = True
        self._task.cancel()
        await self.wait()


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, T], name: str) -> AsyncIterator[asyncio.Task[T]]:
    """Runs a task while the block runs. The block may await it; at the block's end it is cancelled."""
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def watched(watch: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Ends the block with an ExceptionGroup as soon as `watch` raises."""
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        yield
        watching.cancel()


class Watching:
    """A service that only watches a task that several services need."""

    def __init__(self, name: str, watch: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Takes its name, and the function that raises the task's error."""
        self.name = name
        self._watch = watch

    async def run(self, stop: asyncio.Event) -> None:
        """Watches until `stop`."""
        async with watched(self._watch):
            await stop.wait()


@asynccontextmanager
async def on_stop(stop: asyncio.Event, action: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs an action as soon as `stop` is set, while the block goes on.

    If the action raises, the block ends with an ExceptionGroup.
    """

    async def watch() -> None:
        await stop.wait()
        await action()

    async with asyncio.TaskGroup() as group:
        watcher = group.create_task(watch())
        yield
        if not stop.is_set():
            watcher.cancel()


async def unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of work that may wait for a server that is away.

    Raises:
        Stopped: `stop` is set, and the work was cancelled.
    """
    async with beside(work, "work") as task, beside(stop.wait(), "stop") as stopping:
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Stopped("The process stops.")
        return task.result()


async def wait_any(*events: asyncio.Event, seconds: float | None = None) -> None:
    """Waits until one of the events is set, or the seconds are over."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Waits, and returns whether `stop` was set meanwhile."""
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
