"""The pages of deliveries: the list, one delivery, and its panels."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import StreamingResponse

from contracts.commands import Status
from contracts.states import State
from worker.db.console import MORE
from worker.domain.sentences import Speed, headline, settled
from worker.domain.states import OVER, RUNNING, Move, sources
from worker.web.console.drawing import Minute, curve
from worker.web.console.parts import absent, is_part, number_of, read_number, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from worker.db.console import Page, Row
    from worker.web.console.parts import Console
    from worker.web.console.rendering import Pages

FILTERS: Final = {
    "ready": ("Wait for confirmation", (State.READY,)),
    "going": ("Under way", (State.START_PENDING, *RUNNING, State.PAUSED)),
    "over": ("Ended", OVER),
    "early": ("In preparation", (State.EDITING, State.PREPARING, State.PREPARATION_FAILED)),
}
"""The filters of the list, with the states that each lets through."""

NO_DOMAIN: Final = "-"
"""Stands for no domain in the address of a page: an empty value is no filter."""

_LIST_SECONDS: Final = 2
_PANEL_SECONDS: Final = 5
_DONE_SECONDS: Final = 60
"""How old a panel may be, of a delivery under way and of one that is over."""
_FEW: Final = 20
_LARGE: Final = 20_000
"""Recipients of a delivery whose heavy panels are loaded after their page: they take up to a second a
million."""


async def home(console: Console, request: Request) -> Response:
    """Shows the list of deliveries."""
    return console.draw(request, "deliveries.html", **await _list(console, request))


async def home_rows(console: Console, request: Request) -> Response:
    """Shows the rows of the list alone, to bring a page up to date."""
    return await console.draw_part(
        request, "_deliveries.html", (request.url.query,), lambda: _list(console, request)
    )


async def _list(console: Console, request: Request) -> dict[str, Any]:
    chosen, channel, text = text_of(request, "show"), text_of(request, "channel"), text_of(request, "q")
    before = number_of(request, "before")
    states = [state.value for state in FILTERS[chosen][1]] if chosen in FILTERS else None

    async def read() -> tuple[Page, list[Row]]:
        page = await console.reads.deliveries(
            before=before or None, states=states, channel=channel, text=text
        )
        first = not (before or states or channel or text)
        attention = await console.reads.rows("read_attention", rows=_FEW) if first else []
        for row in (*page.rows, *attention):
            console.live.paces.note(row)
        return page, attention

    key = ("list", chosen, channel, text, before)
    page, attention = await console.shared.get(key, read, seconds=_LIST_SECONDS)
    channels = await console.shared.get(
        "channels", lambda: console.reads.rows("read_channels"), seconds=_DONE_SECONDS
    )
    return {
        "rows": page.rows,
        "after": page.after,
        "attention": attention,
        "speed": console.live.paces.speed,
        "settled": settled,
        "chosen": chosen if chosen in FILTERS else None,
        "channel": channel,
        "channels": [row["channel"] for row in channels],
        "q": text,
        "before": before or None,
        "filters": FILTERS,
    }


async def read_delivery(console: Console, request: Request) -> Row:
    """Returns the delivery of the address.

    Raises:
        HTTPException: There is none.
    """
    number = read_number(request.path_params["delivery"], 2**63 - 1)
    looked = console.live.latest(number) if is_part(request) else None
    if looked is not None:
        return looked
    rows = await console.reads.shown([number]) if number else {}
    if number not in rows:
        raise absent(f"There is no delivery {request.path_params['delivery'][:20]}.")
    console.live.paces.note(rows[number])
    return rows[number]


async def delivery(console: Console, request: Request) -> Response:
    """Shows one delivery."""
    row = await read_delivery(console, request)
    number = row["delivery_id"]
    command = text_of(request, "command")
    answered = await console.reads.command(command) if command else None
    if answered is not None and answered["delivery_id"] != number:
        command = answered = None
    return console.draw(
        request,
        "delivery.html",
        **_shown(row, console.live.paces.speed(row)),
        **_acts(console, request, row),
        **await _story(console, row),
        **await _at_once(console, row),
        most=MORE,
        command=command,
        answered=answered,
    )


async def story(console: Console, request: Request) -> Response:
    """Shows what happened to a delivery, to bring a page up to date."""
    row = await read_delivery(console, request)

    async def read() -> dict[str, Any]:
        return {"row": row, **await _story(console, row)}

    return await console.draw_part(request, "_story.html", (row["delivery_id"], row["updated_at"]), read)


async def _story(console: Console, row: Row) -> dict[str, Any]:
    number = row["delivery_id"]

    async def read() -> dict[str, Any]:
        waves = await console.reads.rows("read_waves_page", delivery_id=number, after=0, rows=_FEW + 1)
        return {
            "alerts": await console.reads.rows("read_alerts_of", delivery_id=number),
            "happenings": time_line(row, waves[:_FEW]),
            "more_waves": len(waves) > _FEW,
            "moves": await console.reads.rows("read_transitions", delivery_id=number, rows=_FEW),
        }

    # Another state is another story: who has seen the state change must see why.
    return await console.shared.get(("story", number, row["updated_at"]), read, seconds=_LIST_SECONDS)


def time_line(row: Row, waves: Sequence[Row]) -> list[tuple[datetime | None, str, Row | None]]:
    """Returns what happened and what is planned, in the order of time; a wave with its row."""
    named = (
        ("Prepared", row["prepared_at"]),
        ("Confirmed", row["confirmed_at"]),
        ("Contact date", row["contact_date"]),
        ("Started", row["started_at"]),
        ("Cancelled what was left", row["cancelled_at"]),
        ("Ended", row["finished_at"]),
        ("May be sent until", row["valid_until"] if row["finished_at"] is None else None),
        ("Recipients removed by retention", row["purged_at"]),
    )
    found: list[tuple[datetime | None, str, Row | None]] = [(at, name, None) for name, at in named if at]
    found += [(wave["due_at"], "Wave", wave) for wave in waves]
    return sorted(found, key=lambda one: (one[0] is None, one[0] or row["as_of"]))


def draw_live(pages: Pages, row: Row, speed: Speed) -> str:
    """Draws the part of the page that is live; it is the same for every viewer."""
    return pages.render("_live.html", **_shown(row, speed))


def _shown(row: Row, speed: Speed) -> dict[str, Any]:
    return {
        "row": row,
        "said": headline(row, datetime.now(UTC), speed),
        "speed": speed,
        "done": settled(row),
        "over": State(row["state"]) in OVER,
    }


async def acts(console: Console, request: Request) -> Response:
    """Shows what may be done now, where the delivery has changed its state."""
    row = await read_delivery(console, request)
    return console.draw(request, "_acts.html", row=row, **_acts(console, request, row))


def _acts(console: Console, request: Request, row: Row) -> dict[str, Any]:  # noqa: ARG001 - as the others
    state = State(row["state"])
    return {
        "can": {
            move.value: state in sources(move) for move in (Move.CONFIRM, Move.PAUSE, Move.RESUME, Move.STOP)
        },
        "ids": {name: str(uuid.uuid4()) for name in ("confirm", "pause", "resume", "stop", "stats")},
        "refused": Status.REFUSED,
    }


async def stream(console: Console, request: Request) -> Response:
    """Streams what changes of one delivery."""
    row = await read_delivery(console, request)
    events = console.live.stream(row["delivery_id"], text_of(request, "state") or "")
    return StreamingResponse(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


async def panel(console: Console, request: Request) -> Response:
    """Shows one panel of a delivery, or the panel alone.

    Of a large delivery, a page that a person asks for comes without its panel, and asks for that itself.
    """
    row = await read_delivery(console, request)
    name = request.path_params["panel"]
    if name not in _PANELS:
        raise absent(f"There is no page “{name}” of a delivery.")
    if is_part(request):

        async def read() -> dict[str, Any]:
            return {"row": row, "most": MORE, **await _panel(console, row, name)}

        return await console.draw_part(request, f"_{name}.html", (row["delivery_id"], row["state"]), read)
    whole = text_of(request, "whole") is not None or not _waits(console, row, name)
    found = await _panel(console, row, name) if whole else {}
    return console.draw(request, "panel.html", row=row, panel=name, most=MORE, whole=whole, **found)


async def _panel(console: Console, row: Row, name: str) -> dict[str, Any]:
    number = row["delivery_id"]

    async def read() -> dict[str, Any]:
        return await _PANELS[name](console, row)

    seconds = _DONE_SECONDS if State(row["state"]) in OVER else _PANEL_SECONDS
    reader = console.heavy if name in _HEAVY else console.shared
    return await reader.get((name, number, row["state"]), read, seconds=seconds)


def _waits(console: Console, row: Row, name: str) -> bool:
    """Says whether a panel takes longer to read than a person waits for a page."""
    known = (name, row["delivery_id"], row["state"])
    return name in _HEAVY and row["to_deliver"] > _LARGE and not console.heavy.held(known)


async def _at_once(console: Console, row: Row) -> dict[str, Any]:
    """Reads the panels of the overview that need not be waited for."""
    names = [name for name in ("curve", "bounces") if not _waits(console, row, name)]
    found: dict[str, Any] = {"panels": names}
    for name in names:
        found |= await _panel(console, row, name)
    return found


async def _curve(console: Console, row: Row) -> dict[str, Any]:
    outcomes, opened = await asyncio.gather(
        _counted(console, row, "read_curve"), _counted(console, row, "read_opens")
    )
    minutes = {r["minute"]: r for r in outcomes}
    opens = {r["minute"]: r["opened"] for r in opened}
    none = {"sent": 0, "bounced": 0}
    points = [
        Minute(at, minutes.get(at, none)["sent"], minutes.get(at, none)["bounced"], opens.get(at, 0))
        for at in sorted(minutes.keys() | opens.keys())
    ]
    return {"curve": curve(points), "busiest": max(points, key=lambda p: p.sent, default=None)}


async def _bounces(console: Console, row: Row) -> dict[str, Any]:
    return {"reasons": await _counted(console, row, "read_bounce_reasons", rows=MORE + 1)}


async def _domains(console: Console, row: Row) -> dict[str, Any]:
    return {"domains": await _counted(console, row, "read_domains", rows=MORE + 1), "no_domain": NO_DOMAIN}


async def _links(console: Console, row: Row) -> dict[str, Any]:
    return {"urls": await _counted(console, row, "read_urls", rows=MORE + 1)}


async def _causes(console: Console, row: Row) -> dict[str, Any]:
    return {"causes": await console.reads.rows("read_causes", delivery_id=row["delivery_id"])}


async def _history(console: Console, row: Row) -> dict[str, Any]:
    number = row["delivery_id"]
    return {
        "commands": await console.reads.rows("read_commands_of", delivery_id=number, rows=MORE + 1),
        "moves": await console.reads.rows("read_transitions", delivery_id=number, rows=MORE + 1),
        "raised": await console.reads.rows("read_raised_alerts", delivery_id=number, rows=MORE + 1),
    }


async def _counted(console: Console, row: Row, query: str, **values: object) -> list[Row]:
    large = row["to_deliver"] > _LARGE
    return await console.reads.whole(query, large=large, delivery_id=row["delivery_id"], **values)


_PANELS: Final = {
    "curve": _curve,
    "bounces": _bounces,
    "domains": _domains,
    "links": _links,
    "causes": _causes,
    "history": _history,
}
_HEAVY: Final = frozenset({"curve", "domains", "links", "bounces"})
"""The panels that take a look at each outcome or event."""
