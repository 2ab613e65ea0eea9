"""Checks the sender of each command before anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts.routing import AUTHORIZATION
from worker.auth.tokens import TokenRefused
from worker.domain.authority import Bearer, check_bearer, check_publisher, not_allowed

if TYPE_CHECKING:
    from worker.amqp.messages import Incoming
    from worker.auth.tokens import Verifier
    from worker.domain.refusals import Refused


class Authority:
    """The broker users who may publish commands, and the verifier of tokens if tokens are required."""

    def __init__(self, publishers: frozenset[str], verifier: Verifier | None) -> None:
        """Takes both. No publishers: everybody may publish. No verifier: no token is required."""
        self._publishers = publishers
        self._verifier = verifier

    def identify(self, message: Incoming, operator: str | None) -> Bearer | Refused | None:
        """Identifies the operator of a command.

        Args:
            message: The command as it arrived.
            operator: The operator in the body; None if the body could not be read.

        Returns:
            The bearer of the token, None if no token is required, or the refusal.
        """
        refused = check_publisher(message.user_id, self._publishers)
        if refused is not None or self._verifier is None:
            return refused
        try:
            bearer = self._verifier.verify(message.headers.get(AUTHORIZATION))
        except TokenRefused as error:
            return not_allowed(str(error))
        return (check_bearer(bearer, operator) if operator is not None else None) or bearer
