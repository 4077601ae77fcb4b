"""Pauses, proxies, URLs without secrets."""

from __future__ import annotations

import pytest

from pyctrd.registry.hosts import api_host, host_of, is_internal, is_loopback, may_be_plain
from pyctrd.registry.transport import (
    BACKOFF_MAX_SECONDS,
    Transport,
    backoff_seconds,
    redacted,
    retry_after_seconds,
)
from tests.registry_faults import FaultyRegistry


def test_backoff_grows_to_a_limit() -> None:
    for attempt in range(1, 30):
        pause = backoff_seconds(attempt)
        assert 0 < pause <= min(BACKOFF_MAX_SECONDS, 0.25 * 2 ** (attempt - 1))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        (" 0 ", 0.0),
        ("99999", 99999.0),
        ("9" * 400, None),
        ("²", None),
        ("Wed, 21 Oct", None),
        ("-1", None),
    ],
)
def test_retry_after_is_read(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value) == seconds


def test_url_is_redacted() -> None:
    assert redacted("https://user:pw@host:1/path?X-Amz-Signature=s#f") == "https://host:1/path?…"
    assert redacted("https://host/path") == "https://host/path"


@pytest.mark.parametrize("registry", ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"])
def test_loopback_is_recognised(registry: str) -> None:
    assert is_loopback(registry)
    assert may_be_plain(registry, ())


@pytest.mark.parametrize(
    "registry", ["docker.io", "localhost.example", "127.example.com", "127.0.0.1.nip.io", "128.0.0.1"]
)
def test_other_hosts_are_not_loopback(registry: str) -> None:
    assert not is_loopback(registry)
    assert may_be_plain(registry, {registry})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0"])  # noqa: S104 - recognised, not bound
def test_internal_addresses_are_recognised(host: str) -> None:
    assert is_internal(host)
    assert not is_internal(f"{host}.example.com")


def test_docker_hub_is_served_elsewhere() -> None:
    assert api_host("docker.io") == "registry-1.docker.io"
    assert host_of("[::1]:5000") == "::1"


def test_no_proxy_is_looked_at_for_each_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyRegistry() as proxy, FaultyRegistry() as direct:
        monkeypatch.setenv("http_proxy", proxy.base)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        transport = Transport()
        transport.request("GET", f"{direct.base}/v2/", headers={}, retry=False).close()
        transport.request("GET", "http://registry.invalid/v2/", headers={}, retry=False).close()
        transport.close()
        assert [request.path for request in direct.seen] == ["/v2/"]
        assert proxy.seen[0].headers["host"] == "registry.invalid"
