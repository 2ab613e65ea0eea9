"""What an AMQP URL says: where the broker is, which user we are, and how to use TLS."""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

_PORTS = {"amqp": 5672, "amqps": 5671}
_HEARTBEAT = 60


@dataclass(frozen=True, slots=True)
class Address:
    """A broker's address, read as aio-pika reads it.

    Attributes:
        heartbeat: Seconds between heartbeats that we propose; 0 for no heartbeats.
        options: The URL's query: `heartbeat`, and for TLS `cafile`, `capath`, `cadata` (base64), `certfile`,
            `keyfile`, `no_verify_ssl`.
    """

    host: str
    port: int
    user: str
    password: str
    vhost: str
    secure: bool
    heartbeat: int
    options: Mapping[str, str]

    def tls(self) -> ssl.SSLContext:
        """Builds the TLS context for `amqps://`. Reads files, so call it in a thread.

        Raises:
            OSError: a file is missing or is not a certificate (`ssl.SSLError` is an OSError).
        """
        option = self.options.get
        cadata = base64.b64decode(option("cadata", ""))
        context = ssl.create_default_context(
            cafile=option("cafile"), capath=option("capath"), cadata=cadata or None
        )
        certificate = option("certfile")
        if certificate:
            context.load_cert_chain(certificate, option("keyfile"))
        if option("no_verify_ssl", "0") != "0":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def read_address(url: str) -> Address:
    """Reads `amqp://user:password@host:port/vhost?option=value`, or the same with `amqps`.

    Raises:
        ValueError: it is not such a URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        raise ValueError("the address of the broker must begin with amqp:// or amqps://")
    options = dict(parse_qsl(parts.query))
    heartbeat = int(options.get("heartbeat", _HEARTBEAT))
    if not 0 <= heartbeat < 2**16:
        raise ValueError("the heartbeat in the broker's address must be between 0 and 65535 seconds")
    return Address(
        host=parts.hostname or "localhost",
        port=parts.port or _PORTS[parts.scheme],
        user=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        vhost=unquote(parts.path[1:]) or "/",
        secure=parts.scheme == "amqps",
        heartbeat=heartbeat,
        options=options,
    )
