"""The email channel, as the send service uses it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from pydantic import ValidationError

from contracts.base import explain
from contracts.sends import message_id
from worker.channels.email.message import MessageBuilder
from worker.domain.content import ContentInvalid, EmailContent
from worker.domain.mailbox import MailboxInvalid, mailbox
from worker.domain.provider_headers import reference_line
from worker.domain.return_path import Reference
from worker.domain.templates import Renderer, RenderFailed
from worker.domain.verdicts import Failed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from contracts.sends import Send
    from worker.channels.email.dkim import Signer, Signing
    from worker.channels.email.dsn import Dsn
    from worker.channels.email.lanes import Lanes
    from worker.channels.email.smtp import SmtpPool
    from worker.channels.protocol import HandOver
    from worker.domain.links import Links
    from worker.domain.mailbox import Mailbox
    from worker.domain.return_path import ReturnPath
    from worker.domain.templates import Rendered
    from worker.domain.verdicts import Verdict


PROOF_PREFIX: Final = "[Proof]"
"""What the subject of a proof begins with."""
PROOF_HEADER: Final = "X-Sendoff-Proof"
"""The header of a proof: the delivery and the recipient."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A delivery's content, compiled for any number of recipients."""

    renderer: Renderer
    builder: MessageBuilder
    signer: Signer | None
    """The key that signs it (DKIM)."""


class _NoTracker(Exception):
    """This sender does not know the tracker."""


class EmailChannel:
    """Sends over SMTP."""

    def __init__(
        self,
        pool: SmtpPool,
        *,
        links: Links | None = None,
        returns: ReturnPath | None = None,
        headers: Mapping[str, str] | None = None,
        provider: str = "",
        signing: Signing | None = None,
        dsn: Dsn | None = None,
    ) -> None:
        """Takes its parts. Closing the channel closes the pool and the signing.

        Args:
            pool: The connections to send over.
            links: Writes links to the tracker; None if the installation has none.
            returns: Signs envelope senders and Message-IDs; None to leave both as they are.
            headers: Headers of every message, as templates; a delivery's own win.
            provider: The mail provider whose webhooks are to name recipients, or nothing.
            signing: The keys that sign messages; None for no signatures.
            dsn: Which reports servers are asked for; None for what they do by themselves.
        """
        self._pool = pool
        self._links = links
        self._returns = returns
        self._headers = headers or {}
        self._provider = provider
        self._signing = signing
        self._dsn = dsn

    @property
    def concurrency(self) -> int:
        """How many sends may run at the same time: one for each connection."""
        return self._pool.size

    @property
    def lanes(self) -> Lanes:
        """What the relay takes for each provider and domain."""
        return self._pool.lanes

    async def ready(self) -> None:
        """Returns when the SMTP server answers. Await it before recipients are claimed.

        Raises:
            ChannelUnreachable: It does not answer.
        """
        await self._pool.ready()

    def prepare(self, content: Mapping[str, Any]) -> Compiled:
        """Compiles a content, once per preparation.

        Args:
            content: The `[email]` table as it was prepared.

        Raises:
            ContentInvalid: The content cannot be sent to any recipient; the message says why.
        """
        try:
            checked = EmailContent.model_validate(content).with_headers(self._headers)
            renderer = Renderer(checked)
            builder = MessageBuilder(checked, renderer.fixed)
        except ValidationError as error:
            raise ContentInvalid(explain(error)) from error
        except RenderFailed as error:
            raise ContentInvalid(str(error)) from error
        signer = self._signing.signer(builder.sender.domain) if self._signing else None
        return Compiled(renderer, builder, signer)

    async def send(self, compiled: Compiled, send: Send, hand_over: HandOver) -> Verdict:
        """Renders the content for one recipient, builds the message and hands it over.

        Args:
            compiled: What `prepare` made of the delivery's content.
            send: The recipient, with the values for the templates.
            hand_over: The right to hand over; it is begun with the envelope.

        Returns:
            The result of the attempt. A template that fails with these values gives `Failed("template")`. An
            address that no SMTP command can carry gives `Failed("invalid_address")`. Neither is retryable.
            A content with links to a tracker that this sender's settings do not know gives
            `Failed("configuration")`, retryable: another sender may know it.
        """
        attempt = message_id(send.delivery_id, send.recipient, send.attempt)
        reference = Reference(send.delivery_id, send.recipient, send.attempt)
        sender = self._returns.sender(reference) if self._returns else None
        named = compiled.builder.message_id(attempt, self._returns.tag(reference) if self._returns else None)
        try:
            rendered = self._rendered(compiled, send, self._links)
            recipient = mailbox(send.address, rendered.to_name)
            message = await self._built(compiled, rendered, recipient, named, self._references(reference))
        except _NoTracker as error:
            return Failed("configuration", retryable=True, detail=str(error))
        except RenderFailed as error:
            return Failed("template", retryable=False, detail=str(error))
        except MailboxInvalid as error:
            return Failed("invalid_address", retryable=False, detail=str(error))
        return await self._pool.send(
            sender or compiled.builder.sender.address,
            recipient.address,
            message,
            smtputf8=compiled.builder.smtputf8(recipient),
            hand_over=hand_over,
            dsn=self._dsn.options(attempt, recipient.address) if self._dsn else None,
        )

    def _references(self, reference: Reference) -> tuple[str, ...]:
        if self._returns is None or not self._provider:
            return ()
        return (reference_line(self._provider, self._returns.token(reference)),)

    def stop_waiting(self) -> None:
        """From now on no message waits for a connection."""
        self._pool.stop_waiting()

    async def prove(self, compiled: Compiled, send: Send, tester: str) -> Verdict:
        """Sends what a recipient would get to a tester, marked by its subject and a header.

        It goes from the author's own address: what comes back of it must not count for the recipient. A relay
        is asked for no report.

        Args:
            compiled: What `prepare` made of the delivery's content.
            send: The recipient, with the values for the templates.
            tester: The address that gets it instead.

        Returns:
            The result, as of `send`.
        """
        try:
            rendered = self._rendered(compiled, send, self._links.of_proofs() if self._links else None)
            recipient = mailbox(tester, rendered.to_name)
            marked = replace(
                rendered,
                subject=f"{PROOF_PREFIX} {rendered.subject}".rstrip(),
                headers=rendered.headers | {PROOF_HEADER: f"{send.delivery_id}-{send.recipient}"},
            )
            named = compiled.builder.message_id(f"proof-{uuid4()}")
            message = await self._built(compiled, marked, recipient, named)
        except _NoTracker as error:
            return Failed("configuration", retryable=True, detail=str(error))
        except RenderFailed as error:
            return Failed("template", retryable=False, detail=str(error))
        except MailboxInvalid as error:
            return Failed("invalid_address", retryable=False, detail=str(error))
        return await self._pool.send(
            compiled.builder.sender.address,
            recipient.address,
            message,
            smtputf8=compiled.builder.smtputf8(recipient),
        )

    def _rendered(self, compiled: Compiled, send: Send, links: Links | None) -> Rendered:
        own = {"address": send.address, "recipient": send.recipient, "delivery_id": send.delivery_id}
        wanted = compiled.renderer.links
        if wanted and links is not None:
            own |= wanted.of(links, send.delivery_id, send.recipient)
        elif not wanted.needed <= send.variables.keys():
            raise _NoTracker(
                "The content has links to the tracker: set SENDOFF_TRACKER_URL and SENDOFF_TRACKER_KEYS for"
                " the sender."
            )
        return compiled.renderer.render({**send.variables, **own})

    async def _built(
        self,
        compiled: Compiled,
        rendered: Rendered,
        recipient: Mailbox,
        message_id: str,
        more: tuple[str, ...] = (),
    ) -> bytes:
        at = datetime.now(UTC)
        message = compiled.builder.build(rendered, recipient, message_id=message_id, at=at, more=more)
        if self._signing and compiled.signer:
            return await self._signing.sign(compiled.signer, message)
        return message

    async def close(self) -> None:
        """Closes the connections."""
        await self._pool.close()
        if self._signing:
            self._signing.close()
