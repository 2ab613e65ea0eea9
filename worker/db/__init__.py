"""Postgres: the pool, the named queries, and one typed module per topic."""
