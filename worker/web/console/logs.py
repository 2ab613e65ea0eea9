"""The logs of a delivery, its recipients one by one, and profiles."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import HTMLResponse, RedirectResponse, StreamingResponse

from worker.channels.registry import CHANNELS
from worker.db import reading
from worker.db.console import LogFilter
from worker.db.deliveries import DeliveryContents
from worker.domain.settlement import Settlement
from worker.domain.templates import RenderFailed
from worker.domain.text import cell
from worker.web.console.deliveries import read_delivery
from worker.web.console.parts import absent, forbidden, number_of, read_number, text_of
from worker.web.console.protection import FRAMED_HEADERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from worker.db.console import Row
    from worker.domain.templates import Rendered
    from worker.web.console.parts import Console

STATUSES: Final = (
    *("sent", "bounced", "error", "unknown", "retrying", "sending", "pending", "excluded", "cancelled"),
)
KINDS: Final = ("open", "click", "mirror", "optout", "complaint")
_HIDDEN: Final = "You may not see the recipients: SENDOFF_CONSOLE_HIDE_PERSONAL_DATA is set."
_EVENTS: Final = 100
_LAST: Final = 2**31 - 1


async def log(console: Console, request: Request) -> Response:
    """Shows the sending log."""
    row = await read_delivery(console, request)
    only = _filter(request)
    if only.text and not console.sees_persons(request.state.person):
        raise forbidden(_HIDDEN)
    if number := read_number(only.text or "", row["to_deliver"]):
        return RedirectResponse(f"/deliveries/{row['delivery_id']}/recipients/{number}", 303)
    after = number_of(request, "after", _LAST)
    page = await console.reads.log(row["delivery_id"], row["to_deliver"], after, only)
    how = text_of(request, "how")
    settled = (how, number_of(request, "settled")) if how in set(Settlement) else None
    return console.draw(
        request,
        "log.html",
        row=row,
        page=page,
        only=only,
        statuses=STATUSES,
        after=after,
        settled=settled,
        panel="log",
    )


def _filter(request: Request) -> LogFilter:
    values = {name: text_of(request, name) for name in LogFilter._fields if name != "text"}
    status = values["status"] if values["status"] in STATUSES else None
    if values["bounce_kind"] and status is None:
        status = "bounced"
    return LogFilter(**{**values, "status": status}, text=text_of(request, "q"))


async def export(console: Console, request: Request) -> Response:
    """Streams the sending log as CSV, in constant memory."""
    row = await read_delivery(console, request)
    if not console.sees_persons(request.state.person):
        raise forbidden(_HIDDEN)
    only = _filter(request)
    chosen = reading.Only(only.status, only.bounce_kind, only.reason, only.domain)
    columns = await console.db.columns("read_sending_log")
    rows = reading.sending_log(console.db, row["delivery_id"], row["to_deliver"], chosen)
    return StreamingResponse(
        _lines(columns, rows),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="delivery-{row["delivery_id"]}.csv"'},
    )


async def _lines(columns: list[str], rows: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[str]:
    """Yields CSV in parts of some hundred rows."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    async for row in rows:
        writer.writerow([cell(value) for value in row.values()])
        if out.tell() > 65_536:  # noqa: PLR2004 - octets of a part
            yield out.getvalue()
            out.seek(0)
            out.truncate()
    yield out.getvalue()


async def tracking(console: Console, request: Request) -> Response:
    """Shows the tracking log."""
    row = await read_delivery(console, request)
    kind, human, url = text_of(request, "kind"), text_of(request, "human"), request.query_params.get("url")
    only = {
        "kind": kind if kind in KINDS else None,
        "human": {"yes": True, "no": False}.get(human or ""),
        "url": url or None,
    }
    number, _, event = (text_of(request, "after") or "").partition("-")
    after = (read_number(number, _LAST), event)
    page = await console.reads.tracking(row["delivery_id"], row["to_deliver"], after, only)
    return console.draw(
        request, "tracking.html", row=row, page=page, only=only, kinds=KINDS, human=human, panel="tracking"
    )


async def exclusions(console: Console, request: Request) -> Response:
    """Shows who was left out, by the preparation or at send time."""
    row = await read_delivery(console, request)
    cause = text_of(request, "cause")
    page = await console.reads.exclusions(row["delivery_id"], number_of(request, "after", _LAST), cause)
    return console.draw(request, "exclusions.html", row=row, page=page, cause=cause, panel="exclusions")


async def recipient(console: Console, request: Request) -> Response:
    """Shows one recipient: what became of them, and what they get."""
    row, one = await _recipient(console, request)
    number = row["delivery_id"]
    rendered, failed = None, "You may not see the message of a person."
    if console.sees_persons(request.state.person):
        rendered, failed = await _rendered(console, number, one)
    events = await console.reads.rows(
        "read_recipient_events", delivery_id=number, recipient=one["recipient"], rows=_EVENTS
    )
    return console.draw(
        request,
        "recipient.html",
        row=row,
        one=one,
        events=events,
        rendered=rendered,
        failed=failed,
        panel="recipient",
    )


async def preview(console: Console, request: Request) -> Response:
    """Shows the message's HTML, as a frame in which nothing runs and nothing is loaded."""
    row, one = await _recipient(console, request)
    if not console.sees_persons(request.state.person):
        raise forbidden(_HIDDEN)
    rendered, failed = await _rendered(console, row["delivery_id"], one)
    html = rendered.html if rendered else None
    if html is None:
        raise absent(failed or "The message has no HTML.")
    return HTMLResponse(html, headers=FRAMED_HEADERS)


async def _recipient(console: Console, request: Request) -> tuple[Row, Row]:
    row = await read_delivery(console, request)
    number = read_number(request.path_params["recipient"], _LAST)
    one = await console.reads.recipient(row["delivery_id"], number) if number else None
    if one is None:
        raise absent(
            f"Delivery {row['delivery_id']} has no recipient {request.path_params['recipient'][:20]}."
        )
    return row, one


async def _rendered(console: Console, number: int, one: Row) -> tuple[Rendered | None, str]:
    """Renders the message of a recipient; returns None and a sentence where there is none."""
    found = await DeliveryContents(console.db).content(number)
    kind = CHANNELS.get(found[0]) if found else None
    if found is None or kind is None or kind.show is None:
        return None, "The channel has no message to look at."
    own = {"address": one["address"], "recipient": one["recipient"], "delivery_id": number}
    try:
        return kind.show(found[1], {**one["variables"], **own}), ""
    except (RenderFailed, ValueError) as error:
        return None, f"The message cannot be rendered: {error}"


async def profile(console: Console, request: Request) -> Response:
    """Shows what a profile got."""
    if not console.sees_persons(request.state.person):
        raise forbidden(_HIDDEN)
    profile_id = text_of(request, "id")
    page = None
    if profile_id:
        first, _, second = (text_of(request, "after") or "").partition("-")
        after = (read_number(first, 2**63 - 1), read_number(second, _LAST))
        page = await console.reads.history(profile_id, after if all(after) else None)
    return console.draw(request, "profile.html", profile_id=profile_id, page=page)
