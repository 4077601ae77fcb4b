"""Tasks that are cancelled: what was under way has ended when that is told, and the store is sound."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from pyctrd import aio
from pyctrd.errors import CancelledError
from pyctrd.runtime.state import shim_pid
from tests import listeners
from tests.archives import Tar
from tests.content.stores import files_below
from tests.images import BuiltImage, Images, build_image
from tests.registries import Registry
from tests.registry_faults import Answer, FaultyRegistry
from tests.relays import Relay

pytestmark = pytest.mark.root

# What ends at once ends in a small part of this; what would be waited for takes ten times as long.
PROMPT_SECONDS = 6.0


def large() -> BuiltImage:
    """A layer that stands still in its middle."""
    return build_image([Tar().file("f", os.urandom(4 << 20)).build()], compression="none")


def stalling(faulty: FaultyRegistry) -> tuple[str, threading.Event]:
    """An image whose layer stands still, and what lets it go on."""
    built, stall = large(), threading.Event()
    faulty.lie(built.layers[0].digest, Answer(body=None, stall=stall))
    return faulty.add(built, "stalling"), stall


def carriers() -> list[str]:
    """Threads that bring or send bytes."""
    return [name for name in threads() if name.startswith(("pyctrd-pull", "pyctrd-send"))]


def threads() -> list[str]:
    """The engine's threads that are at work: those of pools, which wait for the next call, are not."""
    own = [thread.name for thread in threading.enumerate() if thread.name.startswith("pyctrd-")]
    return [name for name in own if not name.startswith(("pyctrd-aio_", "pyctrd-aio-ask_"))]


def is_asking() -> bool:
    """Whether a call waits for somebody's answer."""
    return any(thread.name.startswith("pyctrd-aio-ask_") for thread in threading.enumerate())


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something, not for ever."""
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 - other threads do it, which know no asyncio.Event
            await asyncio.sleep(0.01)


async def assert_cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task: it ends promptly, as cancelled."""
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < PROMPT_SECONDS


@asynccontextmanager
async def begun(call: Coroutine[Any, Any, Any], is_so: Callable[[], bool]) -> AsyncIterator[asyncio.Task[Any]]:
    """A task that has come so far."""
    task = asyncio.create_task(call)
    await until(lambda: is_so() or task.done())
    assert not task.done(), task
    yield task


def test_a_pull_in_the_middle_of_a_layer(root: Path, faulty: FaultyRegistry) -> None:
    async def play() -> None:
        reference, stall = stalling(faulty)
        async with aio.Engine() as engine:
            async with begun(engine.images.pull(reference), faulty.stalled.is_set) as task:
                await assert_cancelled(task)
            assert carriers() == []
            assert {Path(name).name for name in files_below(root / "content/ingest")} <= {"data", "lock"}
            assert await engine.check() == []
            assert await engine.images.find(reference) is None
            stall.set()
            await engine.images.pull(reference)  # which goes on from there
            assert await engine.check(digests=True) == []

    asyncio.run(play())


PULL = """
import asyncio, sys
from pyctrd import aio

async def main():
    async with aio.Engine() as engine:
        await engine.images.pull(sys.argv[1])

asyncio.run(main())
"""


def test_a_program_that_is_interrupted(root: Path, faulty: FaultyRegistry) -> None:
    reference, stall = stalling(faulty)
    with subprocess.Popen([sys.executable, "-c", PULL, reference], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert faulty.stalled.wait(60)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PROMPT_SECONDS * 5)
        finally:
            process.kill()
            stall.set()
    assert process.returncode == -signal.SIGINT
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert {Path(name).name for name in files_below(root / "content/ingest")} <= {"data", "lock"}


def test_a_pull_whose_registry_says_nothing(root: Path, faulty: FaultyRegistry) -> None:
    del root
    built, stall = large(), threading.Event()
    reference = faulty.add(built, "silent")

    async def play() -> None:
        async with aio.Engine() as engine:
            for path in ("/manifests/latest", built.blobs[0].digest):  # the document and the config
                faulty.stalled.clear()
                faulty.lie(path, Answer(body=None, stall=stall))
                async with begun(engine.images.pull(reference), faulty.stalled.is_set) as task:
                    await assert_cancelled(task)
                assert carriers() == []

    try:
        asyncio.run(play())
    finally:
        stall.set()


def test_a_push_whose_registry_says_nothing(root: Path, images: Images, registry: Registry) -> None:
    del root

    async def play() -> None:
        with Relay(registry.host) as relay:
            async with aio.Engine() as engine:
                image = await engine.images.pull(images.tree.reference)
                relay.let_through(0)
                target = f"{relay.host}/test/cancelled:1"
                async with begun(engine.images.push(image.name, target), lambda: bool(relay.asked())) as task:
                    await assert_cancelled(task)
                assert carriers() == []
                relay.let_through(float("inf"))
                assert await engine.images.push(image.name, target) == image.manifest_digest

    asyncio.run(play())


def test_a_request_to_a_registry_that_says_nothing(root: Path, registry: Registry) -> None:
    del root

    async def play() -> None:
        with Relay(registry.host) as relay:
            relay.let_through(0)
            async with aio.Engine(plain_http=[relay.host]) as engine:
                repository = engine.registry.repository(f"{relay.host}/some/app")
                async with begun(repository.find("1"), lambda: bool(relay.asked())) as task:
                    await assert_cancelled(task)

    asyncio.run(play())


def test_a_pull_from_where_nobody_takes_a_connection(root: Path) -> None:
    del root

    async def play() -> None:
        with listeners.full() as port:
            async with aio.Engine() as engine:
                pull = engine.images.pull(f"127.0.0.1:{port}/some/app")
                async with begun(pull, lambda: bool(threads())) as task:
                    await asyncio.sleep(0.2)
                    await assert_cancelled(task)

    asyncio.run(play())


def test_a_load_from_a_pipe_that_says_nothing(root: Path, tmp_path: Path) -> None:
    del root

    async def play() -> None:
        os.mkfifo(pipe := tmp_path / "pipe")
        async with aio.Engine() as engine:
            for said in (None, b"", bytes(100)):  # nobody is there; somebody, who says nothing, or not enough
                writer = None if said is None else os.open(pipe, os.O_RDWR)
                async with begun(engine.images.load(pipe), lambda: bool(threads())) as task:
                    if writer is not None and said is not None:
                        os.write(writer, said)
                    await asyncio.sleep(0.2)
                    await assert_cancelled(task)
                await until(lambda: threads() == [])
                if writer is not None:
                    os.close(writer)

    asyncio.run(play())


def test_a_save_to_a_pipe_that_nobody_reads(root: Path, images: Images, tmp_path: Path) -> None:
    del root

    async def play() -> None:
        os.mkfifo(pipe := tmp_path / "pipe")
        async with aio.Engine() as engine:
            image = await engine.images.pull(images.tree.reference)
            for is_there in (False, True):  # nobody; somebody, who reads nothing, until there is no more room
                reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK) if is_there else None
                if reader is not None:
                    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
                async with begun(engine.images.save(image.name, pipe), lambda: bool(threads())) as task:
                    await asyncio.sleep(0.5)
                    await assert_cancelled(task)
                await until(lambda: threads() == [])
                if reader is not None:
                    os.close(reader)
            saved = asyncio.create_task(engine.images.save(image.name, pipe))
            await asyncio.sleep(0.2)
            assert (await engine.images.load(pipe))[0].name == image.name  # who comes late gets all of it
            await saved

    asyncio.run(play())


def test_a_mount_that_nobody_gets(root: Path, images: Images, tmp_path: Path) -> None:
    del root
    target = tmp_path / "mounted"
    target.mkdir()

    async def play() -> None:
        async with aio.Engine() as engine:
            image = await engine.images.pull(images.tree.reference)

            async def mount() -> None:
                async with image.mounted(target):
                    await asyncio.sleep(60)

            for _ in range(10):  # before it is made, while it is, and after
                task = asyncio.create_task(mount())
                await asyncio.sleep(random.random() / 50)
                await assert_cancelled(task)
                assert not target.is_mount()

    asyncio.run(play())


def test_many_pulls_and_one_that_is_followed(root: Path, faulty: FaultyRegistry) -> None:
    del root

    async def play() -> None:
        async with aio.Engine() as engine:
            reference, stall = stalling(faulty)

            async def follow() -> None:
                async for _ in engine.images.follow_pull(reference):
                    pass

            async def pull_many() -> None:
                async for _ in engine.images.pull_many([reference]):
                    pass

            for call in (follow, pull_many):
                faulty.stalled.clear()
                async with begun(call(), faulty.stalled.is_set) as task:
                    await assert_cancelled(task)
                await until(lambda: threads() == [])
                assert await engine.check() == []
                stall.set()
                reference, stall = stalling(faulty)
            faulty.stalled.clear()
            async with engine.images.pull_many([reference]) as results:  # left before its end
                waiting = asyncio.create_task(anext(results))
                await until(faulty.stalled.is_set)
            with pytest.raises(StopAsyncIteration):
                await waiting
            await until(lambda: threads() == [])
            stall.set()
            async with engine.images.follow_pull(reference) as transfer:
                await transfer.close()
                with pytest.raises(CancelledError):
                    await transfer.result()

    asyncio.run(play())


def test_waits_logs_and_events(root: Path, images: Images) -> None:
    del root

    async def play() -> None:
        async with aio.Engine() as engine:
            image = await engine.images.pull(images.busybox.reference)
            container = await engine.containers.run(image, ["sh", "-c", "echo on; sleep 600"])
            began = threading.Event()

            async def read() -> None:
                async for _ in container.log_lines(follow=True):
                    began.set()

            async def look() -> None:
                async for _ in engine.events(follow=True):
                    pass

            async with begun(read(), began.is_set) as task:
                await assert_cancelled(task)
            for call in (container.wait(), look()):
                await until(lambda: threads() == [])
                async with begun(call, lambda: bool(threads())) as task:
                    await assert_cancelled(task)
            async with begun(container.stop(timeout=300), is_asking) as task:
                await assert_cancelled(task)
            await until(lambda: threads() == [])
            assert (await container.status).state == "running"

    asyncio.run(play())


def test_a_wait_for_a_container_whose_shim_was_killed(root: Path, state: Path, images: Images) -> None:
    del root

    async def play() -> None:
        async with aio.Engine() as engine:
            image = await engine.images.pull(images.busybox.reference)
            container = await engine.containers.run(image, ["sleep", "600"])
            running = orjson.loads((state / "shims" / container.id / "shim.json").read_bytes())
            async with begun(container.wait(), lambda: bool(threads())) as task:
                os.kill(running["shim_pid"], signal.SIGKILL)
                await until(lambda: shim_pid(state / "shims" / container.id) == 0)
                await assert_cancelled(task)
            # Who looks next ends it: nobody holds it any more.
            assert (await container.wait(timeout=60)).exit_code == 137

    asyncio.run(play())


def test_a_container_that_nobody_gets_is_not_left(root: Path, images: Images) -> None:
    del root

    async def play() -> None:
        async with aio.Engine() as engine:
            image = await engine.images.pull(images.busybox.reference)
            task = asyncio.create_task(engine.containers.run(image, ["sleep", "600"]))
            await asyncio.sleep(0)
            await assert_cancelled(task)
            assert await engine.containers.list() == []

    asyncio.run(play())


def test_an_iterator_that_is_left_ends(root: Path, images: Images) -> None:
    del root

    async def play() -> None:
        async with aio.Engine() as engine:
            await engine.images.pull(images.tree.reference)
            async for _ in engine.events(since="0", follow=True):
                break
            gc.collect()
            await until(lambda: threads() == [])

    asyncio.run(play())


def test_an_engine_that_is_closed_gives_up_what_is_under_way(
    root: Path, images: Images, faulty: FaultyRegistry
) -> None:
    del root

    async def play() -> None:
        reference, stall = stalling(faulty)
        async with aio.Engine() as engine:
            image = await engine.images.pull(images.busybox.reference)
            container = await engine.containers.run(image, ["sleep", "600"])
            tasks = [
                asyncio.create_task(engine.images.pull(reference)),
                asyncio.create_task(container.wait()),
                asyncio.create_task(anext(engine.events(follow=True))),
            ]
            await until(faulty.stalled.is_set)
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(ended, CancelledError)
        assert carriers() == []
        stall.set()

    asyncio.run(play())
