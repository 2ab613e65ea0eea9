"""The application: which address leads to which page, and who may come in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from worker.db.failures import ERRORS, classify
from worker.domain.failures import Failure
from worker.web.console import acts, deliveries, elsewhere, logs
from worker.web.console.parts import is_part
from worker.web.console.people import NotSignedIn
from worker.web.console.protection import Protection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from worker.web.console.parts import Console

    Handler = Callable[[Console, Request], Awaitable[Response]]

log = structlog.get_logger(__name__)

_READS: Final[tuple[tuple[str, Handler], ...]] = (
    ("/", deliveries.home),
    ("/rows", deliveries.home_rows),
    ("/profiles", logs.profile),
    ("/dead", elsewhere.dead),
    ("/kept-out/{list}", elsewhere.kept_out),
    ("/deliveries/{delivery}", deliveries.delivery),
    ("/deliveries/{delivery}/acts", deliveries.acts),
    ("/deliveries/{delivery}/live", deliveries.stream),
    ("/deliveries/{delivery}/story", deliveries.story),
    ("/deliveries/{delivery}/confirm", acts.dialog),
    ("/deliveries/{delivery}/log", logs.log),
    ("/deliveries/{delivery}/log.csv", logs.log_csv),
    ("/deliveries/{delivery}/tracking", logs.tracking),
    ("/deliveries/{delivery}/tracking.csv", logs.tracking_csv),
    ("/deliveries/{delivery}/exclusions", logs.exclusions),
    ("/deliveries/{delivery}/exclusions.csv", logs.exclusions_csv),
    ("/deliveries/{delivery}/recipients/{recipient}", logs.recipient),
    ("/deliveries/{delivery}/recipients/{recipient}/html", logs.preview),
    ("/deliveries/{delivery}/{panel}", deliveries.panel),
)
_WRITES: Final[tuple[tuple[str, Handler], ...]] = (
    ("/deliveries/{delivery}/confirm", acts.confirm),
    ("/deliveries/{delivery}/send", acts.send),
    ("/deliveries/{delivery}/settle", acts.settle),
    ("/deliveries/{delivery}/stats", acts.stats),
    ("/deliveries/{delivery}/control/{act}", acts.control),
    ("/deliveries/{delivery}/recipients/{recipient}/proof", acts.proof),
    ("/sign-out", elsewhere.sign_out),
)


def console_app(console: Console, hosts: frozenset[str] = frozenset()) -> ASGIApp:
    """Returns the application.

    Args:
        console: Its parts.
        hosts: The names that browsers may call it by; none for any.
    """

    def inside(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if not is_part(request):
                console.directory.forget()
            request.state.person = await console.gate.identify(request.headers, request.cookies)
            return await handler(console, request)

        return answer

    def outside(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return await handler(console, request)

        return answer

    routes = [
        Route("/static/{digest}/{name:path}", console.assets.serve, methods=["GET"]),
        Route("/oidc/begin", outside(elsewhere.oidc_begin), methods=["GET"]),
        Route("/oidc/end", outside(elsewhere.oidc_end), methods=["GET"]),
        Route("/sign-in/{link}", outside(elsewhere.sign_in), methods=["GET"]),
        Route("/sign-in/{link}", outside(elsewhere.signed_in), methods=["POST"]),
        *(Route(path, inside(handler), methods=["POST"]) for path, handler in _WRITES),
        *(Route(path, inside(handler), methods=["GET"]) for path, handler in _READS),
    ]
    handlers: dict[Any, Any] = {
        HTTPException: _refuse(console),
        NotSignedIn: _keep_out(console),
        Exception: _apologise(console),
        **dict.fromkeys(ERRORS, _away(console)),
    }
    return Protection(Starlette(routes=routes, exception_handlers=handlers), hosts)


def _keep_out(console: Console) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        begin = error.begin if isinstance(error, NotSignedIn) else ""
        if is_part(request):
            return HTMLResponse(console.pages.render("_lost.html", sentence=str(error)), 401)
        if begin and request.method == "GET":
            begin += "?" + urlencode({"next": request.url.path})
        return HTMLResponse(console.pages.render("outside.html", sentence=str(error), begin=begin), 401)

    return answer


def _refuse(console: Console) -> Callable[[Request, HTTPException], Awaitable[Response]]:
    async def answer(request: Request, error: HTTPException) -> Response:
        if not hasattr(request.state, "person"):
            return PlainTextResponse(error.detail, error.status_code, error.headers)
        return console.said(request, error.status_code, error.detail)

    return answer


def _away(console: Console) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        failure = classify(error)
        if failure is Failure.BROKEN:
            raise error
        what = "is out of reach" if failure is Failure.AWAY else "is too busy"
        sentence = f"The database {what}. Deliveries are not affected by this page. Load it again soon."
        if is_part(request):
            return HTMLResponse(console.pages.render("_lost.html", sentence=sentence), 503)
        return HTMLResponse(console.pages.render("outside.html", sentence=sentence), 503)

    return answer


def _apologise(console: Console) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        log.error("page failed", path=request.url.path, exc_info=error)
        sentence = "This page has a fault. The log of the console says more."
        if is_part(request):
            return HTMLResponse(console.pages.render("_lost.html", sentence=sentence), 500)
        return HTMLResponse(console.pages.render("outside.html", sentence=sentence), 500)

    return answer
