"""Which broker users may publish commands, and which operator a signed token authorises. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from contracts.commands import Reason
from worker.domain.operators import Operator, Role
from worker.domain.refusals import Refused


@dataclass(frozen=True, slots=True)
class Bearer:
    """The operator of a verified token, and the token's roles."""

    operator: str
    roles: frozenset[Role]


def check_publisher(user: str | None, allowed: frozenset[str]) -> Refused | None:
    """Refuses a command of a broker user who may not publish commands.

    Args:
        user: The message's `user_id`, which the broker has compared with the connection's user; None if
            the publisher left it out.
        allowed: The broker users who may; empty for everybody.
    """
    if not allowed or user in allowed:
        return None
    if user is None:
        return not_allowed(
            "The command does not say which broker user published it: set the property user_id to your own."
        )
    return not_allowed(
        f"The broker user “{user}” may not publish commands: SENDOFF_PUBLISHERS leaves it out."
    )


def check_bearer(bearer: Bearer, operator: str) -> Refused | None:
    """Refuses a command if its token names another operator."""
    if bearer.operator == operator:
        return None
    return not_allowed(f"The token is for “{bearer.operator}”, and the command names “{operator}”.")


def acting_operator(listed: Operator | None, bearer: Bearer | None) -> Operator | None:
    """Returns the operator whose roles the rules check.

    With a token, only the token's roles count, and the operator need not be in the directory. An operator who
    is deactivated in the directory stays inactive, because a token cannot be revoked before it expires.

    Args:
        listed: The directory's entry, read in the transaction that moves the state.
        bearer: The bearer of the command's token; None if tokens are not required.
    """
    if bearer is None:
        return listed
    return Operator(bearer.operator, listed is None or listed.active, bearer.roles)


def check_start(listed: Operator | None, name: str, *, by_token: bool) -> str | None:
    """Returns why a scheduled delivery must not start under its recorded authority, or None.

    Args:
        listed: The directory's entry for `name`, read in the transaction that starts the delivery.
        name: The operator who confirmed the delivery, or resumed it last.
        by_token: Whether a token gave the roles then. In this case only a deactivation in the directory
            counts.
    """
    why = lost_right(listed, by_token=by_token)
    return why and f"It was not started: “{name}”, who confirmed or resumed it, {why}."


def lost_right(listed: Operator | None, *, by_token: bool) -> str | None:
    """Returns how an operator lost the right to start deliveries since they used it, or None if they did not.

    Args:
        listed: The directory's entry, as in `check_start`.
        by_token: As in `check_start`.
    """
    if listed is not None and not listed.active:
        return "has been deactivated"
    if by_token or (listed is not None and Role.START_DELIVERIES in listed.roles):
        return None
    return f"no longer holds the Start deliveries role ({Role.START_DELIVERIES.value})"


def not_allowed(sentence: str) -> Refused:
    """Returns the refusal for a publisher that may not publish commands."""
    return Refused(Reason.PUBLISHER_NOT_ALLOWED, sentence)
