"""T21 for objects, and images that name them: what is damaged is told, mended, and never given to another layer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core
from tests.archives import Tar
from tests.images import BuiltImage, Images, build_image
from tests.layers.model import Layer
from tests.layers.ways import digest_of

pytestmark = pytest.mark.root

SECRET = random.Random(21).randbytes(100_000)


@pytest.fixture(autouse=True)
def _composefs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", "composefs")


def built(name: str = "f") -> BuiltImage:
    holes = Layer().sparse("holes", 9 << 20, [(5 << 20, b"middle" * 512)]).build()
    return build_image([Tar().file(name, SECRET).file("short", b"s").build(), holes])


def object_of(root: Path, size: int = len(SECRET)) -> Path:
    [found] = (path for path in (root / "objects").glob("*/*") if path.stat().st_size == size)
    return found


def flip(path: Path) -> None:
    mode = path.stat().st_mode
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    path.chmod(mode)


@pytest.mark.parametrize("size", [len(SECRET), 9 << 20], ids=["plain", "sparse"])
@pytest.mark.parametrize("damage", ["another byte", "a byte less", "gone"])
def test_a_damaged_object_is_named_and_written_again(
    engine: pyctrd.Engine, images: Images, root: Path, damage: str, size: int
) -> None:
    image = engine.images.pull(images.push(built()).reference)
    path = object_of(root, size)
    before = path.read_bytes()
    if damage == "another byte":
        flip(path)
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(before[:-1])
    found = engine.check(digests=True)
    assert ("object", path.parent.name + path.name) in [(finding.kind, finding.name) for finding in found]
    assert {finding.kind for finding in found} <= {"object", "layer"}
    if damage != "another byte":
        assert [finding.kind for finding in engine.check()] == ["object"]
    done = engine.check(digests=True, repair=True)
    assert [(finding.kind, finding.repaired) for finding in done] == [("object", True)]
    assert engine.check(digests=True) == []
    assert path.read_bytes() == before
    assert image.read_file("/f") == SECRET


def test_a_damaged_object_is_never_given_to_another_layer(
    engine: pyctrd.Engine, images: Images, root: Path, tmp_path: Path
) -> None:
    engine.images.pull(images.push(built("f")).reference)
    flip(object_of(root))
    other = engine.images.pull(images.push(built("g")).reference)
    (view := tmp_path / "view").mkdir()
    with other.mounted(view):
        assert (view / "g").read_bytes() == SECRET
    assert engine.check(digests=True) == []


def test_a_damaged_image_is_named_and_made_anew(
    engine: pyctrd.Engine, images: Images, root: Path, tmp_path: Path
) -> None:
    image = engine.images.pull(images.push(built()).reference)
    [path] = (root / "snapshots").glob("stack-*/image.erofs")
    flip(path)
    [found] = engine.check(digests=True)
    assert (found.kind, found.name) == ("stack", path.parent.name)
    assert [finding.repaired for finding in engine.check(digests=True, repair=True)] == [True]
    assert engine.check(digests=True) == []
    (view := tmp_path / "view").mkdir()
    with image.mounted(view):
        assert (view / "f").read_bytes() == SECRET


@pytest.mark.parametrize("damage", ["another byte", "cut off", "gone"])
def test_a_damaged_pack_is_named_and_its_layer_unpacked_again(
    engine: pyctrd.Engine, images: Images, root: Path, damage: str
) -> None:
    image = engine.images.pull(images.push(built()).reference)
    diff_id = str(image.config.rootfs.diff_ids[0])
    pack = root / "layers" / diff_id.replace(":", "/") / "pack"
    if damage == "another byte":
        flip(pack)
    elif damage == "gone":
        pack.unlink()
    else:
        pack.write_bytes(b"")
    found = engine.check(digests=True)
    assert [(finding.kind, finding.name) for finding in found] == [("layer", diff_id)]
    assert [finding.repaired for finding in engine.check(digests=True, repair=True)] == [True]
    assert engine.check(digests=True) == []
    assert image.read_file("/short") == b"s"


def test_objects_go_with_the_last_layer_that_names_them(engine: pyctrd.Engine, images: Images, root: Path) -> None:
    first, second = images.push(built("f")).reference, images.push(built("g")).reference
    engine.images.pull(first)
    engine.images.pull(second)
    engine.images.remove(first)
    assert len(list((root / "objects").glob("*/*"))) == 2
    engine.images.remove(second)
    assert list((root / "objects").glob("*/*")) == []
    assert list((root / "snapshots").iterdir()) == []


def test_the_image_of_a_stack_goes_with_the_last_that_has_it(engine: pyctrd.Engine, images: Images, root: Path) -> None:
    base = Tar().file("f", SECRET).build()
    low = images.push(build_image([base])).reference
    high = images.push(build_image([base, Tar().file("g", b"g").build()])).reference
    engine.images.pull(low)
    engine.images.pull(high)
    container = engine.containers.create(high, ["true"])
    engine.images.remove(high, force=True)
    assert len(list((root / "snapshots").glob("stack-*"))) == 2
    container.delete()
    engine.images.remove(engine.images.pull(images.push(build_image([Tar().file("h").build()])).reference).name)
    assert len(list((root / "snapshots").glob("stack-*"))) == 1
    engine.images.remove(low)
    assert list((root / "snapshots").iterdir()) == []


def test_no_object_is_swept_while_a_layer_is_written_that_may_count_on_it(
    engine: pyctrd.Engine, images: Images, root: Path
) -> None:
    reference = images.push(built("f")).reference
    engine.images.pull(reference)
    tar = Tar().file("other", SECRET).build()
    digest = digest_of(tar)
    ingest = _core.Ingest(root, "under-way", digest=digest, diff_id=digest, unpack=True, form="objects")
    ingest.write(tar)
    ingest.finish()
    assert list((root / "content/ingest/under-way/objects").iterdir()) == []  # it is there, and is not written again
    engine.images.remove(reference)
    assert object_of(root).read_bytes() == SECRET
    ingest.abort()
    engine.images.remove(engine.images.pull(images.push(build_image([Tar().file("h").build()])).reference).name)
    assert list((root / "objects").glob("*/*")) == []


def test_nothing_is_swept_where_a_layer_cannot_say_what_it_names(
    engine: pyctrd.Engine, images: Images, root: Path
) -> None:
    first = images.push(built("f")).reference
    engine.images.pull(first)
    kept = engine.images.pull(images.push(build_image([Tar().file("k", SECRET[::-1]).build()])).reference)
    layer = root / "layers" / str(kept.config.rootfs.diff_ids[0]).replace(":", "/")
    flip(layer / "index")
    engine.images.remove(first)
    assert len(list((root / "objects").glob("*/*"))) == 3
    assert engine.check(repair=True)[0].repaired
    engine.images.remove(engine.images.pull(first).name)
    assert len(list((root / "objects").glob("*/*"))) == 1
    assert kept.read_file("/k") == SECRET[::-1]
