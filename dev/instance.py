"""One set of local servers: its folder, its ports, its password, and the settings that lead to it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent

# Below the range that Linux hands to outgoing connections (32768-60999), so that none of those takes a port.
FIRST_PORT, BLOCKS, BLOCK_SIZE = 20000, 1500, 8


class NoPortsError(Exception):
    """Every block of ports is taken."""


def base_folder() -> Path:
    """Returns this user's folder for all instances, made if it is not there.

    It lies outside the checkout, because Postgres never runs as root and the user `postgres` cannot reach
    into `/root`; others may pass through it, not list it.

    Raises:
        PermissionError: somebody else made a folder, or a link, of that name.
    """
    folder = Path("/var/tmp") / f"sendoff-{os.getuid()}"  # noqa: S108 - its owner is checked below
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o711)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user; remove it and try again.")
    folder.chmod(0o711)
    return folder


def checkout_key() -> str:
    """Returns a short name for this checkout, the same at every call."""
    return hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:10]


def lock(folder: Path) -> int | None:
    """Takes the advisory lock on a folder.

    Returns:
        The file descriptor that holds it until it is closed by everybody who inherited it, or none if the
        folder is not there or another process holds the lock.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def sweep(folder: Path) -> None:
    """Removes what `run` left beside a checkout's folder where its supervisor was killed outright."""
    for left in folder.parent.glob(f"{folder.name}-run-*"):
        held = lock(left)
        if held is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(held)


@dataclass(frozen=True)
class Instance:
    """A folder with the five ports from `port` on and one password, for RabbitMQ and Postgres alike."""

    folder: Path
    port: int
    secret: str

    @property
    def amqp_port(self) -> int:
        """RabbitMQ for clients."""
        return self.port

    @property
    def epmd_port(self) -> int:
        """The name server of Erlang nodes."""
        return self.port + 1

    @property
    def node_port(self) -> int:
        """RabbitMQ for its command line tools."""
        return self.port + 2

    @property
    def postgres_port(self) -> int:
        """Postgres."""
        return self.port + 3

    @property
    def smtp_port(self) -> int:
        """The SMTP sink."""
        return self.port + 4

    @property
    def sink_folder(self) -> Path:
        """Where the sink keeps what it received."""
        return self.folder / "received"

    def settings(self) -> dict[str, str]:
        """Returns the environment that leads a program to these servers."""
        user = f"sendoff:{self.secret}"
        return {
            "SENDOFF_AMQP_URL": f"amqp://{user}@127.0.0.1:{self.amqp_port}/",
            "SENDOFF_DATABASE_URL": f"postgresql://{user}@127.0.0.1:{self.postgres_port}/sendoff",
            "SENDOFF_SMTP_URL": f"smtp://127.0.0.1:{self.smtp_port}",
            "SENDOFF_DEV_SINK": str(self.sink_folder),
            "SENDOFF_DEV_STATE": str(self.folder / "state.json"),
        }

    def save(self, pids: dict[str, int]) -> None:
        """Writes `state.json`: what `load` needs, and the process ids by the server's name."""
        written = self.folder / "state.new"
        written.touch(mode=0o600)
        written.write_text(json.dumps({"port": self.port, "secret": self.secret, "pids": pids}, indent=1))
        written.replace(self.folder / "state.json")


def load(folder: Path) -> tuple[Instance, dict[str, int]] | None:
    """Reads an instance and its process ids back; none if it was never started."""
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return None
    return Instance(folder, state["port"], state["secret"]), state["pids"]


def claim(folder: Path) -> tuple[Instance, socket.socket | None]:
    """Picks free ports: those the instance had before, or the next free ones from where its name points.

    Returns:
        The instance, and what marks its ports as taken for all checkouts and users until it is closed.

    Raises:
        NoPortsError: nothing is free.
    """
    before = load(folder)
    start = int(hashlib.sha256(folder.name.encode()).hexdigest(), 16) % BLOCKS
    ports = [FIRST_PORT + BLOCK_SIZE * ((start + step) % BLOCKS) for step in range(BLOCKS)]
    if before:
        ports.insert(0, before[0].port)
    for port in ports:
        mark = None
        if sys.platform == "linux":
            mark = socket.socket(socket.AF_UNIX)
            try:
                mark.bind(f"\0sendoff-dev-{port}")  # an abstract address: gone with its process
            except OSError:
                mark.close()
                continue
        if all(_is_free(port + offset) for offset in range(BLOCK_SIZE)):
            return Instance(folder, port, before[0].secret if before else secrets.token_hex(16)), mark
        if mark:
            mark.close()
    raise NoPortsError(
        f"No {BLOCK_SIZE} ports in a row are free between {FIRST_PORT} and 32000 on 127.0.0.1."
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
