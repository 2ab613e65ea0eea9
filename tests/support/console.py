"""The console on a port of its own, and a visitor who follows links and sends forms as a browser would."""

from __future__ import annotations

import asyncio
import html
import re
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import httpx2

from worker.web.console.service import ConsoleService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.stack import Stack
    from worker.db.pool import Database

SECONDS = 20


class Visitor:
    """Somebody at the console."""

    def __init__(self, service: ConsoleService, client: httpx2.AsyncClient, stop: asyncio.Event) -> None:
        self.service = service
        self.client = client
        self.stop = stop

    async def get(self, path: str, status: int = 200) -> str:
        answer = await self.client.get(path, follow_redirects=True)
        assert answer.status_code == status, answer.text
        return answer.text

    async def post(self, path: str, status: int = 200, **fields: str) -> str:
        answer = await self.client.post(path, data=fields, follow_redirects=True)
        assert answer.status_code == status, answer.text
        return answer.text

    async def press(self, page: str, action: str, status: int = 200, **filled: str) -> str:
        """Sends the form of a page that leads to an address, with what it has and what is filled in."""
        return await self.post(action, status, **{**forms(page)[action], **filled})

    async def sign_in(self, name: str = "ana", **fields: str) -> None:
        answer = await self.client.post(self.service.link, data={"operator": name, **fields})
        assert answer.status_code == 303, answer.text


async def line(lines: AsyncIterator[str], wanted: str) -> None:
    """Reads a stream up to a line."""
    async with asyncio.timeout(SECONDS):
        async for one in lines:
            if wanted in one:
                return
    raise AssertionError(f"the stream ended before {wanted!r}")


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dict[str, str]] = {}
        self._into: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self._into = self.found.setdefault(given.get("action") or "", {})
        elif tag == "input" and given.get("name"):
            self._into[given["name"] or ""] = given.get("value") or ""


def forms(page: str) -> dict[str, dict[str, str]]:
    """The forms of a page by where they lead, with the values that they have."""
    parser = _Forms()
    parser.feed(page)
    return parser.found


def shown(page: str) -> str:
    """What a person reads on a page."""
    text = re.sub(r"<(head|svg)\b.*?</\1>|<(?!/?(data|bdi|a|small)\b)[^>]+>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split())


@asynccontextmanager
async def visiting(
    stack: Stack,
    name: str | None = "ana",
    *,
    headers: dict[str, str] | None = None,
    db: Database | None = None,
    **changes: Any,
) -> AsyncIterator[Visitor]:
    """Runs the console, and signs somebody in.

    Args:
        stack: The installation.
        name: Who; None signs nobody in.
        headers: What each request has.
        db: Another way to the database than the stack's.
        changes: Settings that differ from the stack's.
    """
    settings = stack.settings.model_copy(update={"console_port": 0, **changes})
    service = ConsoleService(settings, db or stack.db, lambda _: None)
    await service.listen()
    stop = asyncio.Event()
    task = asyncio.create_task(service.run(stop))
    try:
        async with httpx2.AsyncClient(
            base_url=service.address.rstrip("/"), headers=headers, timeout=SECONDS
        ) as client:
            visitor = Visitor(service, client, stop)
            if name is not None:
                await visitor.sign_in(name)
            yield visitor
    finally:
        stop.set()
        await asyncio.wait_for(task, SECONDS)
