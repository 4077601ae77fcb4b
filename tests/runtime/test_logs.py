"""A container's log: its forms, its bounds, and readers that go on over a rotation."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pyctrd.errors import InvalidError, UnsupportedError
from pyctrd.runtime.life import Life, check_log, read_life, write_life
from pyctrd.runtime.logs import LogLine, read_log
from tests.runtime.conftest import WAIT_SECONDS, Host

CRI = b"""2016-10-06T00:17:09.669794202Z stdout F one
2016-10-06T00:17:09.669794203Z stderr P tw
2016-10-06T00:17:10.000000000Z stderr F o
torn
2016-10-06T00:17:11.000000000Z stdout F a b  c
"""


def read(bundle: Path, **options: int | None) -> list[str]:
    return [line.text for line in read_log(bundle, bundle / "none", follow=False, **options)]  # type: ignore[arg-type]


def numbered(*numbers: int) -> bytes:
    return b"".join(b"2016-10-06T00:17:%02d.000000000Z stdout F %d\n" % (number % 60, number) for number in numbers)


def test_cri_lines_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(CRI)
    lines = list(read_log(tmp_path, tmp_path / "none", follow=False))
    assert lines[0] == LogLine("one\n", "stdout", "2016-10-06T00:17:09.669794202Z")
    assert [line.text for line in lines] == ["one\n", "tw", "o\n", "a b  c\n"]
    assert "".join(line.text for line in lines if line.stream == "stderr") == "two\n"


def test_files_are_read_from_the_oldest_and_the_end_over_files(tmp_path: Path) -> None:
    (tmp_path / "log.2").write_bytes(numbered(1, 2))
    (tmp_path / "log.1").write_bytes(numbered(3, 4))
    (tmp_path / "log").write_bytes(numbered(5))
    assert read(tmp_path) == ["1\n", "2\n", "3\n", "4\n", "5\n"]
    for count in range(7):
        assert read(tmp_path, tail=count) == [f"{number}\n" for number in range(1, 6)][max(0, 5 - count) :]


def test_a_file_that_is_missing_for_a_moment_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log.2").write_bytes(numbered(1))
    (tmp_path / "log").write_bytes(numbered(2))
    assert read(tmp_path) == ["1\n", "2\n"]
    (tmp_path / "log").unlink()
    (tmp_path / "log.2").rename(tmp_path / "log.1")
    assert read(tmp_path) == ["1\n"]


def test_a_reader_goes_on_in_the_next_file(tmp_path: Path) -> None:
    """It stands in a file that is renamed, then written by nobody any more."""
    log = tmp_path / "log"
    log.write_bytes(numbered(1, 2))
    lines = read_log(tmp_path, tmp_path / "none", follow=False)
    assert next(lines).text == "1\n"
    log.rename(tmp_path / "log.1")
    log.write_bytes(numbered(3))
    (tmp_path / "log.1").rename(tmp_path / "log.2")
    log.rename(tmp_path / "log.1")
    log.write_bytes(numbered(4))
    assert [line.text for line in lines] == ["2\n", "3\n", "4\n"]


def test_a_reader_whose_file_is_gone_goes_on_with_the_oldest_that_is_left(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(numbered(1))
    lines = read_log(tmp_path, tmp_path / "none", follow=False)
    assert next(lines).text == "1\n"
    log.unlink()
    (tmp_path / "log.1").write_bytes(numbered(7))
    log.write_bytes(numbered(8))
    assert [line.text for line in lines] == ["7\n", "8\n"]


def test_times_cut_on_both_sides(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(numbered(1, 2, 3, 4))
    base = 1_475_713_020 * 10**9
    assert read(tmp_path, since_ns=base + 2 * 10**9, until_ns=base + 4 * 10**9) == ["2\n", "3\n"]
    assert read(tmp_path, until_ns=base + 4 * 10**9, tail=1) == ["3\n"]


def test_what_the_shim_is_told_is_kept(tmp_path: Path) -> None:
    assert read_life(tmp_path) == Life()
    write_life(tmp_path, Life())
    assert list(tmp_path.iterdir()) == []
    write_life(tmp_path, Life("cri", 0, 2, stdin=True))
    assert read_life(tmp_path) == Life("cri", 0, 2, stdin=True)
    (tmp_path / "life.json").write_text('{"nobody": 1}')
    with pytest.raises(InvalidError, match=r"life\.json"):
        read_life(tmp_path)


@pytest.mark.parametrize(
    ("driver", "size", "files"), [("syslog", 0, 1), ("cri", -1, 1), ("cri", 0, 0), ("cri", 0, 1001)]
)
def test_bounds_that_cannot_be_are_refused(driver: str, size: int, files: int) -> None:
    with pytest.raises(InvalidError):
        check_log(driver, size, files)


@pytest.mark.root
@pytest.mark.parametrize("driver", ["json-file", "cri"])
def test_forms_read_back_alike(host: Host, driver: str) -> None:
    script = "printf 'one\\n\"two\" \\377\\n'; yes x | head -n 20000 | tr -d '\\n'; echo; printf last"
    bundle = host.prepare("form", "sh", "-c", script)
    write_life(bundle, Life(driver))
    host.runtime.start("form", bundle)
    assert host.runtime.wait("form", bundle, timeout=WAIT_SECONDS).error == ""
    assert host.output("form") == 'one\n"two" \ufffd\n' + "x" * 20000 + "\nlast"
    assert (bundle / "log").read_bytes().startswith(b"{" if driver == "json-file" else b"20")


@pytest.mark.root
def test_a_log_has_a_bound_and_keeps_what_was_last(host: Host) -> None:
    bundle = host.prepare("bounded", "seq", "20000")
    write_life(bundle, Life("cri", 64 << 10, 3))
    host.runtime.start("bounded", bundle)
    assert host.runtime.wait("bounded", bundle, timeout=WAIT_SECONDS).error == ""
    files = sorted(path.name for path in bundle.glob("log*"))
    assert files == ["log", "log.1", "log.2"]
    assert all((bundle / name).stat().st_size <= 64 << 10 for name in files)
    kept = [int(line.text) for line in host.runtime.logs("bounded", bundle)]
    assert kept == list(range(kept[0], 20001))
    tail = [int(line.text) for line in host.runtime.logs("bounded", bundle, tail=1500)]
    assert tail == list(range(18501, 20001))


@pytest.mark.root
def test_a_follower_loses_nothing_over_rotations(host: Host) -> None:
    """As many files as there may be: it is told of each step, and none goes before it has read it."""
    bundle = host.prepare("followed", "sh", "-c", "cat; seq 30000")
    write_life(bundle, Life("json-file", 32 << 10, 1000))
    host.runtime.start("followed", bundle, stdin=True, attached=True)
    first = host.runtime._waiting.pop("followed")
    got: list[int] = []
    lines = host.runtime.logs("followed", bundle, follow=True)
    reader = threading.Thread(target=lambda: got.extend(int(line.text) for line in lines))
    reader.start()
    first.close()  # its input ends, and it writes
    reader.join(WAIT_SECONDS)
    assert got == list(range(1, 30001))
    assert (bundle / "log.9").exists()


@pytest.mark.root
def test_no_log_is_said_to_be_none(host: Host) -> None:
    bundle = host.prepare("silent", "echo", "lost")
    write_life(bundle, Life("none"))
    host.runtime.start("silent", bundle)
    assert host.runtime.wait("silent", bundle, timeout=WAIT_SECONDS).exit_code == 0
    assert not (bundle / "log").exists()
    with pytest.raises(UnsupportedError, match="log driver"):
        host.runtime.logs("silent", bundle)
