"""Who may speak, asked of each command before anything else is looked at."""

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
    """The broker users who may publish commands, and the verifier of tokens where they are asked for."""

    def __init__(self, publishers: frozenset[str], verifier: Verifier | None) -> None:
        """Takes both; no publishers means everybody, no verifier that no token is asked for."""
        self._publishers = publishers
        self._verifier = verifier

    def identify(self, message: Incoming, operator: str | None) -> Bearer | Refused | None:
        """Says who speaks.

        Args:
            message: The command as it arrived.
            operator: Whom its body names; None if it could not be read.

        Returns:
            Whom the token names; None if no token is asked for; or why nobody listens.
        """
        refused = check_publisher(message.user_id, self._publishers)
        if refused is not None or self._verifier is None:
            return refused
        try:
            bearer = self._verifier.verify(message.headers.get(AUTHORIZATION))
        except TokenRefused as error:
            return not_allowed(str(error))
        return (check_bearer(bearer, operator) if operator is not None else None) or bearer
