"""The policy of our queues, which `sendoff migrate` sets, and queues that an earlier version declared."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aio_pika
import pytest

from contracts import routing
from tests.support.brokers import own_broker, program
from tests.support.stack import Stack, until
from worker.amqp import topology
from worker.amqp.versions import Version, version_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.support.processes import Sendoff
    from worker.db.pool import Database
    from worker.settings import Settings

QUEUE = routing.send_queue("null")
EARLIER = {"x-queue-type": "quorum", "x-delivery-limit": 50}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A broker of its own, with the management API at the port after that of its metrics."""
    management = "management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\n"
    with own_broker(tmp_path_factory.mktemp("broker"), management) as servers:
        servers.wait(
            "plugins", [program("rabbitmq-plugins"), "enable", "rabbitmq_management"], **servers.erlang
        )
        yield servers


@pytest.fixture
def ctl(servers: Any) -> Callable[..., str]:
    """Runs a command of rabbitmqctl."""

    def run(*command: str) -> str:
        env = {"PATH": "/usr/bin:/bin", **{name: str(value) for name, value in servers.erlang.items()}}
        ran = subprocess.run(
            [program("rabbitmqctl"), "-q", *command],
            env=env,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return ran.stdout

    return run


@pytest.fixture
async def own(settings: Settings, db: Database, tmp_path: Path, servers: Any) -> AsyncIterator[Stack]:
    url = servers.settings()["SENDOFF_AMQP_URL"]
    ours = settings.model_copy(update={"amqp_url": url})
    async with (
        await aio_pika.connect(url, timeout=10) as connection,
        Stack(ours, db, connection, tmp_path).set_up() as stack,
    ):
        yield stack


def environment(own: Stack, servers: Any, *, management: bool) -> dict[str, str]:
    parts = urlsplit(own.settings.amqp_url)
    api = f"http://{parts.username}:{parts.password}@127.0.0.1:{servers.metrics + 1}"
    return {"SENDOFF_AMQP_URL": own.settings.amqp_url} | (
        {"SENDOFF_MANAGEMENT_URL": api} if management else {}
    )


async def policies(sendoff: Sendoff, env: dict[str, str]) -> tuple[str, str]:
    checked = await asyncio.to_thread(sendoff, "check", "--json", env=env)
    (finding,) = [f for f in json.loads(checked.stdout) if f["part"] == "policies"]
    return finding["standing"], finding["message"]


async def test_migrate_sets_the_policy_and_check_compares_it(
    own: Stack, servers: Any, sendoff: Sendoff, ctl: Callable[..., str]
) -> None:
    env = environment(own, servers, management=True)
    standing, message = await policies(sendoff, env)
    assert standing == "wrong"
    assert f"“{own.names.queue(QUEUE)}” has no policy: delivery-limit is not set and should be 50" in message
    ran = await asyncio.to_thread(sendoff, "migrate", env=env)
    assert f"the policy “{own.names.queue('sendoff')}” is set" in ran.stdout, ran.stderr
    await until(lambda: in_force(sendoff, env))
    ctl("clear_policy", own.names.queue("sendoff"))


async def test_without_the_management_api_migrate_says_the_command_that_sets_it(
    own: Stack, servers: Any, sendoff: Sendoff, ctl: Callable[..., str]
) -> None:
    env = environment(own, servers, management=False)
    ran = await asyncio.to_thread(sendoff, "migrate", env=env)
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("  rabbitmqctl")]
    standing, message = await policies(sendoff, env)
    assert (standing, line.strip() in message) == ("skipped", True)
    ctl(*shlex.split(line)[1:])
    await until(lambda: in_force(sendoff, environment(own, servers, management=True)))
    ctl("clear_policy", own.names.queue("sendoff"))


async def test_a_wrong_address_of_the_management_api_is_a_sentence(own: Stack, sendoff: Sendoff) -> None:
    env = {"SENDOFF_AMQP_URL": own.settings.amqp_url, "SENDOFF_MANAGEMENT_URL": "http://u:p@127.0.0.1:1"}
    standing, message = await policies(sendoff, env)
    assert standing == "unreachable"
    assert message.startswith("The management API at 127.0.0.1:1 is out of reach: ")
    ran = await asyncio.to_thread(sendoff, "migrate", env=env)
    assert (ran.returncode, "127.0.0.1:1 is out of reach" in ran.stderr) == (3, True)


async def test_a_dead_message_is_kept_until_the_dead_queue_has_it(
    own: Stack, servers: Any, sendoff: Sendoff, ctl: Callable[..., str]
) -> None:
    ran = await asyncio.to_thread(sendoff, "migrate", env=environment(own, servers, management=True))
    assert ran.returncode == 0, ran.stderr
    queue = await own.channel.get_queue(own.names.queue(QUEUE), ensure=False)
    await own.publish(routing.SENDS, "null", b"rubbish")
    message = await queue.get(timeout=10)
    await message.reject(requeue=False)
    await until(lambda: one_dead(own))
    ctl("clear_policy", own.names.queue("sendoff"))


async def test_queues_of_an_earlier_version_are_taken_over_with_all_that_is_in_them(
    own: Stack, servers: Any, sendoff: Sendoff
) -> None:
    """As up to version 0.1: with the delivery limit among the arguments."""
    number = await own.prepare(100)
    arguments = {**EARLIER, "x-dead-letter-exchange": own.names.exchange(routing.DEAD)}
    names = [*routing.BINDINGS, routing.CLAIMS_QUEUE, QUEUE, routing.send_queue("email")]
    for name in names:
        await own.channel.queue_delete(own.names.queue(name))
        await own.channel.declare_queue(own.names.queue(name), durable=True, arguments=arguments)
    declared = await topology.declare(own.connection, own.names, own.settings.channels)
    assert sorted(declared.earlier) == sorted(map(own.names.queue, names))
    async with own.running("confirm", "fanout"):
        await own.confirm(number)
        await until(lambda: full(own, 100))
    env = environment(own, servers, management=True)
    ran = await asyncio.to_thread(sendoff, "migrate", env=env)
    assert ran.returncode == 0, ran.stderr
    assert f"of an earlier version, and used as they are: {own.names.queue(names[0])}" in ran.stdout
    assert await own.depth(QUEUE) == 100
    await until(lambda: in_force(sendoff, env))
    async with own.running("send", "results", "schedule"):
        assert (await own.finished(number))["sent"] == 100


async def test_nothing_that_is_declared_is_deprecated(own: Stack, ctl: Callable[..., str]) -> None:
    if version_of(own.connection) < Version(4, 0):
        pytest.skip("older brokers do not tell")
    number = await own.prepare(10)
    async with own.running():
        await own.confirm(number)
        await own.finished(number)
        await own.request(routing.COMPUTE_STATS, {"delivery_id": number})
        told = await asyncio.to_thread(ctl, "list_deprecated_features", "--used", "--formatter", "json")
    used = {feature["name"] for feature in json.loads(told)}
    assert used <= {"management_metrics_collection"}  # of the plugin


async def in_force(sendoff: Sendoff, env: dict[str, str]) -> bool:
    return (await policies(sendoff, env))[0] == "ok"


async def one_dead(own: Stack) -> bool:
    return await own.depth(routing.DEAD_QUEUE) == 1


async def full(own: Stack, messages: int) -> bool:
    return await own.depth(QUEUE) == messages
