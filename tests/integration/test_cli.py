"""The command line as a user and as a program sees it: exit status, sentences, JSON."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from worker.cli.common import database
from worker.db.pool import DatabaseUnreachable

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.processes import Sendoff
    from worker.db.pool import Database
    from worker.settings import Settings

DELIVERY = """
label = "x"
channel = "email"
[email]
from = "news@example.org"
subject = "Hello {{ first_name }}"
text = "…"
"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The arguments that name a delivery and its recipients."""
    (tmp_path / "d.toml").write_text(DELIVERY)
    (tmp_path / "r.csv").write_text("address,first_name\nana@example.org,Ana\nnope,Nope\n")
    return [str(tmp_path / "d.toml"), "--recipients", str(tmp_path / "r.csv"), "--operator", "ana"]


def test_prepare_answers_in_json_by_these_names(sendoff: Sendoff, files: list[str], tmp_path: Path) -> None:
    assert sendoff("operator", "add", "ana", "--role", "prepare_deliveries").returncode == 0
    done = sendoff("prepare", *files, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "delivery_id": 1,
        "preparation": 1,
        "to_deliver": 1,
        "excluded": {"invalid": 1},
        "state": "ready",
    }

    (tmp_path / "d.toml").write_text(DELIVERY.replace("first_name", "name"))
    failed = sendoff("prepare", *files, "--delivery", 1)
    assert failed.returncode == 1
    assert "state        preparation_failed" in failed.stdout
    assert "subject, line 1: unknown variable “name”" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "status", "sentence"),
    [
        (
            ["operator", "list"],
            {"SENDOFF_DATABASE_URL": "postgresql://127.0.0.1:1/x"},
            3,
            "database is out of reach",
        ),
        (["migrate"], {"SENDOFF_AMQP_URL": "amqp://127.0.0.1:1/"}, 3, "broker is out of reach"),
        (["operator", "list"], {"SENDOFF_DATABASE_URL": "nonsense"}, 2, "SENDOFF_DATABASE_URL: "),
        (["nonsense"], {}, 2, "No such command 'nonsense'"),
        (["prepare", "x.toml"], {}, 2, "Missing option '--operator'"),
        (["prepare", "x.toml", "--operator", "ana"], {}, 2, "Name one audience: --recipients FILE.csv, or"),
        (["prepare", "x.toml", "--recipients", "x.csv", "--operator", "ana"], {}, 1, "x.toml cannot be read"),
    ],
)
def test_a_wrong_call_or_a_server_out_of_reach_is_a_sentence_and_a_status(
    sendoff: Sendoff, arguments: list[str], env: dict[str, str], status: int, sentence: str
) -> None:
    done = sendoff(*arguments, env=env)
    assert done.returncode == status
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "" or arguments == ["migrate"]


async def test_the_database_may_be_reached_over_its_socket(
    settings: Settings, db: Database, sendoff: Sendoff
) -> None:
    async with db.session() as session:
        folder = await session.connection.fetchval("SHOW unix_socket_directories")
    parts = urlsplit(settings.database_url)
    query = f"host={folder}&port={parts.port}&user={parts.username}&password={parts.password}"
    url = f"postgresql://{parts.path}?{query}"
    done = await asyncio.to_thread(sendoff, "operator", "list", env={"SENDOFF_DATABASE_URL": url})
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_database_that_goes_away_in_the_middle_is_a_sentence(settings: Settings) -> None:
    with pytest.raises(DatabaseUnreachable, match="out of reach"):
        async with database(settings) as db, db.session() as session:
            await session.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def test_a_statement_that_takes_too_long_is_a_sentence(settings: Settings) -> None:
    with pytest.raises(DatabaseUnreachable):
        async with database(settings, command_timeout=0.2) as db, db.session() as session:
            await session.connection.execute("SELECT pg_sleep(20)")


def test_an_interrupted_command_ends_with_130_and_no_traceback(
    settings: Settings, sendoff: Sendoff, files: list[str], tmp_path: Path
) -> None:
    sendoff("operator", "add", "ana", "--role", "prepare_deliveries")
    recipients = tmp_path / "r.csv"
    recipients.unlink()
    os.mkfifo(recipients)
    with subprocess.Popen(
        [sys.executable, "-m", "worker", "prepare", *files],
        env=os.environ | {"SENDOFF_DATABASE_URL": settings.database_url},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        with recipients.open("w") as pipe:  # opened by both: the command is at work, and waits for more
            pipe.write("address,first_name\n")
            pipe.flush()
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in said
