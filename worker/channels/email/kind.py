"""The email channel's entry in the registry."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from worker.channels.email.channel import EmailChannel
from worker.channels.email.dkim import Signing, read_signers
from worker.channels.email.dsn import Dsn
from worker.channels.email.providers import read_providers
from worker.channels.email.smtp import SmtpPool
from worker.channels.email.timeouts import Timeouts
from worker.channels.protocol import ChannelUnreachable, Kind, Probe, Seen
from worker.domain import preflight, template_checks
from worker.domain.audience import mail_address
from worker.domain.completion import completed
from worker.domain.content import EmailContent
from worker.domain.delivery_file import ContentTable
from worker.domain.templates import Renderer
from worker.domain.tracked_content import track
from worker.links import open_links
from worker.settings import SettingsError
from worker.signing import open_return_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.domain.templates import Rendered
    from worker.settings import Settings

_TRIED: Final = 50
"""Connections that `sendoff check` opens at most: as many as a Postfix takes from one client."""

EMAIL_CONTENT: Final = ContentTable(
    "email",
    EmailContent,
    required=True,
    problems=template_checks.check,
    try_out=template_checks.try_out,
    look=preflight.look,
    complete=completed,
    track=track,
)


def _open(settings: Settings) -> EmailChannel:
    pool = _pool(settings, settings.smtp_connections, timeouts(settings))
    signers = read_signers(settings.dkim_file) if settings.dkim_file else None
    return EmailChannel(
        pool,
        links=open_links(settings),
        returns=open_return_path(settings),
        headers=settings.email_headers,
        provider=settings.relay_provider,
        signing=Signing(signers) if signers else None,
        dsn=Dsn(settings.dsn_notify, settings.dsn_return) if settings.dsn_notify else None,
    )


def timeouts(settings: Settings) -> Timeouts:
    """Returns how long each phase of a mail transaction may take."""
    return Timeouts(
        connect=settings.smtp_timeout,
        command=settings.smtp_command_timeout,
        data=settings.smtp_data_timeout,
        block=settings.smtp_block_timeout,
        dot=settings.smtp_dot_timeout,
    )


def _pool(settings: Settings, size: int, phases: Timeouts) -> SmtpPool:
    try:
        return SmtpPool(
            settings.smtp_url,
            size=size,
            timeouts=phases,
            providers=read_providers(settings.providers_file),
            per_minute=settings.smtp_messages_per_minute,
        )
    except ValueError as error:
        raise SettingsError(f"SENDOFF_SMTP_URL: {error}") from error


async def _look(settings: Settings) -> Seen:
    wanted = min(settings.smtp_connections, _TRIED)
    phases = Timeouts.all(min(settings.smtp_timeout, settings.connect_timeout))
    # One connection in each, so that each is opened and all are open at once.
    pools: list[SmtpPool] = []
    try:
        if settings.dkim_file:
            read_signers(settings.dkim_file)
        while len(pools) < wanted:
            pools.append(_pool(settings, 1, phases))
            await pools[-1].ready()
    except SettingsError as error:
        raise ValueError(str(error)) from error
    except ChannelUnreachable as error:
        taken = len(pools) - 1
        if not taken:
            raise
        return Seen(
            f"Of the {settings.smtp_connections} connections of SENDOFF_SMTP_CONNECTIONS, which each"
            " process may"
            f" open, it takes {taken} from here: {error}",
            limited=True,
        )
    finally:
        await asyncio.gather(*(pool.close() for pool in pools))
    return Seen(f"It answers and lets us in; it takes {wanted} connections at once.")


def _show(content: Mapping[str, Any], variables: dict[str, Any]) -> Rendered:
    renderer = Renderer(EmailContent.model_validate(content))
    return renderer.render({**variables, **renderer.links.examples()})


EMAIL: Final = Kind(
    "email",
    address_rule=mail_address,
    content=EMAIL_CONTENT,
    open=_open,
    show=_show,
    probe=Probe("relay", _look),
)
