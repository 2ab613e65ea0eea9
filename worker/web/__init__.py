"""All that Sendoff serves over HTTP: one server, and an ASGI application for each purpose."""
