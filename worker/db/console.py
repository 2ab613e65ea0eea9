"""Reads what the console shows: every page by a key, and never more of a delivery than a page needs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from worker.db.pool import Database

Row = dict[str, Any]

PAGE: Final = 50
"""Rows of a page."""
MORE: Final = 200
"""Rows of a list that is shown as a whole; the page says if there are more."""

_BEFORE_ALL: Final = 2**63 - 1
_RANGE: Final = 20_000
"""Recipients that one statement looks through."""
_RANGES: Final = 10
"""Ranges that one page looks through: a filter that fits nobody must not read a million recipients."""
_EXCEPTIONS: Final = frozenset({"bounced", "error", "unknown", "excluded"})
"""The statuses that an index finds."""


class Page(NamedTuple):
    """Some rows, and where the next ones begin."""

    rows: list[Row]
    after: str | None
    """The key that the next page begins after; None if this is the last."""
    through: int | None = None
    """How far it was looked, if this page has few rows because a filter fits few."""


class LogFilter(NamedTuple):
    """Filters of the sending log; None does not filter."""

    status: str | None = None
    bounce_kind: str | None = None
    reason: str | None = None
    code: str | None = None
    domain: str | None = None
    minute: datetime | None = None
    """The beginning of the minute in which the message was taken, refused or failed."""
    text: str | None = None
    """A part of the address, or the profile."""


class TrackingFilter(NamedTuple):
    """Filters of the tracking log; None does not filter."""

    kind: str | None = None
    """A kind of event, or `opened` for all that count as opened."""
    human: bool | None = None
    url: str | None = None
    text: str | None = None
    """A part of the address, or the profile."""


class ConsoleReads:
    """The reads of the console."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def shown(self, deliveries: Sequence[int]) -> dict[int, Row]:
        """Returns what is shown of some deliveries, by their numbers."""
        rows = await self._db.fetch("read_shown", deliveries=list(deliveries))
        return {row["delivery_id"]: dict(row) for row in rows}

    async def deliveries(
        self,
        *,
        before: int | None,
        states: Sequence[str] | None,
        channel: str | None,
        text: str | None,
        rows: int | None = None,
    ) -> Page:
        """Returns a page of deliveries, the newest first."""
        found = await self._db.fetch(
            "read_deliveries_page",
            before=before or _BEFORE_ALL,
            states=list(states) if states else None,
            channel=channel,
            text=text,
            rows=(rows or PAGE) + 1,
        )
        return _page(found, lambda row: str(row["delivery_id"]), rows)

    async def rows(self, query: str, **values: object) -> list[Row]:
        """Returns the rows of a query that reads few."""
        return [dict(row) for row in await self._db.fetch(query, **values)]

    async def whole(self, query: str, *, large: bool, **values: object) -> list[Row]:
        """Returns the rows of a query that counts all of a delivery; of a large one with parallel workers."""
        if not large:
            return await self.rows(query, **values)
        async with self._db.transaction(readonly=True) as tx:
            await tx.execute("plan_recount", parallel=True)
            return [dict(row) for row in await tx.fetch(query, **values)]

    async def log(
        self, delivery_id: int, recipients: int, after: int, only: LogFilter, rows: int | None = None
    ) -> Page:
        """Returns a page of the sending log, by recipient."""
        values, size = {"delivery_id": delivery_id, **only._asdict()}, rows or PAGE
        if only.status in _EXCEPTIONS:
            exceptions = await self._db.fetch("read_exceptions_page", after=after, rows=size + 1, **values)
            return _page(exceptions, lambda row: str(row["recipient"]), size)
        found: list[Row] = []
        for _ in range(_RANGES):
            last = after + _RANGE
            read = await self._db.fetch(
                "read_log_page", after=after, last=last, rows=size + 1 - len(found), **values
            )
            found += map(dict, read)
            if len(found) > size or last >= recipients:
                return _page(found, lambda row: str(row["recipient"]), size)
            after = last
        return Page(found, str(after), after)

    async def tracking(
        self,
        delivery_id: int,
        recipients: int,
        after: str,
        only: TrackingFilter,
        rows: int | None = None,
    ) -> Page:
        """Returns a page of the tracking log, by recipient and event.

        Args:
            delivery_id: The delivery.
            recipients: The number of its recipients.
            after: Where the page begins, as the page before says; empty for the first.
            only: The filters.
            rows: The rows of the page; None for those of a page that people look at.
        """
        found: list[Row] = []
        begin, _, event = after.partition("-")
        number, size = int(begin or 0), rows or PAGE
        for _ in range(_RANGES):
            last = number + _RANGE
            read = await self._db.fetch(
                "read_tracking_page",
                delivery_id=delivery_id,
                after=number,
                after_event=event,
                last=last,
                rows=size + 1 - len(found),
                **only._asdict(),
            )
            found += map(dict, read)
            if len(found) > size or last >= recipients:
                return _page(found, lambda row: f"{row['recipient']}-{row['event_id']}", size)
            number, event = last, ""
        return Page(found, f"{number + 1}-", number)

    async def exclusions(
        self, delivery_id: int, after: int, cause: str | None, text: str | None, rows: int | None = None
    ) -> Page:
        """Returns a page of what the preparation left out, by line of the recipients file."""
        size = rows or PAGE
        found = await self._db.fetch(
            "read_exclusions_page",
            delivery_id=delivery_id,
            after=after,
            cause=cause,
            text=text,
            rows=size + 1,
        )
        return _page(found, lambda row: str(row["line"]), size)

    async def history(self, profile_id: str, after: tuple[int, int] | None) -> Page:
        """Returns a page of what a profile got, the newest first."""
        delivery, recipient = after or (_BEFORE_ALL, 2**31 - 1)
        rows = await self._db.fetch(
            "read_history",
            profile_id=profile_id,
            before_delivery=delivery,
            before_number=recipient,
            rows=PAGE + 1,
        )
        return _page(rows, lambda row: f"{row['delivery_id']}-{row['recipient']}")

    async def kept_out(self, query: str, after: tuple[str, str], only: str | None) -> Page:
        """Returns a page of the quarantine or of the denylist, by channel; `only` one key if it is given."""
        channel, key = after
        rows = await self._db.fetch(query, channel=channel, key=key, only=only, rows=PAGE + 1)
        return _page(rows, lambda row: f"{row['channel']} {row['key']}")

    async def command(self, command_id: str) -> Row | None:
        """Returns a command with its answer; None while there is none."""
        row = await self._db.fetchrow("read_command", command_id=command_id)
        return {**row, "reply": json.loads(row["reply"])} if row else None

    async def recipient(self, delivery_id: int, recipient: int) -> Row | None:
        """Returns one recipient with its variables, or None."""
        row = await self._db.fetchrow("read_logged_recipient", delivery_id=delivery_id, recipient=recipient)
        return {**row, "variables": json.loads(row["variables"])} if row else None


def _page(rows: Sequence[Any], key: Any, size: int | None = None) -> Page:  # noqa: ANN401 - a function of a row
    size = size or PAGE
    found = [dict(row) for row in rows]
    return Page(found[:size], key(found[size - 1]) if len(found) > size else None)
