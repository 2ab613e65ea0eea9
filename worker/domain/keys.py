"""The keys with which an installation signs what comes back to it, and the signing itself."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from typing import Final

SHORTEST_SECRET: Final = 32
"""Octets of a secret: as many as the hash gives (RFC 2104 section 3)."""
_LARGEST_NUMBER: Final = 2**16 - 1
_KEY: Final = re.compile(r"(\d{1,5}):(\S+)")


class KeysInvalid(ValueError):
    """The keys cannot be used. The message says why, and tells no secret."""


@dataclass(frozen=True, slots=True)
class Key:
    """A secret of the installation, with its number."""

    number: int
    secret: bytes = field(repr=False)

    def sign(self, purpose: str, signed: bytes, octets: int) -> bytes:
        """Returns the first octets of an HMAC-SHA256 (RFC 2104). The purpose is signed too."""
        return hmac.digest(self.secret, b"sendoff " + purpose.encode() + b"\0" + signed, "sha256")[:octets]


def read_keys(text: str) -> tuple[Key, ...]:
    """Reads keys written as `number:secret`, separated by commas or line ends.

    Raises:
        KeysInvalid: There is none, or one is not written so, is too short, or has the number of another.
    """
    keys: dict[int, Key] = {}
    for place, item in enumerate(filter(None, (part.strip() for part in re.split(r"[,\n]", text))), 1):
        match = _KEY.fullmatch(item)
        if match is None:
            raise KeysInvalid(f"key {place} is not written as number:secret")
        number, secret = int(match[1]), match[2].encode()
        if not 0 < number <= _LARGEST_NUMBER:
            raise KeysInvalid(f"key {place} has the number {number}; numbers are from 1 to {_LARGEST_NUMBER}")
        if len(secret) < SHORTEST_SECRET:
            raise KeysInvalid(f"the secret of key {number} is too short: it needs {SHORTEST_SECRET} bytes")
        if number in keys:
            raise KeysInvalid(f"there are two keys with the number {number}")
        keys[number] = Key(number, secret)
    if not keys:
        raise KeysInvalid("there is no key")
    return tuple(keys.values())
