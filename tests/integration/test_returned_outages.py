"""Returned mail while the broker is away, beside other processes, and behind Postfix."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING

import aiosmtplib
import pytest

from contracts import routing
from tests.support import postfix
from tests.support.deliveries import counts, sent
from tests.support.intake import FAILED, Intake, intake, listening, maildir, name_of
from tests.support.proxy import CutProxy
from tests.support.returned_mail import mail, report
from tests.support.stack import until

if TYPE_CHECKING:
    from tests.support.stack import Stack

DOC = Path(__file__).parents[2] / "docs/returned-mail.md"


async def test_while_the_broker_is_away_the_client_is_to_try_again(stack: Stack) -> None:
    number = await sent(stack, ["ana@example.org"])
    data = report(FAILED.format(address="ana@example.org"))
    async with (
        CutProxy(stack.settings.amqp_url).running() as proxy,
        intake(stack, amqp_url=proxy.url) as here,
        stack.running("results"),
    ):
        proxy.cut()
        await until(lambda: away(here))
        with pytest.raises(aiosmtplib.SMTPDataError, match="451") as refused:
            await here.bring(data, name_of(number, 1, 1))
        assert "try again later" in str(refused.value)
        assert (await stack.deployment(number))["bounced"] == 0
        proxy.mend()

        async def taken() -> bool:
            try:
                return await here.bring(data, name_of(number, 1, 1)) == "2.0.0 Taken"
            except aiosmtplib.SMTPDataError:
                return False

        await until(taken)
        await counts(stack, number, bounced_hard=1)


async def test_it_starts_while_the_broker_is_away_and_takes_mail_when_it_is_there(stack: Stack) -> None:
    number = await sent(stack, ["ana@example.org"])
    data = report(FAILED.format(address="ana@example.org"))
    async with CutProxy(stack.settings.amqp_url).running() as proxy:
        proxy.cut()
        async with intake(stack, amqp_url=proxy.url, connect_timeout=2) as here, stack.running("results"):
            ready = here.parts.probes(asyncio.Event())
            assert await ready["broker"]() == "There is no connection to the broker."
            with pytest.raises(aiosmtplib.SMTPDataError, match="451"):
                await here.bring(data, name_of(number, 1, 1))
            proxy.mend()

            async def taken() -> bool:
                try:
                    return await here.bring(data, name_of(number, 1, 1)) == "2.0.0 Taken"
                except aiosmtplib.SMTPDataError:
                    return False

            await until(taken)
            assert await ready["broker"]() == ""
            await counts(stack, number, bounced_hard=1)


async def test_a_missing_exchange_is_told_by_readiness_and_the_mail_comes_again(stack: Stack) -> None:
    number = await sent(stack, ["ana@example.org"])
    exchange = stack.names.exchange(routing.RESULTS)
    await stack.channel.exchange_delete(exchange)
    async with intake(stack) as here:
        with pytest.raises(aiosmtplib.SMTPDataError, match="451"):
            await here.bring(report(FAILED.format(address="ana@example.org")), name_of(number, 1, 1))
        assert exchange in await here.parts.probes(asyncio.Event())["broker"]()


async def test_two_processes_share_a_port(stack: Stack) -> None:
    """The system gives each connection to one of them."""
    async with intake(stack) as one, intake(stack, returned_port=one.port) as other:
        await until(lambda: listening(one.port))

        async def both() -> bool:
            await one.bring(mail("From: Ana <ana@example.org>", "hello\n"), "someone@example.org")
            return min(one.counted("other"), other.counted("other")) > 0

        await until(both)


async def test_behind_postfix_nothing_is_lost_and_nothing_forged_comes_in(stack: Stack) -> None:
    """With the lines that docs/returned-mail.md gives for main.cf."""
    number = await sent(stack, ["ana@example.org"])
    async with (
        CutProxy(stack.settings.amqp_url).running() as proxy,
        intake(stack, amqp_url=proxy.url) as here,
        stack.running("results"),
    ):
        given = re.search(r"in `main.cf`:\n\n *```\n(.*?)```", DOC.read_text(), re.DOTALL)
        assert given is not None
        lines = dict(line.strip().split(" = ", 1) for line in given[1].strip().splitlines())
        lines["transport_maps"] = lines["transport_maps"].replace("8024", str(here.port))
        soon = dict.fromkeys(("queue_run_delay", "minimal_backoff_time", "maximal_backoff_time"), "1s")
        with postfix.running(**lines, **soon) as relay:

            async def logged(what: str) -> None:
                async def there() -> bool:
                    return relay.logged(what) > 0

                await until(there)

            outside = Intake(relay.port, here.parts, here.folder)
            proxy.cut()
            await until(lambda: away(here))
            await outside.bring(report(FAILED.format(address="ana@example.org")), name_of(number, 1, 1))
            await logged(r"status=deferred \(.*451 4\.3\.0")
            proxy.mend()
            await counts(stack, number, bounced_hard=1)
            await logged(r"status=sent \(250 2\.0\.0 Taken\)")
            await outside.bring(mail("Subject: x", "x\n"), f"bounces+{'a' * 28}@returns.example.org")
            await logged(r"status=bounced \(.*550 5\.1\.1 There is no such address")
            with pytest.raises(aiosmtplib.SMTPRecipientsRefused):
                await outside.bring(mail("Subject: x", "x\n"), "someone@returns.example.org")
        assert here.counted("forged") == 1


async def away(here: Intake) -> bool:
    return not here.parts.publisher.takes


async def test_mails_of_a_maildir_wait_for_the_broker(stack: Stack) -> None:
    number = await sent(stack, ["ana@example.org"])
    folder = maildir(stack.folder / "mails")
    async with CutProxy(stack.settings.amqp_url).running() as proxy:
        changes = {"returned_port": 0, "returned_maildir": folder, "amqp_url": proxy.url}
        async with intake(stack, **changes) as here, stack.running("results"):
            proxy.cut()
            await until(lambda: away(here))
            data = report(FAILED.format(address="ana@example.org"))
            (folder / "new" / "1").write_bytes(f"X-Original-To: {name_of(number, 1, 1)}\n".encode() + data)

            async def put_off() -> bool:
                return here.counted("later") > 1

            await until(put_off)
            assert [file.name for file in (folder / "new").iterdir()] == ["1"]
            proxy.mend()
            await counts(stack, number, bounced_hard=1)
