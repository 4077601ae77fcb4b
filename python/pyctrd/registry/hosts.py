"""Where a registry answers, and whether it may be talked to without TLS."""

from __future__ import annotations

import socket
from collections.abc import Collection

# The name that people write, and the host that serves it.
_API_HOSTS = {"docker.io": "registry-1.docker.io"}
_IPV4_BYTES = 4
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96
_LOOPBACK = bytes(15) + b"\1"
_LINK_LOCAL = tuple(bytes((0xFE, second)) for second in range(0x80, 0xC0))  # fe80::/10


def api_host(registry: str) -> str:
    """The host (with port, if any) that serves a registry's API."""
    return _API_HOSTS.get(registry, registry)


def host_of(registry: str) -> str:
    """The name without its port."""
    if registry.startswith("["):
        return registry[1:].partition("]")[0]
    return registry.partition(":")[0]


def is_loopback(registry: str) -> bool:
    """Whether the name is this machine's own: localhost, 127.0.0.0/8, ::1."""
    host = host_of(registry)
    if host == "localhost":
        return True
    # Only addresses: 127.0.0.1.example.com is somebody else's name.
    address = _address(host)
    return address is not None and _is_loopback(address)


def is_internal(host: str) -> bool:
    """Whether a host is an address of this machine or of its link, where cloud metadata servers are."""
    if host == "localhost":
        return True
    address = _address(host)
    if address is None:
        return False
    link_local = address[:2] == b"\xa9\xfe" if len(address) == _IPV4_BYTES else address[:2] in _LINK_LOCAL
    return _is_loopback(address) or link_local or not any(address)


def may_be_plain(registry: str, plain_http: Collection[str]) -> bool:
    """Whether plain HTTP is allowed: loopback as Docker has it, and what the user named."""
    return is_loopback(registry) or registry in plain_http or host_of(registry) in plain_http


def _address(host: str) -> bytes | None:
    """The bytes of an address, of IPv4 also where it is written as one of IPv6; None for a name."""
    # Not by ipaddress: it takes 2 ms to load, in every pull.
    for family, text in ((socket.AF_INET, host), (socket.AF_INET6, host.partition("%")[0])):
        try:
            return socket.inet_pton(family, text).removeprefix(_MAPPED)
        except (OSError, ValueError):  # ValueError: it has a NUL, or is not ASCII
            continue
    return None


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == _IPV4_BYTES else address == _LOOPBACK
