"""How long each phase of a mail transaction may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds by phase. The defaults are those of RFC 5321 section 4.5.3.2, except `connect`.

    A server that is slow to answer the final dot may have taken the message. If we stop waiting too early,
    the outcome is unknown. Before the dot a server has taken nothing.
    """

    connect: float = 60
    """To connect, with TLS, greeting and login. A message also waits so long for a free connection."""
    command: float = 300
    """For the reply to MAIL, RCPT, RSET and NOOP."""
    data: float = 120
    """For the reply to DATA, after which the body is sent."""
    block: float = 180
    """For the body to leave for the network."""
    dot: float = 600
    """For the reply to the final dot."""

    @classmethod
    def all(cls, seconds: float) -> Timeouts:
        """Gives every phase the same time."""
        return cls(*[seconds] * 5)
