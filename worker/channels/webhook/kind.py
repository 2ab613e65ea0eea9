"""The webhook channel's entry in the registry."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

from worker.channels.protocol import Kind, Probe, Seen
from worker.channels.webhook import checks
from worker.channels.webhook.address import gateway_address
from worker.channels.webhook.channel import WebhookChannel
from worker.channels.webhook.content import WebhookContent
from worker.domain.delivery_file import ContentTable
from worker.domain.webhook_options import GatewayUrl, signing_keys
from worker.links import open_links
from worker.settings import SettingsError

if TYPE_CHECKING:
    from worker.channels.webhook.gateway import Gateway
    from worker.settings import Settings


def _open(settings: Settings) -> WebhookChannel:
    return WebhookChannel(
        _gateway(settings, settings.webhook_connections, settings.webhook_connect_timeout),
        _keys(settings),
        links=open_links(settings),
    )


def _keys(settings: Settings) -> tuple[bytes, ...]:
    if settings.webhook_secret is None:
        raise SettingsError(
            "The channel “webhook” signs its calls: set SENDOFF_WEBHOOK_SECRET, or"
            " SENDOFF_WEBHOOK_SECRET_FILE."
        )
    return signing_keys(settings.webhook_secret.get_secret_value())


def _gateway(settings: Settings, size: int, connect_timeout: float) -> Gateway:
    from worker.channels.webhook.call import CallTimeouts  # noqa: PLC0415 - its library takes long to load
    from worker.channels.webhook.gateway import Gateway  # noqa: PLC0415 - the same

    if not settings.webhook_url:
        raise SettingsError(
            "The channel “webhook” needs a gateway: set SENDOFF_WEBHOOK_URL or SENDOFF_WEBHOOK_URL_FILE."
        )
    url = GatewayUrl.parse(settings.webhook_url)
    if not url.secured and not settings.webhook_allow_private:
        raise SettingsError(
            f"SENDOFF_WEBHOOK_URL: {url} is not https: everybody on the way could read the messages. For a"
            " gateway in a network of your own, set SENDOFF_WEBHOOK_ALLOW_PRIVATE=true."
        )
    return Gateway(
        url,
        size=size,
        timeouts=CallTimeouts(connect_timeout, settings.webhook_read_timeout, settings.webhook_timeout),
        allow_private=settings.webhook_allow_private,
        context=ssl.create_default_context(),
    )


async def _look(settings: Settings) -> Seen:
    try:
        _keys(settings)
        gateway = _gateway(settings, 1, min(settings.webhook_connect_timeout, settings.connect_timeout))
    except SettingsError as error:
        raise ValueError(str(error)) from error
    try:
        await gateway.ready()
    finally:
        await gateway.close()
    return Seen("It answers and lets us in.")


WEBHOOK: Final = Kind(
    "webhook",
    address_rule=gateway_address,
    content=ContentTable(
        "webhook",
        WebhookContent,
        required=True,
        problems=checks.problems,
        try_out=checks.try_out,
        look=checks.look,
        complete=checks.complete,
        track=checks.track,
    ),
    open=_open,
    show=checks.show,
    probe=Probe("gateway", _look),
)
