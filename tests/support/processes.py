"""Programs of the project as processes of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.settings import Settings

    Sendoff = Callable[..., subprocess.CompletedProcess[str]]


ROOT = Path(__file__).parents[2]


@contextmanager
def sink(folder: Path) -> Iterator[tuple[str, Path]]:
    """Runs an SMTP sink of the test's own; yields its address and the index of what it took."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "dev/sink.py"), "--port", str(port), "--dir", str(folder)]
    with subprocess.Popen(command) as process:
        try:
            yield f"smtp://127.0.0.1:{port}", folder / "index.jsonl"
        finally:
            process.terminate()


@contextmanager
def worker(
    settings: Settings, *services: str, log: Path | None = None, **env: object
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `sendoff run` as a user would; it is ended in any case. `log` takes what it says."""
    own = {"DATABASE_URL": settings.database_url, "QUEUE_PREFIX": settings.queue_prefix, **env}
    environment = os.environ | {f"SENDOFF_{k}": str(v) for k, v in own.items()}
    command = [sys.executable, "-m", "worker", "run", *services]
    with (
        log.open("wb") if log else nullcontext() as said,
        subprocess.Popen(command, env=environment, stderr=said) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def received(index: Path) -> Counter[str]:
    """Counts the messages that a sink took, by address."""
    if not index.exists():
        return Counter()
    lines = index.read_text().splitlines()
    return Counter(json.loads(line)["recipient"] for line in lines if line.endswith("}"))
