"""Events of a store: what every process does is told once, in order, and can be followed and gone on with."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

import pyctrd
from pyctrd.errors import InvalidError
from pyctrd.metadata import events as room
from tests import syscalls
from tests.children import until
from tests.images import Images
from tests.integration.conftest import Cli, command
from tests.syscalls import Watched

pytestmark = pytest.mark.root

DEADLINE_SECONDS = 60.0
WHY_UNWATCHED = syscalls.why_not()
# A container's start and end, and a command that asks what it does, between two marks.
RUN = """
import os, sys, pyctrd
with pyctrd.Engine() as engine:
    container = engine.containers.create(sys.argv[1], ["true"])
    os.write(1, b"begin")
    container.start()
    container.wait()
    container.status
    os.write(1, b"end")
    print(*(event.action for event in engine.events(types=["container"])))
    container.delete()
"""


def actions(events: list[pyctrd.Event]) -> list[str]:
    """Type and action of each."""
    return [f"{event.type} {event.action}" for event in events]


def last_cursor(engine: pyctrd.Engine) -> str:
    """Where the engine's events end now."""
    return list(engine.events())[-1].cursor


@contextmanager
def following(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """``pyctrd events`` in a process of its own, after it has begun to follow."""
    process = subprocess.Popen(
        command("--json", "events", "--since", "0", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert orjson.loads(process.stdout.readline())["action"] == "created"  # of the namespace
        yield process
    finally:
        process.kill()
        process.communicate()


def hear(process: subprocess.Popen[bytes]) -> dict[str, object]:
    """The next event that a process prints."""
    assert process.stdout is not None
    timer = threading.Timer(DEADLINE_SECONDS, process.kill)
    timer.start()
    try:
        return dict(orjson.loads(process.stdout.readline()))
    finally:
        timer.cancel()


def test_a_pull_and_a_removal_are_told_with_digests_and_nothing_else(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    engine.images.pull(images.busybox.reference)
    engine.images.remove(images.busybox.reference)
    told = list(engine.events())
    assert actions(told) == ["namespace created", "image created", "image removed", "gc freed"]
    assert told[1].name == image.name
    assert told[1].attributes == {"digest": image.digest, "manifest": image.manifest_digest, "by": "pull"}
    assert told[2].attributes == {"digest": image.digest, "manifest": image.manifest_digest}
    assert told[3].attributes["blobs"] > 0
    assert all(event.namespace == "default" for event in told)


def test_a_pull_that_fails_is_not_told(engine: pyctrd.Engine, images: Images) -> None:
    with pytest.raises(pyctrd.PyctrdError):
        engine.images.pull(images.busybox.reference.replace("busybox", "absent"))
    assert actions(list(engine.events())) == ["namespace created"]


def test_a_containers_life_is_told_in_order(engine: pyctrd.Engine, images: Images) -> None:
    engine.images.pull(images.busybox.reference)
    since = last_cursor(engine)
    container = engine.containers.run(images.busybox.reference, ["sleep", "600"], name="sleeper")
    container.pause()
    container.resume()
    container.kill()
    ended = container.wait(DEADLINE_SECONDS)
    container.delete()
    told = list(engine.events(since=since))
    names = ["created", "started", "paused", "resumed", "exited", "removed"]
    assert actions(told) == [f"container {name}" for name in names]
    assert {event.name for event in told} == {"sleeper"}
    assert {event.attributes["id"] for event in told} == {container.id}
    assert (told[4].attributes["exit_code"], told[4].attributes["signal"]) == (137, 9)
    assert (told[1].time_ns, told[4].time_ns) == (ended.started_ns, ended.exited_ns)


@pytest.mark.parametrize("words", [[], ["--rm"], ["-d"], ["-d", "--rm"]], ids=" ".join)
def test_an_end_is_told_once_in_each_way_to_run(
    cli: Cli, images: Images, engine: pyctrd.Engine, words: list[str]
) -> None:
    engine.images.pull(images.busybox.reference)
    since = last_cursor(engine)
    assert cli("run", *words, "--name", "once", images.busybox.reference, "sh", "-c", "exit 7").status in (0, 7)
    expected = ["created", "started", "exited", *(["removed"] if "--rm" in words else [])]
    told: list[pyctrd.Event] = []
    for event in engine.events(since=since, follow=True, timeout=DEADLINE_SECONDS):
        told.append(event)
        if event.action == expected[-1]:
            break
    for container in engine.containers.list():
        assert container.status.state == "stopped"  # everybody who looks might tell it again
        container.wait()
    told += engine.events(since=told[-1].cursor)
    assert [event.action for event in told] == expected
    assert told[2].attributes["exit_code"] == 7


def test_many_who_look_at_once_tell_an_end_once(engine: pyctrd.Engine, images: Images) -> None:
    engine.images.pull(images.busybox.reference)
    since = last_cursor(engine)
    container = engine.containers.run(images.busybox.reference, ["true"])
    looking = [threading.Thread(target=container.wait, args=(DEADLINE_SECONDS,)) for _ in range(8)]
    for thread in looking:
        thread.start()
    for thread in looking:
        thread.join()
    assert [event.action for event in engine.events(since=since)] == ["created", "started", "exited"]


def test_an_end_that_nobody_watched_is_told_to_who_asks_later(cli: Cli, images: Images, state: Path) -> None:
    del state
    with pyctrd.Engine() as engine:
        engine.images.pull(images.busybox.reference)
        container = engine.containers.run(images.busybox.reference, ["sh", "-c", "exit 3"], name="alone")
    exit_record = Path(os.environ["PYCTRD_ROOT"]) / "containers" / "default" / container.id / "exit.json"
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not exit_record.exists() and time.monotonic() < deadline:
        os.sched_yield()
    told = cli("--json", "events", "--no-follow", "--filter", "type=container").lines
    assert [event["action"] for event in told] == ["created", "started", "exited"]
    assert told[-1]["attributes"]["exit_code"] == 3
    assert cli("rm", "alone").status == 0


def test_a_killed_container_whose_shim_was_killed_too_is_told_to_have_ended(
    engine: pyctrd.Engine, images: Images, state: Path
) -> None:
    engine.images.pull(images.busybox.reference)
    container = engine.containers.run(images.busybox.reference, ["sleep", "600"])
    running = orjson.loads((state / "shims" / container.id / "shim.json").read_bytes())
    os.kill(running["shim_pid"], signal.SIGKILL)
    os.kill(running["pid"], signal.SIGKILL)
    until(lambda: not Path(f"/proc/{running['pid']}").exists())  # or whoever looks ends it, which is another status
    followed = engine.events(since="0", follow=True, timeout=DEADLINE_SECONDS, actions=["exited"])
    assert next(followed).attributes["exit_code"] == 255


def test_another_process_follows_within_a_moment_and_is_ended_by_an_interrupt(
    engine: pyctrd.Engine, images: Images
) -> None:
    engine.images.list()
    with following() as process:
        engine.images.pull(images.busybox.reference)
        assert hear(process)["name"] == images.busybox.reference
        engine.containers.run(images.busybox.reference, ["true"], name="short")
        # Nobody but the follower looks at the container.
        assert [hear(process)["action"] for _ in range(3)] == ["created", "started", "exited"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert (process.returncode, out, err.strip()) == (130, b"", b"")


def test_a_cursor_goes_on_in_another_process_without_loss_or_repetition(cli: Cli, images: Images) -> None:
    assert cli("pull", images.busybox.reference).status == 0
    first = cli("--json", "events", "--no-follow").lines
    assert cli("rmi", images.busybox.reference).status == 0
    then = cli("--json", "events", "--no-follow", "--since", first[-1]["cursor"]).lines
    whole = cli("--json", "events", "--no-follow", "--since", "0").lines
    assert first + then == whole
    assert cli("events", "--no-follow", "--since", whole[-1]["cursor"]).out == ""


def test_a_namespace_sees_its_own_and_the_owner_sees_all(cli: Cli, images: Images) -> None:
    reference = images.busybox.reference
    assert cli("-n", "a", "pull", reference).status == 0
    assert cli("-n", "b", "pull", reference).status == 0
    assert cli("-n", "a", "rmi", reference).status == 0
    of_b = cli("-n", "b", "--json", "events", "--no-follow").lines
    assert [event["action"] for event in of_b] == ["created", "created"]
    assert {event["namespace"] for event in of_b} == {"b"}
    # Neither its numbers nor its attributes tell of a: numbers count up by one.
    assert int(of_b[1]["cursor"]) == int(of_b[0]["cursor"]) + 1
    everything = cli("--json", "events", "--no-follow", "--all-namespaces").lines
    assert {event["namespace"] for event in everything} == {"a", "b", "default"}
    assert cli("--json", "events", "--no-follow", "-A", "--since", everything[2]["cursor"]).lines == everything[3:]


def test_filters_choose(engine: pyctrd.Engine, images: Images) -> None:
    engine.images.pull(images.busybox.reference)
    engine.images.remove(images.busybox.reference)
    assert actions(list(engine.events(types=["image"]))) == ["image created", "image removed"]
    assert actions(list(engine.events(actions=["removed", "freed"]))) == ["image removed", "gc freed"]
    assert actions(list(engine.events(names=["default"]))) == ["namespace created"]


def test_following_ends_at_its_timeout_and_begins_with_what_comes(engine: pyctrd.Engine, images: Images) -> None:
    engine.images.pull(images.busybox.reference)
    assert list(engine.events(follow=True, timeout=0.0)) == []
    followed = engine.events(follow=True, timeout=DEADLINE_SECONDS)
    engine.images.remove(images.busybox.reference)  # in the thread that follows, with its connection
    assert actions(list(itertools.islice(followed, 2))) == ["image removed", "gc freed"]


def test_a_cursor_that_is_too_old_says_so_and_how_to_go_on(
    engine: pyctrd.Engine, cli: Cli, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "KEPT_EVENTS", 2)
    monkeypatch.setattr(room, "TRIMMED_EVENTS", 1)
    old = last_cursor(engine)
    followed = engine.events(since=old, follow=True, timeout=DEADLINE_SECONDS)
    for _ in range(2):
        engine.images.pull(images.busybox.reference)
        engine.images.remove(images.busybox.reference)
    with pytest.raises(InvalidError, match="expired cursor"):
        next(followed)
    with pytest.raises(InvalidError, match="not kept any more") as caught:
        engine.events(since=old)
    assert '"0"' in caught.value.hint
    assert len(list(engine.events(since="0"))) == 2
    done = cli("events", "--no-follow", "--since", old)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"pyctrd: expired cursor: {old}: ")


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "٣", "9" * 40, "all-1", "4000000000000000000", "1"])
def test_a_cursor_that_is_none_is_refused_at_once(engine: pyctrd.Engine, cursor: str) -> None:
    with pytest.raises(InvalidError, match="cursor"):
        engine.events(since=cursor)


@pytest.mark.parametrize("words", [["--filter", "type"], ["--filter", "colour=red"], ["--filter", "type=colour"]])
def test_a_filter_that_is_none_is_one_line(cli: Cli, words: list[str]) -> None:
    done = cli("events", "--no-follow", *words)
    assert done.status == 1
    assert len(done.err.splitlines()) == 1


@pytest.mark.skipif(WHY_UNWATCHED != "", reason=WHY_UNWATCHED)
def test_starts_and_ends_are_told_without_a_flush(engine: pyctrd.Engine, images: Images) -> None:
    engine.images.pull(images.busybox.reference)
    marks, flushed = 0, []
    with Watched(RUN, images.busybox.reference, calls=["write", "fsync", "fdatasync"]) as program:
        for call in program:
            if call.name == "write":
                marks += call.path.startswith("pipe:") and marks < 2 and call.arguments[0] == 1
            elif marks == 1 and "pyctrd.db" in call.path:
                flushed.append(call.path)
            call.allow()
        status, out = program.finish()
    assert (status, out.split()) == (0, ["beginendcreated", "started", "exited"])
    assert flushed == []
