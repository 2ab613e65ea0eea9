"""Who may erase what is held of a profile, and how an erasure is recorded without it. Pure."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from contracts.commands import Reason
from worker.domain.confirm import Refused, Role

if TYPE_CHECKING:
    from worker.domain.confirm import Operator


def check_erasure(operator: Operator | None, name: str) -> Refused | None:
    """Refuses an operator who is unknown, inactive or without the role *Administration*.

    Args:
        operator: The directory's entry, or None.
        name: The name that was given.
    """
    if operator is None or not operator.active:
        why = "is not known" if operator is None else "has been deactivated"
        return Refused(Reason.OPERATOR_UNKNOWN, f"The operator “{name}” {why}.")
    if Role.ADMINISTRATION not in operator.roles:
        return Refused(
            Reason.ROLE_MISSING,
            f"Only operators with the Administration role can erase a profile: “{name}” lacks the role"
            f" {Role.ADMINISTRATION.value}.",
        )
    return None


def fingerprint(profile_id: str) -> str:
    """Returns the SHA-256 of a profile's id, in hex: only who has the id can tell that it was erased."""
    return sha256(profile_id.encode()).hexdigest()
