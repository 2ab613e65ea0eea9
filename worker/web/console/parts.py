"""What every page of the console is made with."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from worker.domain.operators import Role

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from starlette.requests import Request

    from contracts.base import Message
    from contracts.commands import Reply
    from worker.amqp.pika.dead import DeadLetter
    from worker.db.console import ConsoleReads
    from worker.db.pool import Database
    from worker.domain.operators import Operator
    from worker.operations.proof import ProofRequest
    from worker.web.console.assets import Assets
    from worker.web.console.live import Live
    from worker.web.console.people import Gate, Person
    from worker.web.console.rendering import Pages

T = TypeVar("T")

_SHARED: Final = 500
"""Answers that are kept for others who ask the same."""
_AT_ONCE: Final = 2
"""Reads of a kind at the same time, so that they never take all connections."""


HIDDEN: Final = "You may not see the recipients: SENDOFF_CONSOLE_HIDE_PERSONAL_DATA is set."


class Asking(Protocol):
    """Publishes a command and waits for its answer: `worker.amqp.pika.client.ask_once`."""

    async def __call__(
        self, routing_key: str, body: Message, *, seconds: float, token: str | None, command_id: str | None
    ) -> bytes:
        """Returns the answer."""


class SigningIn(Protocol):
    """Signs people in at an issuer: `worker.web.console.oidc.OidcGate`."""

    async def begin(self, then: str) -> Response:
        """Leads to the issuer; `then` is the page that follows."""

    async def end(self, answer: Mapping[str, str], cookies: Mapping[str, str]) -> Response:
        """Starts a session by the issuer's answer.

        Raises:
            NotSignedIn: It cannot be believed, or says no.
        """


@dataclass(frozen=True, slots=True)
class Console:
    """The parts."""

    db: Database
    reads: ConsoleReads
    gate: Gate
    pages: Pages
    assets: Assets
    live: Live
    shared: Shared
    """What takes milliseconds to read."""
    heavy: Shared
    """What takes a look at each outcome of a delivery: it must hold up nothing else."""
    drawn: Shared
    """Parts of pages that are the same for all who see the same."""
    recounts: Shared
    """The answers to *compute stats*, by the forms that asked."""
    ask: Asking
    prove: Callable[[ProofRequest], Awaitable[Reply]]
    """Sends to a tester what a recipient of a delivery would get, once for each request."""
    dead_letters: Callable[[int], Awaitable[tuple[int, Sequence[DeadLetter]]]]
    """Reads the number of dead messages, and the oldest of them."""
    directory: Directory
    operators: Callable[[], Awaitable[list[Operator]]]
    sign_in: SigningIn | None
    """Signs people in at an issuer; None if that is done elsewhere."""
    hide_personal_data: bool
    """Whether people who may only look see no addresses."""

    def sees_persons(self, person: Person) -> bool:
        """Says whether somebody may see addresses, profiles and what was said about them."""
        roles = person.operator.roles if person.operator and person.operator.active else ()
        acts = not person.read_only and Role.START_DELIVERIES in roles
        return acts or not self.hide_personal_data

    def draw(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:  # noqa: ANN401
        """Draws a page for the person of a request."""
        person: Person = request.state.person
        page = self.pages.render(
            template, person=person, sees_persons=self.sees_persons(person), path=request.url.path, **values
        )
        return HTMLResponse(page, status)

    async def draw_part(
        self, request: Request, template: str, key: tuple[object, ...], read: Callable[[], Awaitable[Any]]
    ) -> Response:
        """Draws a part of a page once a second, for all who ask for it.

        Args:
            request: The request.
            template: The part: it must not speak of the person who asks.
            key: What it is a part of.
            read: Reads what the template asks for.
        """
        sees = self.sees_persons(request.state.person)

        async def draw() -> str:
            return self.pages.render(template, sees_persons=sees, **await read())

        return HTMLResponse(await self.drawn.get((template, sees, *key), draw, seconds=1))

    def said(self, request: Request, status: int, sentence: str, **values: Any) -> Response:  # noqa: ANN401
        """Draws a page that says one sentence."""
        return self.draw(request, "said.html", status, sentence=sentence, **values)


class Shared:
    """Answers for several people: who asks while one is read, or soon after, gets the same."""

    def __init__(self, at_once: int = _AT_ONCE) -> None:
        """Takes how many are read at the same time."""
        self._kept: dict[object, tuple[float, Any]] = {}
        self._turns: dict[object, asyncio.Lock] = {}
        self._room = asyncio.Semaphore(at_once)

    def held(self, key: object) -> bool:
        """Says whether there is an answer that need not be read."""
        kept = self._kept.get(key)
        return kept is not None and time.monotonic() < kept[0]

    async def get(self, key: object, read: Callable[[], Awaitable[T]], *, seconds: float) -> T:
        """Returns an answer that is at most so old, or three times as old as it took to read.

        Args:
            key: What is asked.
            read: Reads it.
            seconds: How old it may be.
        """
        async with self._turns.setdefault(key, asyncio.Lock()):
            kept = self._kept.get(key)
            if kept is not None and time.monotonic() < kept[0]:
                found: T = kept[1]
                return found
            async with self._room:
                began = time.monotonic()
                answer = await read()
                took = time.monotonic() - began
            if len(self._kept) >= _SHARED:
                self._kept.clear()
                self._turns = {k: turn for k, turn in self._turns.items() if turn.locked()}
            self._kept[key] = (time.monotonic() + max(seconds, 3 * took), answer)
            return answer


class Directory:
    """The operators: what pages ask for by themselves costs one read of all a second, for any viewers."""

    def __init__(self, read: Callable[[], Awaitable[list[Operator]]]) -> None:
        """Takes what reads all operators."""
        self._read = read
        self._shared = Shared()
        self._since = 0

    async def find(self, name: str) -> Operator | None:
        """Returns an operator as they were at most a second ago; None if there is none of this name."""
        found = await self._shared.get(self._since, self._by_name, seconds=1)
        return found.get(name)

    def forget(self) -> None:
        """Has them read anew: a role that was revoked counts at once for who does or opens something."""
        self._since += 1

    async def _by_name(self) -> dict[str, Operator]:
        return {operator.name: operator for operator in await self._read()}


def is_part(request: Request) -> bool:
    """Says whether a page asks for a part of itself, and not a person for a page."""
    return request.method == "GET" and request.headers.get("hx-request") == "true"


def absent(sentence: str) -> HTTPException:
    """Returns the error for what does not exist."""
    return HTTPException(404, sentence)


def forbidden(sentence: str) -> HTTPException:
    """Returns the error for what this person may not do or see."""
    return HTTPException(403, sentence)


def text_of(request: Request, name: str) -> str | None:
    """Returns a value of the address, without the space around it; None if it is empty."""
    return request.query_params.get(name, "").replace("\x00", "").strip()[:200] or None


def moment_of(request: Request, name: str) -> datetime | None:
    """Returns a moment of the address's query, written as ISO 8601 with its zone; None if there is none."""
    try:
        at = datetime.fromisoformat(request.query_params.get(name, ""))
    except ValueError:
        return None
    return at if at.tzinfo is not None else None


def number_of(request: Request, name: str, most: int = 2**63 - 1) -> int:
    """Returns a number of the address's query; 0 if there is none."""
    return read_number(request.query_params.get(name, ""), most)


def read_number(text: str, most: int) -> int:
    """Returns a number that people wrote, or 0."""
    fits = text.isascii() and text.isdigit() and len(text) <= len(str(most))
    number = int(text) if fits else 0
    return number if number <= most else 0
