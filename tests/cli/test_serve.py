"""``serve registry`` on the command line: its usage, and what it says where it cannot serve."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.cli.commands import run


def test_it_says_what_it_takes() -> None:
    done = run("serve", "registry", "--help")
    assert done.status == 0
    for word in ("--listen", "--htpasswd", "--anonymous", "--upstream", "--user-namespace", "--tls-cert"):
        assert word in done.out


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--listen", "nowhere"], 1, "invalid address: 'nowhere': expected ADDRESS:PORT"),
        (["--anonymous", "all"], 2, "is not one of"),
        (["--tls-cert", "only.pem"], 1, "expected a certificate with its key"),
        (["--upstream", "docker.io/library"], 1, "expected a registry's host"),
        (["--user-namespace", "alice=../x"], 1, "invalid namespace"),
        (["--user-namespace", "alice"], 2, "KEY=VALUE"),
        (["--htpasswd", "absent"], 1, "absent"),
        (["--token-file", "absent"], 2, "does not exist"),
    ],
)
def test_what_cannot_be_served_is_one_line(words: list[str], status: int, said: str) -> None:
    done = run("serve", "registry", "-q", "--listen", "127.0.0.1:0", *words)
    assert (done.status, done.out) == (status, "")
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_file_of_tokens_says_which_line_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# users\nalice:0123456789abcdef\nno token here\n")
    done = run("serve", "registry", "--token-file", str(path))
    assert done.status == 2
    assert "line 3: expected USER:TOKEN" in done.err
    assert "0123456789abcdef" not in done.err


def test_an_address_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", "registry", "-q", "--listen", address)
        assert done.status == 1
        assert address in done.err
