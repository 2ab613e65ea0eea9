"""Opens connections to a gateway, to no address that its name must not lead to.

A name may lead elsewhere at each look-up (DNS rebinding). So it is looked up once, its addresses are checked,
and one of these is connected to: nothing asks the DNS a second time in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final

import httpcore2

from worker.channels.protocol import ChannelUnreachable
from worker.domain.failures import Failure

if TYPE_CHECKING:
    from worker.domain.webhook_options import GatewayUrl

_NAT64: Final = IPv6Network("64:ff9b::/96")
"""IPv6 addresses that lead to an IPv4 address (RFC 6052)."""
_MOST_ADDRESSES: Final = 8
"""Addresses of a name that are tried."""
_IPV4_BITS: Final = 0xFFFFFFFF


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet: not this machine's, and of no private network.

    An IPv6 address that leads to an IPv4 address counts as that one.
    """
    found: IPv4Address | IPv6Address = ip_address(address)
    if isinstance(found, IPv6Address):
        if found.is_site_local:
            return False
        inside = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inside = IPv4Address(int(found) & _IPV4_BITS)
        found = inside or found
    return found.is_global and not found.is_multicast


async def connect(
    url: GatewayUrl, *, allow_private: bool, context: ssl.SSLContext, seconds: float
) -> httpcore2.AsyncNetworkStream:
    """Connects to a gateway.

    Args:
        url: Where it is.
        allow_private: Whether it may be at this machine or in a private network.
        context: Checks its certificate.
        seconds: How long that may take in all.

    Raises:
        ChannelUnreachable: It cannot be reached, must not be connected to, or its certificate is wrong.
    """
    try:
        async with asyncio.timeout(seconds):
            addresses = await _addresses(url, allow_private=allow_private)
            stream = await _connect_to_one(url, addresses, seconds)
            return await _secured(stream, url, context) if url.secured else stream
    except socket.gaierror as error:
        raise _unreachable(url, f"its name leads nowhere: {error.strerror}") from error
    except httpcore2.ConnectError as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            why = f"its certificate is not valid: {error.__cause__.verify_message}"
            raise _unreachable(url, why, Failure.BROKEN) from error
        raise _unreachable(url, _in_words(error)) from error
    except TimeoutError as error:
        raise _unreachable(url, f"it took longer than {seconds:g} s") from error
    except (httpcore2.NetworkError, OSError) as error:
        raise _unreachable(url, _in_words(error)) from error


async def _addresses(url: GatewayUrl, *, allow_private: bool) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    allowed = [one for one in addresses if allow_private or is_public(one)]
    if not allowed:
        raise ChannelUnreachable(
            f"The gateway {url} is at {addresses[0]}, which is no address of the internet: if that is meant,"
            f" set SENDOFF_WEBHOOK_ALLOW_PRIVATE=true.",
            Failure.BROKEN,
        )
    return allowed[:_MOST_ADDRESSES]


async def _connect_to_one(
    url: GatewayUrl, addresses: list[str], seconds: float
) -> httpcore2.AsyncNetworkStream:
    """Connects to the first address that answers. An address is not looked up again."""
    network = httpcore2.AnyIOBackend()
    share = seconds / len(addresses)  # one that is silent leaves time for the others
    for address in addresses[:-1]:
        with contextlib.suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
            return await network.connect_tcp(address, url.port, timeout=share)
    return await network.connect_tcp(addresses[-1], url.port, timeout=None)


async def _secured(
    stream: httpcore2.AsyncNetworkStream, url: GatewayUrl, context: ssl.SSLContext
) -> httpcore2.AsyncNetworkStream:
    try:
        return await stream.start_tls(context, server_hostname=url.host)
    except BaseException:
        await stream.aclose()
        raise


def _unreachable(url: GatewayUrl, why: str, failure: Failure = Failure.AWAY) -> ChannelUnreachable:
    advice = "check that it runs and that its URL is right"
    return ChannelUnreachable(f"The gateway {url} cannot be used: {why.rstrip('.')}; {advice}.", failure)


def _in_words(error: BaseException) -> str:
    """Returns the words of what is at the root of an error, since libraries wrap it."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno:
        return os.strerror(error.errno)  # Python's own words tell the address once more
    return str(error) or type(error).__name__
