"""TLS to the database: spoken and verified where the server is elsewhere and the address leaves it open."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.support.stack import until
from worker.db.migrate import migrate
from worker.db.pool import DatabaseUnreachable, open_database
from worker.domain import servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from worker.db.pool import Database

SECONDS = 20


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the tests counts as one on another machine."""
    monkeypatch.setattr(servers, "_is_here", lambda _: False)


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that vouches for itself; its key is for the server alone to read."""
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *name, *files],
        check=True,
        capture_output=True,
        timeout=SECONDS,
    )
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, "postgres", "postgres")
        for parent in list(folder.parents)[:-2]:
            parent.chmod(parent.stat().st_mode | 0o011)
    return folder / "cert.pem"


@pytest.fixture
async def trusted(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """Has the server speak TLS while a test runs; the certificate to trust."""
    found = certificate(tmp_path_factory.mktemp("tls"))
    connection = await asyncpg.connect(database_url, timeout=SECONDS)

    async def shows(value: str) -> bool:
        return bool(await connection.fetchval("SHOW ssl") == value)

    try:
        for name, value in (("cert_file", found), ("key_file", found.with_name("key.pem"))):
            await connection.execute(f"ALTER SYSTEM SET ssl_{name} = '{value}'")
        await connection.execute("ALTER SYSTEM SET ssl = on")
        await connection.execute("SELECT pg_reload_conf()")
        await until(lambda: shows("on"))
        yield found
    finally:
        for name in ("ssl", "ssl_cert_file", "ssl_key_file"):
            await connection.execute(f"ALTER SYSTEM RESET {name}")
        await connection.execute("SELECT pg_reload_conf()")
        await until(lambda: shows("off"))
        await connection.close()


async def opened(url: str) -> Database:
    return await open_database(
        url, size=1, connect_timeout=SECONDS, command_timeout=SECONDS, application="sendoff tests"
    )


async def encrypted(url: str) -> bool:
    db = await opened(url)
    try:
        async with db.session() as session:
            query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            return bool(await session.connection.fetchval(query))
    finally:
        await db.close()


async def test_a_certificate_that_nobody_vouches_for_is_refused(database_url: str, trusted: Path) -> None:
    with pytest.raises(DatabaseUnreachable, match="certificate verify failed"):
        await opened(database_url)
    with pytest.raises(DatabaseUnreachable, match="certificate verify failed"):
        await migrate(database_url, timeout=SECONDS)
    other_name = database_url.replace("127.0.0.1", "localhost")
    with pytest.raises(DatabaseUnreachable, match="mismatch"):
        await opened(f"{other_name}?sslrootcert={trusted}")


async def test_one_that_is_trusted_is_taken_and_the_address_may_ask_for_less(
    database_url: str, trusted: Path
) -> None:
    assert await encrypted(f"{database_url}?sslrootcert={trusted}")
    assert await encrypted(f"{database_url}?sslmode=require")
    assert not await encrypted(f"{database_url}?sslmode=disable")


async def test_a_server_without_tls_is_refused_with_what_to_do(database_url: str) -> None:
    with pytest.raises(DatabaseUnreachable, match="add sslmode=disable to the URL"):
        await opened(database_url)
