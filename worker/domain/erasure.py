"""Who may erase what is held of a profile, and how an erasure is recorded without it. Pure."""

from __future__ import annotations

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


def fingerprint(profile_id: str) -> str:
    """Returns the SHA-256 of a profile's id, in hex: only who has the id can tell that it was erased."""
    return sha256(profile_id.encode()).hexdigest()
