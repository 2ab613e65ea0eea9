"""Logging in to an SMTP server: AUTH (RFC 4954) with PLAIN, LOGIN or XOAUTH2."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import aiosmtplib

if TYPE_CHECKING:
    from pathlib import Path

Mechanism = Literal["plain", "login", "xoauth2"]
MECHANISMS: Final[tuple[Mechanism, ...]] = ("plain", "login", "xoauth2")


@dataclass(frozen=True, slots=True)
class Login:
    """Who logs in, and with what. No text form shows the password."""

    user: str
    password: str | None = field(default=None, repr=False)
    secret: Path | None = None
    """The file with the password or the token. It is read for each login, so that it can be renewed."""
    mechanism: Mechanism | None = None
    """How; None for the first that works of those that the server offers."""

    async def into(self, smtp: aiosmtplib.SMTP) -> None:
        """Logs in.

        Args:
            smtp: A client that has greeted the server.

        Raises:
            aiosmtplib.SMTPException: The server refuses the login or does not offer the mechanism, or the
                file cannot be read.
        """
        user, secret = self.user.encode(), self._read()
        if self.mechanism is None:
            await smtp.login(user, secret)
            return
        if self.mechanism not in smtp.server_auth_methods:
            offered = ", ".join(smtp.server_auth_methods).upper() or "no login"
            raise aiosmtplib.SMTPNotSupported(f"it does not offer {self.mechanism.upper()}, but {offered}")
        if self.mechanism == "xoauth2":
            await smtp.auth_xoauth2(user, secret)
        elif self.mechanism == "login":
            await smtp.auth_login(user, secret)
        else:
            await smtp.auth_plain(user, secret)

    def _read(self) -> bytes:
        if self.secret is None:
            return (self.password or "").encode()
        try:
            read = self.secret.read_bytes().strip(b"\r\n\t ")
        except OSError as error:
            words = f"the file {self.secret} with its secret cannot be read: {error.strerror}"
            raise aiosmtplib.SMTPException(words) from error
        if not read:
            raise aiosmtplib.SMTPException(f"the file {self.secret} with its secret is empty")
        return read
