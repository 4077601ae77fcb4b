"""Where a registry answers, and whether it may be talked to without TLS."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from pyctrd.errors import InvalidError
from pyctrd.oci.value import NamedTuple
from pyctrd.registry.sockets import packed

# The name that people write, and the host that serves it.
_API_HOSTS = {"docker.io": "registry-1.docker.io"}
_IPV4_BYTES = 4
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96
_LOOPBACK = bytes(15) + b"\1"
_LINK_LOCAL = tuple(bytes((0xFE, second)) for second in range(0x80, 0xC0))  # fe80::/10


# How long an endpoint that failed is asked last; twice as long each time that it fails again.
REST_SECONDS = 30.0
REST_MAX_SECONDS = 600.0
ALL_CAPABILITIES = frozenset({"pull", "resolve", "push"})


class Trust(NamedTuple):
    """Whom TLS trusts, and as whom it speaks.

    Attributes:
        authorities: PEM files, beside the system's and the engine's.
        client: Certificates and their keys; None where a key stands with its certificate.
        verify: Whether the server must show who it is.
    """

    authorities: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path | None], ...] = ()
    verify: bool = True


class Endpoint(NamedTuple):
    """One place where a registry's content is to be had.

    Attributes:
        base: The URL before a repository's name: ``https://host/v2``.
        host: Whose credentials are used: ``host[:port]``, or the registry's own name.
        capabilities: Of "pull" (by digest), "resolve" (tags) and "push" those that it is asked for.
        trust: Of TLS.
        headers: What goes along with each request.
        dial_seconds: How long connecting may take; None for as long as anywhere.
        is_mirror: Whether it is another server than the registry's own: what it says is no proof of what that has.
    """

    base: str
    host: str
    capabilities: frozenset[str] = ALL_CAPABILITIES
    trust: Trust = Trust()
    headers: tuple[tuple[str, str], ...] = ()
    dial_seconds: float | None = None
    is_mirror: bool = False


class Resting:
    """Endpoints that failed, or were too slow, a while ago. Thread-safe."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, float]] = {}  # base → until when, for how many seconds

    def rest(self, endpoint: Endpoint) -> bool:
        """It failed: ask others first for a while, that is longer each time. Whether it did not rest before."""
        is_news = not self.is_resting(endpoint)
        _, before = self._until.get(endpoint.base, (0.0, 0.0))
        seconds = min(max(REST_SECONDS, 2 * before), REST_MAX_SECONDS)
        self._until[endpoint.base] = (time.monotonic() + seconds, seconds)
        return is_news

    def is_resting(self, endpoint: Endpoint) -> bool:
        """Whether others are asked first."""
        return endpoint.base in self._until and time.monotonic() < self._until[endpoint.base][0]


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


def is_within(registry: str, named: Collection[str]) -> bool:
    """Whether a registry is one of those that were named: ``host``, ``host:port``, or a network of addresses."""
    if registry in named or host_of(registry) in named:
        return True
    networks = [word for word in named if "/" in word]
    if not networks or _address(host_of(registry)) is None:
        return False
    import ipaddress

    try:
        address = ipaddress.ip_address(host_of(registry).partition("%")[0])
        return any(address in ipaddress.ip_network(word, strict=False) for word in networks)
    except ValueError as error:
        raise InvalidError(
            f"invalid insecure registry: {error}", field="insecure", value=sorted(networks), hint="HOST[:PORT] or CIDR"
        ) from error


def _address(host: str) -> bytes | None:
    """The bytes of an address, of IPv4 also where it is written as one of IPv6; None for a name."""
    found = packed(host)
    return None if found is None else found.removeprefix(_MAPPED)


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == _IPV4_BYTES else address == _LOOPBACK
