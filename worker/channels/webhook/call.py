"""One connection to a gateway, and one call at a time over it.

A call is written in two steps: its head, and its body. The body leaves only after the hand-over is marked.
A gateway acts on whole calls only: the head says how long the body is (RFC 9112 section 6.3). So if the
connection is lost before the end of the body was written, nothing was handed over. After that, only an answer
says whether the gateway has the message.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, NamedTuple

import httpcore2

from worker.channels.webhook.answers import Answer
from worker.domain.verdicts import Failed, Unsure, Withheld

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from worker.channels.protocol import HandOver
    from worker.domain.webhook_options import GatewayUrl

_FRESH_SECONDS: Final = 1.0
"""Seconds for which a new connection is kept for its first call."""
_IDLE_SECONDS: Final = 4.0
"""Seconds for which a connection is kept for its next call. Many servers end idle ones after five: a call
that meets the end would be in doubt."""
_PIECE: Final = 65_536
"""Octets of a body that are written together."""
_MOST_READ: Final = 16_384
"""Octets of an answer's body that are read. A connection with a longer answer is closed."""
_ERRORS: Final = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    TimeoutError,
    OSError,
)


class CallTimeouts(NamedTuple):
    """Seconds."""

    connect: float
    """To connect, with TLS. A message also waits so long for a free connection."""
    read: float
    """Without an octet of the answer."""
    whole: float
    """From the body to the end of the answer."""


class CallLost(Exception):
    """The connection was lost before the body had left whole: nothing was handed over. Says how."""


class _NotSent(Exception):
    """The body must not leave."""


class _Body:
    """The body of one call."""

    def __init__(
        self, octets: bytes, hand_over: HandOver, connection: Connection, timer: asyncio.Timeout
    ) -> None:
        self._octets = octets
        self._hand_over = hand_over
        self._connection = connection
        self._timer = timer
        self.left = False
        """Whether the last of it was given to the connection."""
        self.verdict: Withheld | Failed | None = None
        """Why it must not leave."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        # Shielded: a call that is cut off must not take the answer from others that wait for it.
        if not await asyncio.shield(self._hand_over.begin()):
            self.verdict = Withheld()
            raise _NotSent
        if self._hand_over.expired:
            # The process or the machine was suspended for so long that another sender may take the claim.
            sentence = "The sender was stopped for longer than its lease: nothing was sent."
            self.verdict = Failed("suspended", retryable=True, detail=sentence)
            raise _NotSent
        self._timer.reschedule(asyncio.get_running_loop().time() + self._connection.timeouts.whole)
        if self._connection.heard_too_early():
            raise httpcore2.WriteError  # whereupon what the gateway said is read as the answer
        end = max(len(self._octets) - _PIECE, 0)
        for start in range(0, end, _PIECE):
            yield self._octets[start : min(start + _PIECE, end)]
        self.left = True
        yield self._octets[end:]


class Connection:
    """A connection to a gateway. One task at a time may use it."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream, url: GatewayUrl, timeouts: CallTimeouts) -> None:
        """Takes an open stream, where it leads, and how long a call may take."""
        self.timeouts: Final = timeouts
        self._stream = stream
        self._url = url
        origin = httpcore2.Origin(b"https" if url.secured else b"http", url.host.encode(), url.port)
        self._http = httpcore2.AsyncHTTP11Connection(origin, stream)
        self._origin = origin
        self._used = False
        self._since = asyncio.get_running_loop().time()

    @property
    def usable(self) -> bool:
        """Whether a call may be made over it, as far as we know."""
        if self._http.is_closed():
            return False
        idle = asyncio.get_running_loop().time() - self._since
        if not self._used:
            return idle < _FRESH_SECONDS
        return self._http.is_idle() and idle < _IDLE_SECONDS and not self._readable

    @property
    def _readable(self) -> bool:
        return bool(self._stream.get_extra_info("is_readable"))

    def heard_too_early(self) -> bool:
        """Whether the gateway has answered or closed before the body: then the body need not leave.

        A new connection with TLS says nothing about that: the server's tickets are still to be read.
        """
        return (self._used or not self._url.secured) and self._readable

    async def post(
        self, headers: Sequence[tuple[bytes, bytes]], body: bytes, hand_over: HandOver
    ) -> Answer | Withheld | Failed | Unsure:
        """Makes one call.

        Args:
            headers: The headers, without those of HTTP itself.
            body: The body.
            hand_over: The right to hand over. It is begun with the head, and must be granted before the body.

        Raises:
            CallLost: Nothing was handed over.
        """
        answer: Answer | None = None
        timer = asyncio.timeout(None)
        leaving = _Body(body, hand_over, self, timer)
        hand_over.begin()
        try:
            async with timer:
                response = await self._http.handle_async_request(self._request(headers, body, leaving))
                self._used = True
                answer = _head(response)
                try:
                    async with aclosing(response.aiter_stream()) as parts:
                        async for part in parts:
                            answer = answer._replace(body=(answer.body + part)[:_MOST_READ])
                            if len(answer.body) == _MOST_READ:
                                break
                finally:
                    await response.aclose()
        except _NotSent:
            return leaving.verdict or Withheld()
        except _ERRORS as error:
            if answer is None:  # else its status counts, whatever its body was to say
                return self._without_answer(error, left=leaving.left)
        finally:
            self._since = asyncio.get_running_loop().time()
        return answer

    def _without_answer(self, error: Exception, *, left: bool) -> Unsure:
        """Returns what becomes of a call that has no answer, or raises CallLost."""
        late = isinstance(error, TimeoutError | httpcore2.TimeoutException)
        why = "it took too long" if late else str(error).rstrip(".") or "the connection broke"
        if not left:
            raise CallLost(why) from error
        return Unsure(f"The whole call was written to {self._url}, and no answer came: {why}.")

    def _request(
        self, headers: Sequence[tuple[bytes, bytes]], body: bytes, leaving: _Body
    ) -> httpcore2.Request:
        url, timeouts = self._url, self.timeouts
        return httpcore2.Request(
            "POST",
            httpcore2.URL(
                scheme=self._origin.scheme, host=self._origin.host, port=url.port, target=url.target
            ),
            headers=[
                (b"host", url.authority.encode()),
                (b"content-length", b"%d" % len(body)),
                (b"accept-encoding", b"identity"),
                *headers,
            ],
            content=leaving,
            extensions={"timeout": {"read": timeouts.read, "write": timeouts.whole}},
        )

    async def close(self) -> None:
        """Closes it."""
        await self._http.aclose()


def _head(response: httpcore2.Response) -> Answer:
    phrase = response.extensions.get("reason_phrase", b"")
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
    return Answer(response.status, phrase.decode("latin-1"), headers, b"")
