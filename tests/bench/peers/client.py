"""Confirms deliveries through a peer: connects, prints `ready`, and takes a delivery's number per line."""

from __future__ import annotations

import asyncio
import importlib
import sys


async def main(name: str) -> None:
    """Reads numbers until the input ends."""
    peer = importlib.import_module(name)
    if hasattr(peer, "connect"):
        await peer.connect()
    print("ready", flush=True)  # noqa: T201 - for the process that started this one
    while line := await asyncio.to_thread(sys.stdin.readline):
        await peer.confirm(int(line))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
