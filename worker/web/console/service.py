"""The console as a service of a process: its application on a socket, and its live updates."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from contracts.routing import Names
from worker.amqp.pika.client import ask_once
from worker.amqp.pika.connection import open_connection
from worker.amqp.pika.dead import open_dead_letters
from worker.auth.tokens import open_verifier
from worker.db import operators
from worker.db.console import ConsoleReads
from worker.operations.proof import prove_once
from worker.settings import SettingsError
from worker.settings_fit import LOOPBACK
from worker.web.console.app import console_app
from worker.web.console.assets import Assets
from worker.web.console.deliveries import draw_live
from worker.web.console.live import Live
from worker.web.console.parts import Console, Directory, Shared
from worker.web.console.people import LocalGate, Owner, ProxyGate
from worker.web.console.rendering import Pages
from worker.web.server import WebLimits, WebServer, listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from worker.amqp.pika.dead import DeadLetter, DeadLetters
    from worker.db.pool import Database
    from worker.domain.operators import Operator
    from worker.settings import Settings
    from worker.web.console.oidc import OidcGate

_LIMITS: Final = WebLimits(body=65_536, connections=2_000)
_LIGHT: Final = 4
"""Reads of milliseconds at the same time."""
_PARTS: Final = 100
"""Parts that are drawn at the same time: most of them wait for a read, which has a limit of its own."""
_RECOUNTS: Final = 100
"""Recounts that are waited for at the same time: the service that counts has its own limit."""


class ConsoleService:
    """Serves the console."""

    name = "console"

    def __init__(self, settings: Settings, db: Database, tell: Callable[[str], None] | None = None) -> None:
        """Takes what it works with.

        Args:
            settings: The settings.
            db: The database.
            tell: Prints a sentence for the person at this machine; None for standard output.

        Raises:
            SettingsError: `SENDOFF_TOKEN` is missing, or a key cannot be read.
        """
        self._settings = settings
        self._db = db
        self._tell = tell or _print
        self._operators = partial(operators.list_operators, db)
        self._directory = Directory(self._operators)
        self._gate = self._open_gate()
        assets = Assets()
        pages = Pages(assets)
        reads = ConsoleReads(db)
        self.live = Live(reads.shown, partial(draw_live, pages))
        console = Console(
            db=db,
            reads=reads,
            gate=self._gate,
            pages=pages,
            assets=assets,
            live=self.live,
            shared=Shared(_LIGHT),
            heavy=Shared(),
            drawn=Shared(_PARTS),
            recounts=Shared(_RECOUNTS),
            ask=partial(ask_once, settings),
            prove=partial(prove_once, settings, db),
            dead_letters=self._dead_letters,
            directory=self._directory,
            operators=self._operators,
            sign_in=None if isinstance(self._gate, LocalGate | ProxyGate) else self._gate,
            hide_personal_data=settings.console_hide_personal_data,
        )
        hosts = LOOPBACK if settings.console_auth == "local" else frozenset(settings.console_hosts)
        self._app = console_app(console, hosts)
        self._server: WebServer | None = None

    async def listen(self) -> None:
        """Opens the port.

        Raises:
            AddressUnavailable: The address is in use, or is not this machine's.
        """
        s = self._settings
        named = "SENDOFF_CONSOLE_HOST and SENDOFF_CONSOLE_PORT"
        on = await listen(s.console_host, s.console_port, named=named)
        self._server = WebServer(self.name, self._app, on, _LIMITS)

    @property
    def address(self) -> str:
        """Where it is, after `listen`."""
        host = self._settings.console_host
        port = self._server.port if self._server else self._settings.console_port
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    @property
    def link(self) -> str:
        """The address that signs in, once; with `proxy` that of the console."""
        return (
            f"{self.address}sign-in/{self._gate.link}" if isinstance(self._gate, LocalGate) else self.address
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop`."""
        if self._server is None:
            await self.listen()
        self._say_link()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.live.run(stop))
            if self._server is not None:
                group.create_task(self._server.run(stop))

    def _say_link(self) -> None:
        self._tell(f"The console is at {self.link}")
        if isinstance(self._gate, LocalGate):
            self._tell("The link works once; when it is used, the next one is printed.")

    def _open_gate(self) -> LocalGate | ProxyGate | OidcGate:
        s = self._settings
        find = self._directory.find
        if s.console_auth == "oidc":
            return _open_oidc(s, find)
        verifier = open_verifier(s)
        if s.console_auth == "proxy":
            if verifier is None:
                raise AssertionError("the settings are checked")
            return ProxyGate(find, verifier, s.console_header)
        owner = None
        if verifier is not None:
            if s.token is None:
                raise SettingsError(
                    "SENDOFF_AUTH=token: the local console needs SENDOFF_TOKEN, which its commands carry."
                )
            owner = Owner(s.token.get_secret_value().strip(), verifier)
        return LocalGate(find, self._say_link, owner)

    async def _dead_letters(self, most: int) -> tuple[int, Sequence[DeadLetter]]:
        found: list[DeadLetter] = []
        async with self._opened() as letters:
            while len(found) < most and (letter := await letters.take()):
                found.append(letter)
            return letters.total, found

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[DeadLetters]:
        s = self._settings
        connection = await open_connection(s.amqp_url, name="sendoff dead", timeout=s.connect_timeout)
        async with (
            connection,
            open_dead_letters(connection, Names(s.queue_prefix), timeout=s.connect_timeout) as letters,
        ):
            yield letters


def _open_oidc(settings: Settings, find: Callable[[str], Awaitable[Operator | None]]) -> OidcGate:
    s = settings
    try:
        from worker.web.console.oidc import Client, OidcGate  # noqa: PLC0415 - of the extra
    except ImportError as error:
        raise SettingsError(
            "SENDOFF_CONSOLE_AUTH=oidc needs the extra of that name: pip install “sendoff[oidc]”."
        ) from error
    client = Client(
        issuer=s.auth_issuer,
        client_id=s.auth_audience,
        client_secret=s.console_secret.get_secret_value() if s.console_secret else None,
        address=s.console_url.rstrip("/"),
        algorithms=frozenset(s.auth_algorithms or ("RS256",)),
        operator_claim=s.auth_operator_claim,
        roles_claim=s.auth_roles_claim,
        seconds=s.connect_timeout,
    )
    key = s.console_key.get_secret_value().encode() if s.console_key else b""
    return OidcGate(find, client, key, by_token=s.auth == "token")


def _print(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()
