"""Pages that are about no delivery: the dead queue, the quarantine and the denylist; and signing in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import HTMLResponse, RedirectResponse

from worker.amqp.errors import BrokerForbids, BrokerUnreachable
from worker.amqp.topology import TopologyMismatch
from worker.domain.audience import address_key
from worker.web.console.parts import HIDDEN, absent, forbidden, text_of
from worker.web.console.people import LocalGate, NotSignedIn

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from worker.web.console.parts import Console

_DEAD_SHOWN: Final = 100
_LISTS: Final = {"quarantine": "read_quarantine_page", "denylist": "read_denylist_page"}


async def dead(console: Console, request: Request) -> Response:
    """Shows what is in the dead queue. Nothing is removed, and no body is shown: it may have addresses."""
    try:
        total, letters = await console.dead_letters(_DEAD_SHOWN)
    except (BrokerUnreachable, BrokerForbids, TopologyMismatch) as error:
        return console.said(request, 503, str(error))
    return console.draw(request, "dead.html", total=total, letters=letters)


async def kept_out(console: Console, request: Request) -> Response:
    """Shows the addresses or the profiles that are not written to."""
    name = request.path_params["list"]
    if name not in _LISTS:
        raise absent("There is no such page.")
    channel, _, key = (text_of(request, "after") or "").partition(" ")
    text = text_of(request, "q")
    if text and not console.sees_persons(request.state.person):
        raise forbidden(HIDDEN)
    only = address_key(text) if text and name == "quarantine" else text
    page = await console.reads.kept_out(_LISTS[name], (channel, key), only)
    return console.draw(request, "kept_out.html", name=name, page=page, q=text)


async def sign_in(console: Console, request: Request) -> Response:
    """Asks who comes with a link. Only the answer uses the link up: programs look at links too."""
    gate, link = console.gate, request.path_params["link"]
    if not isinstance(gate, LocalGate) or not gate.fits(link):
        return _gone(console)
    names = [gate.own_name] if gate.own_name else [o.name for o in await console.operators() if o.active]
    return HTMLResponse(console.pages.render("sign_in.html", names=names, link=link))


async def signed_in(console: Console, request: Request) -> Response:
    """Starts a session."""
    gate = console.gate
    async with request.form(max_files=0, max_fields=5) as form:
        name, looks = str(form.get("operator", "")), form.get("look") is not None
    session = None
    if isinstance(gate, LocalGate) and name:
        session = gate.sign_in(request.path_params["link"], name, read_only=looks)
    if session is None:
        return _gone(console)
    answer = RedirectResponse("/", 303)
    LocalGate.remember(answer, session)
    return answer


async def sign_out(console: Console, request: Request) -> Response:  # noqa: ARG001 - as the others
    """Ends the session of this browser."""
    answer = HTMLResponse(console.pages.render("outside.html", sentence=console.gate.farewell))
    console.gate.forget(answer)
    return answer


async def oidc_begin(console: Console, request: Request) -> Response:
    """Leads to the issuer, to sign in."""
    if console.sign_in is None:
        raise absent("The console has no issuer to sign in at.")
    return await console.sign_in.begin(request.query_params.get("next", "/"))


async def oidc_end(console: Console, request: Request) -> Response:
    """Takes the answer of the issuer, and starts a session."""
    if console.sign_in is None:
        raise absent("The console has no issuer to sign in at.")
    try:
        return await console.sign_in.end(request.query_params, request.cookies)
    except NotSignedIn as error:
        return HTMLResponse(
            console.pages.render("outside.html", sentence=str(error), begin="/oidc/begin"), 403
        )


def _gone(console: Console) -> Response:
    sentence = "This link was used, or is not ours. The console has printed another one: open that."
    return HTMLResponse(console.pages.render("outside.html", sentence=sentence), 403)
