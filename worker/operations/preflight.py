"""Looks at a delivery as a careful person would before the OK, and asks the DNS about its sender's domain."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import dns.exception
from pydantic import ValidationError

from worker.channels.email.dkim import read_signers, signer_of
from worker.channels.registry import content_table
from worker.db import deliveries, reading
from worker.db.deliveries import DeliveryContents
from worker.domain.content import EmailContent
from worker.domain.mail_options import resolver_address
from worker.domain.mailbox import named_mailbox
from worker.domain.preflight import Check, Found, Others, findings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from contracts.commands import Finding
    from worker.channels.email.dkim import Signer
    from worker.db.pool import Database
    from worker.settings import Settings

_SECONDS: Final = 5.0
"""For which the DNS is asked one question."""
_FIRST: Final = 20
_SPREAD: Final = 100
"""Recipients that the templates are tried with, as at the preparation."""


class PreflightRefused(Exception):
    """The delivery cannot be looked at; the message says why."""


@dataclass(frozen=True, slots=True)
class SenderDomains:
    """Asks the DNS whether receivers can tell that mail is the sender's."""

    resolver: str
    """`system`, or an address with or without a port."""
    envelope_domain: str
    """The domain of envelope senders; empty for that of the author."""
    signers: Mapping[str, Signer]
    """The keys that sign, by domain."""

    @classmethod
    def of(cls, settings: Settings) -> SenderDomains | None:
        """Returns what asks as the settings say; None if there is no resolver.

        Raises:
            SettingsError: The file of keys cannot be read.
        """
        if not settings.dns_resolver:
            return None
        signers = read_signers(settings.dkim_file) if settings.dkim_file else {}
        return cls(settings.dns_resolver, settings.bounce_domain, signers)

    async def ask(self, content: Any) -> list[Found]:  # noqa: ANN401 - of any channel
        """Returns what is missing for a content's sender."""
        if not isinstance(content, EmailContent):
            return []
        author = named_mailbox(content.sender).domain.lower()
        signer = signer_of(self.signers, author)
        answers = await asyncio.gather(
            self._spf(self.envelope_domain or author),
            self._dmarc(author),
            *([self._dkim(signer)] if signer else []),
            return_exceptions=True,
        )
        silent = [answer for answer in answers if isinstance(answer, dns.exception.DNSException)]
        broken = [answer for answer in answers if isinstance(answer, BaseException) and answer not in silent]
        if broken:
            raise broken[0]
        found = [answer for answer in answers if isinstance(answer, Found)]
        if silent:
            found.append(Found(Check.DNS, f"The DNS could not be asked about {author}: {silent[0]}"))
        return found

    async def _spf(self, domain: str) -> Found | None:
        if any(text.lower().startswith("v=spf1") for text in await self._texts(domain)):
            return None
        return Found(Check.SPF, f"{domain} has no SPF record, which says what relays send for it.")

    async def _dmarc(self, domain: str) -> Found | None:
        labels = domain.split(".")
        for first in range(max(1, len(labels) - 1)):
            texts = await self._texts(f"_dmarc.{'.'.join(labels[first:])}")
            if any(text.lower().startswith("v=dmarc1") for text in texts):
                return None
        return Found(Check.DMARC, f"{domain} has no DMARC record: large mailbox providers ask for one.")

    async def _dkim(self, signer: Signer) -> Found | None:
        texts = await self._texts(signer.record)
        keys = [tags.get("p", "") for tags in map(_tags, texts)]
        if signer.public_key in keys:
            return None
        if not any(keys):
            return Found(Check.DKIM, f"{signer.record} has no key, so no signature can be verified.")
        return Found(Check.DKIM, f"{signer.record} has another key than the one that signs.")

    async def _texts(self, name: str) -> list[str]:
        """Returns the TXT records of a name; none if there are none.

        Raises:
            DNSException: The DNS did not answer in time.
        """
        from dns import asyncresolver  # noqa: PLC0415 - they take 0.1 s to load
        from dns import resolver as answers  # noqa: PLC0415 - the same

        resolver = asyncresolver.Resolver(configure=self.resolver == "system")
        if self.resolver != "system":
            host, port = resolver_address(self.resolver)
            resolver.nameservers, resolver.port = [host], port
        try:
            answer = await resolver.resolve(name, "TXT", lifetime=_SECONDS, search=False)
        except (answers.NXDOMAIN, answers.NoAnswer):
            return []
        return [b"".join(record.strings).decode("utf-8", "replace") for record in answer]


def _tags(text: str) -> dict[str, str]:
    pairs = (tag.partition("=") for tag in text.split(";"))
    return {name.strip(): "".join(value.split()) for name, _, value in pairs}


async def preflight(settings: Settings, db: Database, delivery_id: int) -> tuple[Finding, ...]:
    """Looks at a delivery anew.

    Args:
        settings: The settings.
        db: The database.
        delivery_id: The delivery.

    Raises:
        PreflightRefused: There is no such delivery, or no content.
        SettingsError: The file of keys cannot be read.
    """
    read = await deliveries.others(db, delivery_id)
    stored = await DeliveryContents(db).content(delivery_id)
    if read is None or stored is None:
        raise PreflightRefused(
            f"The delivery {delivery_id} has no content: it is not there, or not prepared."
        )
    to_deliver, others = read
    channel, table = stored
    found: list[Found] = []
    if table:
        kind = content_table(channel)
        try:
            content = kind.model.model_validate(table)
        except ValidationError as error:
            raise PreflightRefused(f"The content of delivery {delivery_id} is not valid: {error}") from error
        sample = await reading.recipients(db, delivery_id, _numbers(to_deliver))
        found = kind.look(content, sample)
        domains = SenderDomains.of(settings)
        if domains is not None:
            found += await domains.ask(content)
    fresh = Others(
        tuple(found), others.last_id, others.last_to_deliver, others.same_id, others.same_confirmed_at
    )
    return findings(to_deliver, fresh, settings.preflight_blocks)


def _numbers(count: int) -> list[int]:
    """Returns the first recipients, and some of all."""
    step = max(1, count // _SPREAD)
    return sorted({*range(1, min(count, _FIRST) + 1), *range(1, count + 1, step)})
