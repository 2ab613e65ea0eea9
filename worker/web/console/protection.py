"""What guards every answer of the console: headers, host names, and where a write comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content Security Policy, Level 3: only our own files, nothing inline, and no frame around us."""

FRAMED_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none';"
    " frame-ancestors 'self'; sandbox"
)
"""Of the preview of a message, which is somebody's HTML: it may have styles, and loads and runs nothing."""

HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=()",
    "cache-control": "no-store",
}
FRAMED_HEADERS: Final = {"content-security-policy": FRAMED_POLICY, "x-frame-options": "SAMEORIGIN"}

_READS: Final = frozenset({"GET", "HEAD"})


def crosses_origins(method: str, headers: Mapping[str, str]) -> bool:
    """Says whether a request is a write that another site may have caused.

    Browsers say by `Sec-Fetch-Site` where a request comes from (Fetch Metadata); scripts cannot change it.
    Older ones send `Origin` with a write (RFC 6454), which must be ours. A program without a browser sends
    neither and has no cookie of ours that somebody else could use.

    Args:
        method: The method of the request.
        headers: Its headers, by names in lower case.
    """
    if method in _READS:
        return False
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


class Protection:
    """Refuses foreign hosts and foreign writes, and adds the headers to what the application answers."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] = frozenset()) -> None:
        """Takes the application, and the names that browsers may call it by; none for any."""
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["method"], headers)
        await (refusal or self._app)(scope, receive, guarded)

    def _refusal(self, method: str, headers: Headers) -> PlainTextResponse | None:
        # A page of another site whose name leads here (DNS rebinding) has that name in the header host.
        name = urlsplit(f"//{headers.get('host', '')}").hostname
        if self._hosts and name not in self._hosts:
            return PlainTextResponse("The console is not known by this name.", 421)
        if crosses_origins(method, headers):
            return PlainTextResponse("This was sent from another site, and nothing was done.", 403)
        return None
