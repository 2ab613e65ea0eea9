"""A pooler between Sendoff and Postgres is told, in whatever mode; nothing is done through it."""

from __future__ import annotations

import asyncio
import shutil
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.support.stack import until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from worker.settings import Settings

    Sendoff = Callable[..., subprocess.CompletedProcess[str]]

PROGRAM = shutil.which("pgbouncer")
OURS = (
    "statement_timeout, lock_timeout, idle_in_transaction_session_timeout, plan_cache_mode, enable_seqscan,"
    " jit, sendoff.session"
)


@pytest.fixture(params=["transaction", "session"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["", OURS], ids=["knows no settings", "ignores settings"])
async def pooled(
    request: pytest.FixtureRequest, mode: str, settings: Settings, tmp_path: Path
) -> AsyncIterator[str]:
    """The address of the test's database behind PgBouncer."""
    if PROGRAM is None:
        pytest.skip("the program pgbouncer is not on this machine")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = urlsplit(settings.database_url)
    login = f"user={there.username} password={there.password}"
    file = tmp_path / "pgbouncer.ini"
    file.write_text(
        f"[databases]\n* = host={there.hostname} port={there.port} {login}\n[pgbouncer]\nauth_type = any\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\npool_mode = {mode}\n"
        f"ignore_startup_parameters = {request.param}\n"
    )
    process = await asyncio.create_subprocess_exec(PROGRAM, "-q", "-u", "nobody", str(file))

    async def listening() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        await until(listening)
        yield f"postgresql://sendoff:any@127.0.0.1:{port}{there.path}"
    finally:
        process.kill()
        await process.wait()


async def test_a_command_refuses_a_pooler_with_a_sentence(pooled: str, sendoff: Sendoff) -> None:
    for command in ("migrate", "run", "operator list"):
        done = await asyncio.to_thread(sendoff, *command.split(), env={"SENDOFF_DATABASE_URL": pooled})
        assert (done.returncode, done.stdout) == (3, "")
        (line,) = done.stderr.splitlines()
        assert "out of reach: a pooler stands before it, such as PgBouncer" in line


@pytest.mark.usefixtures("stack")
async def test_the_check_names_a_pooler(pooled: str, sendoff: Sendoff) -> None:
    done = await asyncio.to_thread(sendoff, "check", env={"SENDOFF_DATABASE_URL": pooled})
    assert done.returncode == 3
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("database"))
    assert "unreachable" in line
    assert "a pooler stands before it" in line
