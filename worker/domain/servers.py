"""Reads hosts and passwords from the addresses of servers. Pure."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

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
_AMQP: Final = {"amqp": 5672, "amqps": 5671}
_POSTGRES_PORT: Final = 5432
_OF_LIBPQ: Final = frozenset({
    "channel_binding", "fallback_application_name", "gssdelegation", "gssencmode", "hostaddr", "keepalives",
    "keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts", "replication",
    "require_auth", "requirepeer", "sslcertmode", "sslcompression", "sslcrldir", "sslsni", "tcp_user_timeout",
})  # fmt: skip
"""Options that libpq alone knows. Ours would hand them to the server, which refuses them."""
_FILES: Final = {"sslrootcert", "sslcert", "sslkey", "sslcrl", "cafile", "certfile", "keyfile"}
"""The options of a URL that name a file."""
_RAW: Final = re.compile(r"[/?#@]")


def check_encoded(url: str) -> None:
    """Refuses a URL whose user or password has a character that ends it, such as a raw `#`.

    Such a URL is read as another host, port or path, and the error that follows shows some of the password.

    Raises:
        ValueError: it has one; the message says how it is written (RFC 3986, 2.1), and nothing of the rest.
    """
    _, _, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    userinfo, at, _ = rest.rpartition("@")
    if not at:
        return
    if "@" in authority:
        userinfo = authority.rpartition("@")[0]
    elif "=" in userinfo.rpartition("?")[2] and "?" in userinfo:
        return  # the sign belongs to an option
    if raw := _RAW.search(userinfo):
        raise ValueError(
            f"its user or password has a raw “{raw[0]}”, which must be written {quote(raw[0], safe='')}"
        )


def check_amqp(url: str) -> None:
    """Refuses what is no address of a broker.

    Raises:
        ValueError: it is not `amqp://user:password@host:port/vhost?option=value`, or the same with `amqps`.
    """
    check_encoded(url)
    parts = urlsplit(url)
    if parts.scheme not in _AMQP:
        raise ValueError("it must begin with amqp:// or amqps://")
    _without_port(parts.netloc.rpartition("@")[2])
    heartbeat = dict(parse_qsl(parts.query)).get("heartbeat", "0")
    if not (heartbeat.isascii() and heartbeat.isdigit()):
        raise ValueError("heartbeat is a number of seconds")


def files(url: str) -> Iterator[tuple[str, str]]:
    """Yields the options of a server's address that name a file, each with its path."""
    return ((name, path) for name, path in parse_qsl(urlsplit(url).query) if name in _FILES)


def places(url: str) -> str:
    """Returns host and port of a server's address, for a sentence; of several hosts all of them."""
    parts = urlsplit(url)
    port = _AMQP.get(parts.scheme, _POSTGRES_PORT)
    if options := dict(parse_qsl(parts.query)) if parts.scheme not in _AMQP else {}:
        if "host" in options:
            return options["host"]
        port = int(options["port"]) if options.get("port", "").isdigit() else port
    named = [unquote(host) or "localhost" for host in parts.netloc.rpartition("@")[2].split(",")]
    return ", ".join(host if re.search(r":\d+$", host) else f"{host}:{port}" for host in named)


def postgres_hosts(url: str) -> list[str]:
    """Returns the hosts of a database's address as libpq reads them. One of them is enough.

    Args:
        url: `postgresql://user:password@host:port,host:port/database?option=value`. A host that is empty or a
            folder, also in the option `host`, is a socket of this machine.

    Raises:
        ValueError: it is not such an address.
    """
    check_encoded(url)
    parts = urlsplit(url)
    if parts.scheme not in _POSTGRES:
        raise ValueError("it must begin with postgresql://")
    named = [_without_port(part) for part in parts.netloc.rpartition("@")[2].split(",")]
    options = dict(parse_qsl(parts.query))
    if "sslmode" in options and options["sslmode"] not in _MODES:
        raise ValueError(f"sslmode is one of {', '.join(_MODES)}")
    if "connect_timeout" in options:
        raise ValueError("leave connect_timeout out, and set SENDOFF_CONNECT_TIMEOUT")
    if foreign := sorted(_OF_LIBPQ & options.keys()):
        raise ValueError(f"leave {foreign[0]} out: it is an option of libpq, which Sendoff does not use")
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
