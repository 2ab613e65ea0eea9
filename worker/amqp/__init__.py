"""RabbitMQ: connections, topology, batches of publishes with confirms, batches of deliveries."""
