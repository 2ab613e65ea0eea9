"""The roles of deploy/postgres/roles.sql, for one database of a test."""

from __future__ import annotations

import re
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.support.database import administer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SQL = (Path(__file__).parents[2] / "deploy/postgres/roles.sql").read_text()
ROLES = ("owner", "worker", "reader")


@dataclass(frozen=True)
class Installed:
    """A database that was set up as the file says."""

    admin: str
    suffix: str
    password: str

    @property
    def sql(self) -> str:
        """The file, with roles of the test's own: those of a server are for all its databases."""
        return re.sub(rf"\bsendoff_({'|'.join(ROLES)})\b", rf"\1_{self.suffix}", SQL)

    def url(self, role: str) -> str:
        parts = urlsplit(self.admin)
        place = parts.netloc.rpartition("@")[2]
        return parts._replace(netloc=f"{role}_{self.suffix}:{self.password}@{place}").geturl()


@asynccontextmanager
async def roles(admin: str) -> AsyncIterator[Installed]:
    """Makes the roles, with a password, in the database of a superuser's address; drops them in the end."""
    found = Installed(admin, secrets.token_hex(4), secrets.token_hex(12))
    try:
        await administer(admin, found.sql)
        for role in ROLES:
            await administer(admin, f"ALTER ROLE {role}_{found.suffix} PASSWORD '{found.password}'")
        yield found
    finally:
        for role in ROLES:
            await administer(admin, f"DROP OWNED BY {role}_{found.suffix}; DROP ROLE {role}_{found.suffix}")
