"""The project from the confirmation to the last outcome durable, and its growth with the audience."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from tests.bench import smtp
from tests.bench.installation import DELIVERY, SHORT, Mail, finished
from tests.bench.machine import Case, CaseFailed, Measured, Meter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.bench.installation import Installation


SMTP = "SMTP into smtp-sink"
CONNECTIONS = "50"
"""What a Postfix with its defaults takes from one client. smtp-sink answers at once, and a sender has no more
messages under way than connections until the broker has their results."""
RATIO = "{}, Sendoff over the libraries, ×"
TRACKED = "{}, tracked over untracked, ×"
NEWSLETTER, TRACKED_NEWSLETTER = Mail("newsletter"), Mail("newsletter", tracked=True)
TRACKED_COST = 1.1
"""The most that a tracked newsletter costs all processes, times what an untracked one costs."""
NO_SINK = "Mail goes to the sink of the local servers, which keeps it and is slower than smtp-sink. {}"


def name(channel: str, recipients: int, copies: int = 1) -> str:
    """Names a case; the same case in two parts is measured once."""
    each = "" if copies == 1 else f", {copies} processes per service"
    return f"Sendoff, {channel}, {recipients:,}{each}"


def case(installation: Installation, part: str, recipients: int, *, rounds: int, copies: int = 1) -> Case:
    """Returns the case of one delivery over the null channel."""
    run = partial(measure, installation, "null", recipients, copies)
    return Case(part, name("null", recipients, copies), run, rounds)


def mail_name(recipients: int, mail: Mail = SHORT) -> str:
    """Names the case of a delivery over SMTP."""
    tracked = ", tracked" if mail.tracked else ""
    return name("email" if mail == SHORT else f"email, {mail.content}{tracked}", recipients)


def mails(installation: Installation, recipients: int, *, rounds: int, notes: list[str]) -> list[Case]:
    """Returns the cases over SMTP: short messages, and newsletters without and with tracked links.

    Args:
        installation: Where they run.
        recipients: Those of short messages; of newsletters half as many.
        rounds: How often each.
        notes: Gets a sentence where there is no smtp-sink.
    """
    sinks = True
    try:
        smtp.sink_program()
    except SystemExit as error:
        notes.append(NO_SINK.format(error))
        sinks = False

    async def run(count: int, mail: Mail) -> Measured:
        if not sinks:
            return await measure(installation, "email", count, 1, mail=mail)
        try:
            with smtp.sink() as (_, port):
                variables = {
                    "SENDOFF_SMTP_URL": f"smtp://127.0.0.1:{port}",
                    "SENDOFF_SMTP_CONNECTIONS": CONNECTIONS,
                }
                return await measure(installation, "email", count, 1, variables, mail)
        except SystemExit as error:
            raise CaseFailed(str(error)) from None

    half = -(-recipients // 2)
    each = [(recipients, SHORT), (half, NEWSLETTER), (half, TRACKED_NEWSLETTER)]
    return [Case("email", mail_name(count, mail), partial(run, count, mail), rounds) for count, mail in each]


def libraries(*, messages: int, rounds: int) -> Case:
    """Returns the case of our email channel against aiosmtplib and the standard library, into smtp-sink."""

    async def run() -> Measured:
        try:
            rows = await asyncio.to_thread(smtp.measure, rounds=1, messages=messages)
        except SystemExit as error:
            raise CaseFailed(str(error)) from None
        figures = {f"{row.content} by {row.way}, messages/s": row.rates[0] for row in rows}
        for content in dict.fromkeys(row.content for row in rows):
            figures[RATIO.format(content)] = smtp.ratios(rows, content)[0]
            figures[TRACKED.format(content)] = smtp.ratios(rows, content, smtp.TRACKED, "sendoff")[0]
        return Measured(figures=figures)

    return Case("smtp", SMTP, run, rounds)


def growth(installation: Installation, sizes: Iterable[tuple[int, int, int]]) -> list[Case]:
    """Returns cases for (recipients, processes per service, rounds)."""
    return [case(installation, "growth", n, rounds=rounds, copies=c) for n, c, rounds in sizes]


async def measure(
    installation: Installation,
    channel: str,
    recipients: int,
    copies: int,
    settings: dict[str, str] | None = None,
    mail: Mail = SHORT,
) -> Measured:
    """Confirms a delivery and waits until it is finished.

    Raises:
        CaseFailed: not every recipient was sent to, once.
    """
    async with installation.running(channel, recipients, copies=copies, settings=settings, mail=mail) as run:
        meter = Meter(run.processes)
        await installation.confirm(DELIVERY)
        await finished(run.db, DELIVERY, 0.02 if recipients <= 200_000 else 0.1)
        measured = meter.read(recipients)
        async with run.db.session() as session:
            sent = await session.connection.fetchval(
                "SELECT count(*) FROM sendoff.sending_log WHERE delivery_id = $1 AND sent_at IS NOT NULL",
                DELIVERY,
            )
        if sent != recipients:
            raise CaseFailed(f"{sent:,} of {recipients:,} recipients were sent to.")
    return measured
