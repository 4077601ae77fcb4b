"""The stream of events of a transfer: its phases, where bytes come from, how many, how fast, and its end."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import NotFoundError
from tests.archives import Tar
from tests.content.stores import files_below
from tests.images import BuiltImage, Images, build_image
from tests.registries import Registry
from tests.registry_faults import Answer, FaultyRegistry
from tests.relays import SlowRelay

pytestmark = pytest.mark.root

LAYER_BYTES = 1 << 20
RATE = 1 << 20
ENTRIES = 300


@pytest.fixture(scope="module")
def built() -> BuiltImage:
    """Two layers: one with bytes that do not compress, one with many entries."""
    noise = random.Random(40).randbytes(LAYER_BYTES)
    many = Tar()
    for number in range(ENTRIES):
        many.file(f"file-{number}", b"%d" % number)
    return build_image([Tar().directory("d").file("d/noise", noise).build(), many.build()])


def told_of_pull(engine: pyctrd.Engine, reference: str) -> list[pyctrd.PullProgress]:
    """All that is told of a pull."""
    told: list[pyctrd.PullProgress] = []
    engine.images.pull(reference, progress=told.append)
    return told


def assert_sequence(told: list[pyctrd.PullProgress], digest: str) -> None:
    """The phases come in their order, the last one once, and nothing goes back."""
    phases = [event.phase for event in told]
    assert phases[0] == "resolving"
    assert phases == sorted(phases, key=["resolving", "transferring", "done"].index)
    assert phases.count("done") == 1
    assert all(event.layers == () and event.digest == "" for event in told if event.phase == "resolving")
    assert {event.digest for event in told if event.phase != "resolving"} == {digest}
    for event in told:
        assert event.received_bytes == sum(layer.received_bytes for layer in event.layers)
        assert event.received_bytes <= event.size_bytes
    for before, after in itertools.pairwise(event for event in told if event.layers):
        assert before.size_bytes == after.size_bytes
        assert before.received_bytes <= after.received_bytes
        for one, other in zip(before.layers, after.layers, strict=True):
            assert one.digest == other.digest
            assert one.unpacked_bytes <= other.unpacked_bytes
            assert one.unpacked_entries <= other.unpacked_entries
    last = told[-1]
    assert last.received_bytes == last.size_bytes
    assert last.eta_seconds == 0
    assert {layer.state for layer in last.layers} <= {"done", "present", "mounted"}


def test_a_pull_tells_of_its_phases_bytes_entries_and_source(
    engine: pyctrd.Engine, images: Images, registry: Registry, built: BuiltImage
) -> None:
    reference = images.push(built).reference
    told = told_of_pull(engine, reference)
    assert_sequence(told, built.digest)
    assert {event.reference for event in told} == {reference}
    last = told[-1]
    assert [layer.source for layer in last.layers] == [registry.host] * 2
    assert [layer.unpacked_entries for layer in last.layers] == [2, ENTRIES]
    assert [layer.unpacked_bytes for layer in last.layers] == [len(tar) for tar in built.tars]
    assert last.bytes_per_second is not None
    again = told_of_pull(engine, reference)
    assert_sequence(again, built.digest)
    assert [(layer.state, layer.source) for layer in again[-1].layers] == [("present", "store")] * 2
    assert again[-1].bytes_per_second is None


def test_a_slow_pull_tells_how_fast_it_is_and_when_it_ends(
    images: Images, registry: Registry, root: Path, built: BuiltImage
) -> None:
    del root
    pushed = images.push(built).reference
    with SlowRelay(registry.host, total=RATE) as relay, pyctrd.Engine() as engine:
        told = told_of_pull(engine, pushed.replace(registry.host, relay.host))
        assert_sequence(told, built.digest)
        assert [layer.source for layer in told[-1].layers] == [relay.host] * 2
    known = [event for event in told if event.bytes_per_second and event.phase == "transferring"]
    assert len(known) > 2
    for event in known:
        assert event.bytes_per_second is not None
        assert event.bytes_per_second < 2 * RATE  # what the kernel's buffers took at once included
        if event.bytes_per_second:
            left = event.size_bytes - event.received_bytes
            assert event.eta_seconds == pytest.approx(left / event.bytes_per_second)
    assert all(event.eta_seconds is None for event in told if event.bytes_per_second is None and event.phase != "done")


def test_what_a_mirror_sends_has_its_name(
    root: Path, tmp_path: Path, images: Images, registry: Registry, faulty: FaultyRegistry, built: BuiltImage
) -> None:
    del root
    images.push(built, "mirrored", tag="1")
    directory = tmp_path / "hosts" / "registry.example"
    directory.mkdir(parents=True)
    # The first one has the manifest and no layer: what is told is who sent the bytes.
    faulty.add(built, "mirrored", tag="1")
    for layer in built.layers:
        faulty.lie(layer.digest, *[Answer(404, b"")] * 2)
    mirrors = "".join(f'[host."http://{host}"]\n' for host in (faulty.host, registry.host))
    (directory / "hosts.toml").write_text(f'server = "http://127.0.0.1:1"\n{mirrors}')
    with pyctrd.Engine(hosts=tmp_path / "hosts") as engine:
        told = told_of_pull(engine, "registry.example/mirrored:1")
    assert_sequence(told, built.digest)
    assert [layer.source for layer in told[-1].layers] == [registry.host] * 2


def test_all_other_transfers_tell_the_same(
    engine: pyctrd.Engine, images: Images, registry: Registry, tmp_path: Path, built: BuiltImage
) -> None:
    built.write_layout(tmp_path / "layout")
    told: list[pyctrd.PullProgress] = []
    (image,) = engine.images.load(tmp_path / "layout", name="local/app:1", progress=told.append)
    assert_sequence(told, built.digest)
    assert [layer.source for layer in told[-1].layers] == ["file"] * 2

    told.clear()
    engine.images.save(image.name, tmp_path / "archive", progress=told.append)
    assert_sequence(told, built.digest)
    assert {layer.source for layer in told[-1].layers} == {"store"}

    told.clear()
    engine.images.push(image.name, f"{registry.host}/test/progress:1", progress=told.append)
    assert_sequence(told, built.digest)
    assert {layer.source for layer in told[-1].layers} == {"store"}

    told.clear()
    engine.images.copy(f"{registry.host}/test/progress:1", f"{registry.host}/test/copied:1", progress=told.append)
    assert_sequence(told, built.digest)
    assert {(layer.state, layer.source) for layer in told[-1].layers} == {("mounted", "")}

    told.clear()
    engine.images.convert(image.name, "local/app:zstd", compression="zstd", progress=told.append)
    assert_sequence(told, built.digest)
    assert {layer.source for layer in told[-1].layers} == {"store"}


def test_what_is_copied_between_registries_comes_from_the_first(
    engine: pyctrd.Engine, images: Images, registry: Registry, tmp_path: Path, built: BuiltImage
) -> None:
    reference = images.push(built).reference
    told: list[pyctrd.PullProgress] = []
    with Registry(tmp_path / "other") as other:
        engine.images.copy(reference, f"{other.host}/app:1", progress=told.append)
    assert_sequence(told, built.digest)
    assert {(layer.state, layer.source) for layer in told[-1].layers} == {("done", registry.host)}


def test_of_many_pulls_each_has_its_own_sequence(engine: pyctrd.Engine, images: Images) -> None:
    told: list[pyctrd.PullProgress] = []
    digests = {images.busybox.reference: images.busybox.built.digest, images.tree.reference: images.tree.built.digest}
    missing = f"{images.busybox.reference}-and-not-there"
    results = list(engine.images.pull_many([*digests, missing], progress=told.append))
    assert [type(result.error) for result in results if result.error] == [NotFoundError]
    for reference, digest in digests.items():
        assert_sequence([event for event in told if event.reference == reference], digest)
    assert {event.phase for event in told if event.reference == missing} == {"resolving"}


def test_a_failing_pull_ends_with_its_error_and_no_event(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    small = build_image([Tar().file("f", b"x" * 5000).build()], compression="none")
    reference = faulty.add(small, "app")
    faulty.lie(small.layers[0].digest, Answer(200, b"y" * len(small.layers[0].content)))
    told: list[pyctrd.PullProgress] = []
    with pytest.raises(pyctrd.errors.DigestMismatchError):
        engine.images.pull(reference, progress=told.append)
    assert {event.phase for event in told} <= {"resolving", "transferring"}


@pytest.mark.parametrize("phase", ["resolving", "transferring", "done"])
def test_a_callback_that_raises_leaves_the_store_clean(
    engine: pyctrd.Engine, images: Images, root: Path, built: BuiltImage, phase: str
) -> None:
    reference = images.push(built).reference

    def give_up(told: pyctrd.PullProgress) -> None:
        if told.phase == phase:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.images.pull(reference, progress=give_up)
    assert engine.check(digests=True) == []
    assert (engine.images.find(reference) is not None) == (phase == "done")  # by then it is there
    assert {Path(name).name for name in files_below(root / "content/ingest")} <= {"data", "lock"}
    assert_sequence(told_of_pull(engine, reference), built.digest)
