"""Where the SMTP server is, from one URL."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import aiosmtplib

_PORTS: Final = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class SmtpUrl:
    """`scheme://[user:password@]host[:port][?ca=FILE&helo=NAME]`.

    - `smtp://` uses no TLS, port 25 if none is given: for a relay on the same machine or network.
    - `smtp+starttls://` requires STARTTLS (RFC 3207) first, port 587.
    - `smtps://` uses TLS from the first byte (RFC 8314), port 465.

    The server's certificate is always checked: against `ca` if it is given, otherwise against the system's
    authorities. `helo` is the name in EHLO; the default is the machine's name. User and password are
    percent-encoded if necessary. They are sent without TLS only to the machine itself.
    """

    scheme: str
    host: str
    port: int
    user: str | None
    password: str | None = field(repr=False)
    helo: str
    context: ssl.SSLContext | None
    """None for no TLS."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Reads the URL, and the file of certificates that it may name.

        Raises:
            ValueError: It is not such a URL, or the file cannot be read; the message shows no password.
        """
        parts = urlsplit(url)
        if parts.scheme not in _PORTS:
            raise ValueError(
                f"An SMTP URL begins with smtp://, smtp+starttls:// or smtps://, not {parts.scheme!r}."
            )
        if not parts.hostname or parts.path not in ("", "/") or parts.fragment:
            raise ValueError("An SMTP URL is scheme://[user:password@]host[:port], without a path.")
        try:
            port = parts.port or _PORTS[parts.scheme]
        except ValueError as error:
            raise ValueError("The port of the SMTP URL must be a number from 1 to 65535.") from error
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = options.keys() - {"ca", "helo"}
        if unknown:
            raise ValueError(f"The SMTP URL has the unknown option {min(unknown)!r}; there are ca and helo.")
        secured = parts.scheme != "smtp"
        if parts.username and not secured and parts.hostname not in _LOOPBACK:
            raise ValueError(
                "The SMTP URL would send the password in the clear; with a user, say smtp+starttls:// or smtps://."
            )
        return cls(
            scheme=parts.scheme,
            host=parts.hostname,
            port=port,
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            helo=options.get("helo") or socket.gethostname(),
            context=_context(options.get("ca")) if secured else None,
        )

    def __str__(self) -> str:
        """Returns host and port, without user and password."""
        return f"{self.host}:{self.port}"

    def client(self, timeout: float) -> aiosmtplib.SMTP:
        """Makes a client that is not connected yet.

        Args:
            timeout: Seconds to wait for each reply.
        """
        return aiosmtplib.SMTP(
            hostname=self.host,
            port=self.port,
            username=self.user,
            password=self.password,
            local_hostname=self.helo,
            timeout=timeout,
            use_tls=self.scheme == "smtps",
            start_tls=self.scheme == "smtp+starttls",
            tls_context=self.context,
        )


def _context(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ValueError(
            f"The file of certificates {ca!r} named in the SMTP URL cannot be read: {error}"
        ) from error
