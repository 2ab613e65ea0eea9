"""How a connection to the broker ends."""

from __future__ import annotations

from typing import Final

NOT_FOUND: Final = 404
"""AMQP's reply code: there is no such queue or exchange."""
FORBIDDEN: Final = 403
"""AMQP's reply code: the user lacks a permission."""


class ConnectionLost(Exception):
    """The connection is lost; the message says why."""


class ProtocolError(ConnectionLost):
    """The broker sent bytes that AMQP 0-9-1 does not allow, or an answer without a question."""


class ConnectionClosed(ConnectionLost):
    """The broker closed the connection and said why.

    Attributes:
        code: AMQP's reply code: 403 refused, 530 not allowed (no such virtual host, for example).
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code


class AmqpChannelClosed(ConnectionLost):
    """The broker closed the AMQP channel, so we close the connection.

    Attributes:
        code: AMQP's reply code: 404 not found, 403 refused, 406 precondition failed.
        text: AMQP's reply text.
        method: The numbers of the class and the method that the broker refused; (0, 0) if it refused no
            method.
    """

    def __init__(self, code: int, text: str, method: tuple[int, int]) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text
        self.method = method
