"""The canaries see whatever is done to them: a suite that finds nothing must be able to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.stage import Stage

pytestmark = pytest.mark.root


def replace_by_its_copy(folder: Path) -> None:
    shutil.copy2(folder / "victim", folder / "copy")
    (folder / "copy").rename(folder / "victim")


CHANGES: dict[str, Callable[[Path], object]] = {
    "mode": lambda folder: (folder / "victim").chmod(0o641),
    "mode-of-a-directory": lambda folder: (folder / "dir").chmod(0o777),
    "owner": lambda folder: os.chown(folder / "perm400", 0, 0),
    "time": lambda folder: os.utime(folder / "dir" / "inner", ns=(1, 1)),
    "the-same-mode-again": lambda folder: (folder / "victim").chmod(0o640),
    "bytes": lambda folder: (folder / "victim").write_bytes(b"changed"),
    "another-name": lambda folder: (folder.parent / "target" / "x").hardlink_to(folder / "victim"),
    "xattr": lambda folder: os.setxattr(folder / "victim", "user.more", b""),
    "a-new-file": lambda folder: (folder / "dir" / "new").touch(),
    "one-file-less": lambda folder: (folder / "dir" / "inner").unlink(),
    "replaced-by-its-copy": replace_by_its_copy,
    "a-file-beside": lambda folder: (folder.parent / "beside").touch(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_outside_is_seen(change: str, stage: Stage) -> None:
    with pytest.raises(AssertionError, match="canary changed"), stage.outside.watched():
        CHANGES[change](stage.target.parent / "outside")


def test_what_comes_to_be_at_an_absolute_path_is_seen(stage: Stage) -> None:
    with pytest.raises(AssertionError, match="canary changed"), stage.outside.watched():
        Path(stage.outside.absent).touch()
    Path(stage.outside.absent).unlink()


def test_reading_is_no_change(stage: Stage) -> None:
    with stage.outside.watched():
        Path(stage.outside.path, "victim").read_bytes()
