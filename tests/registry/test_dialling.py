"""What is waited for before the first request can be sent, and given up by another thread."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyctrd.errors import CancelledError
from pyctrd.oci.hold import Hold
from pyctrd.registry.pool import Pool, Proxy, Route
from tests import listeners

MS_BIND = 0x1000
MNT_DETACH = 2
# What is given up ends in a small part of this; what would be waited for takes fifteen.
PROMPT_SECONDS = 6.0


def given_up(route: Route, under_way: threading.Event | None = None) -> None:
    """Ask for something there, and give that up while it is connected."""
    hold = Hold()
    with contextlib.closing(Pool(lambda _: ssl.create_default_context())) as pool, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(pool.request, route, "GET", "/v2/", {}, repeatable=True, hold=hold)
        if under_way is not None:
            assert under_way.wait(10)
        time.sleep(0.2)
        assert not asked.done()
        began = time.monotonic()
        hold.stop()
        with pytest.raises(CancelledError):
            asked.result()
        assert time.monotonic() - began < PROMPT_SECONDS


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_host_that_takes_no_connection_is_given_up_at_once() -> None:
    with listeners.full() as port:
        given_up(Route("http", "127.0.0.1", port))


def test_a_server_without_a_greeting_is_given_up_at_once() -> None:
    with listeners.silent() as port:
        before = descriptors()
        given_up(Route("https", "127.0.0.1", port))
        assert descriptors() == before


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_opens_no_tunnel_is_given_up_at_once(scheme: str) -> None:
    with listeners.silent() as port:
        proxy = Proxy(scheme, "127.0.0.1", port, "")
        given_up(Route("https", "registry.invalid", 443, proxy))


@pytest.fixture
def asked_resolver(tmp_path: Path) -> Iterator[threading.Event]:
    """A resolver that says nothing, in this process's mounts; set when it was asked."""
    asked = threading.Event()
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.path.realpath("/etc/resolv.conf").encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.bind(("127.53.0.1", 53))
        own = tmp_path / "resolv.conf"
        own.write_text("nameserver 127.53.0.1\noptions timeout:10 attempts:1\n")
        assert libc.mount(str(own).encode(), target, None, MS_BIND, None) == 0, os.strerror(ctypes.get_errno())

        def listen() -> None:
            port.recv(512)
            asked.set()

        threading.Thread(target=listen, daemon=True).start()
        try:
            yield asked
        finally:
            assert libc.umount2(target, MNT_DETACH) == 0


@pytest.mark.root
@pytest.mark.skipif(not Path("/etc/resolv.conf").exists(), reason="nothing to mount over")
def test_a_resolver_that_says_nothing_is_given_up_at_once(asked_resolver: threading.Event) -> None:
    given_up(Route("http", "pyctrd-test.invalid", 80), asked_resolver)
