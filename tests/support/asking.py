"""A sender in another language, as far as it asks for claims."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

from contracts import routing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aio_pika.abc import AbstractQueue

    from tests.support.stack import Stack


def attempts(recipients: Iterable[int], attempt: int = 1) -> list[dict[str, Any]]:
    """What a request asks for, with the addresses of `Stack.prepare`."""
    return [{"recipient": r, "attempt": attempt, "address": f"user{r}@example.org"} for r in recipients]


class Asker:
    """Asks, and waits for the answer in a queue of its own."""

    def __init__(self, stack: Stack, answers: AbstractQueue, channel: str) -> None:
        self.stack = stack
        self.answers = answers
        self.channel = channel

    @classmethod
    async def open(cls, stack: Stack, channel: str = "sms") -> Asker:
        channel_of_its_own = await stack.connection.channel()
        return cls(stack, await channel_of_its_own.declare_queue(exclusive=True), channel)

    async def publish(
        self, delivery_id: int, asked: list[dict[str, Any]], name: str | None = None, **properties: Any
    ) -> str:
        name = name or str(uuid.uuid4())
        told: dict[str, Any] = {"message_id": name, "correlation_id": name, "reply_to": self.answers.name}
        body = {"delivery_id": delivery_id, "recipients": asked}
        await self.stack.publish(routing.CLAIMS, self.channel, body, **(told | properties))
        return name

    async def heard(self, name: str) -> dict[str, Any]:
        async with asyncio.timeout(30), self.answers.iterator(no_ack=True) as messages:
            async for message in messages:
                assert (message.correlation_id, message.type) == (name, routing.TYPE_GRANT)
                answer: dict[str, Any] = json.loads(message.body)
                return answer
        raise AssertionError("no answer")

    async def ask(
        self, delivery_id: int, asked: list[dict[str, Any]], name: str | None = None
    ) -> dict[str, Any]:
        return await self.heard(await self.publish(delivery_id, asked, name))

    async def granted(
        self, delivery_id: int, recipients: Iterable[int], attempt: int = 1, name: str | None = None
    ) -> list[int]:
        """Returns the recipients that are granted."""
        answer = await self.ask(delivery_id, attempts(recipients, attempt), name)
        assert (answer["status"], {g["attempt"] for g in answer["granted"]} <= {attempt}) == (
            "accepted",
            True,
        )
        assert (answer["lease_seconds"] is None) == (answer["granted"] == [])
        return [g["recipient"] for g in answer["granted"]]
