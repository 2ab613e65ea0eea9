"""Webhooks: what mail providers report over HTTP, each in its own form."""
