"""The tracker's ASGI application: what it answers, and what it tells of it.

An answer waits until its event is safe. Redirects are the bulk of it, so requests are read and answered
without a framework: at 3,000 a second, its router and its objects would take a third of the time.
"""

from __future__ import annotations

import asyncio
import binascii
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from contracts.tracking import TrackingEvent, TrackingKind
from worker.domain.links import Named, Purpose
from worker.domain.templates import RenderFailed
from worker.domain.tracking import USER_AGENT_LIMIT
from worker.web.tracker import pages
from worker.web.tracker.catalog import Unknown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.types import Receive, Scope, Send

    from worker.domain.links import Keys, Links
    from worker.telemetry.metrics import Metrics
    from worker.web.tracker.catalog import Catalog, Delivery
    from worker.web.tracker.outlet import Outlet

_PIXEL: Final = binascii.a2b_base64("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
"""A transparent GIF of one point."""
_ROBOTS: Final = b"User-agent: *\nDisallow: /\n"
_MIRRORS_AT_ONCE: Final = 2
"""Mirror pages that are rendered at once, in threads: one may take a tenth of a second."""
_COMMON: Final = [
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-robots-tag", b"noindex, nofollow"),
]
_HTML: Final = b"text/html; charset=utf-8"
_TEXT: Final = b"text/plain; charset=utf-8"


class Answer(NamedTuple):
    """A response."""

    status: int
    body: bytes = b""
    kind: bytes = _TEXT
    headers: tuple[tuple[bytes, bytes], ...] = ()


class _Asked(NamedTuple):
    """A request that a token was read from."""

    named: Named
    headers: Mapping[bytes, bytes]
    counts: bool
    """Whether it is a person's, or may be: no HEAD, and nothing that a browser fetches ahead."""
    receive: Receive

    def language(self, of_message: str = "") -> str:
        return pages.chosen(of_message, self.headers.get(b"accept-language", b"").decode("latin-1"))

    def page(self, status: int, words: str, *headers: tuple[bytes, bytes]) -> Answer:
        policy = (b"content-security-policy", pages.CONTENT_POLICY.encode())
        return Answer(status, pages.note(self.language(), words), _HTML, (policy, *headers))


class TrackerApp:
    """Answers pixels, links, mirror pages and opt-outs."""

    def __init__(
        self, links: Links, keys: Keys, base: str, catalog: Catalog, outlet: Outlet, metrics: Metrics
    ) -> None:
        """Takes its parts.

        Args:
            links: Writes the links of mirror pages.
            keys: Reads tokens.
            base: The tracker's public address. Its path may stand before the paths, or be cut by a proxy.
            catalog: Knows deliveries and recipients.
            outlet: Makes events safe.
            metrics: The metrics.
        """
        self._links = links
        self._keys = keys
        self._path = urlsplit(base).path
        self._catalog = catalog
        self._outlet = outlet
        self._metrics = metrics
        self._rendering = asyncio.Semaphore(_MIRRORS_AT_ONCE)
        self._counted: dict[tuple[str, int], Callable[[], None]] = {}
        self._handlers: dict[str, tuple[Purpose, Callable[[_Asked], Awaitable[Answer]]]] = {
            "o": (Purpose.OPEN, self._open),
            "c": (Purpose.CLICK, self._click),
            "m": (Purpose.MIRROR, self._mirror),
            "u": (Purpose.OPTOUT, self._ask_optout),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        path = scope["path"].removeprefix(self._path)
        method = scope["method"]
        name = path[1:2] if path[2:3] == "/" else ""
        answer = await self._answer(name, path, method, scope, receive)
        key = (name if name in self._handlers else "", answer.status)
        if key not in self._counted:
            self._counted[key] = self._metrics.tracker_requests.labels(key[0], str(key[1])).inc
        self._counted[key]()
        headers = [
            (b"content-type", answer.kind),
            (b"content-length", str(len(answer.body)).encode()),
            *_COMMON,
            *answer.headers,
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, name: str, path: str, method: str, scope: Scope, receive: Receive) -> Answer:
        headers = dict(scope["headers"])
        asked = _Asked(Named(0, 0, 0), headers, method == "GET" and not _ahead(headers), receive)
        if path == "/robots.txt" and method in {"GET", "HEAD"}:
            return Answer(200, _ROBOTS)
        if name not in self._handlers:
            return asked.page(404, "unknown")
        purpose, handler = self._handlers[name]
        if method == "POST" and purpose is Purpose.OPTOUT:
            handler = self._opt_out
        elif method not in {"GET", "HEAD"}:
            allowed = b"GET, HEAD, POST" if purpose is Purpose.OPTOUT else b"GET, HEAD"
            return Answer(405, b"", _TEXT, ((b"allow", allowed),))
        token = path[3:].removesuffix(".gif") if purpose is Purpose.OPEN else path[3:]
        named = self._keys.read(purpose, token)
        if named is None:
            return asked.page(404, "unknown")
        try:
            return await handler(asked._replace(named=named))
        except Unknown:
            return asked.page(503, "later", (b"retry-after", b"10"))

    async def _open(self, asked: _Asked) -> Answer:
        await self._tell(asked, TrackingKind.OPEN, await self._delivery_if_known(asked))
        return Answer(200, _PIXEL, b"image/gif")

    async def _click(self, asked: _Asked) -> Answer:
        delivery = await self._catalog.delivery(asked.named.delivery_id)
        target = delivery.targets.get(asked.named.link) if delivery is not None else None
        if target is None:
            return asked.page(404, "unknown")
        variables = {}
        if target.template is not None:
            found = await self._catalog.variables(asked.named.delivery_id, asked.named.recipient)
            if found is None:
                return asked.page(404, "unknown")
            variables = found
        address = target.address(variables)
        if address is None:
            return asked.page(404, "unknown")
        await self._tell(asked, TrackingKind.CLICK, delivery, url=address)
        return Answer(302, b"", _TEXT, ((b"location", address.encode()),))

    async def _mirror(self, asked: _Asked) -> Answer:
        delivery_id, recipient = asked.named.delivery_id, asked.named.recipient
        delivery = await self._catalog.delivery(delivery_id)
        content = await self._catalog.content(delivery_id)
        variables = await self._catalog.variables(delivery_id, recipient)
        if content is None or variables is None:
            return asked.page(404, "unknown")
        renderer = content.renderer
        links = self._links.of_proofs() if asked.named.proof else self._links
        own = renderer.links.of(links, delivery_id, recipient, pixel=False)
        try:
            async with self._rendering:
                rendered = await asyncio.to_thread(renderer.render, {**variables, **own})
        except RenderFailed:
            return asked.page(404, "unknown")
        await self._tell(asked, TrackingKind.MIRROR, delivery)
        body = rendered.html
        shown = (
            body.encode() if body is not None else pages.text_as_page(content.language, rendered.text or "")
        )
        return Answer(200, shown, _HTML, ((b"content-security-policy", pages.MIRROR_POLICY.encode()),))

    async def _ask_optout(self, asked: _Asked) -> Answer:
        policy = (b"content-security-policy", pages.CONTENT_POLICY.encode())
        return Answer(200, pages.question(await self._language(asked)), _HTML, (policy,))

    async def _opt_out(self, asked: _Asked) -> Answer:
        """Opts out: a form's POST, or a mail provider's (RFC 8058 section 3.2)."""
        body = b""
        while True:
            message = await asked.receive()
            if message["type"] != "http.request":
                return Answer(400)  # the client has gone
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked = asked._replace(counts=True)
        if not await self._tell(asked, TrackingKind.OPTOUT, await self._delivery_if_known(asked)):
            return asked.page(503, "later", (b"retry-after", b"60"))
        if b"One-Click" in body:
            return Answer(200)
        policy = (b"content-security-policy", pages.CONTENT_POLICY.encode())
        return Answer(200, pages.note(await self._language(asked), "optout_done"), _HTML, (policy,))

    async def _language(self, asked: _Asked) -> str:
        try:
            content = await self._catalog.content(asked.named.delivery_id)
        except Unknown:
            return asked.language()
        return asked.language(content.language if content is not None else "")

    async def _delivery_if_known(self, asked: _Asked) -> Delivery | None:
        """Returns the delivery, or None: an open or an opt-out needs no database."""
        try:
            return await self._catalog.delivery(asked.named.delivery_id)
        except Unknown:
            return None

    async def _tell(
        self, asked: _Asked, kind: TrackingKind, delivery: Delivery | None, url: str | None = None
    ) -> bool:
        """Makes an event safe; returns whether it is, or need not be."""
        unconfirmed = delivery is not None and not delivery.confirmed
        if not asked.counts or asked.named.proof or unconfirmed:
            return True
        agent = asked.headers.get(b"user-agent", b"").decode("latin-1")[:USER_AGENT_LIMIT]
        event = TrackingEvent(
            event_id=os.urandom(12).hex(),
            delivery_id=asked.named.delivery_id,
            recipient=asked.named.recipient,
            kind=kind,
            url=url,
            at=datetime.now(UTC),
            user_agent=agent or None,
        )
        return await self._outlet.safe(event)


def _ahead(headers: Mapping[bytes, bytes]) -> bool:
    """Returns whether a browser fetches something that a person has not asked for yet."""
    purposes = (headers.get(name, b"") for name in (b"sec-purpose", b"purpose", b"x-purpose", b"x-moz"))
    return any(
        value.strip().lower().startswith((b"prefetch", b"preview", b"prerender")) for value in purposes
    )
