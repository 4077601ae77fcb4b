"""What the engine does, awaited: over a real registry, with real containers."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import assert_type

import pytest

import pyctrd
from pyctrd import aio
from pyctrd.errors import ConflictError, DeadlineError, NotFoundError
from tests.archives import Tar
from tests.images import Images
from tests.registries import Registry

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root")]

WAITERS = 300


def test_an_image_is_pulled_and_run(images: Images) -> None:
    async def play() -> None:
        async with aio.Engine() as engine:
            image = assert_type(await engine.images.pull(images.busybox.reference), aio.Image)
            assert image.digest == images.busybox.built.digest
            assert (await image.config).env[1] == "GREETING=hello"
            assert (await image.manifest).layers[0].size < await image.size_bytes
            container = assert_type(await engine.containers.run(image, ["sh", "-c", "echo $GREETING"]), aio.Container)
            ended = assert_type(await container.wait(timeout=60), pyctrd.ExitStatus)
            assert (ended.exit_code, await container.logs()) == (0, "hello\n")
            assert (await container.status).state == "stopped"
            assert [one.id for one in await engine.containers.list()] == [container.id]
            assert [line.text async for line in container.log_lines(follow=True)] == ["hello\n"]
            await container.delete()
            assert await engine.containers.find(container.id) is None
            with pytest.raises(NotFoundError):
                await engine.containers.get(container.id)

    asyncio.run(play())


def test_an_images_files_are_read(images: Images, tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()

    async def play() -> None:
        async with aio.Engine() as engine:
            image = await engine.images.pull(images.busybox.reference)
            assert await image.read_file("/etc/motd") == b"hello from a layer\n"
            with await image.open("/etc/motd") as file:
                assert file.read() == b"hello from a layer\n"
            paths = [entry.path async for entry in image.walk("/etc")]
            assert paths == sorted(paths)
            assert len(paths) > 3
            other = await engine.images.pull(images.tree.reference)
            changed = [change async for change in image.diff(other)]
            with pyctrd.Engine() as beside:
                one, two = beside.images.get(image.name), beside.images.get(other.name)
                assert changed == list(one.diff(two))
            async with image.mounted(tmp_path / "mount") as path:
                assert (path / "etc/motd").read_bytes() == b"hello from a layer\n"
            assert list((tmp_path / "mount").iterdir()) == []
            with pytest.raises(NotFoundError):
                [entry async for entry in image.walk("/not/there")]

    asyncio.run(play())


def test_what_else_there_is(images: Images, registry: Registry, tmp_path: Path) -> None:
    async def play() -> None:
        async with aio.Engine() as engine:
            image = await engine.images.pull(images.tree.reference)
            record = await engine.content.info(image.manifest_digest)
            with await engine.content.open(record.digest) as file:
                assert file.read() == images.tree.built.manifest.content
            assert (await engine.content.usage()).charged_bytes > 0
            assert len(await engine.content.list()) == 5
            async with await engine.leases.create(labels={"a": "b"}) as lease:
                await lease.add(image.name)
                assert len(await lease.resources()) == 8
                assert [one.id for one in await engine.leases.list()] == [lease.id]
                await engine.images.remove(image.name)
                assert (await engine.gc()).items == ()
            assert await engine.leases.list() == []
            assert len([item for item in (await engine.gc()).items if item.kind == "blob"]) == 5
            assert await engine.check() == []
            assert (await engine.df()).images == ()
            assert (await engine.info())["namespace"] == engine.namespace == "default"
            await engine.namespaces.create("other", quota=1 << 20)
            assert [one.name for one in await engine.namespaces.list()] == ["default", "other"]
            repository = engine.registry.repository(images.tree.reference)
            assert "gzip" in [tag async for tag in repository.tags()]
            assert (await repository.manifest())[1] == images.tree.built.manifest.content
            image = await engine.images.pull(images.tree.reference)
            target = f"{registry.host}/test/awaited:1"
            assert await engine.images.push(image.name, target) == image.manifest_digest
            await engine.images.save(image.name, tmp_path / "saved")
            (loaded,) = await engine.images.load(tmp_path / "saved", name="local/again:1")
            assert assert_type(loaded, aio.Image).digest == image.digest
            assert (await engine.images.tag(image.name, "local/tagged:1")).digest == image.digest
            assert (await engine.stages())["receive"]["bytes"] > 0
            async with await engine.serve_registry(listen="127.0.0.1:0") as server:
                assert (await engine.images.pull(f"{server.address}/docker.io/local/tagged:1")).digest == image.digest
                assert not await server.wait(timeout=0.05)
            assert await server.wait(timeout=10)

    asyncio.run(play())


def test_functions_need_no_engine(tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(Tar().file("f", b"content").build())

    async def play() -> None:
        done = await aio.unpack(tmp_path / "layer", tmp_path / "tree")
        assert (tmp_path / "tree/f").read_bytes() == b"content"
        await aio.verify(tmp_path / "layer", done.digest)
        assert (await aio.diff(tmp_path / "tree", tmp_path / "made")).entries > 0

    asyncio.run(play())


def test_progress_is_told_in_the_event_loop(images: Images) -> None:
    told: list[pyctrd.PullProgress] = []
    threads: set[int] = set()

    def tell(progress: pyctrd.PullProgress) -> None:
        asyncio.get_running_loop()
        threads.add(threading.get_ident())
        told.append(progress)

    def give_up(progress: pyctrd.PullProgress) -> None:
        raise ZeroDivisionError

    async def play() -> None:
        async with aio.Engine() as engine:
            await engine.images.pull(images.busybox.reference, progress=tell)
            with pytest.raises(ZeroDivisionError):
                await engine.images.pull(images.tree.reference, progress=give_up)

    asyncio.run(play())
    assert [told[0].phase, told[-1].phase] == ["resolving", "done"]
    assert threads == {threading.get_ident()}


def test_a_pull_is_followed(images: Images) -> None:
    async def play() -> None:
        async with aio.Engine() as engine:
            async with engine.images.follow_pull(images.tree.reference) as transfer:
                told = [assert_type(event, pyctrd.PullProgress) async for event in transfer]
            assert [told[0].phase, told[-1].phase] == ["resolving", "done"]
            assert transfer.is_over
            assert assert_type(await transfer.result(), aio.Image).digest == images.tree.built.digest
            failing = engine.images.follow_pull(f"{images.busybox.reference}-and-not-there")
            with pytest.raises(NotFoundError):
                [event async for event in failing]
            with pytest.raises(NotFoundError):
                await failing.result()
            alone = engine.images.follow_pull(images.app.reference)
            assert (await alone.result()).digest == images.app.built.digest

    asyncio.run(play())


def test_many_are_pulled(images: Images) -> None:
    wanted = [images.busybox.reference, images.tree.reference, images.app.reference]
    missing = f"{images.busybox.reference}-and-not-there"

    async def play() -> None:
        told: list[pyctrd.PullProgress] = []
        async with aio.Engine() as engine:
            results = engine.images.pull_many([*wanted, missing], progress=told.append)
            async with results:
                found = {result.reference: result async for result in results}
            assert sorted(found) == sorted([*wanted, missing])
            assert all(assert_type(found[name].get(), aio.Image).name == name for name in wanted)
            with pytest.raises(NotFoundError):
                found[missing].get()
            assert results.progress() == pyctrd.PullManyProgress(done=3, failed=1, waiting=0, pulling=())
        assert {event.reference for event in told} == {*wanted, missing}

    asyncio.run(play())


def test_events_are_followed(images: Images) -> None:
    async def play() -> None:
        async with aio.Engine() as engine:
            seen: list[str] = []
            began = asyncio.Event()

            async def follow() -> None:
                async for event in engine.events(since="0", follow=True):
                    seen.append(event.action)
                    began.set()
                    if event.action == "removed":
                        return

            following = asyncio.create_task(follow())
            await engine.images.pull(images.tree.reference)
            await asyncio.wait_for(began.wait(), 30)
            await engine.images.remove(images.tree.reference)
            await asyncio.wait_for(following, 30)
            assert seen[-1] == "removed"
            kept = [event.action async for event in engine.events()]
            assert kept[: len(seen)] == seen

    asyncio.run(play())


def test_hundreds_that_wait_leave_all_else_as_it_was(images: Images) -> None:
    async def play() -> None:
        async with aio.Engine() as engine:
            image = await engine.images.pull(images.busybox.reference)
            containers = [await engine.containers.run(image, ["sleep", "600"], stop_signal="SIGKILL") for _ in range(3)]
            async with asyncio.TaskGroup() as group:
                waits = [group.create_task(containers[n % 3].wait()) for n in range(WAITERS)]
                finds = [group.create_task(engine.images.find(image.name)) for _ in range(WAITERS)]
                found = await asyncio.wait_for(asyncio.gather(*finds), 60)
                assert {one.digest for one in found if one is not None} == {image.digest}
                assert not any(wait.done() for wait in waits)
                for container in containers:
                    await asyncio.wait_for(container.stop(), 60)
            assert {wait.result().signal for wait in waits} == {9}

    asyncio.run(play())


def test_a_wait_has_its_deadline(images: Images) -> None:
    async def play() -> None:
        async with aio.Engine() as engine:
            container = await engine.containers.run(
                (await engine.images.pull(images.busybox.reference)).name, ["sleep", "600"]
            )
            with pytest.raises(DeadlineError):
                await container.wait(timeout=0.05)

    asyncio.run(play())


def test_an_engine_that_was_closed_says_so() -> None:
    async def play() -> None:
        engine = aio.Engine()
        await engine.close()
        await engine.close()
        with pytest.raises(ConflictError, match="engine closed"):
            await engine.images.list()

    asyncio.run(play())


def test_it_may_be_used_after_another_loop() -> None:

    async def play() -> list[str]:
        async with aio.Engine() as engine:
            return [image.name for image in await engine.images.list()]

    assert asyncio.run(play()) == asyncio.run(play()) == []
