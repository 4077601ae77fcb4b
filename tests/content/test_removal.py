"""Removal from disk: a bite at once, the rest in the background, and nothing is lost, hidden or waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd._core import FileLock
from pyctrd.errors import ConflictError
from pyctrd.flows import recover, removal
from tests.archives import Tar
from tests.children import until
from tests.content.stores import files_below
from tests.images import BuiltImage, build_image

pytestmark = pytest.mark.root

MIB = 1 << 20
BUILT = build_image([Tar().file("large", os.urandom(MIB)).file("short", b"short").build()])


@pytest.fixture
def root() -> Path:
    """The root that an engine takes from the environment."""
    return Path(os.environ["PYCTRD_ROOT"])


@pytest.fixture(params=["overlayfs", "composefs", "erofs"])
def snapshotter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each form of a layer: its own files, objects, or one file."""
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", request.param)
    return str(request.param)


@pytest.fixture
def engine(state: Path, snapshotter: str) -> Iterator[pyctrd.Engine]:
    """One with that."""
    del state, snapshotter
    with pyctrd.Engine() as opened:
        yield opened


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An image to be loaded."""
    BUILT.write_layout(tmp_path / "layout")
    return tmp_path / "layout"


@pytest.fixture
def no_first_bite(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were so much to remove that all of it is left to the background."""
    monkeypatch.setattr(removal.Removal, "_bite", _idle_at_first(removal.Removal._bite))


def _idle_at_first(bite: object) -> object:
    def idle(self: removal.Removal, seconds: float) -> bool:
        return bool(bite(self, 0.0 if seconds == removal.FIRST_SECONDS else seconds))  # type: ignore[operator] # the method

    return idle


@pytest.fixture
def arriving(root: Path) -> Iterator[FileLock]:
    """As if another process were pulling, for as long as it is held."""
    for directory in (root, root / "locks", root / "locks/store"):
        directory.mkdir(mode=0o700, exist_ok=True)
    lock = FileLock(os.fspath(root / "locks/store/arrival"), shared=True)
    with lock:
        yield lock


def left_in(root: Path) -> list[str]:
    """Of layers that went: what is in the trash, and their objects."""
    return [name for base in ("trash", "objects") for _, _, names in os.walk(root / base) for name in names]


def take_away(engine: pyctrd.Engine, layout: Path, built: BuiltImage = BUILT) -> None:
    """Load an image and remove it."""
    image = engine.images.load(layout, name="example.com/gone:1")[0]
    assert image.manifest_digest == built.digest
    engine.images.remove(image.name)


def test_a_small_image_is_gone_when_its_name_is(engine: pyctrd.Engine, root: Path, layout: Path) -> None:
    take_away(engine, layout)
    assert left_in(root) == []
    assert files_below(root / "layers") == []


@pytest.mark.usefixtures("no_first_bite")
def test_what_is_left_waits_for_those_who_bring_something_in_and_goes_then(
    engine: pyctrd.Engine, root: Path, layout: Path, arriving: FileLock
) -> None:
    take_away(engine, layout)
    assert left_in(root) != []
    assert engine.images.list() == []
    assert files_below(root / "layers") == []
    assert engine.check(digests=True) == []
    arriving.release()
    until(lambda: left_in(root) == [])
    assert engine.check(digests=True) == []


@pytest.mark.usefixtures("no_first_bite", "arriving")
def test_what_waits_is_counted_and_a_collection_removes_it(engine: pyctrd.Engine, root: Path, layout: Path) -> None:
    take_away(engine, layout)
    store = engine.df(all_namespaces=True).store
    assert store is not None
    assert store.removed_bytes + store.object_bytes >= MIB
    would = engine.gc(dry_run=True, all_namespaces=True)
    assert {item.kind for item in would.items if not item.kept} >= {"trash"}
    done = engine.gc(all_namespaces=True)
    assert done.freed_bytes == would.freed_bytes >= MIB
    assert left_in(root) == []
    store = engine.df(all_namespaces=True).store
    assert store is not None
    assert store.removed_bytes == 0


@pytest.mark.usefixtures("no_first_bite")
def test_closing_removes_what_is_left(state: Path, snapshotter: str, root: Path, layout: Path) -> None:
    del state, snapshotter
    with pyctrd.Engine() as engine:
        take_away(engine, layout)
    assert left_in(root) == []


@pytest.mark.usefixtures("no_first_bite", "arriving")
def test_closing_waits_for_nobody_and_the_next_engines_go_on(
    state: Path, snapshotter: str, root: Path, layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del state, snapshotter
    with pyctrd.Engine() as engine:
        take_away(engine, layout)
    assert left_in(root) != []
    with monkeypatch.context() as patched:
        patched.setattr(recover, "REMOVAL_AT_OPENING_SECONDS", 0.0)
        with pyctrd.Engine() as engine:
            assert engine.images.list() == []  # it has opened, and nothing of it depends on how much is left
            assert left_in(root) != []
    with pyctrd.Engine() as engine:
        engine.images.list()
        assert files_below(root / "trash") == []
        engine.gc()
    assert left_in(root) == []


@pytest.mark.usefixtures("arriving")
def test_an_interpreter_that_ends_without_closing_does_not_hang(
    state: Path, snapshotter: str, root: Path, layout: Path
) -> None:
    del snapshotter
    code = (
        "import sys, threading, pyctrd\nfrom pyctrd.flows import removal\nremoval.FIRST_SECONDS = 0.0\n"
        "engine = pyctrd.Engine()\nimage = engine.images.load(sys.argv[1], name='example.com/gone:1')[0]\n"
        "engine.images.remove(image.name)\nassert 'pyctrd-removal' in {t.name for t in threading.enumerate()}\n"
    )
    environment = os.environ | {"PYCTRD_STATE": str(state)}
    subprocess.run([sys.executable, "-P", "-c", code, str(layout)], env=environment, timeout=60, check=True)
    assert left_in(root) != []


@pytest.mark.usefixtures("no_first_bite", "arriving")
def test_a_forked_child_leaves_it_alone(engine: pyctrd.Engine, root: Path, layout: Path) -> None:
    take_away(engine, layout)
    if (child := os.fork()) == 0:
        status = 1
        try:
            engine._rooms.removal.begin()
        except ConflictError:
            engine.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert left_in(root) != []


def test_what_cannot_be_removed_in_the_background_is_told_by_a_collection(
    engine: pyctrd.Engine, root: Path, monkeypatch: pytest.MonkeyPatch, layout: Path, no_first_bite: None
) -> None:
    del no_first_bite
    refused = PermissionError(1, "Operation not permitted", str(root / "trash"))

    def refuse(_root: Path, *, seconds: float | None = None) -> bool:
        if seconds == 0.0:
            return False
        raise refused

    monkeypatch.setattr("pyctrd._core.empty_trash", refuse)
    take_away(engine, layout)
    until(lambda: engine._rooms.removal._thread is None)
    with pytest.raises(PermissionError):
        engine.gc()
