"""Who looks at the console, and what they may do there. There is no way in without a name.

`local` is for the person at this machine: the console listens on 127.0.0.1 and prints a link that works once.
`proxy` is for everybody else: a proxy signs people in, and passes a signed token with every request.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

import jwt

from worker.auth.tokens import TokenRefused
from worker.domain.authority import acting_operator
from worker.domain.operators import Operator, Role, refuse_operator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.responses import Response

    from worker.auth.tokens import Verifier
    from worker.domain.authority import Bearer

SESSION: Final = timedelta(hours=8)
"""How long a person stays signed in."""

_COOKIE: Final = "sendoff_console"
_ALGORITHM: Final = "HS256"


class NotSignedIn(Exception):
    """Nobody is signed in; the message says how to sign in."""

    begin: str = ""
    """The address that begins to sign in, if there is one."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who is signed in."""

    name: str
    operator: Operator | None
    """The operator that their commands name; None if the directory does not know the name."""
    read_only: bool
    """Whether they may only look: nothing that they ask for is published."""
    token: str | None = None
    """Their signed token, which goes with their commands."""
    bearer: Bearer | None = None
    """What their token says."""

    @property
    def cannot_start(self) -> str:
        """Why they cannot confirm, pause, resume or stop, as a sentence; empty if they can."""
        if self.read_only:
            return "You may look at everything here, and change nothing."
        refused = refuse_operator(self.operator, self.name, Role.START_DELIVERIES, "confirm a send")
        return refused.message if refused else ""


class Gate(Protocol):
    """Finds out who sent a request."""

    async def identify(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Person:
        """Returns who sent a request.

        Raises:
            NotSignedIn: Nobody that we know.
        """

    @property
    def farewell(self) -> str:
        """What is said to who signs out."""

    def forget(self, answer: Response) -> None:
        """Ends the session of a browser."""


class LocalGate:
    """Signs people in by a link that works once. The sessions end with the process, which alone has the key.

    A cookie `__Host-…` needs https, which there is none of between a browser and its own machine. So the
    cookie has a plain name here; it is HttpOnly and SameSite=Strict, and never leaves the machine.
    """

    def __init__(
        self,
        find: Callable[[str], Awaitable[Operator | None]],
        on_used: Callable[[], None],
        own: Owner | None = None,
    ) -> None:
        """Takes what it works with.

        Args:
            find: Finds an operator in the directory.
            on_used: Called when a link is used up, and `link` is another one.
            own: The owner of the token, where commands need one.
        """
        self._find = find
        self._on_used = on_used
        self._own = own
        self._key = secrets.token_bytes(32)
        self.link = secrets.token_urlsafe(24)
        """The secret of the link that signs in next."""

    @property
    def own_name(self) -> str:
        """The one name that can sign in, where commands need a token; else empty."""
        return self._own.bearer().operator if self._own else ""

    def fits(self, link: str) -> bool:
        """Says whether a link is the one that signs in next."""
        return hmac.compare_digest(link.encode(), self.link.encode())

    def sign_in(self, link: str, name: str, *, read_only: bool) -> str | None:
        """Uses the link up; returns a session, or None if the link was used before."""
        if not self.fits(link):
            return None
        self.link = secrets.token_urlsafe(24)
        self._on_used()
        told = {"sub": name, "ro": read_only, "exp": datetime.now(UTC) + SESSION}
        return jwt.encode(told, self._key, _ALGORITHM)

    @staticmethod
    def remember(answer: Response, session: str) -> None:
        """Sets the cookie."""
        answer.set_cookie(
            _COOKIE, session, int(SESSION.total_seconds()), path="/", httponly=True, samesite="strict"
        )

    farewell = "You are signed out."

    def forget(self, answer: Response) -> None:
        """Removes the cookie."""
        answer.delete_cookie(_COOKIE, path="/", httponly=True, samesite="strict")

    async def identify(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Person:  # noqa: ARG002
        """Reads the session of the cookie."""
        try:
            told: dict[str, Any] = jwt.decode(
                cookies.get(_COOKIE, ""), self._key, [_ALGORITHM], options={"require": ["exp", "sub"]}
            )
        except jwt.PyJWTError:
            raise NotSignedIn(
                "Open the link that the console printed last: it works once, and starts a session of"
                f" {SESSION.total_seconds() / 3600:g} hours."
            ) from None
        name, bearer, token = told["sub"], None, None
        if self._own is not None:
            token, bearer = self._own.token, self._own.bearer()
            name = bearer.operator
        operator = acting_operator(await self._find(name), bearer)
        return Person(name, operator, bool(told["ro"]) or operator is None, token, bearer)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose token this machine's commands carry."""

    token: str
    verifier: Verifier

    def bearer(self) -> Bearer:
        """Returns the operator of the token.

        Raises:
            NotSignedIn: The token is not valid, or no longer.
        """
        try:
            return self.verifier.verify(self.token)
        except TokenRefused as error:
            raise NotSignedIn(f"SENDOFF_TOKEN: {error}") from error


class ProxyGate:
    """Believes the signed token that a proxy passes. There is no session of ours."""

    def __init__(
        self, find: Callable[[str], Awaitable[Operator | None]], verifier: Verifier, header: str
    ) -> None:
        """Takes the directory of operators, the verifier of tokens, and the header that has them."""
        self._find = find
        self._verifier = verifier
        self._header = header.lower()

    async def identify(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Person:  # noqa: ARG002
        """Verifies the token of the header. Somebody without a role of ours may only look."""
        passed = headers.get(self._header)
        if not passed:
            raise NotSignedIn(f"The proxy passed no token in the header {self._header}: sign in there.")
        try:
            bearer = self._verifier.verify(passed)
        except TokenRefused as error:
            raise NotSignedIn(str(error)) from error
        operator = acting_operator(await self._find(bearer.operator), bearer)
        read_only = operator is None or not operator.active or not bearer.roles
        return Person(bearer.operator, operator, read_only, passed.rpartition(" ")[2], bearer)

    farewell = "The proxy has your session: sign out there."

    def forget(self, answer: Response) -> None:
        """Does nothing: there is no session of ours."""
