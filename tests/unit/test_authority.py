"""Whose word counts: the publisher's, the token's, and at a scheduled start that of who stands for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.commands import Reason
from worker.domain.authority import Bearer, acting_operator, check_bearer, check_publisher, check_start
from worker.domain.operators import Operator, Role

ANA = Bearer("ana", frozenset({Role.START_DELIVERIES}))
roles = st.frozensets(st.sampled_from(Role))
listed = st.none() | st.builds(Operator, st.just("ana"), st.booleans(), roles)


@given(st.text(min_size=1), st.frozensets(st.text(min_size=1)))
def test_a_publisher_is_heard_if_and_only_if_listed_or_there_is_no_list(user: str, allowed: set[str]) -> None:
    refused = check_publisher(user, frozenset(allowed))
    assert (refused is None) == (not allowed or user in allowed)
    unnamed = check_publisher(None, frozenset(allowed))
    assert (unnamed is None) == (not allowed)
    for one in filter(None, (refused, unnamed)):
        assert one.reason is Reason.PUBLISHER_NOT_ALLOWED


def test_a_publisher_who_is_refused_reads_what_to_do() -> None:
    allowed = frozenset({"upstream"})
    unnamed, other = check_publisher(None, allowed), check_publisher("eve", allowed)
    assert unnamed is not None
    assert other is not None
    assert unnamed.message == (
        "The command does not say which broker user published it: set the property user_id to your own."
    )
    assert (
        other.message == "The broker user “eve” may not publish commands: SENDOFF_PUBLISHERS leaves it out."
    )


def test_a_token_speaks_for_its_own_operator_alone() -> None:
    assert check_bearer(ANA, "ana") is None
    refused = check_bearer(ANA, "paul")
    assert refused is not None
    assert refused.reason is Reason.PUBLISHER_NOT_ALLOWED
    assert refused.message == "The token is for “ana”, and the command names “paul”."


@given(listed, roles)
def test_with_a_token_the_roles_are_its_own_and_who_was_deactivated_stays_so(
    entry: Operator | None, given_roles: frozenset[Role]
) -> None:
    assert acting_operator(entry, None) == entry
    by_token = acting_operator(entry, Bearer("ana", given_roles))
    assert by_token == Operator("ana", entry is None or entry.active, given_roles)


@given(listed, st.booleans())
def test_a_scheduled_delivery_starts_unless_its_operator_lost_the_right(
    entry: Operator | None,
    by_token: bool,  # noqa: FBT001 - drawn by hypothesis
) -> None:
    deactivated = entry is not None and not entry.active
    starter = entry is not None and Role.START_DELIVERIES in entry.roles
    why = check_start(entry, "ana", by_token=by_token)
    assert (why is None) == (not deactivated and (by_token or starter))


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (Operator("ana", active=False, roles=frozenset(Role)), "has been deactivated"),
        (
            Operator("ana", active=True, roles=frozenset({Role.PREPARE_DELIVERIES})),
            "no longer holds the Start deliveries role (start_deliveries)",
        ),
        (None, "no longer holds the Start deliveries role (start_deliveries)"),
    ],
)
def test_a_start_that_is_held_back_names_who_stood_for_it_and_why(entry: Operator | None, why: str) -> None:
    assert check_start(entry, "ana", by_token=False) == (
        f"It was not started: “ana”, who confirmed or resumed it, {why}."
    )
