"""The replies to commands. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from contracts.commands import Reason, Reply, Status

if TYPE_CHECKING:
    from contracts.commands import Summary
    from contracts.states import State
    from worker.domain.deliveries import Delivery
    from worker.domain.refusals import Refused

OTHER_COMMAND: Final = "Another command was sent with this message_id. Give each its own."


def accepted(command_id: str, delivery: Delivery, sentence: str, state: State | None) -> Reply:
    """Answers a command that was carried out, with the state that it led to."""
    return Reply(
        command_id=command_id,
        delivery_id=delivery.delivery_id,
        status=Status.ACCEPTED,
        message=sentence,
        state=state,
    )


def finalize(command_id: str, delivery: Delivery, sentence: str, seen: Summary) -> Reply:
    """Answers the button: the summary that a person must see before the OK."""
    return Reply(
        command_id=command_id,
        delivery_id=delivery.delivery_id,
        status=Status.FINALIZE,
        message=sentence,
        state=delivery.state,
        summary=seen,
    )


def refusal(command_id: str, delivery_id: int | None, refused: Refused, delivery: Delivery | None) -> Reply:
    """Answers a command that the rules forbid, with the delivery's state if it was read.

    Args:
        command_id: The command's id.
        delivery_id: The delivery that it named; None if it could not be read.
        refused: The refusal.
        delivery: That delivery; None if there is none, or it was not read.
    """
    return Reply(
        command_id=command_id,
        delivery_id=delivery_id,
        status=Status.REFUSED,
        reason=refused.reason,
        message=refused.message,
        state=delivery.state if delivery else None,
    )


def malformed(command_id: str, sentence: str) -> Reply:
    """Answers a command that could not be read."""
    return Reply(command_id=command_id, status=Status.INVALID, reason=Reason.MALFORMED, message=sentence)
