"""The webhook channel, as the send service uses it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from pydantic import ValidationError

from contracts.base import explain
from worker.channels.protocol import Granted
from worker.channels.webhook.address import gateway_address
from worker.channels.webhook.content import BodyRenderer, WebhookContent
from worker.domain import standard_webhooks
from worker.domain.audience import AddressInvalid
from worker.domain.content import ContentInvalid
from worker.domain.templates import RenderFailed
from worker.domain.verdicts import Failed
from worker.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from contracts.sends import Send
    from worker.channels.protocol import HandOver
    from worker.channels.webhook.gateway import Gateway
    from worker.domain.links import Links
    from worker.domain.verdicts import Verdict

PROOF_HEADER: Final = "sendoff-proof"
"""The header of a proof: the delivery and the recipient."""
_DIGEST: Final = 12
"""Hexadecimal digits of the content's digest in a message's id."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A delivery's content, compiled for any number of recipients."""

    renderer: BodyRenderer
    digest: str
    """What tells this content from others, in the ids of its messages."""


class _NoTracker(Exception):
    """This sender does not know the tracker."""


class WebhookChannel:
    """Posts to a gateway."""

    lanes = None

    def __init__(self, gateway: Gateway, keys: Sequence[bytes], *, links: Links | None = None) -> None:
        """Takes its parts. Closing the channel closes the gateway.

        Args:
            gateway: The connections to post over.
            keys: Each signs every call.
            links: Writes links to the tracker; None if the installation has none.
        """
        self._gateway = gateway
        self._keys = keys
        self._links = links

    @property
    def concurrency(self) -> int:
        """How many sends may run at the same time: one for each connection."""
        return self._gateway.size

    async def ready(self) -> None:
        """Returns when the gateway can be reached; raises ChannelUnreachable if it cannot."""
        await self._gateway.ready()

    def prepare(self, content: Mapping[str, Any]) -> Compiled:
        """Compiles a content, once per preparation.

        Args:
            content: The `[webhook]` table as it was prepared.

        Raises:
            ContentInvalid: The content cannot be sent to any recipient; the message says why.
        """
        try:
            checked = WebhookContent.model_validate(content)
            renderer = BodyRenderer(checked)
        except ValidationError as error:
            raise ContentInvalid(explain(error)) from error
        except RenderFailed as error:
            raise ContentInvalid(str(error)) from error
        return Compiled(renderer, hashlib.sha256(checked.body.encode()).hexdigest()[:_DIGEST])

    async def send(self, compiled: Compiled, send: Send, hand_over: HandOver) -> Verdict:
        """Fills the body in for one recipient, signs it and posts it.

        Args:
            compiled: What `prepare` made of the delivery's content.
            send: The recipient, with the values for the templates.
            hand_over: The right to hand over; it is begun with the head of the call.

        Returns:
            The result of the attempt. A template that fails with these values gives `Failed("template")`. A
            content with links to a tracker that this sender's settings do not know gives
            `Failed("configuration")`, retryable: another sender may know it.
        """
        # The same for every attempt, so that a gateway can drop what it has already.
        call_id = f"{send.delivery_id}-{send.recipient}-{compiled.digest}"
        return await self._post(compiled, send, send.address, call_id, links=self._links, hand_over=hand_over)

    async def prove(self, compiled: Compiled, send: Send, tester: str) -> Verdict:
        """Posts what a recipient would get with a tester's address, marked by a header and its id.

        Args:
            compiled: What `prepare` made of the delivery's content.
            send: The recipient, with the values for the templates.
            tester: The address that stands in the place of the recipient's.

        Returns:
            The result, as of `send`.
        """
        try:
            address = gateway_address(tester)
        except AddressInvalid as error:
            return Failed("invalid_address", retryable=False, detail=str(error))
        links = self._links.of_proofs() if self._links else None
        marks = ((PROOF_HEADER.encode(), f"{send.delivery_id}-{send.recipient}".encode()),)
        call_id = f"proof-{uuid4()}"
        return await self._post(
            compiled, send, address, call_id, links=links, hand_over=Granted(), more=marks
        )

    async def _post(
        self,
        compiled: Compiled,
        send: Send,
        address: str,
        call_id: str,
        *,
        links: Links | None,
        hand_over: HandOver,
        more: tuple[tuple[bytes, bytes], ...] = (),
    ) -> Verdict:
        own = {"address": address, "recipient": send.recipient, "delivery_id": send.delivery_id}
        try:
            body = self._body(compiled, send, own, links)
        except _NoTracker as error:
            return Failed("configuration", retryable=True, detail=str(error))
        except RenderFailed as error:
            return Failed("template", retryable=False, detail=str(error))
        timestamp = str(int(time.time()))
        signature = standard_webhooks.signature(self._keys, call_id, timestamp, body)
        headers = (
            (b"content-type", b"application/json"),
            (b"user-agent", f"Sendoff/{VERSION}".encode()),
            (standard_webhooks.ID.encode(), call_id.encode()),
            (standard_webhooks.TIMESTAMP.encode(), timestamp.encode()),
            (standard_webhooks.SIGNATURE.encode(), signature.encode()),
            *more,
        )
        return await self._gateway.post(call_id, headers, body, hand_over)

    @staticmethod
    def _body(compiled: Compiled, send: Send, own: dict[str, Any], links: Links | None) -> bytes:
        wanted = compiled.renderer.links
        if wanted and links is not None:
            own |= wanted.of(links, send.delivery_id, send.recipient)
        elif not wanted.needed <= send.variables.keys():
            raise _NoTracker(
                "The content has links to the tracker: set SENDOFF_TRACKER_URL and SENDOFF_TRACKER_KEYS for"
                " the sender."
            )
        return compiled.renderer.render({**send.variables, **own}).encode()

    def stop_waiting(self) -> None:
        """From now on no message waits for a connection."""
        self._gateway.stop_waiting()

    async def close(self) -> None:
        """Closes the connections."""
        await self._gateway.close()
