"""Layers that came in while another snapshotter was the best, as after an update of the kernel, or of pyctrd."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from pyctrd.errors import UnsupportedError
from tests.archives import Tar
from tests.images import Images, build_image, busybox_tar
from tests.layers.ways import digest_of

DEADLINE_SECONDS = 30
pytestmark = [pytest.mark.root, pytest.mark.usefixtures("state")]


def said(engine: pyctrd.Engine, image: pyctrd.Image, *words: str) -> str:
    container = engine.containers.run(image, list(words))
    try:
        assert container.wait(timeout=DEADLINE_SECONDS).exit_code == 0
        return container.logs()
    finally:
        container.delete()


def forms_of(root: Path, image: pyctrd.Image) -> list[set[str]]:
    """What each layer is there as."""
    layers = [root / "layers" / str(diff_id).replace(":", "/") for diff_id in image.config.rootfs.diff_ids]
    return [{path.name for path in layer.iterdir()} & {"tree", "pack", "blocks"} for layer in layers]


def test_an_image_goes_on_in_the_form_that_it_has(root: Path, images: Images) -> None:
    with pyctrd.Engine(snapshotter="overlayfs") as engine:
        engine.images.pull(images.busybox.reference)
    with pyctrd.Engine() as engine:
        assert engine.info()["snapshotter"] == "composefs"
        image = engine.images.get(images.busybox.reference)
        assert said(engine, image, "cat", "/etc/motd") == "hello from a layer\n"
        container = engine.containers.run(image, ["sh", "-c", "echo more > /more"])
        container.wait(timeout=DEADLINE_SECONDS)
        made = container.commit("example.com/made:1")
        container.delete()
        assert said(engine, made, "cat", "/more") == "more\n"
        assert forms_of(root, made) == [{"tree"}] * len(made.config.rootfs.diff_ids)
        assert engine.check(digests=True) == []


def test_who_asks_for_a_form_gets_it_or_is_told(root: Path, images: Images) -> None:
    del root
    with pyctrd.Engine(snapshotter="overlayfs") as engine:
        engine.images.pull(images.busybox.reference)
    with pyctrd.Engine(snapshotter="composefs") as engine:
        image = engine.images.get(images.busybox.reference)
        with pytest.raises(UnsupportedError, match="pull its image again"):
            engine.containers.create(image, ["true"])
        assert engine.containers.list() == []
        image = engine.images.pull(images.busybox.reference)
        assert said(engine, image, "cat", "/etc/motd") == "hello from a layer\n"


def test_a_layer_gets_the_second_form_with_the_next_image_that_has_it(root: Path, images: Images) -> None:
    base = busybox_tar()
    first, second = (images.push(build_image([base, Tar().file("own", name).build()])) for name in (b"1", b"2"))
    with pyctrd.Engine(snapshotter="overlayfs") as engine:
        old = engine.images.pull(first.reference)
    with pyctrd.Engine() as engine:
        new = engine.images.pull(second.reference)
        assert forms_of(root, new) == [{"tree", "pack"}, {"pack"}]
        assert forms_of(root, old) == [{"tree", "pack"}, {"tree"}]
        for reference, own in ((first.reference, "1"), (second.reference, "2")):
            assert said(engine, engine.images.get(reference), "cat", "/own") == own
        assert engine.check(digests=True) == []
        engine.images.remove(second.reference)
        assert said(engine, engine.images.get(first.reference), "cat", "/own") == "1"
        assert engine.check(digests=True) == []


def test_a_layer_can_have_all_forms(root: Path, images: Images) -> None:
    pushed = images.push(build_image([busybox_tar(), Tar().file("own", b"1").build()]))
    for name in ("erofs", "composefs", "overlayfs", "erofs"):
        with pyctrd.Engine(snapshotter=name) as engine:
            image = engine.images.pull(pushed.reference)
            assert said(engine, image, "cat", "/own") == "1"
            assert image.read_file("/etc/motd") == b"hello from a layer\n"
            assert engine.check(digests=True) == []
    assert forms_of(root, image) == [{"tree", "pack", "blocks"}] * 2
    with pyctrd.Engine() as engine:
        engine.images.remove(pushed.reference)
        assert list((root / "snapshots").glob("stack-*")) == []


def test_a_large_file_among_blocks_is_read_with_no_mount(images: Images, root: Path) -> None:
    del root
    content = bytes(range(256)) * 8192  # over what is copied out in memory
    pushed = images.push(build_image([Tar().file("a", b"short").file("large", content).file("z", b"end").build()]))
    with pyctrd.Engine(snapshotter="erofs") as engine:
        image = engine.images.pull(pushed.reference)
        with image.open("/large") as file:
            assert file.read() == content
            file.seek(1 << 20)
            assert file.read(256) == bytes(range(256))
            with pytest.raises(OSError, match="write"):
                file.write(b"x")
        assert (image.read_file("/a"), image.read_file("/z")) == (b"short", b"end")


def test_two_forms_that_come_at_the_same_time_are_both_there(root: Path) -> None:
    root.mkdir(exist_ok=True)
    tar = Tar().file("short", b"s").file("long", b"l" * 5000).build()
    diff_id = digest_of(tar)
    ingests = []
    for form in ("objects", "blocks"):
        ingest = _core.Ingest(root, f"of-{form}", digest=diff_id, diff_id=diff_id, unpack=True, form=form)
        ingest.write(tar)
        ingest.finish()
        ingests.append(ingest)
    for ingest in ingests:  # neither has seen the other
        _core.publish(root, [ingest])
    layer = root / "layers" / diff_id.replace(":", "/")
    index = _core.LayerIndex(layer)
    assert index.pack_bytes == 1
    assert index.blocks_bytes == (layer / "blocks").stat().st_size
    assert {path.name for path in layer.iterdir()} == {"index", "frame", "pack", "blocks"}
