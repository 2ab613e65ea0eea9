"""The claims of a sender: granted under a token and a lease, handed over, given back."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import structlog

from worker.crashing import crash_point
from worker.db.hand_over import Claimed, HandOvers, Right, seconds_since_boot
from worker.db.retrying import Idempotent
from worker.domain.failures import Busy, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from worker.db.retrying import Retrying

log = structlog.get_logger(__name__)

_SAFE_SHARE: Final = 0.9
"""Share of a lease. After this time no send is begun; the rest of the lease is for sends under way."""


class Claiming(Protocol):
    """Grants claims: `worker.db.accounts.Accounts`, which says what each method does."""

    async def claim(
        self,
        delivery_id: int,
        asked: Mapping[int, tuple[int, str]],
        token: int,
        *,
        lease: float,
        handed_over: bool = False,
    ) -> set[int]:
        """Claims recipients."""


class Claims(Claiming, Protocol):
    """The claims in the database, likewise."""

    async def hand_over(self, delivery_id: int, claims: Mapping[int, int], *, margin: float) -> set[int]:
        """Marks claims as handed over."""

    async def give_back(self, delivery_id: int, claims: Mapping[int, int], *, in_hand: bool = False) -> int:
        """Undoes claims that were not handed over."""


class Held(NamedTuple):
    """A claim, and until when it may be handed over, in seconds since the boot."""

    claimed: Claimed
    until: float


class Holding:
    """Holds the claims of one sender."""

    def __init__(
        self,
        claims: Claims,
        database: Retrying,
        *,
        lease: float,
        result_lease: float,
        at_most: int | None,
        on_mark: Callable[[int, Collection[int]], None] = lambda _, __: None,
        on_end: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Takes its parts.

        Args:
            claims: The claims in the database.
            database: Executes transactions.
            lease: Seconds for which a claim is held before it is handed over.
            result_lease: Seconds from the hand-over until the result.
            at_most: The most claims that are handed over and have no reported result; None if the claim is
                the hand-over.
            on_mark: Called with a delivery and its recipients that were handed over just now.
            on_end: Called with the seconds that a claim was in doubt, from its mark to its end.
        """
        self._claims = claims
        self._database = database
        self._at_once = at_most is None
        self._lease = result_lease if self._at_once else lease
        self._on_mark = on_mark
        self._hand_overs = HandOvers(self._mark, at_most or 0, on_end)

    async def run(self) -> None:
        """Marks hand-overs until it is cancelled."""
        await self._hand_overs.run()

    async def claim(self, delivery_id: int, wanted: Mapping[int, tuple[int, str]]) -> dict[int, Held]:
        """Claims recipients of a delivery; returns what is granted, by recipient in their order.

        Args:
            delivery_id: The delivery.
            wanted: For each recipient, the attempt and the key of the address.

        Raises:
            Busy, Unstorable: nothing is granted. The database can refuse only the key of a claim, when
                several senders claim the same recipient now.
            Broken, Stopped: as `worker.db.retrying.Retrier.until_done`.
        """
        token, begun = secrets.randbits(63), seconds_since_boot()
        claiming = Idempotent(
            lambda: self._claims.claim(
                delivery_id, wanted, token, lease=self._lease, handed_over=self._at_once
            )
        )
        granted: set[int] = await self._database.until_done(claiming, "claiming recipients")
        if granted:
            crash_point("claim.granted")
        until = begun + _SAFE_SHARE * self._lease
        return {r: Held(Claimed(delivery_id, r, token), until) for r in sorted(granted)}

    def right(self, held: Held) -> Right:
        """Returns the right to hand a claimed message over."""
        return Right(self._hand_overs, held.claimed, held.until)

    async def give_back(self, held: Held, *, in_hand: bool = False) -> None:
        """Undoes a claim, so that another sender can take it before its lease expires.

        Args:
            held: The claim. Nothing must be sent under it any more.
            in_hand: Whether the caller keeps the message, to claim it again.
        """
        claimed = held.claimed
        claims = {claimed.recipient: claimed.token}
        giving = Idempotent(lambda: self._claims.give_back(claimed.delivery_id, claims, in_hand=in_hand))
        with contextlib.suppress(Busy, Stopped):  # the lease expires by itself too
            await self._database.until_done(giving, "giving a claim back")
            crash_point("claim.given-back")

    async def _mark(self, delivery_id: int, claims: Mapping[int, int]) -> set[int]:
        margin = (1 - _SAFE_SHARE) * self._lease
        marking = Idempotent(lambda: self._claims.hand_over(delivery_id, claims, margin=margin))
        try:
            marked: set[int] = await self._database.until_done(marking, "marking hand-overs")
        except (Busy, Stopped) as error:  # a stop too: what is with the relay already is still to be reported
            log.warning("not handed over", delivery_id=delivery_id, claims=len(claims), because=str(error))
            return set()
        if marked:
            crash_point("hand-over.marked")
        self._on_mark(delivery_id, marked)
        return marked
