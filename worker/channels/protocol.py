"""What a channel is: to the send service a `Channel`, to everybody else a `Kind` in the registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from worker.domain.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from contracts.sends import Send
    from worker.domain.delivery_file import ContentTable
    from worker.domain.verdicts import Verdict
    from worker.settings import Settings


class ChannelUnreachable(Exception):  # noqa: N818 - named for what happened, as a verdict is
    """Nothing can be sent over the channel now; the message is a sentence that says why."""

    def __init__(self, sentence: str, failure: Failure = Failure.AWAY) -> None:
        """Takes the sentence, and what it means for us."""
        super().__init__(sentence)
        self.failure = failure


class HandOver(Protocol):
    """The right to hand one message over, held under a lease."""

    def begin(self) -> Awaitable[bool]:
        """Begins to mark the message as handed over, when its envelope is begun; a repeat changes nothing.

        To be awaited before anything of the body is written: where it is false, nothing may be sent.
        """

    @property
    def expired(self) -> bool:
        """Whether the lease is as good as over; to be asked right before the body is begun."""


class Granted:
    """A right that needs no mark: for a proof, and where the claim itself was the hand-over."""

    expired = False

    async def begin(self) -> bool:
        """Always granted."""
        return True


class Channel(Protocol):
    """Carries messages to recipients."""

    @property
    def concurrency(self) -> int | None:
        """How many sends make sense at a time; None if a send never waits."""

    async def ready(self) -> None:
        """Returns once sends can be made.

        Raises:
            ChannelUnreachable: They cannot be made now.
        """

    def prepare(self, content: Mapping[str, Any]) -> Any:  # noqa: ANN401 - each channel's own
        """Compiles a content, once per delivery.

        Raises:
            ContentInvalid: Nobody can be sent this content; the message says why.
        """

    async def send(self, compiled: Any, send: Send, hand_over: HandOver) -> Verdict:  # noqa: ANN401
        """Tries one recipient.

        Args:
            compiled: What `prepare` returned.
            send: The recipient.
            hand_over: To be begun before the other side can have the message.
        """

    async def close(self) -> None:
        """Lets go of what it holds."""


class Probe(NamedTuple):
    """What `sendoff check` looks at for a channel."""

    part: str
    """Its name in the output."""
    look: Callable[[Settings], Awaitable[None]]
    """Returns where all is well.

    Raises:
        ChannelUnreachable: Nothing can be sent now.
        ValueError: A setting is wrong; the message names it.
    """


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of channel: all that the rest of Sendoff needs to know of it."""

    name: str
    """The channel, and the routing key of its send messages."""
    address_rule: Callable[[str], str]
    """Returns an address in its normal form, or raises `worker.domain.audience.AddressInvalid`."""
    content: ContentTable
    """What a delivery file says to recipients over it."""
    open: Callable[[Settings], Channel]
    """Makes the channel."""
    probe: Probe | None = None
    """None if nothing outside is needed."""
