"""Whom a worker may connect to: a name is resolved once, each address judged, and that very address connected to.

So a name that resolves to something else a moment later (DNS rebinding) changes nothing. Refused are link-local and
metadata addresses, where machines of a cloud keep their credentials, in every disguise that IPv6 has for them.
Also says whether the other end is this device. The network side of `transport`; decides nothing else.
"""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Iterable
from typing import TypeAlias

import httpcore2
from httpcore2 import SOCKET_OPTION

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",
        "fe80::/10",
        "fd00:ec2::/32",  # AWS
        "fd20:ce::/32",  # Google
        "100.100.100.200/32",  # Alibaba
        "192.0.0.192/32",  # Oracle
        "224.0.0.0/4",
        "ff00::/8",
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_ADDRESSES_MAX = 8
"""Of one name that are tried."""


class AddressRefusedError(Exception):
    """The name leads to an address that this worker may not connect to."""


def is_refused(address: str) -> bool:
    """Whether `address`, as the resolver writes it, is link-local, multicast, or one of a metadata service."""
    ip: _Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        hidden = ip.ipv4_mapped or ip.sixtofour
        if hidden is None and ip in _NAT64:
            hidden = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if hidden is not None:
            ip = hidden
    return any(ip in network for network in _REFUSED if network.version == ip.version)


class CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to what it checked. `is_this_device` is of the latest connection; None before there was one."""

    def __init__(self, *, private_addresses: bool) -> None:
        self._private_addresses = private_addresses
        self._network = httpcore2.AnyIOBackend()
        self.is_this_device: bool | None = None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's contract
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Within `timeout` for all addresses together. Raises what the library does, and `AddressRefusedError`."""
        start_s = time.monotonic()
        left_s = timeout
        addresses = await self._resolve(host, port, timeout)
        for n, address in enumerate(addresses):
            if timeout is not None:
                left_s = max(0.01, start_s + timeout - time.monotonic())
            try:
                stream = await self._network.connect_tcp(address, port, left_s, local_address, socket_options)
            except httpcore2.ConnectError:
                if n + 1 == len(addresses):
                    raise
                continue
            self.is_this_device = _same_device(stream)
            return stream
        raise httpcore2.ConnectError("the name has no address")

    async def _resolve(self, host: str, port: int, limit_s: float | None) -> list[str]:
        """The addresses of `host` that may be used. Raises `AddressRefusedError` when it has refused ones only."""
        try:
            async with asyncio.timeout(limit_s):
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout("the name was not resolved in time") from error
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(error) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        allowed = [address for address in addresses if self._private_addresses or not is_refused(address)]
        if addresses and not allowed:
            raise AddressRefusedError
        return allowed[:_ADDRESSES_MAX]


def _same_device(stream: httpcore2.AsyncNetworkStream) -> bool:
    """A connection to oneself has the same address at both ends; or it goes through the loopback."""
    ours, theirs = stream.get_extra_info("client_addr"), stream.get_extra_info("server_addr")
    if not ours or not theirs:
        return False
    return bool(ours[0] == theirs[0] or ipaddress.ip_address(str(theirs[0]).partition("%")[0]).is_loopback)
