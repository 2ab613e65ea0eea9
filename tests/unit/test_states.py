"""The table of legal moves, and the groups of states that follow from it."""

from __future__ import annotations

import pytest

from contracts.events import Event
from contracts.states import State
from dev import draw_states
from worker.domain.states import (
    CONFIRMED,
    EVENTS,
    MOVES,
    RUNNING,
    UNDER_WAY,
    Move,
    sources,
    target,
    targets,
)


def test_every_state_but_the_first_can_be_reached_and_only_the_ended_ones_cannot_be_left() -> None:
    reached = {to for _, targets in MOVES.values() for to in targets}
    left = {state for origins, _ in MOVES.values() for state in origins}
    assert set(State) - reached == {State.EDITING}
    assert set(State) - left == {State.STOPPED, State.FAILED}


def test_no_move_leads_out_of_an_ended_delivery_but_a_resend() -> None:
    assert [move for move in Move if State.FINISHED in sources(move)] == [Move.RESEND]


def test_control_never_takes_what_is_done_for_what_is_to_be_done() -> None:
    for move in (Move.PAUSE, Move.RESUME, Move.STOP):
        assert not set(sources(move)) & set(targets(move))


def test_a_resume_has_no_single_target() -> None:
    with pytest.raises(ValueError, match="unpack"):
        target(Move.RESUME)


def test_the_diagram_in_the_docs_is_drawn_from_the_table_of_moves() -> None:
    assert draw_states.PAGE.read_text() == draw_states.page()


@pytest.mark.parametrize("move", sorted(set(Move) - {Move.RESUME}))
def test_every_other_move_leads_to_one_state(move: Move) -> None:
    assert (target(move),) == targets(move)


def test_claims_are_granted_exactly_while_a_delivery_may_finish() -> None:
    assert set(RUNNING) == set(sources(Move.FINISH))


def test_a_delivery_is_under_way_while_a_stop_would_leave_somebody_out() -> None:
    """Before the OK a stop leaves nobody out: nobody was to be sent to yet."""
    assert set(UNDER_WAY) == set(sources(Move.STOP)) - {State.READY}


def test_confirmed_is_whatever_the_definitive_ok_can_lead_to() -> None:
    reached = set(targets(Move.CONFIRM))
    for _ in State:
        reached |= {to for origins, goals in MOVES.values() if reached & set(origins) for to in goals}
    assert set(CONFIRMED) == reached


def test_everybody_is_told_of_every_move_from_the_definitive_ok_on() -> None:
    """A wait for retries is part of the sending, and changes nothing for who listens."""
    confirming = {move for move in Move if set(sources(move)) & set(CONFIRMED)} | {Move.CONFIRM}
    assert set(EVENTS) == confirming - {Move.AWAIT_RETRIES}
    names = {Move.START: "started", Move.PAUSE: "paused", Move.STOP: "stopped", Move.RESEND: "resumed"}
    for move, event in EVENTS.items():
        ended = f"{move.value}d" if move.value.endswith("e") else f"{move.value}ed"
        assert event is Event(f"delivery.{names.get(move, ended)}")


def test_the_names_of_moves_that_the_log_keeps_stay() -> None:
    assert [move.value for move in Move] == [move.name.lower() for move in Move]
