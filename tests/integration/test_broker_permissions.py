"""The permissions of deploy/rabbitmq: what each broker user needs works, and everything else is refused."""

from __future__ import annotations

import asyncio
import importlib
import json
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest
from aiormq.exceptions import ChannelAccessRefused

from contracts import routing
from tests.support.channels import Gated
from tests.support.results import result
from tests.support.stack import Stack, until
from worker.amqp import permissions, topology
from worker.amqp.errors import BrokerUnreachable
from worker.amqp.pika.connection import open_connection, try_publishing
from worker.amqp.pika.dead import open_dead_letters
from worker.bootstrap import SERVICES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import aiormq

    from tests.support.processes import Sendoff
    from worker.bootstrap import Worker
    from worker.db.pool import Database
    from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy/rabbitmq"
USERS = [user["name"] for user in json.loads((DEPLOY / "definitions.json").read_text())["users"]]
DEFAULT = ""
SENDS = [routing.send_queue(channel) for channel in ("email", "null")]
RESULTS = [routing.SENT_QUEUE, routing.BOUNCE_QUEUE, routing.ERROR_QUEUE]
EXCHANGES = [
    DEFAULT,
    routing.COMMANDS,
    routing.SENDS,
    routing.CLAIMS,
    routing.RESULTS,
    routing.TRACKING,
    routing.EVENTS,
    routing.DEAD,
]
QUEUES = [*routing.BINDINGS, routing.CLAIMS_QUEUE, *SENDS, routing.DEAD_QUEUE]

MAY: dict[str, tuple[set[str], set[str]]] = {
    "upstream": ({routing.COMMANDS}, set()),
    "listener": (set(), set()),
    "tracker": ({routing.TRACKING}, set()),
    "sender": ({routing.CLAIMS, routing.RESULTS}, set(SENDS)),
    "sendoff-confirm": ({DEFAULT, routing.DEAD}, {routing.COMMANDS_QUEUE}),
    "sendoff-fanout": ({routing.SENDS}, set()),
    "sendoff-send": ({routing.RESULTS, routing.DEAD}, set(SENDS)),
    "sendoff-claims": ({DEFAULT, routing.DEAD}, {routing.CLAIMS_QUEUE}),
    "sendoff-results": ({routing.DEAD}, set(RESULTS)),
    "sendoff-tracking": ({routing.DEAD}, {routing.TRACKING_QUEUE}),
    "sendoff-stats": ({DEFAULT, routing.DEAD}, {routing.STATS_QUEUE}),
    "sendoff-schedule": (set(), set()),
    "sendoff-events": ({routing.EVENTS}, set()),
    "sendoff-returned": ({routing.RESULTS, routing.TRACKING}, set()),
    "sendoff-webhooks": ({routing.RESULTS, routing.TRACKING}, set()),
    "sendoff-console": ({routing.COMMANDS}, {routing.DEAD_QUEUE}),
    "sendoff-ops": (set(EXCHANGES) - {DEFAULT}, set(QUEUES)),
}
"""The exchanges that a user may publish to, and the queues of ours that they may read."""


@dataclass(frozen=True)
class Broker:
    """A broker of this file's own, with the users of deploy/rabbitmq."""

    port: int
    passwords: dict[str, str]

    def url(self, user: str) -> str:
        return f"amqp://{user}:{self.passwords.get(user, 'x' * 20)}@127.0.0.1:{self.port}/"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DEPLOY)
        patch.syspath_prepend(ROOT / "dev")
        backends, set_passwords = map(importlib.import_module, ("backends", "set_passwords"))
    if backends.find(backends.RABBITMQ) is None:
        pytest.skip("the programs of RabbitMQ are not on this machine")
    folder = tmp_path_factory.mktemp("broker")
    passwords = {user: f"{token_hex(16)}-{user}" for user in USERS}
    secrets = folder / "secrets"
    secrets.mkdir()
    for user, password in passwords.items():
        (secrets / user).write_text(f"{password}\n")
    definitions = json.loads((DEPLOY / "definitions.json").read_text())
    definitions["users"].append(definitions["users"][0] | {"name": "locked"})
    definitions["permissions"].append(definitions["permissions"][0] | {"user": "locked"})
    (folder / "committed.json").write_text(json.dumps(definitions))
    (folder / "definitions.json").write_text(set_passwords.filled(folder / "committed.json", secrets))

    servers = backends.Servers(folder)
    try:
        servers.start_rabbitmq(f"load_definitions = {folder}/definitions.json\n")
        servers.wait_rabbitmq()
        yield Broker(servers.amqp, passwords)
    finally:
        servers.end()


@pytest.fixture
async def connect(broker: Broker) -> AsyncIterator[Callable[[str], Any]]:
    """Connects as a user; closes every connection when the test ends."""
    async with AsyncExitStack() as stack:

        async def connected(user: str) -> Any:
            return await stack.enter_async_context(await aio_pika.connect(broker.url(user), timeout=10))

        yield connected


@pytest.fixture
async def own(
    settings: Settings, db: Database, tmp_path: Path, broker: Broker, connect: Any
) -> AsyncIterator[Stack]:
    """An installation on this broker, set up by ops; the test publishes as upstream."""
    ours = settings.model_copy(
        update={"amqp_url": broker.url("sendoff-ops"), "queue_prefix": "", "database_pool": 2}
    )
    async with Stack(ours, db, await connect("sendoff-ops"), tmp_path).set_up() as stack:
        stack.channel = await (await connect("upstream")).channel(on_return_raises=True)
        yield stack


async def refused(connection: Any, act: Callable[[aiormq.abc.AbstractChannel], Any]) -> bool:
    """Says whether the broker refuses an act on a fresh channel with ACCESS_REFUSED."""
    channel = await connection.channel(publisher_confirms=True)
    try:
        await act(await channel.get_underlay_channel())
    except ChannelAccessRefused:
        return True
    await channel.close()
    return False


@pytest.mark.usefixtures("own")
async def test_a_user_may_publish_and_read_what_they_need_and_nothing_else(connect: Any) -> None:
    key = {routing.EVENTS: "delivery.started"}
    found = {}
    for user in USERS:
        connection = await connect(user)
        published = {
            name
            for name in EXCHANGES
            if not await refused(
                connection,
                lambda c, n=name: c.basic_publish(b"", exchange=n, routing_key=key.get(n, "nobody")),
            )
        }
        read = {name for name in QUEUES if not await refused(connection, lambda c, n=name: c.basic_get(n))}
        found[user] = (published, read)
    assert found == MAY


@pytest.mark.usefixtures("own")
async def test_only_ops_may_change_the_topology(connect: Any) -> None:
    changes: list[Callable[[aiormq.abc.AbstractChannel], Any]] = [
        lambda c: c.exchange_declare("sendoff.new"),
        lambda c: c.exchange_delete("sendoff.new"),
        lambda c: c.queue_declare("sendoff.new", durable=True),
        lambda c: c.queue_bind("sendoff.new", routing.COMMANDS, "delivery.confirm"),
        lambda c: c.queue_bind(routing.COMMANDS_QUEUE, routing.EVENTS, "delivery.paused"),
        lambda c: c.queue_unbind(routing.COMMANDS_QUEUE, routing.EVENTS, "delivery.paused"),
        lambda c: c.queue_bind(routing.STATS_QUEUE, routing.COMMANDS, "delivery.confirm"),
        lambda c: c.queue_unbind(routing.STATS_QUEUE, routing.COMMANDS, "delivery.confirm"),
        lambda c: c.queue_delete("sendoff.new"),
    ]
    for user in USERS:
        connection = await connect(user)
        answers = [await refused(connection, change) for change in changes]
        assert answers == [user != "sendoff-ops"] * len(changes), user
        for queue in ("upstream.answers", "listener.events", "sender.answers", "elsewhere"):
            theirs = queue.partition(".")[0] == user
            declare = lambda c, q=queue: c.queue_declare(q, exclusive=True)  # noqa: E731
            assert await refused(connection, declare) is not theirs, (user, queue)


async def test_a_listener_binds_a_queue_of_its_own_to_events_alone(own: Stack, connect: Any) -> None:
    connection = await connect("listener")
    channel = await connection.channel()
    queue = await channel.declare_queue("listener.events", exclusive=True)
    await queue.bind(own.names.exchange(routing.EVENTS), "delivery.*")
    for exchange, key in (
        (routing.EVENTS, "#"),
        (routing.COMMANDS, "delivery.confirm"),
        (routing.SENDS, "email"),
        (routing.DEAD, ""),
    ):
        assert await refused(connection, lambda c, e=exchange, k=key: c.queue_bind("listener.events", e, k))
    events = await connect("sendoff-events")
    publish = lambda c: c.basic_publish(b"", exchange=routing.EVENTS, routing_key="other.news")  # noqa: E731
    assert await refused(events, publish)


async def test_a_broker_user_cannot_publish_in_the_name_of_another(own: Stack) -> None:
    with pytest.raises(aio_pika.exceptions.AMQPChannelError, match="PRECONDITION_FAILED"):
        await own.publish(routing.COMMANDS, routing.STOP, b"{}", user_id="sendoff-ops")


@pytest.mark.parametrize("user", ["locked", "sendoff", "guest"])
async def test_nobody_gets_in_without_a_password_from_the_deployment(broker: Broker, user: str) -> None:
    with pytest.raises(BrokerUnreachable, match="refuses the user or password"):
        await open_connection(broker.url(user), name="test", timeout=10)


async def test_a_delivery_goes_its_whole_way_with_each_service_as_its_own_user(
    own: Stack, broker: Broker, connect: Any, sendoff: Sendoff
) -> None:
    number = await own.prepare(25)
    listening = await (await connect("listener")).channel()
    heard = await listening.declare_queue("listener.events", exclusive=True)
    await heard.bind(own.names.exchange(routing.EVENTS), "delivery.*")
    env = {"SENDOFF_AMQP_URL": broker.url("upstream"), "SENDOFF_QUEUE_PREFIX": ""}
    async with AsyncExitStack() as services:
        for name in SERVICES:
            url = broker.url(f"sendoff-{name}")
            await services.enter_async_context(
                own.running(name, amqp_url=url, publishers=("upstream",), channels=("email", "null"))
            )
        done = await asyncio.to_thread(sendoff, "confirm", number, "--operator", "ana", "--yes", env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert (await own.finished(number))["sent"] == 25
        stats = await own.request(routing.COMPUTE_STATS, {"delivery_id": number})
        assert stats["sent"] == 25

        events = []
        while not events or events[-1] != "delivery.finished":
            message = await until(lambda: heard.get(fail=False, no_ack=True))
            events.append(message.routing_key)
        assert events[:2] == ["delivery.confirmed", "delivery.started"]

        for user, exchange, key in (
            ("sendoff-send", routing.RESULTS, "sent"),
            ("sendoff-fanout", routing.SENDS, "null"),
        ):
            channel = await (await connect(user)).channel()
            target = await channel.get_exchange(own.names.exchange(exchange), ensure=False)
            await target.publish(aio_pika.Message(b"nonsense"), key)
        operations = await open_connection(broker.url("sendoff-ops"), name="test", timeout=10)
        async with operations:

            async def both_dead() -> bool:
                depth = await topology.QueueDepth(operations).ready(own.names.queue(routing.DEAD_QUEUE))
                return depth == 2

            await until(both_dead)
            async with open_dead_letters(operations, own.names, timeout=10) as letters:
                letter = await letters.take()
                assert letter is not None
                assert letter.message.body == b"nonsense"
                await letters.replay(letter)
            await until(both_dead)


async def test_a_sender_in_another_language_asks_sends_and_reports_as_its_own_user(
    own: Stack, broker: Broker, connect: Any
) -> None:
    number = await own.prepare(2)
    async with AsyncExitStack() as services:
        for name in ("confirm", "fanout", "claims", "results", "schedule"):
            await services.enter_async_context(own.running(name, amqp_url=broker.url(f"sendoff-{name}")))
        await own.confirm(number)
        channel = await (await connect("sender")).channel()
        answers = await channel.declare_queue("sender.answers", exclusive=True)
        sends = await channel.get_queue(own.names.queue(routing.send_queue("null")), ensure=False)
        claims = await channel.get_exchange(own.names.exchange(routing.CLAIMS), ensure=False)
        results = await channel.get_exchange(own.names.exchange(routing.RESULTS), ensure=False)
        for _ in range(2):
            message = await until(lambda: sends.get(fail=False))
            send = json.loads(message.body)
            asked = {"recipients": [send], "delivery_id": number}
            await claims.publish(
                aio_pika.Message(
                    json.dumps(asked).encode(),
                    message_id=str(uuid.uuid4()),
                    user_id="sender",
                    reply_to=answers.name,
                ),
                "null",
            )
            answer = json.loads((await until(lambda: answers.get(fail=False, no_ack=True))).body)
            (granted,) = answer["granted"]
            assert granted["recipient"] == send["recipient"]
            reported = json.dumps(result(number, granted["recipient"])).encode()
            await results.publish(aio_pika.Message(reported), routing.SENT)
            await message.ack()
        assert (await own.finished(number))["sent"] == 2


DELETED = (
    topology.Part("exchange", routing.RESULTS),
    topology.Part("queue", routing.COMMANDS_QUEUE),
    topology.Part("queue", routing.SENT_QUEUE),
    topology.Part("queue", routing.send_queue("null")),
    topology.Part("queue", routing.DEAD_QUEUE),
)


@pytest.mark.parametrize("transport", ["bulk", "aio-pika"])
async def test_services_that_may_not_declare_keep_what_they_have_until_ops_does(
    own: Stack, broker: Broker, transport: str
) -> None:
    number = await own.prepare(100)
    channel = Gated(all_sent=True)
    operations = await own.connection.channel()
    async with AsyncExitStack() as services:
        workers = [
            await services.enter_async_context(
                own.running(
                    name,
                    channel=channel,
                    amqp_url=broker.url(f"sendoff-{name}"),
                    transport=transport,
                    publishers=("upstream",),
                    page_look_after=0.3,
                    tick=0.05,
                )
            )
            for name in SERVICES
        ]
        await own.confirm(number, user_id="upstream")
        await until(channel.held)
        for kind, name in DELETED:
            delete = operations.queue_delete if kind == "queue" else operations.exchange_delete
            await delete(name)
        channel.gate.set()
        sentence = (
            f"The broker has no {' and no '.join(map(str, DELETED))}. Run “sendoff migrate”."
            " What is in hand is kept, and goes on when it is there again."
        )
        for worker in workers:
            await until(lambda w=worker: says(w, sentence))
        await topology.declare(own.connection, own.names, own.settings.channels)
        assert (await own.finished(number))["sent"] == 100
        for worker in workers:
            await until(lambda w=worker: healthy(w))


async def says(worker: Worker, sentence: str) -> bool:
    return await worker.probes(asyncio.Event())["topology"]() == sentence


async def healthy(worker: Worker) -> bool:
    return not any([await probe() for probe in worker.probes(asyncio.Event()).values()])


@pytest.mark.usefixtures("own")
async def test_a_command_as_the_wrong_user_names_what_is_refused(broker: Broker, sendoff: Sendoff) -> None:
    async def wrong(user: str, *command: object) -> str:
        env = {"SENDOFF_AMQP_URL": broker.url(user), "SENDOFF_QUEUE_PREFIX": ""}
        done = await asyncio.to_thread(sendoff, *command, env=env)
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert f"refused for user '{user}'" in last
        return last

    said = await asyncio.gather(
        wrong("sendoff-send", "migrate"),
        wrong("sendoff-send", "pause", 1, "--operator", "ana", "--reason", "x"),
        wrong("upstream", "dead", "list"),
        wrong("sendoff-confirm", "run", "stats"),
    )
    refused_to = (
        "exchange 'sendoff.commands'",
        "queue 'amq_",
        "queue 'sendoff.dead'",
        "queue 'sendoff.stats'",
    )
    for sentence, what in zip(said, refused_to, strict=True):
        assert what in sentence


def test_the_committed_definitions_hold_no_password() -> None:
    definitions = json.loads((DEPLOY / "definitions.json").read_text())
    assert {user["password_hash"] for user in definitions["users"]} == {""}
    assert [p["user"] for p in definitions["permissions"]] == USERS
    assert set(USERS) == set(MAY)
    assert {f"sendoff-{name}" for name in SERVICES} <= set(USERS)


@pytest.mark.usefixtures("own")
async def test_what_a_user_may_do_is_seen_without_doing_it(settings: Settings, broker: Broker) -> None:
    needs = permissions.needs(settings.channels)
    assert needs.keys() >= set(SERVICES)
    for user in USERS:
        async with await open_connection(broker.url(user), name="asks", timeout=20) as connection:
            answers = await try_publishing(connection)
            may = await permissions.look(connection, routing.Names(), needs.values(), answers=answers)
        writes, reads = MAY[user]
        # Nothing publishes commands or claims here, and nothing reads the dead queue.
        assert may.writes == writes & {name for each in needs.values() for name in each.writes}, user
        assert may.reads == reads & {name for each in needs.values() for name in each.reads}, user
        assert not may.wide
        runs = {name for name, needed in needs.items() if not may.lacks(needed)}
        assert user.removeprefix("sendoff-") in runs or user in {
            "upstream",
            "listener",
            "sender",
            "sendoff-ops",
        }
