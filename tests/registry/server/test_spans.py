"""Ranges of a blob, metrics, and addresses to listen on."""

from __future__ import annotations

import socket

import pytest

from pyctrd.errors import InvalidError
from pyctrd.registry.server.answers import RefusedError
from pyctrd.registry.server.bodies import Span, find_span
from pyctrd.registry.server.metrics import Gauges, Metrics
from pyctrd.registry.server.server import listen_on, parse_listen


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-", Span(0, 100)),
        ("bytes=0-0", Span(0, 1)),
        ("bytes=10-19", Span(10, 10)),
        ("bytes=90-1000", Span(90, 10)),
        ("bytes=-10", Span(90, 10)),
        ("bytes=-1000", Span(0, 100)),
        ("bytes=99-", Span(99, 1)),
        # What is no single range of bytes is passed over (RFC 9110, section 14.2).
        ("bytes=0-1,5-6", None),
        ("bytes=-", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=0-" + "9" * 30, None),
    ],
)
def test_a_range_is_a_part_or_is_passed_over(header: str | None, expected: Span | None) -> None:
    assert find_span(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=50-49", "bytes=-0", "bytes=1000-2000"])
def test_a_part_that_there_is_not_is_refused(header: str) -> None:
    with pytest.raises(RefusedError) as caught:
        find_span(header, 100)
    assert (caught.value.status, caught.value.headers) == (416, {"Content-Range": "bytes */100"})


def test_nothing_has_no_part() -> None:
    assert find_span(None, 0) is None
    with pytest.raises(RefusedError):
        find_span("bytes=0-", 0)


def test_metrics_are_as_prometheus_reads_them() -> None:
    metrics = Metrics()
    metrics.note("blobs", "GET", 200, 0.002)
    metrics.note("blobs", "GET", 200, 3.0)
    metrics.note("blobs", "GET", 404, 0.0001)
    text = metrics.text(Gauges(connections=3, requests=1, receiving=0, refused=2))
    assert text.endswith("\n")
    for line in (
        'pyctrd_registry_requests_total{kind="blobs",method="GET",status="200"} 2',
        'pyctrd_registry_request_seconds_bucket{kind="blobs",le="0.005"} 2',
        'pyctrd_registry_request_seconds_bucket{kind="blobs",le="+Inf"} 3',
        'pyctrd_registry_request_seconds_count{kind="blobs"} 3',
        "pyctrd_registry_connections 3",
        "pyctrd_registry_connections_refused_total 2",
    ):
        assert line in text.splitlines()
    assert all(line.startswith(("# HELP ", "# TYPE ", "pyctrd_registry_")) for line in text.splitlines())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:5000", ("127.0.0.1", 5000)), ("[::1]:0", ("::1", 0)), (":80", ("", 80)), ("host:1", ("host", 1))],
)
def test_an_address_is_read(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", "127.0.0.1", "::1:80", "host:", "host:65536", "host:-1", "host:x", "host:\uff18"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="expected ADDRESS:PORT"):
        parse_listen(text)


def test_an_address_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="in use") as caught:
            listen_on(f"127.0.0.1:{taken.getsockname()[1]}")
        assert caught.value.filename
