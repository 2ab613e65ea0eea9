"""The service `webhooks`: its providers by the file of the settings, its server, and its outlet."""

from __future__ import annotations

import asyncio
import tomllib
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import structlog

from worker.returned.opening import open_references
from worker.settings import SettingsError
from worker.web.server import WebLimits, WebServer, listen
from worker.web.webhooks.app import WebhookParts, webhook_app
from worker.web.webhooks.fetching import fetch as fetch_over_https
from worker.web.webhooks.generic import Generic
from worker.web.webhooks.mailgun import Mailgun
from worker.web.webhooks.outlet import Outlet
from worker.web.webhooks.postmark import Postmark
from worker.web.webhooks.sendgrid import SendGrid
from worker.web.webhooks.ses import Ses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from contracts.routing import Names
    from worker.amqp.prompt import PromptPublisher
    from worker.settings import Settings
    from worker.telemetry.metrics import Metrics
    from worker.web.webhooks.fetching import Fetch
    from worker.web.webhooks.notices import Provider

log = structlog.get_logger(__name__)

_BODY_OCTETS: Final = 4_000_000
"""SendGrid sends up to 768 KiB, SNS up to 1 MiB."""
_IDLE_SECONDS: Final = 75.0
"""Longer than nginx keeps a connection that nobody uses (60 s), so that it never uses one that we close."""
_SHORTEST_SECRET: Final = 16

_KEYS: Final = {
    "ses": "topics",
    "sendgrid": "public_keys",
    "mailgun": "signing_keys",
    "postmark": "secrets",
    "generic": "secrets",
}
"""By provider: the one entry of its table, a list of texts."""


def read_providers(path: Path | None, most_age: timedelta, fetch: Fetch = fetch_over_https) -> list[Provider]:
    """Reads the file that says which providers may call.

    Args:
        path: A TOML file with a table for each provider; None if it is not set.
        most_age: How long ago a call may have been signed.
        fetch: Fetches what SNS signs with.

    Raises:
        SettingsError: The file is not set, cannot be read, or is of another form. No secret is told.
    """
    if path is None:
        raise SettingsError("Webhooks need a file that says who may call: set SENDOFF_WEBHOOKS_FILE.")
    where = f"SENDOFF_WEBHOOKS_FILE: {path}"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{where} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise SettingsError(f"{where} is not TOML: {error}.") from None
    make: dict[str, Callable[[Sequence[str]], Provider]] = {
        "ses": lambda topics: Ses(topics, most_age, fetch),
        "sendgrid": lambda keys: SendGrid(keys, most_age),
        "mailgun": lambda keys: Mailgun(keys, most_age),
        "postmark": Postmark,
        "generic": lambda secrets: Generic(secrets, most_age),
    }
    providers = []
    for name, table in tables.items():
        if name not in _KEYS:
            raise SettingsError(f"{where}: “{name}” is none of {', '.join(_KEYS)}.")
        try:
            providers.append(make[name](_texts(name, table)))
        except ValueError as error:
            raise SettingsError(f"{where}: [{name}]: {error}.") from None
    if not providers:
        raise SettingsError(f"{where} names no provider: give a table such as [sendgrid].")
    return providers


def _texts(name: str, table: Any) -> list[str]:  # noqa: ANN401 - what TOML holds
    """Returns the entries of a provider's table; raises ValueError."""
    key = _KEYS[name]
    texts = table.get(key) if isinstance(table, dict) and set(table) == {key} else None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"give `{key}`, a list of texts, and nothing else")
    if name != "ses" and any(len(text) < _SHORTEST_SECRET for text in texts):
        raise ValueError(f"each of `{key}` needs {_SHORTEST_SECRET} characters or more")
    return texts


class WebhookService:
    """Serves the providers until the stop; then finishes the open calls."""

    name = "webhooks"

    def __init__(
        self,
        settings: Settings,
        publisher: PromptPublisher,
        names: Names,
        metrics: Metrics,
    ) -> None:
        """Takes what it works with.

        Raises:
            SettingsError: as `read_providers` and `open_references`.
        """
        references = open_references(settings)
        age = timedelta(seconds=settings.webhooks_max_age)
        providers = read_providers(settings.webhooks_file, age)
        self._settings = settings
        self._outlet = Outlet(publisher, names)
        self._app = webhook_app(WebhookParts(providers, references, self._outlet, metrics))
        self.address: tuple[str, int] | None = None
        """Where it listens; None before."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop`.

        Raises:
            AddressUnavailable: The address is in use, or is not this machine's.
        """
        s = self._settings
        named = "SENDOFF_WEBHOOKS_HOST and SENDOFF_WEBHOOKS_PORT"
        listening = await listen(s.webhooks_host, s.webhooks_port, named=named, shared=True)
        limits = WebLimits(body=_BODY_OCTETS, idle=_IDLE_SECONDS, grace=s.shutdown_grace / 2)
        server = WebServer(self.name, self._app, listening, limits)
        self.address = (s.webhooks_host, server.port)
        log.info("listening for webhooks", host=s.webhooks_host, port=server.port)
        served = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._outlet.run(served))
            await server.run(stop)
            served.set()
