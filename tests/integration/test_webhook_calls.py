"""The calls of the channel `webhook`: to servers that are slow, refuse, redirect, break off, say too much."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from contracts.results import BounceKind, BounceReason, Fault
from tests.support import gateway as given
from tests.support.channels import Right
from tests.support.gateway import (
    BODY,
    DROP_BODY,
    DROP_HEAD,
    FLOOD,
    HOLD,
    SILENT,
    TRICKLE,
    Early,
    answer,
)
from tests.support.stack import until
from worker.channels.protocol import ChannelUnreachable
from worker.channels.webhook.call import CallTimeouts
from worker.channels.webhook.gateway import Gateway
from worker.domain.failures import Failure
from worker.domain.verdicts import Accepted, Bounced, Failed, Unsure, Withheld
from worker.domain.webhook_options import GatewayUrl
from worker.lifecycle import beside

if TYPE_CHECKING:
    from pathlib import Path

    from worker.domain.verdicts import Verdict

LARGE = b'"' + b"x" * 8_000_000 + b'"'
"""More than the kernel takes for a peer that does not read."""


async def post(
    gateway: Gateway, right: Right | None = None, *, to: str = "1-1", body: bytes = BODY
) -> Verdict:
    return await gateway.post(to, ((b"x-test", b"1"),), body, right or Right(answer=True))


async def test_a_call_is_one_whole_post_and_the_connection_is_kept() -> None:
    async with given.running(answer(202, b'{"id": 17}')) as (server, gateway):
        assert await post(gateway) == Accepted('202 Answer: {"id": 17}', "17")
        assert isinstance(await post(gateway), Accepted)
    assert server.connections == 1
    (call, _) = server.calls
    assert (call.path, call.body) == ("/send?k=v", BODY)
    assert call.headers["host"] == f"127.0.0.1:{server.port}"
    assert call.headers["accept-encoding"] == "identity"


async def test_the_body_waits_for_the_mark() -> None:
    right = Right()
    async with given.running() as (server, gateway), beside(post(gateway, right), "post") as posting:
        await until(server.asked)
        assert (right.begun > 0, server.calls) == (True, [])
        right.answer.set_result(True)
        assert isinstance(await posting, Accepted)
    assert len(server.calls) == 1


async def test_what_is_not_marked_does_not_leave() -> None:
    async with given.running() as (server, gateway):
        assert await post(gateway, Right(answer=False)) == Withheld()
        late = await post(gateway, Right(answer=True, expired=True))
        assert isinstance(late, Failed)
        assert (late.reason, late.retryable, late.waits) == ("suspended", True, False)
        assert server.calls == []
        assert isinstance(await post(gateway), Accepted)
    assert (server.connections, len(server.calls)) == (3, 1)


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["small", "large"])
async def test_after_the_whole_body_only_an_answer_says_what_became_of_it(body: bytes) -> None:
    async with given.running(DROP_BODY) as (server, gateway):
        verdict = await post(gateway, body=body)
    assert isinstance(verdict, Unsure), verdict
    assert "The whole call was written" in verdict.detail
    assert "k=v" not in verdict.detail
    assert (server.connections, len(server.calls)) == (1, 1), "it is not posted again"


@pytest.mark.parametrize("timeouts", [{"read": 0.2}, {"whole": 0.2}], ids=["read", "whole"])
@pytest.mark.parametrize("reply", [SILENT, TRICKLE])
async def test_a_call_that_gets_no_answer_in_time_is_in_doubt(reply: str, timeouts: dict[str, float]) -> None:
    if reply == TRICKLE:
        timeouts = {"whole": 0.2}
    async with given.running(reply, **timeouts) as (server, gateway):
        verdict = await post(gateway)
    assert isinstance(verdict, Unsure), verdict
    assert len(server.calls) == 1


async def test_a_connection_that_is_lost_before_the_body_is_replaced_once() -> None:
    async with given.running(answer(200), DROP_HEAD, answer(200)) as (server, gateway):
        assert isinstance(await post(gateway), Accepted)
        right = Right()
        async with beside(post(gateway, right), "post") as posting:

            async def twice() -> bool:
                return server.heads == 2

            await until(twice)
            await until(lambda: closed(server))
            right.answer.set_result(True)
            assert isinstance(await posting, Accepted)
    assert (server.connections, len(server.calls)) == (2, 2)


async def closed(server: given.Server) -> bool:
    return not server.busy


async def test_a_connection_that_is_lost_twice_before_the_end_of_the_body_is_a_failure() -> None:
    async with given.running(DROP_HEAD) as (server, gateway):
        verdict = await post(gateway, body=LARGE)
    assert isinstance(verdict, Failed), verdict
    assert (verdict.reason, verdict.retryable, verdict.waits) == ("connection", True, False)
    assert "lost before the body was sent" in verdict.detail
    assert (server.connections, server.calls) == (2, [])


async def test_an_idle_connection_that_the_server_closed_is_not_used() -> None:
    async with given.running(answer(200, b"", "connection: close"), answer(200)) as (server, gateway):
        for _ in range(2):
            assert isinstance(await post(gateway), Accepted)
    assert (server.connections, len(server.calls)) == (2, 2)


async def test_an_answer_to_the_head_alone_counts_and_the_body_does_not_leave() -> None:
    early = Early(answer(413, b"too large", "connection: close"))
    async with given.running(answer(200), early) as (server, gateway):
        assert isinstance(await post(gateway), Accepted)
        right = Right()
        async with beside(post(gateway, right), "post") as posting:
            await until(lambda: closed(server))
            right.answer.set_result(True)
            verdict = await posting
    assert isinstance(verdict, Bounced), verdict
    assert (verdict.reason, verdict.status) == (BounceReason.TOO_LARGE, "5.3.4")
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, (BounceKind.SOFT, BounceReason.REFUSED, "5.0.0", None)),
        (404, (BounceKind.SOFT, BounceReason.POLICY, "5.7.1", Fault.SENDER)),
        (408, (BounceKind.SOFT, BounceReason.PROTOCOL, "4.4.2", Fault.INFRASTRUCTURE)),
        (410, (BounceKind.HARD, BounceReason.USER_UNKNOWN, "5.1.1", Fault.RECIPIENT)),
        (425, (BounceKind.SOFT, BounceReason.PROTOCOL, "4.4.2", Fault.INFRASTRUCTURE)),
        (502, (BounceKind.SOFT, BounceReason.SYSTEM, "4.3.0", Fault.INFRASTRUCTURE)),
        (999, (BounceKind.SOFT, BounceReason.REFUSED, "5.0.0", None)),
    ],
)
async def test_a_refusal_says_whether_it_is_tried_again(status: int, expected: tuple[object, ...]) -> None:
    async with given.running(answer(status, b"no\r\n such")) as (_, gateway):
        verdict = await post(gateway)
    assert isinstance(verdict, Bounced)
    assert (verdict.kind, verdict.reason, verdict.status, verdict.fault) == expected
    assert verdict.reply == f"{status} Answer: no such"


@pytest.mark.parametrize("status", [301, 307, 401, 402, 405, 429, 503])
async def test_an_answer_that_says_nothing_of_the_message_costs_no_attempt(status: int) -> None:
    elsewhere = "location: http://127.0.0.1:1/other"
    async with given.running(answer(status, b"", elsewhere), answer(200)) as (server, gateway):
        verdict = await post(gateway)
        assert isinstance(verdict, Failed)
        assert (verdict.retryable, verdict.waits) == (True, True)
        assert f"takes no messages now: {status} Answer" in verdict.detail
        assert len(server.calls) == 1, "nothing is followed"
        assert isinstance(await post(gateway), Accepted), "after a pause"


async def test_retry_after_is_waited_for_and_said_while_the_channel_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.channels.email.capacity.SHORTEST_PAUSE", 0.001)
    asked = answer(429, b"slowly", "retry-after: 3000")
    async with given.running(asked, seconds=0.2) as (server, gateway):
        assert isinstance(await post(gateway), Failed)
        with pytest.raises(
            ChannelUnreachable, match=r"takes no messages now, for more than 0\.2 s: 429"
        ) as told:
            await gateway.ready()
        assert told.value.failure is Failure.BUSY
        waiting = await post(gateway)
        assert isinstance(waiting, Failed)
        assert waiting.waits
    assert len(server.calls) == 1


async def test_one_whom_the_gateway_always_puts_off_while_others_pass_is_refused_at_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.channels.email.capacity.SHORTEST_PAUSE", 0.001)
    async with given.running(*[answer(200), answer(429)] * 60) as (server, gateway):
        for _ in range(50):
            assert isinstance(await post(gateway, to="other"), Accepted)
            put_off = await post(gateway, to="poor")
            assert isinstance(put_off, Failed), len(server.calls)
        assert isinstance(await post(gateway, to="other"), Accepted)
        assert isinstance(await post(gateway, to="poor"), Bounced)


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nconte",
        b"HTTP/1.1 1000 Odd\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
        b"",
    ],
    ids=["half a head", "no status", "no HTTP", "a huge head", "nothing"],
)
async def test_an_answer_that_is_none_leaves_doubt(reply: bytes) -> None:
    async with given.running(reply) as (server, gateway):
        assert isinstance(await post(gateway), Unsure)
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 201 Made\r\ncontent-length: 100\r\n\r\nhalf",
        b"HTTP/1.1 201 Made\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhalf",
        b"HTTP/1.1 201 Made\r\n\r\nhalf",
    ],
    ids=["shorter than said", "half a chunk", "until the end"],
)
async def test_an_answer_that_breaks_off_behind_its_status_counts(reply: bytes) -> None:
    async with given.running(reply, answer(200), whole=1) as (server, gateway):
        verdict = await post(gateway)
        assert isinstance(verdict, Accepted), verdict
        assert verdict.reply.startswith("201 Made")
        assert isinstance(await post(gateway), Accepted)
    assert server.connections == 2


async def test_of_an_answer_without_an_end_little_is_read_and_its_connection_is_closed() -> None:
    async with given.running(FLOOD, answer(200), seconds=60) as (server, gateway):
        async with asyncio.timeout(30):
            verdict = await post(gateway)
        assert isinstance(verdict, Accepted)
        assert len(verdict.reply) < 1_100
        assert isinstance(await post(gateway), Accepted)
    assert server.connections == 2


async def test_a_slow_end_of_an_answer_does_not_undo_its_status() -> None:
    slow = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n"
    async with given.running(slow, whole=0.3) as (_, gateway):
        assert isinstance(await post(gateway), Accepted)


async def test_no_more_calls_run_at_the_same_time_than_there_are_connections() -> None:
    async with given.running(HOLD, size=3) as (server, gateway), asyncio.TaskGroup() as group:
        tasks = [group.create_task(post(gateway, to=str(number))) for number in range(12)]

        async def three() -> bool:
            return len(server.calls) == 3

        await until(three)
        server.release.set()
        assert all(isinstance(verdict, Accepted) for verdict in await asyncio.gather(*tasks))
    assert (server.most_busy, server.connections) == (3, 3)


async def test_a_message_does_not_wait_for_a_free_connection_without_end() -> None:
    async with (
        given.running(HOLD, size=1, connect=0.2) as (server, gateway),
        beside(post(gateway), "first") as first,
    ):
        await until(server.called)
        verdict = await post(gateway)
        assert isinstance(verdict, Failed)
        assert (verdict.reason, verdict.waits) == ("connection", True)
        assert "came free within 0.2 s" in verdict.detail
        server.release.set()
        assert isinstance(await first, Accepted)


async def test_a_gateway_that_refuses_connections_costs_no_attempt_and_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server = given.Server()
        server.port = unused.getsockname()[1]
        async with given.calling(server) as gateway:
            verdict = await post(gateway)
            assert isinstance(verdict, Failed)
            assert (verdict.reason, verdict.waits) == ("connection", True)
            with pytest.raises(ChannelUnreachable, match="cannot be used: Connection refused; check") as told:
                await gateway.ready()
            assert told.value.failure is Failure.AWAY


async def test_readiness_opens_a_connection_and_makes_no_call() -> None:
    async with given.running() as (server, gateway):
        await gateway.ready()
        assert isinstance(await post(gateway), Accepted)
        await gateway.ready()
    assert (server.connections, server.heads) == (1, 1)


async def test_looking_again_and_again_opens_no_more_connections_than_there_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.channels.webhook.gateway._HEARD_SECONDS", -1)
    async with given.running(size=2) as (server, gateway):
        for _ in range(10):
            await gateway.ready()
            assert all(isinstance(v, Accepted) for v in await asyncio.gather(post(gateway), post(gateway)))
    assert server.connections > 10
    assert server.most_busy <= 3, "one is being closed"


async def test_over_tls_the_certificate_and_its_name_are_checked(tmp_path: Path) -> None:
    shown, trusting = given.certificate(tmp_path)
    async with given.Server().running(shown) as server:
        async with given.calling(server, scheme="https", context=trusting) as gateway:
            for _ in range(2):
                assert isinstance(await post(gateway), Accepted)
            assert server.connections == 1
        async with given.calling(server, scheme="https") as gateway:
            verdict = await post(gateway)
            assert isinstance(verdict, Failed)
            assert verdict.waits
            assert "its certificate is not valid" in verdict.detail
    (tmp_path / "other").mkdir()
    shown, trusting = given.certificate(tmp_path / "other", "DNS:gateway.example.org")
    async with (
        given.Server().running(shown) as server,
        given.calling(server, scheme="https", context=trusting) as gateway,
    ):
        with pytest.raises(
            ChannelUnreachable, match="its certificate is not valid: IP address mismatch"
        ) as told:
            await gateway.ready()
        assert told.value.failure is Failure.BROKEN
    assert server.calls == []


async def test_what_speaks_no_tls_is_out_of_reach() -> None:
    async with (
        given.Server(b"HTTP/1.1 400 No TLS here\r\n\r\n").running() as server,
        given.calling(server, scheme="https", connect=1) as gateway,
    ):
        with pytest.raises(ChannelUnreachable, match="cannot be used"):
            await gateway.ready()


async def test_a_server_that_says_nothing_to_tls_is_given_up() -> None:
    async with (
        given.Server(SILENT).running() as server,
        given.calling(server, scheme="https", connect=0.2) as gateway,
    ):
        with pytest.raises(ChannelUnreachable, match=r"it took longer than 0\.2 s"):
            await gateway.ready()


def to(url: str, *, allow_private: bool) -> Gateway:
    return Gateway(
        GatewayUrl.parse(url),
        size=1,
        timeouts=CallTimeouts(5, 5, 5),
        allow_private=allow_private,
        context=ssl.create_default_context(),
    )


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "10.1.2.3", "169.254.169.254", "2130706433"]
)
async def test_no_private_address_is_called(host: str) -> None:
    gateway = to(f"https://{host}/", allow_private=False)
    with pytest.raises(ChannelUnreachable, match="is no address of the internet: if that is meant") as told:
        await gateway.ready()
    assert told.value.failure is Failure.BROKEN
    verdict = await post(gateway)
    assert isinstance(verdict, Failed)
    assert verdict.waits


async def test_a_name_that_leads_elsewhere_at_each_look_up_is_called_at_a_checked_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first look-up is of the internet, every other of this machine, where a server waits."""
    asked: list[object] = []
    loop = asyncio.get_running_loop()
    connected: list[tuple[str, int]] = []

    async def resolve(host: object, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        address = "192.0.0.9" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    async def create(_: object, host: str, port: int, **__: object) -> None:
        connected.append((host, port))
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(type(loop), "getaddrinfo", lambda _, host, port, **more: resolve(host, port, **more))
    monkeypatch.setattr(type(loop), "create_connection", lambda _, *args, **more: create(*args, **more))
    gateway = to("https://gateway.example.org/", allow_private=False)
    with pytest.raises(ChannelUnreachable, match="Connection refused"):
        await gateway.ready()
    assert connected == [("192.0.0.9", 443)]
    with pytest.raises(ChannelUnreachable, match=r"127\.0\.0\.1, which is no address of the internet"):
        await gateway.ready()
    assert len(connected) == 1


async def test_a_name_that_is_none_is_a_sentence() -> None:
    with pytest.raises(ChannelUnreachable, match="its name leads nowhere"):
        await to("https://gateway.invalid/", allow_private=False).ready()
