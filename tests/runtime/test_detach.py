"""Detach keys: found in whatever pieces they come, and the terminal is put back."""

from __future__ import annotations

import os
import termios
import tty

import pytest

from pyctrd.errors import DetachedError, InvalidError
from pyctrd.runtime.terminal import DETACH_KEYS, Keys, parse_keys
from tests.runtime.conftest import WAIT_SECONDS, Host


def test_keys_are_read_as_docker_reads_them() -> None:
    assert parse_keys(DETACH_KEYS) == b"\x10\x11"
    assert parse_keys("ctrl-],q,ctrl-@,ctrl-_") == b"\x1dq\x00\x1f"
    assert parse_keys("") == b""


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-é", "ctrl-1", "ab", "ctrl-p,", "alt-x"])
def test_keys_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="detach keys"):
        parse_keys(text)


def test_a_sequence_is_found_in_pieces_and_anything_else_is_passed_on() -> None:
    keys = Keys(b"\x10\x11")
    assert keys.pass_on(b"a\x10") == (b"a", False)
    assert keys.pass_on(b"b") == (b"\x10b", False)
    assert keys.pass_on(b"\x10") == (b"", False)
    assert keys.pass_on(b"\x10") == (b"\x10", False)
    assert keys.pass_on(b"\x11rest") == (b"", True)
    assert Keys(b"aab").pass_on(b"xaaab-") == (b"xa", True)
    assert Keys(b"").pass_on(b"\x10\x11") == (b"\x10\x11", False)


@pytest.mark.root
def test_a_user_leaves_and_comes_back(host: Host) -> None:
    bundle = host.prepare("left", "sh", "-c", "read x; echo got $x", terminal=True)
    master, slave = os.openpty()
    try:
        tty.setraw(slave)  # or the line discipline would take ^Q before anybody reads
        before = termios.tcgetattr(slave)
        host.runtime.start("left", bundle, terminal=True, stdin=True, attached=True)
        os.write(master, b"wo\x10\x11")
        with pytest.raises(DetachedError):
            host.runtime.attach(
                "left", bundle, stdin=slave, stdout=slave, stderr=slave, terminal=True, detach_keys=DETACH_KEYS
            )
        assert termios.tcgetattr(slave) == before
        assert host.runtime.status("left", bundle).state == "running"
        os.write(master, b"rd\r\n")
        ended = host.runtime.attach("left", bundle, stdin=slave, stdout=slave, stderr=slave, terminal=True)
        assert ended.exit_code == 0
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)
    assert "got word" in host.output("left")
    assert host.runtime.wait("left", bundle, timeout=WAIT_SECONDS).exit_code == 0
