"""A sending channel: the send service uses a `Channel`, the other code a `Kind` of the registry."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from worker.domain.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from contracts.sends import Send
    from worker.domain.delivery_file import ContentTable
    from worker.domain.templates import Rendered
    from worker.domain.verdicts import Verdict
    from worker.settings import Settings


class ChannelUnreachable(Exception):
    """Nothing can be sent over the channel now; the message is a sentence that says why."""

    def __init__(self, sentence: str, failure: Failure = Failure.AWAY) -> None:
        """Takes the sentence, and the kind of failure."""
        super().__init__(sentence)
        self.failure = failure


class HandOver(Protocol):
    """The right to hand one message over. It is held under a lease."""

    def begin(self) -> Awaitable[bool]:
        """Begins to mark the message as handed over, with its envelope. A repeat changes nothing.

        Await the result before the body is written. If it is false, the message must not be sent.
        """

    @property
    def expired(self) -> bool:
        """Whether the lease is nearly over. Check it directly before the body is written."""


class Granted:
    """A right that needs no mark: for a proof, and if the claim itself was the hand-over."""

    expired = False

    def begin(self) -> asyncio.Future[bool]:
        """Always granted; a future, since nobody awaits the answer where the envelope is refused."""
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(True)
        return answer


class HeldLane(NamedTuple):
    """A lane that is held back now."""

    relay: str
    """The name of the relay whose lane it is."""
    name: str
    connections: int
    """How many connections it may have now."""
    answered: int
    """How many of its messages passed since the start."""
    opens_at: float
    """When its pause ends, in the time of the event loop; a past time for none."""
    because: str
    """Why it is held back."""


class Lane(Protocol):
    """What one group of addresses takes. The sender keeps to it, so that a slow group delays no other."""

    @property
    def opens_at(self) -> float:
        """When its pause ends, in the time of the event loop; a past time for none."""

    @property
    def waiting(self) -> int:
        """How many of its messages were read and are not claimed."""

    def room(self, now: float) -> int:
        """Returns how many more of its messages may be claimed."""

    def held(self, now: float) -> HeldLane | None:
        """Returns how it is held back now, for a reason of its own; None if it is not."""

    def wait(self) -> None:
        """Notes that one of its messages was read, and waits to be claimed."""

    def drop(self, count: int = 1) -> None:
        """Notes that some that waited will not be claimed here."""

    def enter(self, count: int = 1) -> None:
        """Notes that some that waited are about to be claimed."""

    def leave(self, *, unused: bool = False) -> None:
        """Notes that one is not claimed any more; whether it was not tried."""


class Want(NamedTuple):
    """What a process asks for of a limit that all processes share."""

    name: str
    per_minute: int
    """The limit: messages a minute."""
    messages: int
    """How many it asks for."""


class Share(NamedTuple):
    """What a process asks for of connections that all processes share."""

    name: str
    connections: int
    """The limit."""


class Lanes(Protocol):
    """The lanes of a channel: its sender uses `of`, and the service *flow* the rest."""

    def of(self, address: str) -> Lane:
        """Returns the lane of an address."""

    def held(self, now: float) -> list[HeldLane]:
        """Returns the lanes that are held back now."""

    def wants(self) -> list[Want]:
        """Returns the messages that are to be leased, since some wait for it."""

    def shares(self) -> list[Share]:
        """Returns the connections that are to be leased: of limits in use."""

    def grant(self, granted: Mapping[str, int], now: float) -> None:
        """Takes what was leased, by name."""


class Channel(Protocol):
    """Sends messages to recipients."""

    @property
    def concurrency(self) -> int | None:
        """How many sends may run at the same time; None if a send never waits."""

    @property
    def lanes(self) -> Lanes | None:
        """What it takes for which addresses; None if nothing is limited."""

    async def ready(self) -> None:
        """Returns when messages can be sent.

        Raises:
            ChannelUnreachable: They cannot be sent now.
        """

    def prepare(self, content: Mapping[str, Any]) -> Any:  # noqa: ANN401 - each channel's own
        """Compiles a content, once per delivery.

        Raises:
            ContentInvalid: The content cannot be sent to any recipient; the message says why.
        """

    async def send(self, compiled: Any, send: Send, hand_over: HandOver) -> Verdict:  # noqa: ANN401
        """Tries one recipient.

        Args:
            compiled: What `prepare` returned.
            send: The recipient.
            hand_over: The right to hand over. It must be begun before the other side can have the message.
        """

    def stop_waiting(self) -> None:
        """From now on, what would wait for the other side is put off at once, since the process stops.

        What is under way goes on.
        """

    async def close(self) -> None:
        """Closes its connections."""


@runtime_checkable
class Proving(Protocol):
    """A channel that can show a message to a tester."""

    def prepare(self, content: Mapping[str, Any]) -> Any:  # noqa: ANN401 - each channel's own
        """Compiles a content, as `Channel.prepare`."""

    async def prove(self, compiled: Any, send: Send, tester: str) -> Verdict:  # noqa: ANN401
        """Sends what a recipient would get to a tester, marked as a proof.

        Args:
            compiled: What `prepare` returned.
            send: The recipient.
            tester: The address that gets it instead.
        """

    async def close(self) -> None:
        """Closes its connections."""


class Seen(NamedTuple):
    """What a probe saw of a channel that can send."""

    message: str
    """In a sentence."""
    limited: bool = False
    """Whether it takes less than the settings want, so that somebody should look at it."""


class Probe(NamedTuple):
    """What `sendoff check` checks for a channel."""

    part: str
    """The name of the part in the output."""
    look: Callable[[Settings], Awaitable[Seen]]
    """Returns if the channel can send.

    Raises:
        ChannelUnreachable: Nothing can be sent now.
        ValueError: A setting is wrong; the message names it.
    """


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of channel: all that the other code needs to know about it."""

    name: str
    """The channel, and the routing key of its send messages."""
    address_rule: Callable[[str], str]
    """Returns an address in its normal form, or raises `worker.domain.audience.AddressInvalid`."""
    content: ContentTable
    """The content table of its delivery files."""
    open: Callable[[Settings], Channel]
    """Makes the channel."""
    show: Callable[[Mapping[str, Any], dict[str, Any]], Rendered] | None = None
    """Returns a message as a person reads it, of a stored content and a recipient's values, with links that
    count nothing. Raises `worker.domain.templates.RenderFailed` or ValueError. None if nobody can see it."""
    probe: Probe | None = None
    """None if it needs no server."""
