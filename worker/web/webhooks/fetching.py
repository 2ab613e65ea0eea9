"""Fetches small documents over https: nothing is followed elsewhere, and nothing is read beyond a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import httpx2

Fetch = Callable[[str], Awaitable[bytes]]
"""Returns what is at an address, or raises NotFetched."""

_MOST_OCTETS: Final = 100_000
_SECONDS: Final = 5.0


class NotFetched(Exception):
    """There is no answer, or not one that is used; the message says which."""


async def fetch(url: str) -> bytes:
    """Returns what is at an address.

    Whether the address may be asked is the caller's to decide. Redirects are not followed, and proxies of the
    environment are used.

    Raises:
        NotFetched: There is no answer within 5 s, another status than 200, or more than 100,000 octets.
    """
    try:
        async with (
            asyncio.timeout(_SECONDS),
            httpx2.AsyncClient(follow_redirects=False, timeout=_SECONDS) as client,
            client.stream("GET", url) as answer,
        ):
            if answer.status_code != httpx2.codes.OK:
                raise NotFetched(f"The answer is {answer.status_code}.")
            read = b""
            async for part in answer.aiter_bytes():
                read += part
                if len(read) > _MOST_OCTETS:
                    raise NotFetched(f"It is longer than {_MOST_OCTETS} octets.")
            return read
    except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise NotFetched(f"{str(error) or type(error).__name__}.") from error
