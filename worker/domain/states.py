"""The states of a delivery and the one table of legal moves."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from contracts.events import Event
from contracts.states import State


class Move(StrEnum):
    """What moves a delivery from one state to another."""

    PREPARE = "prepare"
    """An operator starts a preparation."""
    PREPARED = "prepared"
    """The preparation is complete."""
    PREPARATION_FAILED = "preparation_failed"
    """The preparation found errors, or its process died."""
    CONFIRM = "confirm"
    """An operator gave the definitive OK."""
    START = "start"
    """The contact date is reached, or there is none."""
    AWAIT_RETRIES = "await_retries"
    """Only recipients that wait for a retry are left."""
    FINISH = "finish"
    """Nothing is left open."""
    PAUSE = "pause"
    """An operator, the circuit breaker or a revoked role pauses it."""
    RESUME = "resume"
    """An operator lets it go on, in the state in which it was paused."""
    STOP = "stop"
    """An operator stops it permanently."""
    FAIL = "fail"
    """It cannot go on for any recipient."""
    RESEND = "resend"
    """An operator settles unknown outcomes as *resend*."""


RUNNING: Final = (State.IN_PROGRESS, State.RETRY_PENDING)
"""The states in which a claim may be granted."""

_GOING: Final = (State.START_PENDING, *RUNNING)

UNDER_WAY: Final = (*_GOING, State.PAUSED)
"""The states in which a retry may be planned: a result must not start an ended delivery again."""

OVER: Final = (State.FINISHED, State.STOPPED, State.FAILED)
"""The states in which Sendoff does nothing more by itself."""

CONFIRMED: Final = (*UNDER_WAY, *OVER)
"""The states after the definitive OK (*stopped* also without it)."""

MOVES: Final[dict[Move, tuple[tuple[State, ...], tuple[State, ...]]]] = {
    Move.PREPARE: ((State.EDITING, State.READY, State.PREPARATION_FAILED), (State.PREPARING,)),
    Move.PREPARED: ((State.PREPARING,), (State.READY,)),
    Move.PREPARATION_FAILED: ((State.PREPARING,), (State.PREPARATION_FAILED,)),
    Move.CONFIRM: ((State.READY,), (State.START_PENDING,)),
    Move.START: ((State.START_PENDING,), (State.IN_PROGRESS,)),
    Move.AWAIT_RETRIES: ((State.IN_PROGRESS,), (State.RETRY_PENDING,)),
    Move.FINISH: (RUNNING, (State.FINISHED,)),
    Move.PAUSE: (_GOING, (State.PAUSED,)),
    Move.RESUME: ((State.PAUSED,), _GOING),
    Move.STOP: ((State.READY, *UNDER_WAY), (State.STOPPED,)),
    Move.FAIL: (_GOING, (State.FAILED,)),
    Move.RESEND: ((State.FINISHED,), (State.IN_PROGRESS,)),
}
"""For each move: the states that it may start from, and the states that it may lead to."""

EVENTS: Final = {
    Move.CONFIRM: Event.CONFIRMED,
    Move.START: Event.STARTED,
    Move.PAUSE: Event.PAUSED,
    Move.RESUME: Event.RESUMED,
    Move.RESEND: Event.RESUMED,
    Move.STOP: Event.STOPPED,
    Move.FINISH: Event.FINISHED,
    Move.FAIL: Event.FAILED,
}
"""The event of each move. The moves of a preparation have no event."""


def sources(move: Move) -> tuple[State, ...]:
    """Returns the states that a move may start from. Its guarded update expects them."""
    return MOVES[move][0]


def targets(move: Move) -> tuple[State, ...]:
    """Returns the states that a move may lead to. In these the move was made before, or is not needed."""
    return MOVES[move][1]


def target(move: Move) -> State:
    """Returns the one state that a move leads to.

    Raises:
        ValueError: the move leads back to one of several states (*resume*).
    """
    (only,) = targets(move)
    return only
