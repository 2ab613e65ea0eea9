"""Celery, after its pages “Using RabbitMQ: using quorum queues”, “Tasks” and “Optimizing”.

https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/rabbitmq.html
https://docs.celeryq.dev/en/stable/userguide/optimizing.html
As documented: a task per stage, `delay()`, late acknowledgement, a quorum queue, confirmed publishes, 2
processes of the default pool. Tuned: two nodes with 8 threads each, which is twice as fast for tasks as
small as these; pages of recipients as tasks of their own, so that all of them publish; one producer kept for
a page; a prefetch of 64 for each thread; no rate limits, no gossip and no mingling.
"""

from __future__ import annotations

from celery import Celery
from job import AMQP_URL, TUNED, Fields, Store, pages
from job import send as null_send
from kombu import Queue

_QUEUE = "bench_celery"

store = Store()
app = Celery("celery_peer", broker=AMQP_URL + "/")  # the virtual host is “/”, which Celery wants written out
app.conf.update(
    task_queues=[Queue(_QUEUE, queue_arguments={"x-queue-type": "quorum"})],
    task_default_queue=_QUEUE,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
)
if TUNED:
    app.conf.update(worker_prefetch_multiplier=64, worker_disable_rate_limits=True)


@app.task
def fan_out(delivery: int) -> None:
    if TUNED:
        for first, last in pages(store.size(delivery)):
            fan_out_page.delay(delivery, first, last)
        return
    for fields in store.read(delivery):
        send.delay(fields)


@app.task
def fan_out_page(delivery: int, first: int, last: int) -> None:
    with app.producer_or_acquire() as producer:
        for fields in store.read(delivery, first, last):
            send.apply_async((fields,), producer=producer)


@app.task
def send(fields: Fields) -> None:
    record.delay(null_send(fields))


@app.task
def record(result: Fields) -> None:
    store.record(result)


async def confirm(delivery: int) -> None:
    fan_out.delay(delivery)
