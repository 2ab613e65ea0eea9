"""The email channel's entry in the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from worker.channels.email.channel import EmailChannel
from worker.channels.email.smtp import SmtpPool
from worker.channels.email.timeouts import Timeouts
from worker.channels.protocol import Kind, Probe
from worker.domain import templates
from worker.domain.audience import mail_address
from worker.domain.content import EmailContent
from worker.domain.delivery_file import ContentTable
from worker.signing import open_return_path

if TYPE_CHECKING:
    from worker.settings import Settings


EMAIL_CONTENT: Final = ContentTable(
    "email", EmailContent, required=True, problems=templates.check, try_out=templates.try_out
)


def _open(settings: Settings) -> EmailChannel:
    pool = SmtpPool(settings.smtp_url, size=settings.smtp_connections, timeouts=timeouts(settings))
    return EmailChannel(pool, open_return_path(settings))


def timeouts(settings: Settings) -> Timeouts:
    """Returns how long each phase of a mail transaction may take."""
    return Timeouts(
        connect=settings.smtp_timeout,
        command=settings.smtp_command_timeout,
        data=settings.smtp_data_timeout,
        block=settings.smtp_block_timeout,
        dot=settings.smtp_dot_timeout,
    )


async def _look(settings: Settings) -> None:
    try:
        soon = Timeouts.all(min(settings.smtp_timeout, settings.connect_timeout))
        pool = SmtpPool(settings.smtp_url, size=1, timeouts=soon)
    except ValueError as error:
        raise ValueError(f"SENDOFF_SMTP_URL: {error}") from error
    try:
        await pool.ready()
    finally:
        await pool.close()


EMAIL: Final = Kind(
    "email", address_rule=mail_address, content=EMAIL_CONTENT, open=_open, probe=Probe("relay", _look)
)
