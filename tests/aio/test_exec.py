"""Processes in a container, awaited: streams as they come, cancelled or not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pyctrd import aio
from pyctrd.errors import CommandNotFoundError, DeadlineError
from pyctrd.runtime import state as states
from tests.images import Images

pytestmark = pytest.mark.root

AT_ONCE = 50
BIG = bytes(range(256)) * 8_000


def play(images: Images, work: object) -> None:
    """A coroutine function of a running container."""

    async def run() -> None:
        async with aio.Engine() as engine:
            await engine.images.pull(images.busybox.reference)
            container = await engine.containers.run(images.busybox.reference, ["sleep", "1000"])
            try:
                await asyncio.wait_for(work(container), 120)  # type: ignore[operator] # tests give a coroutine function
            finally:
                await container.delete(force=True)

    asyncio.run(run())


async def until_execs(container: aio.Container, count: int) -> None:
    """Wait until so many processes are there."""
    async with asyncio.timeout(60):
        while len(await container.execs()) != count:  # noqa: ASYNC110 - other processes do it
            await asyncio.sleep(0.01)


def test_streams_are_read_as_they_come(root: Path, images: Images) -> None:
    del root

    async def work(container: aio.Container) -> None:
        async with await container.exec(
            ["sh", "-c", "echo one; read line; echo $line; echo err >&2"], stdin=True
        ) as one:
            assert one.stdin is not None
            assert one.stdout is not None
            assert one.stderr is not None
            assert await one.stdout.readline() == b"one\n"
            assert await one.poll() is None
            await one.stdin.write(b"two\n")
            await one.stdin.close()
            assert [chunk async for chunk in one.stdout] == [b"two\n"]
            assert await one.stderr.read() == b"err\n"
            assert (await one.wait()).exit_code == 0
        assert (await container.exec_output(["sh", "-c", "exit 4"])).exit_code == 4
        detached = await container.exec(["sh", "-c", "exit 5"], detach=True)
        assert detached.stdout is None
        assert (await (await container.get_exec(detached.id)).wait()).exit_code == 5
        assert [found.id for found in await container.execs()] == [detached.id]

    play(images, work)


def test_much_goes_both_ways(root: Path, images: Images) -> None:
    del root

    async def work(container: aio.Container) -> None:
        async with await container.exec(["sh", "-c", "tee /dev/stderr"], stdin=True) as process:
            assert await process.communicate(BIG) == (BIG, BIG)

    play(images, work)


def test_errors_are_the_same(root: Path, images: Images) -> None:
    del root

    async def work(container: aio.Container) -> None:
        with pytest.raises(CommandNotFoundError):
            await container.exec(["nothing-here"])
        with pytest.raises(DeadlineError, match="timed out"):
            await container.exec_output(["sleep", "1000"], timeout=0.1)

    play(images, work)


def test_whoever_is_cancelled_waits_no_longer_and_loses_nothing(root: Path, images: Images) -> None:
    del root

    async def work(container: aio.Container) -> None:
        async with await container.exec(["cat"], stdin=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for wait in (process.wait, process.stdout.__anext__):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(wait(), 0.1)
                if wait == process.stdout.__anext__:
                    await process.stdin.write(b"still here")
                    assert await process.stdout.__anext__() == b"still here"
            assert await process.communicate() == (b"", b"")
            assert (await process.wait()).exit_code == 0

    play(images, work)


def test_a_cancelled_block_kills_its_process(root: Path, images: Images) -> None:
    del root

    async def work(container: aio.Container) -> None:
        pids: asyncio.Queue[int] = asyncio.Queue()

        async def hold() -> None:
            async with await container.exec(["sleep", "1000"]) as process:
                await pids.put(process.pid)
                await process.wait()

        task = asyncio.create_task(hold())
        pid = await pids.get()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert states.process_start_ticks(pid) is None
        output = asyncio.create_task(container.exec_output(["sleep", "1000"]))
        await until_execs(container, 1)
        output.cancel()
        with pytest.raises(asyncio.CancelledError):
            await output
        await until_execs(container, 0)

    play(images, work)


def test_many_at_once(root: Path, images: Images) -> None:
    del root

    async def work(container: aio.Container) -> None:
        done = await asyncio.gather(
            *(container.exec_output(["cat"], input=b"%d" % number) for number in range(AT_ONCE))
        )
        assert [one.stdout for one in done] == [b"%d" % number for number in range(AT_ONCE)]

    play(images, work)
