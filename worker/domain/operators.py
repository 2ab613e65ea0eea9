"""Operators, their roles, and who may do what. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from contracts.commands import Reason
from worker.domain.refusals import Refused


class Role(StrEnum):
    """What an operator may do."""

    PREPARE_DELIVERIES = "prepare_deliveries"
    """May prepare deliveries."""
    START_DELIVERIES = "start_deliveries"
    """May prepare, confirm, pause, resume and stop them."""
    ADMINISTRATION = "administration"
    """May manage operators. It does not include the right to start deliveries."""


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of the directory."""

    name: str
    active: bool
    roles: frozenset[Role]


_TITLES = {
    Role.PREPARE_DELIVERIES: "Prepare deliveries",
    Role.START_DELIVERIES: "Start deliveries",
    Role.ADMINISTRATION: "Administration",
}


def refuse_operator(operator: Operator | None, name: str, role: Role, action: str) -> Refused | None:
    """Refuses an operator who is unknown, inactive or without a role.

    Args:
        operator: The directory's entry, or None.
        name: The name that was given.
        role: The role that the action needs.
        action: The action, as the end of the sentence: "confirm a send".
    """
    if operator is None or not operator.active:
        why = "is not known" if operator is None else "has been deactivated"
        return Refused(Reason.OPERATOR_UNKNOWN, f"The operator “{name}” {why}.")
    if role not in operator.roles:
        return Refused(
            Reason.ROLE_MISSING,
            f"Only operators with the {_TITLES[role]} role can {action}: “{name}” lacks the role"
            f" {role.value}.",
        )
    return None
