"""Checks addresses, and turns the rows of a recipients file into targets."""

from __future__ import annotations

import re
from enum import StrEnum
from json import JSONEncoder
from typing import TYPE_CHECKING, Final, NamedTuple

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email
from email_validator.rfc_constants import CASE_INSENSITIVE_MAILBOX_NAMES

from worker.domain.recipients_file import TRIMMED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from worker.domain.recipients_file import RecipientsFile

_LONGEST_ADDRESS: Final = 1_000
"""Characters of the address column that are checked and kept: about four addresses."""
_LABEL = r"(?!..--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ATEXT = r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+"
_PLAIN: Final = re.compile(rf"({_ATEXT}(?:\.{_ATEXT})*)@(?:{_LABEL}\.)+([a-z]{{2,63}})")
_LONGEST_MAIL_ADDRESS: Final = 254
_LONGEST_LOCAL_PART: Final = 64
"""Octets before the @ (RFC 5321, 4.5.3.1.1). Relays refuse more."""
_RESERVED: Final = frozenset(name.rpartition(".")[2] for name in SPECIAL_USE_DOMAIN_NAMES)
_ONE_CASE: Final = frozenset(CASE_INSENSITIVE_MAILBOX_NAMES)


class Cause(StrEnum):
    """Why a target was left out of a preparation."""

    EMPTY = "empty"
    """Its address is empty."""
    INVALID = "invalid"
    """Its address is not valid."""
    DUPLICATE = "duplicate"
    """A row before it has the same address."""
    QUARANTINED = "quarantined"
    """Its address is in quarantine on the channel."""
    DENYLISTED = "denylisted"
    """Its profile is on the channel's denylist, for example after an opt-out."""
    MALFORMED = "malformed"
    """Its row does not fit the header, or cannot be read."""
    MISTIMED = "mistimed"
    """Its time cannot be read, or its time zone is not known."""


class AddressInvalid(ValueError):
    """The text is not an address; the message says why."""


class Target(NamedTuple):
    """A row of the recipients file, checked without looking at other rows."""

    line: int
    """The row's first line in the file, from 1."""
    address: str | None
    """The address in its normal form, or as written if the row is left out; None for a malformed row."""
    address_key: str | None
    """The key for duplicates and quarantine; None if the row is left out."""
    profile_id: str | None
    variables: str | None
    """The values of all columns but the address, as a JSON object; None if the row is left out."""
    cause: Cause | None
    detail: str | None
    due_at: datetime | None
    """When it may be sent, in UTC; None if that is the start, or if the row is left out."""


def address_key(address: str) -> str:
    """Returns the same key for addresses that differ only in upper and lower case: they reach one mailbox."""
    return address.lower()


def mail_address(text: str) -> str:
    """Returns a mail address in its normal form: Unicode composed (NFC), the domain in lower case, U-labels.

    Nearly all addresses are plain ASCII. One expression checks them: it accepts fewer than email-validator
    and gives the same form, in 1 µs instead of 30.

    Raises:
        AddressInvalid: It is not one address of the public internet.
    """
    if "=?" in text:
        raise AddressInvalid("The address holds “=?”, as encoded words begin (RFC 2047, section 5).")
    if text.isascii() and len(text) <= _LONGEST_MAIL_ADDRESS:
        key = text.lower()
        plain = _PLAIN.fullmatch(key)
        if plain and plain[2] not in _RESERVED and plain.end(1) <= _LONGEST_LOCAL_PART:
            local = plain.end(1)
            return key if plain[1] in _ONE_CASE else text[:local] + key[local:]
    try:
        return validate_email(text, check_deliverability=False, strict=True).normalized
    except EmailNotValidError as error:
        raise AddressInvalid(str(error)) from None


def any_address(text: str) -> str:
    """Returns an address unchanged: only the foreign sender of its channel can check it."""
    return text


def targets(
    file: RecipientsFile, rule: Callable[[str], str], due: Callable[[Mapping[str, str]], datetime | None]
) -> Iterator[Target]:
    """Checks each row of a recipients file without looking at other rows.

    Every column but the address becomes a variable, `profile_id` too. If the name of a column is not an
    identifier, senders get the variable, but a template cannot name it.

    Args:
        file: The file, after its header was read.
        rule: Returns an address in its normal form, or raises AddressInvalid.
        due: Returns when a row may be sent, by its columns, or raises ValueError.
    """
    columns = file.columns
    encode = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    for line, fields, fault in file:
        if fault is not None:
            yield _left_out(line, None, None, Cause.MALFORMED, fault)
            continue
        values = dict(zip(columns, fields, strict=True))
        profile_id = values.get("profile_id", "").strip(TRIMMED) or None
        written = values.pop("address").strip(TRIMMED)[:_LONGEST_ADDRESS]
        if not written:
            yield _left_out(line, "", profile_id, Cause.EMPTY, None)
            continue
        try:
            address = rule(written)
        except AddressInvalid as error:
            yield _left_out(line, written, profile_id, Cause.INVALID, str(error))
            continue
        try:
            due_at = due(values)
        except ValueError as error:
            yield _left_out(line, address, profile_id, Cause.MISTIMED, str(error))
            continue
        yield Target(line, address, address_key(address), profile_id, encode(values), None, None, due_at)


def _left_out(
    line: int, address: str | None, profile_id: str | None, cause: Cause, detail: str | None
) -> Target:
    return Target(line, address, None, profile_id, None, cause, detail, None)
