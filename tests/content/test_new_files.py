"""New files: nothing of them is there before they are whole, and nothing of them stays if they never are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctrd.content import new_files
from pyctrd.content.new_files import NewFile


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture(params=["unnamed", "named"], autouse=True)
def _kept_so(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With files that have no name, and as on file systems that keep none such."""
    if request.param == "named":
        monkeypatch.setattr(new_files, "_OPEN_FILES", "/nowhere")


@pytest.mark.parametrize("flush", [False, True])
def test_it_has_its_name_when_it_is_published(place: int, tmp_path: Path, *, flush: bool) -> None:
    with NewFile(place, "name", mode=0o600) as file:
        os.write(file.fd, b"content")
        assert not (tmp_path / "name").exists()
        assert file.publish(replace=False, flush=flush)
        assert (tmp_path / "name").read_bytes() == b"content"
    assert names_in(tmp_path) == ["name"]
    assert (tmp_path / "name").stat().st_mode & 0o777 == 0o600
    file.close()


def test_what_has_the_name_stays_or_is_replaced(place: int, tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"before")
    with NewFile(place, "name", mode=0o644) as file:
        os.write(file.fd, b"after")
        assert not file.publish(replace=False, flush=False)
    assert (tmp_path / "name").read_bytes() == b"before"
    with NewFile(place, "name", mode=0o644) as file:
        os.write(file.fd, b"after")
        assert file.publish(replace=True, flush=False)
    assert (tmp_path / "name").read_bytes() == b"after"
    assert names_in(tmp_path) == ["name"]


def test_nothing_is_left_of_one_that_is_never_whole(place: int, tmp_path: Path) -> None:
    with NewFile(place, "name", mode=0o644) as file:
        os.write(file.fd, b"some of it")
    assert names_in(tmp_path) == []
    (tmp_path / "name").mkdir()
    with NewFile(place, "name", mode=0o644) as file, pytest.raises(IsADirectoryError):
        file.publish(replace=True, flush=False)
    assert names_in(tmp_path) == ["name"]


def test_a_name_may_be_as_long_as_the_kernel_takes_one(place: int, tmp_path: Path) -> None:
    with NewFile(place, "x" * 255, mode=0o644) as file:
        file.publish(replace=True, flush=False)
    assert names_in(tmp_path) == ["x" * 255]
