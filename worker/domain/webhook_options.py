"""Settings of the channel `webhook` that have a form of their own."""

from __future__ import annotations

import re
from typing import Annotated, Final, NamedTuple, Self
from urllib.parse import urlsplit

import idna
from pydantic import AfterValidator, SecretStr

from worker.domain.standard_webhooks import key_of

_PORTS: Final = {"https": 443, "http": 80}
_LEAST_KEY: Final = 24
"""Octets of a key at least, as Standard Webhooks says."""
_TARGET: Final = re.compile(r"[!-~]*")
"""Path and query: printable ASCII without blanks (RFC 3986 section 2)."""


class GatewayUrl(NamedTuple):
    """Where messages are posted to."""

    secured: bool
    """Whether it is https."""
    host: str
    """Its name in ASCII, or its IP address without brackets."""
    port: int
    target: str
    """Path and query."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Reads a URL.

        Raises:
            ValueError: It is not one of a gateway; the message says why, and does not quote the URL.
        """
        try:
            parts = urlsplit(url.strip())
            port, host = parts.port, parts.hostname or ""
        except ValueError:
            raise ValueError("its host or its port cannot be read") from None
        if parts.scheme not in _PORTS or not host:
            raise ValueError("it must be https:// or http://, a host, and a path")
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise ValueError("it must have no user, no password and no #: the signature says who calls")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not _TARGET.fullmatch(target):
            raise ValueError("path and query must be percent-encoded")
        if not host.isascii():
            try:
                host = idna.encode(host, uts46=True).decode()
            except idna.IDNAError:
                raise ValueError("its host is no name") from None
        return cls(parts.scheme == "https", host, port or _PORTS[parts.scheme], target)

    @property
    def authority(self) -> str:
        """The host as URLs write it, with the port where it is not that of the scheme."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self._scheme] else f"{host}:{self.port}"

    @property
    def _scheme(self) -> str:
        return "https" if self.secured else "http"

    def __str__(self) -> str:
        """Returns the URL without path and query, which may hold a secret."""
        return f"{self._scheme}://{self.authority}"


def signing_keys(text: str) -> tuple[bytes, ...]:
    """Reads the secrets that sign calls, separated by commas or line ends.

    Raises:
        ValueError: There is none, or one cannot be used; the message says which, and quotes none.
    """
    keys = []
    secrets = [one.strip() for one in re.split(r"[,\n]", text) if one.strip()]
    for place, secret in enumerate(secrets, 1):
        try:
            key = key_of(secret)
        except ValueError as error:
            raise ValueError(f"secret {place} {error}") from None
        if len(key) < _LEAST_KEY:
            raise ValueError(f"secret {place} is too short: it needs {_LEAST_KEY} bytes or more")
        keys.append(key)
    if not keys:
        raise ValueError("it holds no secret")
    return tuple(keys)


def _check_url(value: str) -> str:
    if value:
        GatewayUrl.parse(value)
    return value


def _check_secrets(value: SecretStr | None) -> SecretStr | None:
    if value:
        signing_keys(value.get_secret_value())
    return value


GatewayAddress = Annotated[str, AfterValidator(_check_url)]
"""The URL of a gateway, or nothing."""
SigningSecrets = Annotated[SecretStr | None, AfterValidator(_check_secrets)]
"""The secrets that sign calls, or none."""
