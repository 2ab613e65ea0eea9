"""The logs of a delivery, its recipients one by one, and profiles."""

from __future__ import annotations

import csv
import io
import uuid
from typing import TYPE_CHECKING, Final

from starlette.responses import HTMLResponse, RedirectResponse, StreamingResponse

from worker.channels.registry import CHANNELS
from worker.db.console import LogFilter, TrackingFilter
from worker.db.deliveries import DeliveryContents
from worker.domain.settlement import Settlement
from worker.domain.templates import RenderFailed
from worker.domain.text import cell
from worker.web.console.deliveries import NO_DOMAIN, read_delivery
from worker.web.console.parts import HIDDEN, absent, forbidden, moment_of, number_of, read_number, text_of
from worker.web.console.protection import FRAMED_HEADERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from worker.db.console import Page, Row
    from worker.domain.templates import Rendered
    from worker.web.console.parts import Console

STATUSES: Final = (
    *("sent", "bounced", "error", "unknown", "retrying", "sending", "pending", "excluded", "cancelled"),
)
KINDS: Final = {
    "opened": "all that count as opened",
    **{name: name for name in ("open", "click", "mirror", "optout", "complaint")},
}
_EXPORTED: Final = 2_000
"""Rows that one statement of an export reads."""
_EVENTS: Final = 100
_LAST: Final = 2**31 - 1


async def log(console: Console, request: Request) -> Response:
    """Shows the sending log."""
    row = await read_delivery(console, request)
    only = _filter(request)
    if only.text and not console.sees_persons(request.state.person):
        raise forbidden(HIDDEN)
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
        chosen=_chosen(only),
        statuses=STATUSES,
        after=after,
        settled=settled,
        message_id=str(uuid.uuid4()),
        panel="log",
    )


def _chosen(only: LogFilter) -> dict[str, str | None]:
    """Returns filters as the address of a page has them."""
    return {
        "status": only.status,
        "bounce_kind": only.bounce_kind,
        "reason": only.reason,
        "code": only.code,
        "domain": NO_DOMAIN if only.domain == "" else only.domain,
        "minute": only.minute.isoformat() if only.minute else None,
        "q": only.text,
    }


def _filter(request: Request) -> LogFilter:
    values = {name: text_of(request, name) for name in ("status", "bounce_kind", "reason", "code", "domain")}
    status = values["status"] if values["status"] in STATUSES else None
    if values["bounce_kind"] and status is None:
        status = "bounced"
    if values["domain"] == NO_DOMAIN:
        values["domain"] = ""
    return LogFilter(
        **{**values, "status": status}, minute=moment_of(request, "minute"), text=text_of(request, "q")
    )


async def log_csv(console: Console, request: Request) -> Response:
    """Exports the sending log."""
    row, only = await read_delivery(console, request), _filter(request)

    async def read(after: str) -> Page:
        return await console.reads.log(
            row["delivery_id"], row["to_deliver"], int(after or 0), only, _EXPORTED
        )

    return await _export(console, request, row, "read_log_page", read)


async def tracking_csv(console: Console, request: Request) -> Response:
    """Exports the tracking log."""
    row, only = await read_delivery(console, request), _tracking_filter(request)

    async def read(after: str) -> Page:
        return await console.reads.tracking(row["delivery_id"], row["to_deliver"], after, only, _EXPORTED)

    return await _export(console, request, row, "read_tracking_page", read)


async def exclusions_csv(console: Console, request: Request) -> Response:
    """Exports what the preparation left out."""
    row = await read_delivery(console, request)
    cause, text = text_of(request, "cause"), text_of(request, "q")

    async def read(after: str) -> Page:
        return await console.reads.exclusions(row["delivery_id"], int(after or 0), cause, text, _EXPORTED)

    return await _export(console, request, row, "read_exclusions_page", read)


async def _export(
    console: Console, request: Request, row: Row, query: str, read: Callable[[str], Awaitable[Page]]
) -> Response:
    """Streams a log as CSV, in constant memory."""
    if not console.sees_persons(request.state.person):
        raise forbidden(HIDDEN)
    name = request.url.path.rpartition("/")[2]
    return StreamingResponse(
        _lines(await console.db.columns(query), read),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="delivery-{row["delivery_id"]}-{name}"'},
    )


async def _lines(columns: list[str], read: Callable[[str], Awaitable[Page]]) -> AsyncIterator[str]:
    """Yields CSV, a part for each page."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    after: str | None = ""
    while after is not None:
        page = await read(after)
        writer.writerows([cell(row[name]) for name in columns] for row in page.rows)
        yield out.getvalue()
        out.seek(0)
        out.truncate()
        after = page.after


async def tracking(console: Console, request: Request) -> Response:
    """Shows the tracking log."""
    row, only = await read_delivery(console, request), _tracking_filter(request)
    if only.text and not console.sees_persons(request.state.person):
        raise forbidden(HIDDEN)
    if number := read_number(only.text or "", row["to_deliver"]):
        return RedirectResponse(f"/deliveries/{row['delivery_id']}/recipients/{number}", 303)
    begin, _, event = (text_of(request, "after") or "").partition("-")
    after = f"{read_number(begin, _LAST)}-{event}"
    page = await console.reads.tracking(row["delivery_id"], row["to_deliver"], after, only)
    human = None if only.human is None else "yes" if only.human else "no"
    return console.draw(
        request,
        "tracking.html",
        row=row,
        page=page,
        only=only,
        chosen={"kind": only.kind, "human": human, "url": only.url, "q": only.text},
        kinds=KINDS,
        panel="tracking",
    )


def _tracking_filter(request: Request) -> TrackingFilter:
    kind, human = text_of(request, "kind"), text_of(request, "human")
    return TrackingFilter(
        kind if kind in KINDS else None,
        {"yes": True, "no": False}.get(human or ""),
        request.query_params.get("url", "").replace("\x00", "") or None,
        text_of(request, "q"),
    )


async def exclusions(console: Console, request: Request) -> Response:
    """Shows who was left out, by the preparation or at send time."""
    row = await read_delivery(console, request)
    cause, text = text_of(request, "cause"), text_of(request, "q")
    if text and not console.sees_persons(request.state.person):
        raise forbidden(HIDDEN)
    after = number_of(request, "after", _LAST)
    page = await console.reads.exclusions(row["delivery_id"], after, cause, text)
    return console.draw(
        request, "exclusions.html", row=row, page=page, cause=cause, q=text, panel="exclusions"
    )


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
        message_id=str(uuid.uuid4()),
        panel="recipient",
    )


async def preview(console: Console, request: Request) -> Response:
    """Shows the message's HTML, as a frame in which nothing runs and nothing is loaded."""
    row, one = await _recipient(console, request)
    if not console.sees_persons(request.state.person):
        raise forbidden(HIDDEN)
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
        raise forbidden(HIDDEN)
    profile_id = text_of(request, "id")
    page = None
    if profile_id:
        first, _, second = (text_of(request, "after") or "").partition("-")
        after = (read_number(first, 2**63 - 1), read_number(second, _LAST))
        page = await console.reads.history(profile_id, after if all(after) else None)
    return console.draw(request, "profile.html", profile_id=profile_id, page=page)
