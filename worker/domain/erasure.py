"""Who may erase a profile, and how an erasure is recorded without the profile's id. Pure."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import TYPE_CHECKING

from worker.domain.operators import Role, refuse_operator

if TYPE_CHECKING:
    from worker.domain.operators import Operator
    from worker.domain.refusals import Refused


def check_erasure(operator: Operator | None, name: str) -> Refused | None:
    """Refuses an operator who is unknown, inactive or without the role *Administration*.

    Args:
        operator: The directory's entry, or None.
        name: The name that was given.
    """
    return refuse_operator(operator, name, Role.ADMINISTRATION, "erase a profile")


def fingerprint(profile_id: str, key: str) -> str:
    """Returns the HMAC-SHA256 of a profile's id, in hex. Only with id and key one can see the erasure.

    A hash without a key would show it to everybody: there are few ids, and all can be tried.

    Args:
        profile_id: The id, as the recipients files had it.
        key: The installation's secret key, `SENDOFF_FINGERPRINT_KEY`.
    """
    return hmac.new(key.encode(), profile_id.encode(), sha256).hexdigest()
