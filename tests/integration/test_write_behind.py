"""Many files are written while they come, so that the flush at a pull's end is short; one file sees to it itself."""

from __future__ import annotations

import random
import threading

import pytest

from tests import syscalls
from tests.archives import Tar
from tests.images import build_image
from tests.registry_faults import Answer, FaultyRegistry
from tests.syscalls import Watched

WHY_UNWATCHED = syscalls.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(WHY_UNWATCHED), reason=WHY_UNWATCHED)]

PROGRAM = """
import sys
import pyctrd
with pyctrd.Engine() as engine:
    engine.images.pull(sys.argv[1])
"""
FILES, FILE_BYTES = 100, 200_000
# Many times the pause between two flushes.
STANDS_STILL_SECONDS = 1.5


def count_flushes(monkeypatch: pytest.MonkeyPatch, *, snapshotter: str, durability: str) -> int:
    """How often the file system is flushed by a pull whose layer stands still for a while."""
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", snapshotter)
    monkeypatch.setenv("PYCTRD_DURABILITY", durability)
    tar, content = Tar(), random.Random(snapshotter)
    for number in range(FILES):
        tar.file(f"file-{number}", content.randbytes(FILE_BYTES))
    image = build_image([tar.build()], compression="none")
    goes_on = threading.Event()
    with FaultyRegistry() as registry:
        reference = registry.add(image, "app")
        registry.lie(f"/v2/app/blobs/{image.blobs[-1].digest}", Answer(body=None, stall=goes_on))

        def go_on() -> None:
            registry.stalled.wait()
            goes_on.wait(STANDS_STILL_SECONDS)
            goes_on.set()

        waiting = threading.Thread(target=go_on)
        waiting.start()
        count = 0
        try:
            with Watched(PROGRAM, reference, calls=["syncfs"]) as program:
                for call in program:
                    count += 1
                    call.allow()
                assert program.finish() == (0, "")
        finally:
            registry.stalled.set()
            goes_on.set()
            waiting.join()
    return count


@pytest.mark.parametrize("snapshotter", ["overlayfs", "composefs"])
def test_many_files_are_written_while_they_come(monkeypatch: pytest.MonkeyPatch, snapshotter: str) -> None:
    assert count_flushes(monkeypatch, snapshotter=snapshotter, durability="batch") > 2


def test_one_file_is_flushed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_flushes(monkeypatch, snapshotter="erofs", durability="batch") == 1


def test_what_need_not_last_is_not_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_flushes(monkeypatch, snapshotter="overlayfs", durability="none") == 0
