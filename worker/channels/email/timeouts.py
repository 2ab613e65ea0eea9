"""How long each phase of a mail transaction may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds by phase; the defaults are those of RFC 5321 section 4.5.3.2, but for `connect`.

    A server that is slow to answer the final dot may have taken the message, and to give up early makes an
    outcome that nobody knows. One that is slow before has taken nothing.
    """

    connect: float = 60
    """To connect, TLS, greeting and login included; and for a message to wait for a free connection."""
    command: float = 300
    """For the reply to MAIL, RCPT, RSET and NOOP."""
    data: float = 120
    """For the reply to DATA: the leave to send the body."""
    block: float = 180
    """For the body to leave for the network."""
    dot: float = 600
    """For the reply to the final dot."""

    @property
    def after_body(self) -> float:
        """The most seconds from the first octet of the body to the reply that tells what became of it."""
        return self.block + self.dot

    @classmethod
    def all(cls, seconds: float) -> Timeouts:
        """Gives every phase the same time."""
        return cls(*[seconds] * 5)
