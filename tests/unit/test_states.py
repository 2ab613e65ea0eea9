from __future__ import annotations

import pytest

from contracts.states import State
from dev import draw_states
from worker.domain.states import MOVES, Move, sources, target, targets


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
