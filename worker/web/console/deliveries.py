"""The pages of deliveries: the list, one delivery, and its panels."""

from __future__ import annotations

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
from worker.web.console.parts import absent, number_of, read_number, text_of

if TYPE_CHECKING:
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

_LIST_SECONDS: Final = 2
_PANEL_SECONDS: Final = 5
_DONE_SECONDS: Final = 60
"""How old a panel may be, of a delivery under way and of one that is over."""
_FEW: Final = 20


async def home(console: Console, request: Request) -> Response:
    """Shows the list of deliveries."""
    return console.draw(request, "deliveries.html", **await _list(console, request))


async def home_rows(console: Console, request: Request) -> Response:
    """Shows the rows of the list alone, to bring a page up to date."""
    return console.draw(request, "_deliveries.html", **await _list(console, request))


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
        command=command,
        answered=answered,
    )


async def story(console: Console, request: Request) -> Response:
    """Shows what happened to a delivery, to bring a page up to date."""
    row = await read_delivery(console, request)
    return console.draw(request, "_story.html", row=row, **await _story(console, row))


async def _story(console: Console, row: Row) -> dict[str, Any]:
    number = row["delivery_id"]

    async def read() -> dict[str, Any]:
        return {
            "alerts": await console.reads.rows("read_alerts_of", delivery_id=number),
            "waves": await console.reads.rows("read_waves_page", delivery_id=number, after=0, rows=_FEW + 1),
            "moves": await console.reads.rows("read_transitions", delivery_id=number, rows=_FEW),
            "few": _FEW,
        }

    # Another state is another story: who has seen the state change must see why.
    return await console.shared.get(("story", number, row["updated_at"]), read, seconds=_LIST_SECONDS)


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
    """Shows one panel of a delivery: what takes a look at each of its outcomes."""
    row = await read_delivery(console, request)
    name, number = request.path_params["panel"], row["delivery_id"]
    if name not in _PANELS:
        raise absent(f"There is no page “{name}” of a delivery.")
    seconds = _DONE_SECONDS if State(row["state"]) in OVER else _PANEL_SECONDS

    async def read() -> dict[str, Any]:
        return await _PANELS[name](console, number)

    found = await console.shared.get((name, number, row["state"]), read, seconds=seconds)
    whole = request.headers.get("hx-request") != "true"
    if not whole:
        return console.draw(request, f"_{name}.html", row=row, most=MORE, **found)
    return console.draw(request, "panel.html", row=row, panel=name, most=MORE, **found)


async def _curve(console: Console, number: int) -> dict[str, Any]:
    minutes = {r["minute"]: r for r in await console.reads.rows("read_curve", delivery_id=number)}
    opens = {r["minute"]: r["opened"] for r in await console.reads.rows("read_opens", delivery_id=number)}
    none = {"sent": 0, "bounced": 0}
    points = [
        Minute(at, minutes.get(at, none)["sent"], minutes.get(at, none)["bounced"], opens.get(at, 0))
        for at in sorted(minutes.keys() | opens.keys())
    ]
    return {"curve": curve(points), "busiest": max(points, key=lambda p: p.sent, default=None)}


async def _bounces(console: Console, number: int) -> dict[str, Any]:
    return {"reasons": await console.reads.rows("read_bounce_reasons", delivery_id=number, rows=MORE + 1)}


async def _domains(console: Console, number: int) -> dict[str, Any]:
    return {"domains": await console.reads.rows("read_domains", delivery_id=number, rows=MORE + 1)}


async def _links(console: Console, number: int) -> dict[str, Any]:
    return {"urls": await console.reads.rows("read_urls", delivery_id=number, rows=MORE + 1)}


async def _causes(console: Console, number: int) -> dict[str, Any]:
    return {"causes": await console.reads.rows("read_causes", delivery_id=number)}


async def _history(console: Console, number: int) -> dict[str, Any]:
    return {
        "commands": await console.reads.rows("read_commands_of", delivery_id=number, rows=MORE + 1),
        "moves": await console.reads.rows("read_transitions", delivery_id=number, rows=MORE + 1),
        "raised": await console.reads.rows("read_raised_alerts", delivery_id=number, rows=MORE + 1),
    }


_PANELS: Final = {
    "curve": _curve,
    "bounces": _bounces,
    "domains": _domains,
    "links": _links,
    "causes": _causes,
    "history": _history,
}
