"""Signatures of HTTP calls, as Standard Webhooks says (standardwebhooks.com, version 1).

A call has the headers `webhook-id`, `webhook-timestamp` and `webhook-signature`. A signature is `v1,` and the
base64 of an HMAC-SHA256 over `<id>.<timestamp>.<body>`. Several stand behind each other, parted by spaces, so
that a secret can be changed while both sides run.
"""

from __future__ import annotations

import base64
import hmac
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

ID: Final = "webhook-id"
TIMESTAMP: Final = "webhook-timestamp"
SIGNATURE: Final = "webhook-signature"
_VERSION: Final = "v1,"
_BASE64: Final = "whsec_"
"""What a secret begins with that is written in base64."""


def key_of(secret: str) -> bytes:
    """Returns the key of a secret: base64 behind `whsec_`; any other secret is taken as it is.

    Raises:
        ValueError: What is behind `whsec_` is no base64.
    """
    if not secret.startswith(_BASE64):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_BASE64), validate=True)
    except ValueError:
        raise ValueError(f"is no base64 behind {_BASE64}") from None


def signature(keys: Iterable[bytes], call_id: str, timestamp: str, body: bytes) -> str:
    """Returns the value of `webhook-signature`: a signature with each key."""
    signed = f"{call_id}.{timestamp}.".encode() + body
    digests = (hmac.digest(key, signed, "sha256") for key in keys)
    return " ".join(_VERSION + base64.b64encode(digest).decode() for digest in digests)


def is_signed(keys: Iterable[bytes], call_id: str, timestamp: str, body: bytes, given: str) -> bool:
    """Whether one of the keys made one of the signatures. Each is compared in constant time.

    Args:
        keys: The keys that may have signed.
        call_id: The value of `webhook-id`.
        timestamp: The value of `webhook-timestamp`. Whether it is too old is the caller's to decide.
        body: The body.
        given: The value of `webhook-signature`.
    """
    right = [one.encode() for one in signature(keys, call_id, timestamp, body).split()]
    offered = [one.encode() for one in given.split() if one.startswith(_VERSION)]
    return any(hmac.compare_digest(one, other) for one in offered for other in right)
