"""The policy of the queues: what it says for which version, and which queues it is for."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from contracts import routing
from contracts.routing import Names
from worker.amqp.policies import queue_policy
from worker.amqp.versions import OLDEST, Version, read_version

ALWAYS = {"delivery-limit": 50, "dead-letter-strategy": "at-least-once", "overflow": "reject-publish"}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("3.10.8", (3, 10)),
        ("4.0.5", (4, 0)),
        ("4.3.0-rc.1", (4, 3)),
        ("3.13", (3, 13)),
        ("", OLDEST),
        ("unknown", OLDEST),
    ],
)
def test_versions_are_compared_as_numbers(text: str, version: tuple[int, int]) -> None:
    assert read_version(text) == version
    assert Version(3, 9) < OLDEST < Version(3, 12) < Version(4, 0)


@pytest.mark.parametrize(("version", "times_out"), [("3.10.8", False), ("3.12.0", True), ("4.0.5", True)])
def test_a_broker_is_told_only_what_it_knows(version: str, times_out: bool) -> None:  # noqa: FBT001
    definition = queue_policy(Names(), read_version(version)).definition
    assert definition == ALWAYS | ({"consumer-timeout": 3_600_000} if times_out else {})


@pytest.mark.parametrize("prefix", ["", "blue", "blue-2_x"])
def test_it_is_for_every_queue_of_the_installation_but_the_dead_queue(prefix: str) -> None:
    names, others = Names(prefix), Names(f"{prefix}x")
    policy = queue_policy(names, OLDEST)
    ours = [*routing.BINDINGS, routing.CLAIMS_QUEUE, routing.send_queue("email"), routing.send_queue("sms-2")]
    assert all(re.search(policy.pattern, names.queue(queue)) for queue in ours)
    assert not any(re.search(policy.pattern, others.queue(queue)) for queue in ours)
    assert not re.search(policy.pattern, names.queue(routing.DEAD_QUEUE))


def test_what_is_not_in_force_is_said() -> None:
    policy = queue_policy(Names(), OLDEST)
    assert policy.missing({**ALWAYS, "max-length": 5}) == []
    assert policy.missing({"delivery-limit": 20, "overflow": "reject-publish"}) == [
        "delivery-limit is 20 and should be 50",
        "dead-letter-strategy is not set and should be at-least-once",
    ]


def test_an_operator_can_paste_the_command() -> None:
    policy = queue_policy(Names("blue"), OLDEST)
    words = shlex.split(policy.command("my host"))
    assert words[:4] == ["rabbitmqctl", "set_policy", "-p", "my host"]
    assert words[-3:-1] == [policy.name, policy.pattern]
    assert json.loads(words[-1]) == ALWAYS
