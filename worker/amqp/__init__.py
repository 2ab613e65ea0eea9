"""RabbitMQ: the interface (`messages`), the topology, and two transports, `pika` and `bulk`."""
