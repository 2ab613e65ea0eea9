"""Names a message so that returned mail tells which attempt it returns, and nobody else can claim it.

Two names carry the same numbers and are signed with the installation's keys:

- the envelope sender, `bounces+<token>@<domain>` (variable envelope return paths, VERP): servers send there
  what they return, whatever they write into it;
- the Message-ID, `<delivery>-<recipient>-<attempt>.<content>.<tag>@<domain>`: for mail that comes another
  way, such as the complaints of a provider.

Both are read in any case of their letters, since some servers change it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.domain.keys import Key

LOCAL_PART: Final = "bounces"
"""What comes before the `+` of the envelope sender."""

_TAG_OCTETS: Final = 10
"""80 bits: with more, the longest token would not fit into the 64 octets of a local part (RFC 5321 section
4.5.3.1.1)."""
_LARGEST: Final = (2**16 - 1, 2**63 - 1, 2**31 - 1, 2**15 - 1)
_ADDRESS: Final = re.compile(rf"(?:^|[<=]){LOCAL_PART}\+([a-z2-7]{{20,52}})@", re.IGNORECASE)
"""Some relays put something of their own before an `=`."""
_TOKEN: Final = re.compile(r"[a-z2-7]{20,52}", re.IGNORECASE)
_LOOKS_LIKE: Final = re.compile(rf"<?{LOCAL_PART}\+", re.IGNORECASE)
_MESSAGE_ID: Final = re.compile(
    r"<?(\d{1,19})-(\d{1,10})-(\d{1,5})\.[0-9a-f]{12}\.([a-z2-7]{16})@", re.IGNORECASE
)


class Reference(NamedTuple):
    """The attempt that a name belongs to."""

    delivery_id: int
    recipient: int
    attempt: int


class ReturnPath:
    """Writes and reads the names."""

    def __init__(self, keys: Sequence[Key], domain: str = "") -> None:
        """Takes the keys and the domain.

        Args:
            keys: At least one. The first signs; names signed with the others are still read.
            domain: The domain to which mail is returned; empty to leave the envelope sender as it is.
        """
        self._signing = keys[0]
        self._keys = {key.number: key for key in keys}
        self._domain = domain

    def sender(self, reference: Reference) -> str | None:
        """Returns the envelope sender of an attempt; None without a domain."""
        return f"{LOCAL_PART}+{self.token(reference)}@{self._domain}" if self._domain else None

    def token(self, reference: Reference) -> str:
        """Returns the numbers of an attempt with their signature, as the envelope sender has them."""
        numbers = b"".join(map(_varint, (self._signing.number, *reference)))
        return _base32(numbers + self._signing.sign("return path", numbers, _TAG_OCTETS))

    def tag(self, reference: Reference) -> str:
        """Returns the signature in the Message-ID of an attempt."""
        return _tag(self._signing, reference)

    def read(self, name: str) -> Reference | None:
        """Returns the attempt that an address, a Message-ID or a bare token belongs to.

        Args:
            name: With or without angle brackets.

        Returns:
            None if the name is not ours, or none of the keys signed it.
        """
        address = _ADDRESS.search(name)
        if address is not None:
            return self._read_token(address[1])
        if _TOKEN.fullmatch(name):
            return self._read_token(name)
        found = _MESSAGE_ID.match(name)
        if found is None:
            return None
        reference = Reference(int(found[1]), int(found[2]), int(found[3]))
        tag = found[4].lower()
        signed = any(hmac.compare_digest(_tag(key, reference), tag) for key in self._keys.values())
        return reference if signed and _possible(reference) else None

    def _read_token(self, token: str) -> Reference | None:
        try:
            octets = base64.b32decode(token.upper() + "=" * (-len(token) % 8))
        except binascii.Error:
            return None
        numbers, tag = octets[:-_TAG_OCTETS], octets[-_TAG_OCTETS:]
        key_number, *rest = _numbers(numbers)
        key = self._keys.get(key_number)
        if key is None or len(rest) != len(Reference._fields) or _base32(octets) != token.lower():
            return None
        reference = Reference(*rest)
        signed = hmac.compare_digest(key.sign("return path", numbers, _TAG_OCTETS), tag)
        return reference if signed and _possible(reference) else None


def looks_like_ours(address: str) -> bool:
    """Returns whether an address claims to be an envelope sender of ours; it need not be signed."""
    return _LOOKS_LIKE.match(address) is not None


def _possible(reference: Reference) -> bool:
    return all(0 < number <= largest for number, largest in zip(reference, _LARGEST[1:], strict=True))


def _tag(key: Key, reference: Reference) -> str:
    return _base32(key.sign("message id", b"".join(map(_varint, reference)), _TAG_OCTETS))


def _base32(octets: bytes) -> str:
    return base64.b32encode(octets).rstrip(b"=").decode().lower()


def _varint(number: int) -> bytes:
    octets = bytearray()
    while number >> 7:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def _numbers(octets: bytes) -> list[int]:
    """Reads varints; a list of one impossible number if the octets end within one."""
    numbers: list[int] = []
    value = shift = 0
    for octet in octets:
        value |= (octet & 0x7F) << shift
        shift += 7
        if not octet >> 7:  # the last octet of a number has its highest bit clear
            numbers.append(value)
            value = shift = 0
    return numbers if numbers and shift == 0 else [-1]
