"""Settings of mail that have a form of their own."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator

from worker.domain.mailbox import mailbox
from worker.domain.servers import check_encoded
from worker.domain.template_checks import check_headers

_PORT: Final = 53


def _read_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value or "{}")
    except ValueError as error:
        raise ValueError(f'it is not a JSON object such as {{"X-Mailer": "…"}} ({error})') from error


def _check_headers(value: dict[str, str]) -> dict[str, str]:
    check_headers(value)
    return value


def _check_notify(value: tuple[str, ...]) -> tuple[str, ...]:
    if "never" in value and len(value) > 1:
        raise ValueError("never cannot be joined with others (RFC 3461, 4.1)")
    return value


def _check_resolver(value: str) -> str:
    if value not in ("", "system"):
        resolver_address(value)
    return value


def _check_relay(value: str) -> str:
    if not value.startswith(("smtp://", "smtps://", "smtp+starttls://")):
        raise ValueError("it must begin with smtp://, smtp+starttls:// or smtps://")
    check_encoded(value)
    return value


def _read_domain(value: str) -> str:
    return mailbox(f"bounces@{value}").domain if value else value


def resolver_address(text: str) -> tuple[str, int]:
    """Reads an IP address with or without a port, as `192.0.2.1:53` or `[2001:db8::1]:53`.

    Raises:
        ValueError: It is not one.
    """
    host, _, port = text.rpartition(":")
    if host and port.isdigit() and (":" not in host or host.startswith("[")):
        host, number = host.strip("[]"), int(port)
    else:
        host, number = text.strip("[]"), _PORT
    try:
        ip_address(host)
    except ValueError:
        raise ValueError("give `system`, or an IP address such as 192.0.2.1 or 192.0.2.1:53") from None
    return host, number


EmailHeaders = Annotated[dict[str, str], BeforeValidator(_read_object), AfterValidator(_check_headers)]
"""Headers as a JSON object of templates."""
Notify = Annotated[tuple[Literal["success", "failure", "delay", "never"], ...], AfterValidator(_check_notify)]
"""When a relay is asked to report."""
RelayAddress = Annotated[str, AfterValidator(_check_relay)]
"""The URL of a relay."""
BounceDomain = Annotated[str, AfterValidator(_read_domain)]
"""A domain that mail is returned to, or nothing."""
Resolver = Annotated[str, AfterValidator(_check_resolver)]
"""Which DNS to ask: none, `system`, or an address."""
