"""AMQP 0-9-1 in bulk: a hundred messages or confirms are written, read and counted together.

It offers the same as `worker.amqp.pika` for a fraction of its cost. A connection has one AMQP channel. When
the channel or the connection fails, both end, and a new connection is opened. `reader` and `encoding` know
the bytes, without input or output. `connection` is one connection from its handshake to its end. `keeper`
opens the next one. `confirms` and `ledger` count the messages of a publisher and of a consumer. Services use
`publisher` and `consumer`.
"""
