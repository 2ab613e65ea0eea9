"""AMQP 0-9-1 in bulk: publishes written, deliveries read and confirms counted by the hundred.

It offers what `worker.amqp.pika` offers, for a fraction of its cost. One
connection carries one channel, and both live and die together: whatever goes wrong on either, the answer is a
new connection. `reader` and `encoding` are the wire, without any input or output; `connection` is one
connection from its handshake to its end; `keeper` opens the next; `confirms` and `ledger` keep the accounts
of a publisher and of a consumer; `publisher` and `consumer` are what services use.
"""
