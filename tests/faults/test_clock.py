"""D19: the wall clock is before 1970, far from now, or steps while something is under way: no wait goes by it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pyctrd
from tests.archives import Tar
from tests.children import Child
from tests.images import Images, build_image
from tests.registry_faults import Answer, FaultyRegistry

WHY_NO_COMPILER = "" if shutil.which("cc") else "no C compiler"
pytestmark = [pytest.mark.root, pytest.mark.skipif(WHY_NO_COMPILER != "", reason=WHY_NO_COMPILER)]

# In front of the C library: the wall clock goes by the seconds that a file names; monotonic ones are left alone.
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) {
    const char *path = getenv("CLOCK_OFFSET_FILE");
    char text[32] = "";
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return 0;
    if (syscall(SYS_read, fd, text, sizeof text - 1) < 0) text[0] = 0;
    syscall(SYS_close, fd);
    return atol(text);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *to) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (to) *to = found.tv_sec;
    return found.tv_sec;
}
"""
LIFE = """
import sys, time
import pyctrd
if len(sys.argv) > 2:
    assert time.time() < 0, time.time()
with pyctrd.Engine() as engine:
    image = engine.images.pull(sys.argv[1])
    with_events = len(list(engine.events()))
    container = engine.containers.run(image, ["sh", "-c", "echo hello > /root/hello; echo said"], name="made")
    assert container.wait(60).exit_code == 0
    assert container.logs() == "said\\n"
    committed = container.commit("example.com/committed:1")
    assert committed.read_file("/root/hello") == b"hello\\n"
    assert len(list(engine.events())) > with_events
    cursors = [event.cursor for event in engine.events()]
    assert [event.cursor for event in engine.events(since=cursors[0])] == cursors[1:]
    container.delete()
    engine.namespaces.create("other", labels={"a": "b"})
    engine.namespaces.remove("other")
    assert engine.check(digests=True) == []
    engine.images.remove("example.com/committed:1")
    print("done", flush=True)
"""
PULL = """
import sys
import pyctrd
with pyctrd.Engine() as engine:
    engine.images.pull(sys.argv[1])
    print("done", flush=True)
"""
DAY = 86_400


@pytest.fixture
def offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says how far from the true one the wall clock of children is, in seconds."""
    source, library, file = tmp_path / "clock.c", tmp_path / "clock.so", tmp_path / "offset"
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    file.write_text("0")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("CLOCK_OFFSET_FILE", str(file))
    return file


def live(*words: str) -> None:
    """All that has a time in it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", LIFE, *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize("years", [-95, -56.9, 200])
def test_d19_a_clock_before_1970_or_far_ahead_stops_nothing(
    images: Images, state: Path, offset: Path, years: float
) -> None:
    del state
    offset.write_text(str(int(years * 365.25 * DAY)))
    live(images.busybox.reference, *(["before"] if years < -60 else []))
    offset.write_text("0")  # and the clock is put right
    live(images.busybox.reference)
    with pyctrd.Engine() as engine:
        assert engine.check(digests=True) == []


@pytest.mark.parametrize("step", [DAY, -DAY, -95 * 365 * DAY])
def test_d19_a_clock_that_steps_during_a_transfer_breaks_nothing(
    root: Path, state: Path, offset: Path, step: int
) -> None:
    del root, state
    image = build_image([Tar().file("file", os.urandom(1 << 20)).build()])
    go_on = threading.Event()
    with FaultyRegistry() as registry:
        reference = registry.add(image, "app")
        registry.lie(f"/blobs/{image.layers[0].digest}", Answer(body=None, stall=go_on))
        with Child(PULL, reference) as child:
            assert registry.stalled.wait(60)
            offset.write_text(str(step))
            with pyctrd.Engine() as engine:  # neither recovery nor a collection takes what is under way
                assert engine.check() == []
            go_on.set()
            assert child.hear() == "done"
            assert child.wait() == 0
    with pyctrd.Engine() as engine:
        assert len(engine.images.get(reference).read_file("/file")) == 1 << 20
        assert engine.check(digests=True) == []
