"""Dramatiq, after its “User Guide”, “Best Practices” and the reference of `RabbitmqBroker`.

https://dramatiq.io/guide.html, https://dramatiq.io/best_practices.html
https://dramatiq.io/reference.html#dramatiq.brokers.rabbitmq.RabbitmqBroker
As documented: an actor per stage, `send()`, confirmed publishes, the usual middleware, 2 processes of 8
threads. Tuned: pages of recipients as messages of their own, so that all threads publish; only the
middleware that the job needs. Its queues are classic and durable: its broker has no way to declare a quorum
queue.
"""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.middleware import Retries
from job import AMQP_URL, TUNED, Fields, Store, pages
from job import send as null_send

_QUEUE = "bench_dramatiq"

store = Store()
broker = RabbitmqBroker(url=AMQP_URL, confirm_delivery=True, middleware=[Retries()] if TUNED else None)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=_QUEUE)
def fan_out(delivery: int) -> None:
    if TUNED:
        for first, last in pages(store.size(delivery)):
            fan_out_page.send(delivery, first, last)
        return
    for fields in store.read(delivery):
        send.send(fields)


@dramatiq.actor(queue_name=_QUEUE)
def fan_out_page(delivery: int, first: int, last: int) -> None:
    for fields in store.read(delivery, first, last):
        send.send(fields)


@dramatiq.actor(queue_name=_QUEUE)
def send(fields: Fields) -> None:
    record.send(null_send(fields))


@dramatiq.actor(queue_name=_QUEUE)
def record(result: Fields) -> None:
    store.record(result)


async def confirm(delivery: int) -> None:
    fan_out.send(delivery)
