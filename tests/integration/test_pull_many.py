"""Many pulls at once: an end for each reference, a bound for each host, and nothing left when they are given up."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import DigestMismatchError, InvalidError, NotFoundError, RegistryError
from tests.archives import Tar
from tests.children import until
from tests.images import Blob, BuiltImage, Images, build_image
from tests.integration.conftest import Cli, command
from tests.registries import Registry
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root

BASE = Tar().file("base", random.Random(0).randbytes(1 << 20)).build()


def stacked(number: int) -> BuiltImage:
    """An image over a layer that all have, with one of its own."""
    return build_image([BASE, Tar().file("own", b"%d" % number).build()], compression="none")


def served(registry: FaultyRegistry, count: int) -> list[str]:
    """So many images with a layer in common."""
    return [registry.add(stacked(number), f"image-{number}") for number in range(count)]


def blob_requests(registry: FaultyRegistry, blob: Blob) -> int:
    """How often a blob was asked for."""
    return len([seen for seen in registry.requests(blob.digest) if seen.method == "GET"])


def workers() -> list[threading.Thread]:
    """The threads of pulls."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("pyctrd-")]


@pytest.fixture
def second() -> Iterator[FaultyRegistry]:
    """Another host."""
    with FaultyRegistry() as registry:
        yield registry


# ends


def test_each_reference_ends_with_its_image_or_its_own_error(
    engine: pyctrd.Engine, registry: Registry, images: Images, faulty: FaultyRegistry
) -> None:
    wrong = faulty.add(stacked(1), "wrong")
    faulty.lie(stacked(1).layers[1].digest, Answer(200, b"other bytes".ljust(len(stacked(1).layers[1].content))))
    good = {images.tree.reference, images.busybox.reference, images.app.reference}
    bad: dict[str, type[Exception]] = {
        f"{registry.host}/not/there:1": NotFoundError,
        "127.0.0.1:1/refused": RegistryError,
        "Not A Reference": InvalidError,
        wrong: DigestMismatchError,
    }
    with engine.images.pull_many([*bad, *good]) as results:
        found = {result.reference: result for result in results}
    assert found.keys() == good | bad.keys()
    for reference in good:
        assert found[reference].error is None
        assert found[reference].get().name == reference
    for reference, kind in bad.items():
        assert found[reference].image is None
        with pytest.raises(kind):
            found[reference].get()
    assert {image.name for image in engine.images.list()} == good
    assert engine.images.get(images.busybox.reference).read_file("/etc/motd") == b"hello from a layer\n"
    assert engine.check(digests=True) == []
    assert results.progress() == pyctrd.PullManyProgress(done=3, failed=4, waiting=0, pulling=())


def test_an_error_keeps_nothing_of_its_pull(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    reference = faulty.add(stacked(0), "wrong")
    faulty.lie(stacked(0).layers[0].digest, Answer(200, b"", announced=0))
    (result,) = engine.images.pull_many([reference])
    trace = result.error.__traceback__ if result.error is not None else None
    assert trace is not None
    while trace is not None:
        assert trace.tb_frame.f_locals == {}
        trace = trace.tb_next


def test_a_reference_that_comes_again_is_pulled_once(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    reference = faulty.add(stacked(0), "image")
    short = reference.removesuffix(":latest")
    results = list(engine.images.pull_many([reference, short, reference] * 20))
    assert [result.reference for result in results] == [reference]
    assert len(faulty.requests("/manifests/")) == 1


def test_what_images_have_in_common_is_downloaded_once(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    assert all(result.image for result in engine.images.pull_many(served(faulty, 20)))
    assert blob_requests(faulty, stacked(0).layers[0]) == 1
    assert engine.check(digests=True) == []


def test_nothing_to_pull_is_no_result(engine: pyctrd.Engine) -> None:
    assert list(engine.images.pull_many([])) == []


@pytest.mark.parametrize("bounds", [{"concurrency": 0}, {"concurrency": 81}, {"per_host": 0}])
def test_bounds_that_are_none_are_refused(engine: pyctrd.Engine, bounds: dict[str, int]) -> None:
    with pytest.raises(InvalidError, match="expected 1 to 80"):
        engine.images.pull_many([], **bounds)  # type: ignore[arg-type] # the two are integers


# bounds


def test_references_are_read_as_they_are_needed(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    references = served(faulty, 5)
    read: list[int] = []

    def without_end() -> Iterator[str]:
        while True:
            read.append(threading.get_ident())
            yield references[len(read) - 1] if len(read) <= len(references) else f"{faulty.host}/none:{len(read)}"

    ended = 0
    with engine.images.pull_many(without_end(), concurrency=2) as results:
        assert read == []
        for _ in results:
            ended += 1
            # What ended, what is under way, what waits for them, and what ends wait to be read.
            assert len(read) <= ended + 2 + 2 + 64
            if ended == 100:
                break
    assert set(read) == {threading.get_ident()}  # a generator may have a connection of its own thread's


def test_threads_are_bounded_and_images_of_one_host_too(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    most = Counter[str]()
    with engine.images.pull_many(served(faulty, 30), concurrency=4, per_host=2) as results:
        for _ in results:
            most["threads"] = max(most["threads"], len(workers()))
            most["images"] = max(most["images"], len(results.progress().pulling))
    assert 1 <= most["images"] <= 2
    assert most["threads"] <= 4 + 2 * 6  # pulls, and bodies of two of them
    until(lambda: workers() == [])


def test_a_host_that_is_slow_holds_up_no_other(
    engine: pyctrd.Engine, faulty: FaultyRegistry, second: FaultyRegistry
) -> None:
    stall = threading.Event()
    slow, fast = served(faulty, 30), served(second, 30)
    faulty.lie("/manifests/latest", *[Answer(body=None, stall=stall)] * 30)
    with engine.images.pull_many(slow + fast, concurrency=4) as results:  # the slow one stands first
        assert {next(results).reference for _ in fast} == set(fast)
        until(faulty.stalled.is_set)
        assert len(faulty.requests("/manifests/")) == 3  # three quarters
        stall.set()
        assert {result.reference for result in results if result.image} == set(slow)


def test_an_image_of_many_layers_among_others_needs_no_more_files_than_a_process_may_have_open(
    images: Images, state: Path
) -> None:
    del state
    references = []
    for number in range(8):
        layers = [Tar().file(f"f{i}", b"%d %d" % (number, i)).build() for i in range(25)]
        references.append(images.push(build_image(layers, compression="none")).reference)
    limited = ["prlimit", "--nofile=1024", *command("pull", "-q", *references)]
    done = subprocess.run(limited, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(references)
    with pyctrd.Engine() as engine:
        assert engine.check() == []


# progress


def test_progress_is_told_of_each_image_in_the_thread_that_iterates(
    engine: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    told: dict[str, pyctrd.PullProgress] = {}
    threads: set[int] = set()

    def tell(progress: pyctrd.PullProgress) -> None:
        threads.add(threading.get_ident())
        told[progress.reference] = progress

    references = served(faulty, 5)
    for result in engine.images.pull_many(references, progress=tell):
        # All was told of an image before its result is given.
        assert {layer.state for layer in told[result.reference].layers} <= {"done", "present"}
        assert sum(layer.received_bytes for layer in told[result.reference].layers) > len(BASE)
    assert told.keys() == set(references)
    assert threads == {threading.get_ident()}


# given up


def stalling(registry: FaultyRegistry) -> tuple[str, BuiltImage]:
    """An image whose layer stands still in its middle."""
    built = build_image([Tar().file("f", random.Random(3).randbytes(4 << 20)).build()], compression="none")
    registry.lie(built.layers[0].digest, Answer(body=None, stall=threading.Event()))
    return registry.add(built, "stalling"), built


def assert_given_up(engine: pyctrd.Engine, faulty: FaultyRegistry, reference: str, built: BuiltImage) -> None:
    """Nothing is at work; the next pull goes on from what came."""
    until(lambda: workers() == [])
    ingests = Path(os.environ["PYCTRD_ROOT"]) / "content" / "ingest"
    assert {path.name for path in ingests.glob("*/*")} <= {"data", "lock"}
    assert engine.images.find(reference) is None
    assert engine.check() == []
    engine.images.pull(reference)
    last = [seen for seen in faulty.requests(built.layers[0].digest) if seen.method == "GET"][-1]
    assert last.headers["range"].startswith("bytes=")
    assert engine.check(digests=True) == []


def test_leaving_the_block_gives_up_what_is_under_way(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    reference, built = stalling(faulty)
    (other,) = served(faulty, 1)
    with engine.images.pull_many([reference, other]) as results:
        assert next(results).reference == other
        until(faulty.stalled.is_set)
        assert [pulling.reference for pulling in results.progress().pulling] == [reference]
    assert list(results) == []
    results.close()
    assert_given_up(engine, faulty, reference, built)


def test_closing_from_another_thread_ends_the_iterator(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    reference, built = stalling(faulty)
    results = engine.images.pull_many([reference])

    def close() -> None:
        until(faulty.stalled.is_set)
        results.close()

    closing = threading.Thread(target=close)
    closing.start()
    assert list(results) == []
    closing.join()
    assert_given_up(engine, faulty, reference, built)


def test_an_iterator_that_nobody_has_any_more_ends(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    reference, built = stalling(faulty)
    (other,) = served(faulty, 1)
    for _ in engine.images.pull_many([reference, other]):
        until(faulty.stalled.is_set)
        break
    gc.collect()
    assert_given_up(engine, faulty, reference, built)


def test_an_error_of_the_source_or_of_the_callback_gives_up_all(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    reference, built = stalling(faulty)

    def broken() -> Iterator[str]:
        yield reference
        until(faulty.stalled.is_set)
        raise ZeroDivisionError

    def tell(progress: pyctrd.PullProgress) -> None:
        raise KeyError(progress.reference)

    results = engine.images.pull_many(broken())
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []
    assert_given_up(engine, faulty, reference, built)
    with pytest.raises(KeyError):
        list(engine.images.pull_many(served(faulty, 3), progress=tell))
    assert engine.check() == []


def test_a_registry_that_says_nothing_is_not_waited_for(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    stall = threading.Event()
    references = served(faulty, 2)
    faulty.lie("/manifests/latest", *[Answer(body=None, stall=stall)] * 2)
    with engine.images.pull_many(references):
        pass
    with engine.images.pull_many(references) as results:
        closing = threading.Timer(0.2, results.close)
        closing.start()
        assert list(results) == []
    until(faulty.stalled.is_set)
    assert len(workers()) >= 1  # they are left to themselves, and do nothing more when they come back
    stall.set()
    until(lambda: workers() == [])
    assert engine.images.list() == []
    assert faulty.requests("/blobs/") == []


def test_an_engine_that_closes_ends_its_pulls(state: Path, faulty: FaultyRegistry) -> None:
    del state
    reference, built = stalling(faulty)
    with pyctrd.Engine() as engine:
        results = engine.images.pull_many(iter([reference]))
        reading = threading.Thread(target=lambda: list(results))
        reading.start()
        until(faulty.stalled.is_set)
    reading.join()
    with pyctrd.Engine() as engine:
        assert_given_up(engine, faulty, reference, built)


# the command line


def test_several_references_are_told_one_by_one(cli: Cli, images: Images, registry: Registry) -> None:
    missing = f"{registry.host}/not/there:1"
    done = cli("pull", images.app.reference, missing, images.busybox.reference)
    assert done.status == 1
    assert set(done.out.splitlines()) == {
        f"{pushed.reference}@{pushed.built.digest}" for pushed in (images.app, images.busybox)
    }
    assert f"pyctrd: {missing}: manifest not found" in done.err
    assert "Traceback" not in done.err
    again = cli("pull", "-q", images.app.reference, images.busybox.reference)
    assert (again.status, again.err) == (0, "")
    assert set(again.out.splitlines()) == {images.app.built.digest, images.busybox.built.digest}


def test_json_of_several_references_is_one_list_in_their_order(cli: Cli, images: Images, registry: Registry) -> None:
    missing = f"{registry.host}/not/there:1"
    done = cli("--json", "pull", images.app.reference, missing, images.busybox.reference, images.app.reference)
    assert done.status == 1
    ((app, wrong, busybox),) = done.lines
    assert [app["reference"], wrong["reference"], busybox["reference"]] == [
        images.app.reference,
        missing,
        images.busybox.reference,
    ]
    assert app["digest"] == images.app.built.digest
    assert wrong.keys() == {"reference", "error"}
    assert cli("--json", "pull", images.app.reference).lines[0]["digest"] == images.app.built.digest
    assert cli("pull", "--stages", images.app.reference, missing).status == 2
    assert cli("pull").status == 2


def test_ctrl_c_gives_up_several_pulls(cli: Cli, state: Path, faulty: FaultyRegistry) -> None:
    del state
    reference, _ = stalling(faulty)
    (other,) = served(faulty, 1)
    process = subprocess.Popen(
        command("pull", "-q", reference, other), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    until(lambda: process.poll() is not None or faulty.stalled.is_set())
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert cli("check").out == "clean\n"
