"""Lists of suppressed addresses of any length go in and out in the same little memory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.database import change

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Stack

ROWS = 200_000
"""More than a hundred pages of the reader, and forty of the writer."""
MIB = 1024
"""As many of the kernel's units of memory, which are KiB."""


def peak(stack: Stack, out: Path, *arguments: object) -> int:
    """Runs a command; returns the most memory that it had, in KiB."""
    own = {
        "SENDOFF_DATABASE_URL": stack.settings.database_url,
        "SENDOFF_QUEUE_PREFIX": stack.settings.queue_prefix,
    }
    command = [sys.executable, "-m", "worker", "quarantine", *map(str, arguments)]
    with out.open("wb") as file, subprocess.Popen(command, env=os.environ | own, stdout=file) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss


async def test_two_hundred_thousand_entries_take_no_more_memory_than_a_page(stack: Stack) -> None:
    await stack.operator("zoe", "administration")
    small, large = stack.folder / "small.csv", stack.folder / "large.csv"
    fill = (
        "INSERT INTO sendoff.quarantined_address (channel, address_key, address, cause, reason)"
        " SELECT $1, a, a, 'manual', 'said by a person at length: ' || n"
        " FROM generate_series(1, $2::int) AS n, format('user%s@example.org', n) AS a"
    )
    await change(stack, fill, "null", 5_000)
    await change(stack, fill, "email", ROWS)

    def run() -> tuple[int, int, int, int]:
        exports = [
            peak(stack, file, "export", "--channel", to) for file, to in ((small, "null"), (large, "email"))
        ]
        by = ("--operator", "zoe", "--channel", "null")
        imports = [peak(stack, stack.folder / "said", "import", file, *by) for file in (small, large)]
        return (*exports, *imports)

    few_out, many_out, few_in, many_in = await asyncio.to_thread(run)
    with large.open() as file:
        assert sum(1 for _ in file) == ROWS + 1
    (row,) = await stack.rows("SELECT count(*) FROM sendoff.quarantine WHERE channel = 'null'")
    assert row["count"] == ROWS
    assert many_out - few_out < 20 * MIB
    assert many_in - few_in < 20 * MIB
