"""T17 to T20: tenants whose files share stored bytes share nothing else."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

import pyctrd
from tests.images import Images, build_image
from tests.layers.model import SECOND_NS, Layer
from tests.trees import read_tree

pytestmark = pytest.mark.root

BYTES = random.Random(20).randbytes(200_000)
OTHER = random.Random(19).randbytes(200_000)


@pytest.fixture(autouse=True, params=["composefs", "overlayfs"])
def snapshotter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", request.param)
    return str(request.param)


def pull(engine: pyctrd.Engine, images: Images, *layers: Layer) -> pyctrd.Image:
    return engine.images.pull(images.push(build_image([layer.build() for layer in layers])).reference)


def directories(top: Path, names: Sequence[str]) -> list[Path]:
    for name in names:
        (top / name).mkdir()
    return [top / name for name in names]


def test_t17_what_a_container_of_b_writes_is_in_its_own_upper_layer(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images, tmp_path: Path
) -> None:
    reference = images.busybox.reference
    [view] = directories(tmp_path, ["view"])
    a.images.pull(reference)
    b.images.pull(reference)
    with a.images.get(reference).mounted(view):
        before = read_tree(view)
        container = b.containers.run(
            reference, ["sh", "-c", "echo x >> /bin/busybox.new; rm /bin/ls; cat /bin/busybox > /bin/copy"]
        )
        assert container.wait(60).exit_code == 0
        assert read_tree(view) == before
    assert sorted(change.path for change in container.diff()) == ["/bin", "/bin/busybox.new", "/bin/copy", "/bin/ls"]
    assert a.check(digests=True) == []


def test_t18_each_sees_its_own_mode_owner_times_and_attributes(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images, tmp_path: Path
) -> None:
    mine = pull(a, images, Layer().file("f", BYTES, mode=0o644, mtime_ns=SECOND_NS, xattrs={"user.a": b"a"}))
    theirs = pull(
        b,
        images,
        Layer().file("f", BYTES, mode=0o4755, uid=1, mtime_ns=9 * SECOND_NS, xattrs={"user.b": b"b"}),
    )
    one, two = directories(tmp_path, ["one", "two"])
    with mine.mounted(one), theirs.mounted(two):
        for path, mode, owner, mtime, xattr in (
            (one / "f", 0o644, 0, SECOND_NS, "user.a"),
            (two / "f", 0o4755, 1, 9 * SECOND_NS, "user.b"),
        ):
            stat = path.stat()
            found = (stat.st_mode & 0o7777, stat.st_uid, stat.st_mtime_ns, stat.st_nlink, os.listxattr(path))
            assert found == (mode, owner, mtime, 1, [xattr])
            assert path.read_bytes() == BYTES


def test_t19_attributes_that_name_an_object_of_a_do_not_act(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images, tmp_path: Path
) -> None:
    pull(a, images, Layer().file("secret", BYTES))
    root = Path(os.environ["PYCTRD_ROOT"])
    known = [f"/{path.relative_to(root / 'objects')}" for path in (root / "objects").glob("*/*")]
    [name] = known or ["/ab/cd"]
    marks = {"metacopy": b"", "redirect": name.encode(), "opaque": b"y"}
    xattrs = {f"{kind}.overlay.{mark}": value for kind in ("trusted", "user") for mark, value in marks.items()}
    layer = Layer().file("long", OTHER, xattrs=xattrs).file("short", b"own", xattrs=xattrs)
    layer.sparse("hole", len(BYTES), []).directory("d", xattrs=xattrs).file("d/f", b"", xattrs=xattrs)
    image = pull(b, images, Layer().file("d/below", b"below"), layer)
    [view] = directories(tmp_path, ["view"])
    with image.mounted(view):
        found = {path: (view / path).read_bytes() for path in ("long", "short", "hole", "d/f", "d/below")}
    assert found == {"long": OTHER, "short": b"own", "hole": bytes(len(BYTES)), "d/f": b"", "d/below": b"below"}
    assert image.read_file("/long") == OTHER


def test_t20_what_b_does_to_its_file_is_not_done_to_the_object_nor_to_a(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images, tmp_path: Path
) -> None:
    mine = pull(a, images, Layer().file("f", BYTES))
    theirs = pull(b, images, Layer().file("f", BYTES).file("only-b", b""))
    view, rootfs = directories(tmp_path, ["view", "rootfs"])
    container = b.containers.create(theirs.name, ["true"])
    root = Path(os.environ["PYCTRD_ROOT"])
    rootfs = root / "containers/b" / container.id / "rootfs"
    stored = {path: (path.read_bytes(), path.stat().st_ctime_ns) for path in (root / "objects").glob("*/*")}
    with mine.mounted(view):
        before = read_tree(view)
        (rootfs / "f").chmod(0o777)
        with (rootfs / "f").open("r+b") as file:
            file.write(b"written")
            os.posix_fallocate(file.fileno(), 0, 4096)
        os.truncate(rootfs / "f", 10)
        os.setxattr(rootfs / "f", "user.x", b"x")
        assert (rootfs / "f").read_bytes() == b"written" + BYTES[7:10]
        assert read_tree(view) == before
    assert {path: (path.read_bytes(), path.stat().st_ctime_ns) for path in stored} == stored
    assert a.check(digests=True) == []


def test_what_a_removes_takes_nothing_from_b(a: pyctrd.Engine, b: pyctrd.Engine, images: Images) -> None:
    mine = pull(a, images, Layer().file("f", BYTES))
    theirs = pull(b, images, Layer().file("f", BYTES).file("only-b", b""))
    a.images.remove(mine.name)
    assert theirs.read_file("/f") == BYTES
    assert b.check(digests=True) == []
