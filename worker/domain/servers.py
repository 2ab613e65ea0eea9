"""Reads hosts and passwords from the addresses of servers. Pure."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

_POSTGRES: Final = ("postgresql", "postgres")
_HIGHEST_PORT: Final = 65_535
_UNVERIFIED: Final = {
    "disable": "no TLS",
    "allow": "TLS where the server insists, unverified",
    "prefer": "TLS where the server offers it, unverified",
    "require": "TLS, unverified",
}
"""libpq's modes that let anybody between us and the server read, or be the server."""
_MODES: Final = (*_UNVERIFIED, "verify-ca", "verify-full")


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
    if "sslmode" in options and options["sslmode"] not in _MODES:
        raise ValueError(f"sslmode is one of {', '.join(_MODES)}")
    for port in options.get("port", "").split(","):
        _check_port(port)
    return options["host"].split(",") if "host" in options else named


def must_verify(url: str) -> bool:
    """Whether the certificate of a database at this address is verified although the address does not say so.

    It is where the server may be on another machine and no `sslmode` says otherwise.

    Args:
        url: As `postgres_hosts` takes it.
    """
    options = dict(parse_qsl(urlsplit(url).query))
    return "sslmode" not in options and not all(map(_is_here, postgres_hosts(url)))


def unprotected(database_url: str, amqp_url: str) -> dict[str, str]:
    """Returns a sentence for each server, `database` or `broker`, to which the way is not protected.

    Args:
        database_url: As `postgres_hosts` takes it.
        amqp_url: `amqp://user:password@host/` or `amqps://…`.
    """
    found = {}
    mode = dict(parse_qsl(urlsplit(database_url).query)).get("sslmode", "verify-full")
    if mode in _UNVERIFIED and not all(map(_is_here, postgres_hosts(database_url))):
        found["database"] = (
            f"SENDOFF_DATABASE_URL has sslmode={mode} ({_UNVERIFIED[mode]}) for a server on another machine:"
            " leave it out, or take verify-full."
        )
    broker = urlsplit(amqp_url)
    if not _is_here(broker.hostname or "localhost"):
        unverified = dict(parse_qsl(broker.query)).get("no_verify_ssl", "0") != "0"
        if broker.scheme == "amqp":
            found["broker"] = "SENDOFF_AMQP_URL has no TLS for a broker on another machine: take amqps://."
        elif unverified:
            found["broker"] = (
                "SENDOFF_AMQP_URL has no_verify_ssl for a broker on another machine: leave it out."
            )
    return found


def passwords(url: str) -> list[str]:
    """Returns the passwords of a server's address, as written and decoded; empty if there is none."""
    parts = urlsplit(url)
    written = [parts.password or "", *(v for k, v in parse_qsl(parts.query) if k == "password")]
    return [word for one in written for word in dict.fromkeys((one, unquote(one))) if word]


def _is_here(host: str) -> bool:
    """Whether a host is the own machine for certain."""
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


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
