"""The rules of a preparation: who may prepare, and from which state. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts.states import State
from worker.domain.deliveries import left_by_retention, words
from worker.domain.operators import Role
from worker.domain.states import Move, sources

if TYPE_CHECKING:
    from datetime import datetime

    from worker.domain.operators import Operator


def refuse_operator(operator: Operator | None, name: str) -> str | None:
    """Refuses an operator who is unknown, inactive or without a role that may prepare.

    Args:
        operator: The directory's entry, or None.
        name: The name that was given.
    """
    if operator is None:
        return f"The operator “{name}” is not known. Add them with: sendoff operator add."
    if not operator.active:
        return f"The operator “{name}” has been deactivated."
    if not operator.roles & {Role.PREPARE_DELIVERIES, Role.START_DELIVERIES}:
        return (
            f"To prepare a delivery, “{name}” needs the role {Role.PREPARE_DELIVERIES.value} or"
            f" {Role.START_DELIVERIES.value}. Give it with: sendoff operator grant."
        )
    return None


def refuse_state(delivery_id: int, state: State, purged_at: datetime | None = None) -> str | None:
    """Refuses a delivery that was confirmed, has ended, or was removed by retention.

    A delivery in *preparing* is not refused: a lock, not the state, shows whether a process prepares it.
    """
    if purged_at is not None:
        return f"{left_by_retention(delivery_id, purged_at)} Leave out --delivery to prepare it as a new one."
    if state in (*sources(Move.PREPARE), State.PREPARING):
        return None
    return (
        f"The delivery {delivery_id} is {words(state)} and cannot be prepared again;"
        " leave out --delivery to prepare it as a new one."
    )
