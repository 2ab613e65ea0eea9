"""Where the SMTP server is, and how it is spoken to, from one URL."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import aiosmtplib

from worker.channels.email.login import MECHANISMS, Login

_PORTS: Final = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_VALUES: Final = {"verify": ("yes", "no"), "starttls": ("offered",), "auth": MECHANISMS}
"""The options of which only some values are possible."""
_OPTIONS: Final = ("auth", "ca", "cert", "helo", "key", "secret", "starttls", "verify")
_TLS_OPTIONS: Final = ("ca", "cert", "key", "verify")


@dataclass(frozen=True, slots=True)
class SmtpUrl:
    """`scheme://[user[:password]@]host[:port][?option=value&…]`.

    - `smtp://` uses no TLS, port 25 if none is given: for a relay on the same machine or network.
    - `smtp://…?starttls=offered` uses STARTTLS (RFC 3207) if the server offers it, and takes any certificate:
      a forger of one can as well hide the offer (RFC 7435).
    - `smtp+starttls://` requires STARTTLS first, port 587.
    - `smtps://` uses TLS from the first byte (RFC 8314), port 465.

    With the last two the server's certificate is checked: against the authorities in the file `ca` if it is
    given, otherwise against the system's; `verify=no` takes any. `cert` and `key` are the files of a client
    certificate. `helo` is the name in EHLO; the default is the machine's name.

    User and password are percent-encoded if necessary. `secret` is a file with the password instead. `auth`
    is the mechanism: `plain`, `login` or, with a token as the password, `xoauth2`. They are sent without TLS
    only to the machine itself.
    """

    host: str
    port: int
    helo: str
    use_tls: bool
    start_tls: bool | None
    """None for where it is offered."""
    context: ssl.SSLContext | None
    """None for no TLS."""
    login: Login | None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Reads the URL, and the files of certificates that it may name.

        Raises:
            ValueError: It is not such a URL, or a file cannot be read; the message shows no password.
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
        secured = parts.scheme != "smtp"
        options = _options(parts.query, secured=secured)
        if parts.username and not secured and parts.hostname not in _LOOPBACK:
            raise ValueError(
                "The SMTP URL would send the password in the clear; with a user, say smtp+starttls:// or smtps://."
            )
        offered = options.get("starttls") == "offered"
        return cls(
            host=parts.hostname,
            port=port,
            helo=options.get("helo") or socket.gethostname(),
            use_tls=parts.scheme == "smtps",
            start_tls=None if offered else parts.scheme == "smtp+starttls",
            context=_context(options, checked=not offered) if secured or offered else None,
            login=_login(parts.username, parts.password, options),
        )

    def __str__(self) -> str:
        """Returns host and port, without user and password."""
        return f"{self.host}:{self.port}"

    def client(self, timeout: float) -> aiosmtplib.SMTP:
        """Makes a client that is not connected yet, and does not log in by itself.

        Args:
            timeout: Seconds to wait for each reply.
        """
        return aiosmtplib.SMTP(
            hostname=self.host,
            port=self.port,
            local_hostname=self.helo,
            timeout=timeout,
            use_tls=self.use_tls,
            start_tls=self.start_tls,
            tls_context=self.context,
        )


def _options(query: str, *, secured: bool) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in options.items():
        if name not in _OPTIONS:
            listed = f"{', '.join(_OPTIONS[:-1])} and {_OPTIONS[-1]}"
            raise ValueError(f"The SMTP URL has the unknown option {name!r}; there are {listed}.")
        allowed = _VALUES.get(name)
        if allowed and value not in allowed:
            raise ValueError(f"The option {name} of the SMTP URL is {' or '.join(allowed)}, not {value!r}.")
        if name in _TLS_OPTIONS and not secured:
            raise ValueError(
                f"The option {name} of the SMTP URL is for a checked TLS; say smtp+starttls:// or smtps://."
            )
    if "starttls" in options and secured:
        raise ValueError(
            "The option starttls is for smtp://; smtp+starttls:// always uses it, smtps:// never."
        )
    if "key" in options and "cert" not in options:
        raise ValueError("The option key of the SMTP URL needs cert, the file of the certificate.")
    return options


def _login(user: str | None, password: str | None, options: dict[str, str]) -> Login | None:
    secret = options.get("secret")
    mechanism = next((each for each in MECHANISMS if each == options.get("auth")), None)
    if not user:
        if secret or mechanism or password:
            raise ValueError("The SMTP URL has a secret or a mechanism, and no user.")
        return None
    if password and secret:
        raise ValueError("The SMTP URL has a password and a file of one; leave out one of them.")
    return Login(
        user=unquote(user),
        password=unquote(password) if password else None,
        secret=Path(secret) if secret else None,
        mechanism=mechanism,
    )


def _context(options: dict[str, str], *, checked: bool) -> ssl.SSLContext:
    ca, certificate, key = (options.get(name) for name in ("ca", "cert", "key"))
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ValueError(
            f"The file of certificates {ca!r} named in the SMTP URL cannot be read: {error}"
        ) from error
    if certificate:
        try:
            # An empty password, since OpenSSL would ask for one on the terminal.
            context.load_cert_chain(certificate, key, password="")
        except OSError as error:
            raise ValueError(
                f"The client certificate {certificate!r} of the SMTP URL, or its key, cannot be used: {error}"
            ) from error
    if not checked or options.get("verify") == "no":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
