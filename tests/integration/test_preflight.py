"""The preflight: found at the preparation, shown before the OK, looked at anew by `sendoff preflight`."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from contracts import routing
from tests.support import dns
from worker.channels.email.dkim import Signer
from worker.domain.content import EmailContent
from worker.domain.preflight import Check
from worker.operations import preflight as operation
from worker.operations.preflight import SenderDomains

if TYPE_CHECKING:
    from tests.support.processes import Sendoff
    from tests.support.stack import Stack

KEY = generate_private_key(65537, 2048)
SIGNERS = {"example.org": Signer("example.org", "s2026", KEY)}
RECORDS = {
    "mail.example.org": "v=spf1 -all",
    "_dmarc.example.org": "v=DMARC1; p=reject",
    "s2026._domainkey.example.org": f"v=DKIM1; k=rsa; p={SIGNERS['example.org'].public_key}",
}
CONTENT = EmailContent.model_validate({"from": "news@mail.example.org", "subject": "a", "text": "b"})


async def asked(records: dict[str, str] | None, **changes: Any) -> list[str]:
    async with dns.serving(records) as address:
        domains = replace(SenderDomains(address, "", SIGNERS), **changes)
        return [found.check for found in await domains.ask(CONTENT)]


async def test_a_domain_that_receivers_can_check_has_no_findings() -> None:
    assert await asked(RECORDS) == []


@pytest.mark.parametrize(
    ("name", "changed", "check"),
    [
        ("mail.example.org", None, Check.SPF),
        ("mail.example.org", "other text", Check.SPF),
        ("_dmarc.example.org", None, Check.DMARC),
        ("s2026._domainkey.example.org", None, Check.DKIM),
        ("s2026._domainkey.example.org", "v=DKIM1; p=", Check.DKIM),
        ("s2026._domainkey.example.org", "v=DKIM1; k=rsa; p=MIIB", Check.DKIM),
    ],
)
async def test_what_is_missing_is_told(name: str, changed: str | None, check: Check) -> None:
    records = {key: value for key, value in RECORDS.items() if key != name}
    assert await asked(records | ({name: changed} if changed else {})) == [check]


async def test_the_domain_of_envelope_senders_counts_for_spf_and_that_of_the_author_for_dkim() -> None:
    assert await asked(RECORDS, envelope_domain="returns.example.org") == [Check.SPF]
    assert await asked(RECORDS, signers={}) == []
    other = {"example.org": Signer("example.org", "s2026", Ed25519PrivateKey.generate())}
    assert await asked(RECORDS, signers=other) == [Check.DKIM]


async def test_a_silent_dns_is_told_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation, "_SECONDS", 0.2)
    assert await asked(None) == [Check.DNS]


@pytest.fixture
async def ana(stack: Stack) -> Stack:
    await stack.operator("ana", "prepare_deliveries", "start_deliveries")
    return stack


async def summary(stack: Stack, delivery: int) -> list[tuple[str, bool]]:
    body = {"delivery_id": delivery, "operator": "ana", "definitive": False}
    answer = await stack.request(routing.CONFIRM, body)
    assert answer["status"] == "finalize"
    return [(one["check"], one["blocks"]) for one in answer["summary"]["findings"]]


async def test_findings_are_in_the_summary_and_block_where_the_installation_says(ana: Stack) -> None:
    delivery = await ana.prepare(2, channel="email")
    async with ana.running("confirm"):
        assert await summary(ana, delivery) == [("no_opt_out", False)]
    async with ana.running("confirm", preflight_blocks=("no_opt_out",)):
        assert await summary(ana, delivery) == [("no_opt_out", True)]
        answer = await ana.confirm(delivery)
        assert (answer["status"], answer["reason"]) == ("refused", "preflight")
        assert "Nothing says how to unsubscribe" in answer["message"]
        rehearsal = await ana.prepare(1)
        assert (await ana.confirm(rehearsal))["status"] == "accepted"
    async with ana.running("confirm"):
        assert (await ana.confirm(delivery))["status"] == "accepted"
        again = await ana.prepare(2, channel="email")
        assert await summary(ana, again) == [("no_opt_out", False), ("duplicate", False)]
        larger = await ana.prepare(200, channel="email")
        assert [check for check, _ in await summary(ana, larger)] == [
            "no_opt_out",
            "audience_grew",
            "duplicate",
        ]
        assert await summary(ana, await ana.prepare(1)) == []


async def test_the_command_looks_anew(ana: Stack, sendoff: Sendoff) -> None:
    delivery = await ana.prepare(200, channel="email")
    ran = await asyncio.to_thread(sendoff, "preflight", delivery)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("warns    no_opt_out         Nothing says how to unsubscribe")
    async with dns.serving(RECORDS) as address:
        env = {"SENDOFF_DNS_RESOLVER": address, "SENDOFF_PREFLIGHT_BLOCKS": "spf,dkim"}
        ran = await asyncio.to_thread(sendoff, "preflight", delivery, "--json", env=env)
    assert ran.returncode == 1
    found = [(one["check"], one["blocks"]) for one in json.loads(ran.stdout)]
    assert found == [("spf", True), ("no_opt_out", False)]


async def test_a_rehearsal_without_a_content_has_no_findings_and_an_unknown_delivery_is_told(
    ana: Stack, sendoff: Sendoff
) -> None:
    ran = await asyncio.to_thread(sendoff, "preflight", await ana.prepare(1))
    assert (ran.returncode, ran.stdout) == (0, "Nothing was found.\n")
    ran = await asyncio.to_thread(sendoff, "preflight", 99)
    assert ran.returncode == 1
    assert "The delivery 99 has no content: it is not there, or not prepared." in ran.stderr


async def test_what_an_older_version_prepared_has_no_findings(ana: Stack) -> None:
    delivery = await ana.prepare(1, channel="email")
    await ana.rows("UPDATE sendoff.delivery_content SET findings = NULL, digest = NULL")
    async with ana.running("confirm"):
        assert await summary(ana, delivery) == []
        assert (await ana.confirm(delivery))["status"] == "accepted"
