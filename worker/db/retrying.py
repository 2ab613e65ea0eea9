"""Repeats transactions: waits for a database that is away, and asks a busy one a few times."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

import structlog

from worker.db.failures import ERRORS, classify, is_about_the_data
from worker.domain.failures import Broken, Busy, Failure, Stopped
from worker.lifecycle import pause, unless_stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

log = structlog.get_logger(__name__)

T = TypeVar("T")

_SHORTEST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0

_BUSY_TRIES: Final = 3
_BUSY_SECONDS: Final = 10.0
"""A busy database gets at least so many tries, and tries for at least so many seconds: three statement
timeouts, or some eight collisions and refused connections."""


class Unstorable(Exception):
    """The database refuses the values themselves: a row or the message is the cause."""


@dataclass(frozen=True, slots=True)
class Idempotent(Generic[T]):
    """A whole transaction that may be executed more than once with the same effect.

    An attempt that was interrupted may have been committed, and is repeated. With this wrapper the caller
    states explicitly that a repeat is harmless.
    """

    action: Callable[[], Coroutine[Any, Any, T]]


class Retrying(Protocol):
    """Executes transactions: the database does, and a fake in unit tests."""

    async def until_done(self, transaction: Idempotent[T], doing: str) -> T:
        """Executes a transaction and returns its result, as `Retrier.until_done`."""


class Retrier:
    """Repeats transactions until they are done or given up, or the process stops."""

    def __init__(self, stop: asyncio.Event, on_busy: Callable[[str], Callable[[], None]]) -> None:
        """Takes its parts.

        Args:
            stop: After it is set, nothing waits for a database that is away.
            on_busy: Returns, for the name of a work, what is called whenever that work is given up. It is
                asked when the work begins, so that its counter is there before it first counts.
        """
        self._stop = stop
        self._on_busy = on_busy

    async def until_done(self, transaction: Idempotent[T], doing: str) -> T:
        """Executes a transaction; `worker.db.failures` classifies its errors.

        It waits during an outage, and logs when the outage begins and ends.

        Args:
            transaction: The transaction. It may run more than once.
            doing: The name of the work, for the log and the metric.

        Raises:
            Busy: the database was too busy, at least three times in at least ten seconds.
            Unstorable: the values are refused (SQLSTATE classes 22 and 23).
            Broken: the database refuses it for another reason.
            Stopped: `stop` was set while the database is away. An attempt may have been committed.
        """
        trouble, on_busy = _Trouble(doing), self._on_busy(doing)
        for tries in itertools.count():
            try:
                result = await (
                    unless_stopped(self._stop, transaction.action()) if trouble.away else transaction.action()
                )
            except ERRORS as error:
                failure, because = classify(error), str(error) or type(error).__name__
                if failure is Failure.BROKEN:
                    if is_about_the_data(error):
                        raise Unstorable(because) from error
                    raise Broken(f"The database refuses it ({doing}): {because}") from error
                if trouble.ends_with(failure, because):
                    on_busy()
                    raise Busy(f"The database was too busy for it ({doing}): {because}") from error
            else:
                trouble.over()
                return result
            # Jitter, so that the workers do not all come back at the same moment.
            longest = min(_SHORTEST_PAUSE * 2 ** min(tries, 7), _LONGEST_PAUSE)
            seconds = longest * random.uniform(0.5, 1)  # noqa: S311
            if not trouble.away:
                await asyncio.sleep(seconds)
            elif await pause(self._stop, seconds):
                raise Stopped(f"The process stops while the database is away ({doing}).")
        raise AssertionError("unreachable")


class _Trouble:
    """The failures of one transaction so far. It logs an outage once."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._busy = 0
        self._since = 0.0
        self.away = False

    def ends_with(self, failure: Failure, because: str) -> bool:
        """Notes that the database is away or busy; returns whether it has been busy for too long."""
        if failure is Failure.AWAY:
            if not self.away:
                log.warning("database out of reach, waiting", doing=self._doing, because=because)
            self.away = True
            return False
        self.over()
        now = asyncio.get_running_loop().time()
        self._since = self._since or now
        self._busy += 1
        if self._busy < _BUSY_TRIES or now - self._since < _BUSY_SECONDS:
            log.info("database busy, trying again", doing=self._doing, because=because)
            return False
        log.warning("database too busy, given up", doing=self._doing, because=because, tries=self._busy)
        return True

    def over(self) -> None:
        """Notes that the database answers."""
        if self.away:
            log.info("database is back", doing=self._doing)
        self.away = False
