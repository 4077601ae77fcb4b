"""Where a registry answers, and whether it may be talked to without TLS."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address

# The name that people write, and the host that serves it.
_API_HOSTS = {"docker.io": "registry-1.docker.io"}


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
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_internal(host: str) -> bool:
    """Whether a host is an address of this machine or of its link, where cloud metadata servers are."""
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_link_local or address.is_unspecified


def may_be_plain(registry: str, plain_http: Collection[str]) -> bool:
    """Whether plain HTTP is allowed: loopback as Docker has it, and what the user named."""
    return is_loopback(registry) or registry in plain_http or host_of(registry) in plain_http
