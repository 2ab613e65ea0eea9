"""Reads hosts and passwords from the addresses of servers. Pure."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

_POSTGRES: Final = ("postgresql", "postgres")
_HIGHEST_PORT: Final = 65_535


def postgres_hosts(url: str) -> list[str]:
    """Returns the hosts of a database's address as libpq reads them. One of them is enough.

    Args:
        url: `postgresql://user:password@host:port,host:port/database?option=value`. A host that is empty or a
            folder, also in the option `host`, is a socket of this machine.

    Raises:
        ValueError: it is not such an address.
    """
    parts = urlsplit(url)
    if parts.scheme not in _POSTGRES:
        raise ValueError("it must begin with postgresql://")
    named = [_without_port(part) for part in parts.netloc.rpartition("@")[2].split(",")]
    options = dict(parse_qsl(parts.query))
    for port in options.get("port", "").split(","):
        _check_port(port)
    return options["host"].split(",") if "host" in options else named


def passwords(url: str) -> list[str]:
    """Returns the passwords of a server's address, as written and decoded; empty if there is none."""
    parts = urlsplit(url)
    written = [parts.password or "", *(v for k, v in parse_qsl(parts.query) if k == "password")]
    return [word for one in written for word in dict.fromkeys((one, unquote(one))) if word]


def _without_port(part: str) -> str:
    if part.startswith("["):
        host, _, port = part[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = part.partition(":")
    _check_port(port)
    return unquote(host)


def _check_port(text: str) -> None:
    if text and not (text.isascii() and text.isdigit() and 0 < int(text) <= _HIGHEST_PORT):
        raise ValueError(f"“{text}” is no port: it is a number from 1 to {_HIGHEST_PORT}")
