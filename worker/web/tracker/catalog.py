"""What the tracker knows of deliveries and recipients: read once, and kept within bounds.

A confirmed delivery's links and content never change. So a database that is away stops nothing that was read
before.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeVar

import structlog
from pydantic import ValidationError

from worker.db.failures import ERRORS
from worker.domain.content import EmailContent
from worker.domain.links import web_address
from worker.domain.templates import LONGEST_TARGET, Renderer, RenderFailed, TargetTemplate
from worker.domain.tracked_content import language

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from worker.db.links import TrackedDelivery
    from worker.domain.tracked_content import Link

log = structlog.get_logger(__name__)

K = TypeVar("K")
V = TypeVar("V")

_READ_SECONDS: Final = 3.0
"""Seconds for one read. A person waits for it."""
_UNCONFIRMED_SECONDS: Final = 5.0
"""Seconds for which a delivery that may still change is kept."""
_PERSONAL_SECONDS: Final = 600.0
"""Seconds for which a recipient's values are kept: they may be erased meanwhile."""
_FINAL: Final = float("inf")
_LINKS_KEPT: Final = 50_000
_CHARACTERS_KEPT: Final = 20_000_000
"""Characters of the kept recipients' values."""
_CONTENTS_KEPT: Final = 32


class Unknown(Exception):
    """The database does not answer, and what is asked for was not read before."""


class Store(Protocol):
    """Reads links: `worker.db.links.LinkStore`, which says what each method does."""

    async def delivery(self, delivery_id: int) -> TrackedDelivery | None:
        """Reads a delivery's links."""

    async def variables(self, delivery_id: int, recipient: int) -> dict[str, Any] | None:
        """Reads a recipient's values."""

    async def content(self, delivery_id: int) -> dict[str, Any] | None:
        """Reads a delivery's content."""


class Target:
    """Where one link leads. It is compiled at the first click."""

    def __init__(self, link: Link) -> None:
        """Takes the link."""
        self._link = link
        self._template: TargetTemplate | None = None
        self._ready = False
        self._fixed: str | None = None

    @property
    def template(self) -> TargetTemplate | None:
        """The template, where recipients' values are needed; None where they are not."""
        if not self._ready:
            try:
                template = TargetTemplate(self._link.part, self._link.target)
                if template.names:
                    self._template = template
                else:
                    self._fixed = _address(template, {})
            except RenderFailed as error:
                log.warning("a link leads nowhere", target=self._link.target, because=str(error))
            self._ready = True
        return self._template

    def address(self, variables: dict[str, Any]) -> str | None:
        """Returns the address for a recipient's values; None if it is not one of a web site."""
        template = self.template
        if template is None:
            return self._fixed
        try:
            return _address(template, variables)
        except RenderFailed as error:
            log.info("a link leads nowhere for a recipient", target=self._link.target, because=str(error))
            return None


def _address(template: TargetTemplate, variables: dict[str, Any]) -> str | None:
    found = web_address(template.fill_in(variables))
    return found if found is not None and len(found) <= LONGEST_TARGET else None


class Delivery(NamedTuple):
    """One delivery, as far as it is tracked."""

    confirmed: bool
    """Whether its events count."""
    targets: Mapping[int, Target]
    """Where its links lead, by number."""


class MirrorContent:
    """A content that can be shown on the web."""

    def __init__(self, content: dict[str, Any]) -> None:
        """Compiles it; raises ValidationError or RenderFailed."""
        self.renderer: Final = Renderer(EmailContent.model_validate(content))
        self.language: Final = language(content.get("html") or "")


class Catalog:
    """Deliveries, contents and recipients by number."""

    def __init__(self, store: Callable[[], Store | None]) -> None:
        """Takes a function that returns the store; None while there is no database."""
        self._store = store
        self._deliveries: _Shelf[int, Delivery] = _Shelf(_LINKS_KEPT)
        self._contents: _Shelf[int, MirrorContent] = _Shelf(_CONTENTS_KEPT)
        self._variables: _Shelf[tuple[int, int], dict[str, Any]] = _Shelf(_CHARACTERS_KEPT)

    async def delivery(self, delivery_id: int) -> Delivery | None:
        """Returns a delivery; None if there is none.

        Raises:
            Unknown: The database does not answer.
        """
        return await self._deliveries.get(delivery_id, self._read_delivery)

    async def variables(self, delivery_id: int, recipient: int) -> dict[str, Any] | None:
        """Returns a recipient's values; None if there are none. Raises as `delivery`."""
        return await self._variables.get((delivery_id, recipient), self._read_variables)

    async def content(self, delivery_id: int) -> MirrorContent | None:
        """Returns a delivery's content; None if there is none to show. Raises as `delivery`."""
        return await self._contents.get(delivery_id, self._read_content)

    async def _read_delivery(self, delivery_id: int) -> _Found[Delivery] | None:
        read = await self._read(lambda store: store.delivery(delivery_id))
        if read is None:
            return None
        delivery = Delivery(read.confirmed, {link.number: Target(link) for link in read.links})
        seconds = _FINAL if read.confirmed else _UNCONFIRMED_SECONDS
        return _Found(delivery, 1 + len(read.links), seconds, not read.confirmed)

    async def _read_variables(self, key: tuple[int, int]) -> _Found[dict[str, Any]] | None:
        read = await self._read(lambda store: store.variables(*key))
        if read is None:
            return None
        return _Found(read, 100 + sum(len(str(value)) for value in read.values()), _PERSONAL_SECONDS)

    async def _read_content(self, delivery_id: int) -> _Found[MirrorContent] | None:
        delivery = await self.delivery(delivery_id)
        read = await self._read(lambda store: store.content(delivery_id))
        if not read or delivery is None:
            return None
        try:
            content = MirrorContent(read)
        except (ValidationError, RenderFailed) as error:
            log.warning("content not compiled", delivery_id=delivery_id, because=str(error))
            return None
        seconds = _FINAL if delivery.confirmed else _UNCONFIRMED_SECONDS
        return _Found(content, 1, seconds, not delivery.confirmed)

    async def _read(self, ask: Callable[[Store], Awaitable[V]]) -> V:
        store = self._store()
        if store is None:
            raise Unknown
        try:
            async with asyncio.timeout(_READ_SECONDS):
                return await ask(store)
        except ERRORS as error:  # a timeout is among them
            log.debug("the database does not answer", because=repr(error))
            raise Unknown from error


class _Found(NamedTuple, Generic[V]):
    """Something that was read, what it weighs, and how long it may be used."""

    value: V
    weight: int
    seconds: float
    changing: bool = False
    """Whether it may be another one by now. Then it is of no use if it is too old and cannot be read."""


class _Shelf(Generic[K, V]):
    """What was used last, up to a weight. What many ask for at once is read once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._weight = 0
        self._items: OrderedDict[K, tuple[_Found[V], float]] = OrderedDict()
        self._reading: dict[K, asyncio.Future[_Found[V] | None]] = {}

    async def get(self, key: K, read: Callable[[K], Awaitable[_Found[V] | None]]) -> V | None:
        """Returns what is kept, or what is read; if nothing can be read, also what is too old and fixed."""
        found, until = self._items.get(key, (None, 0.0))
        if found is None or asyncio.get_running_loop().time() >= until:
            try:
                found = await self._fresh(key, read)
            except Unknown:
                if found is None or found.changing:
                    raise
        else:
            self._items.move_to_end(key)
        return found.value if found is not None else None

    async def _fresh(self, key: K, read: Callable[[K], Awaitable[_Found[V] | None]]) -> _Found[V] | None:
        loop = asyncio.get_running_loop()
        if key in self._reading:
            return await asyncio.shield(self._reading[key])
        answer: asyncio.Future[_Found[V] | None] = loop.create_future()
        self._reading[key] = answer
        try:
            fresh = await read(key)
        except BaseException as error:
            answer.set_exception(Unknown() if isinstance(error, asyncio.CancelledError) else error)
            answer.exception()  # nobody else may be waiting for it
            raise
        finally:
            del self._reading[key]
        answer.set_result(fresh)
        self._put(key, fresh, loop.time())
        return fresh

    def _put(self, key: K, fresh: _Found[V] | None, now: float) -> None:
        before, _ = self._items.pop(key, (None, 0.0))
        self._weight -= before.weight if before is not None else 0
        if fresh is None:
            return
        self._items[key] = (fresh, now + fresh.seconds)
        self._weight += fresh.weight
        while self._weight > self._limit and len(self._items) > 1:
            _, (oldest, _) = self._items.popitem(last=False)
            self._weight -= oldest.weight
