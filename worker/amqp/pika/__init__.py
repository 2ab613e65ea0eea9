"""The side of aio-pika: commands, requests, answers, events, and the dead queue as a person sees it."""
