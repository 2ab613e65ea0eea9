"""Asks a server over its own protocol whether it is truly ready; each question takes two seconds at most."""

from __future__ import annotations

import socket
import struct

TIMEOUT = 2.0
FRAME_END = 0xCE
START, START_OK, TUNE, TUNE_OK, OPEN, OPEN_OK, CLOSE, CLOSE_OK = (
    (10, number) for number in (10, 11, 30, 31, 40, 41, 50, 51)
)


def tcp(port: int) -> bool:
    """Says whether something accepts connections at a port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), TIMEOUT).close()
    except OSError:
        return False
    return True


def smtp(port: int) -> bool:
    """Says whether a mail server greets with 220 (RFC 5321 section 3.1)."""
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
            greeting = connection.recv(4)
            connection.sendall(b"QUIT\r\n")
    except OSError:
        return False
    return greeting == b"220 "


def amqp(port: int, user: str, password: str) -> bool:
    """Says whether a broker lets this user open the virtual host `/` (AMQP 0-9-1, section 2.2.4)."""
    credentials = f"\0{user}\0{password}".encode()
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            _expect(connection, START)
            no_properties = struct.pack(">I", 0)
            answer = no_properties + _short(b"PLAIN") + struct.pack(">I", len(credentials)) + credentials
            _send(connection, START_OK, answer + _short(b"en_US"))
            tuning = _expect(connection, TUNE)
            _send(connection, TUNE_OK, tuning[:6] + struct.pack(">H", 0))
            _send(connection, OPEN, _short(b"/") + _short(b"") + b"\0")
            _expect(connection, OPEN_OK)
            _send(connection, CLOSE, struct.pack(">H", 200) + _short(b"ready") + struct.pack(">HH", 0, 0))
            _expect(connection, CLOSE_OK)
    except (OSError, ValueError):
        return False
    return True


def _short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _send(connection: socket.socket, method: tuple[int, int], arguments: bytes) -> None:
    payload = struct.pack(">HH", *method) + arguments
    connection.sendall(struct.pack(">BHI", 1, 0, len(payload)) + payload + bytes([FRAME_END]))


def _expect(connection: socket.socket, method: tuple[int, int]) -> bytes:
    """Reads one method frame and returns its arguments."""
    _, _, size = struct.unpack(">BHI", _read(connection, 7))
    payload = _read(connection, size + 1)
    if struct.unpack_from(">HH", payload) != method:
        raise ValueError("the broker answered something else")
    return payload[4:-1]


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionResetError("the broker closed the connection")
        data += part
    return data
