"""What to do while the database is not there: wait, say so once, and go on."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from worker.db.pool import COLLIDED, OUT_OF_REACH

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger(__name__)

T = TypeVar("T")

_LONGEST_PAUSE: Final = 5.0


async def outlast(action: Callable[[], Awaitable[T]], doing: str) -> T:
    """Runs an action against the database until it succeeds.

    An outage is logged when it begins and when it ends. The wait has no end of its own: a worker without
    its database has nothing else to do, and a shutdown cancels it.

    Args:
        action: One whole transaction; it may run more than once, and an attempt that was cut off may have
            been committed, so it must be idempotent.
        doing: What is being done, for the log.
    """
    away = False
    for attempt in itertools.count():
        try:
            result = await action()
        except COLLIDED as error:
            log.info("transactions collided", doing=doing, because=str(error))
        except OUT_OF_REACH as error:
            if isinstance(error, ValueError):
                raise  # asyncpg's word for arguments that it cannot encode: no wait will mend them
            if not away:
                log.warning("database out of reach, waiting", doing=doing, because=str(error) or repr(error))
                away = True
        else:
            if away:
                log.info("database is back", doing=doing)
            return result
        # Jitter, lest every worker comes back at the same moment.
        await asyncio.sleep(min(0.05 * 2 ** min(attempt, 7), _LONGEST_PAUSE) * random.uniform(0.5, 1))  # noqa: S311
    raise AssertionError("unreachable")
