"""One image with other owners for each tenant, with nothing copied."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import InvalidError
from tests.archives import Tar
from tests.images import build_image
from tests.registry_faults import FaultyRegistry

pytestmark = pytest.mark.root
NOBODY = 65534
TENANT, OTHER = 200_000, 700_000
COUNT = 65_536


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    """A registry for one image."""
    with FaultyRegistry() as running:
        yield running


@pytest.fixture(params=["overlayfs", "native", "composefs", "erofs"])
def image(request: pytest.FixtureRequest, faulty: FaultyRegistry, state: Path) -> Iterator[pyctrd.Image]:
    """Files of several owners in two layers, by each snapshotter."""
    del state
    lower = Tar().directory("d", uid=7, gid=8).file("d/root", b"0").file("d/user", b"1", uid=1000, gid=1001)
    upper = Tar().file("d/far", b"2", uid=COUNT, gid=5).file("d/setuid", b"3" * 70_000, mode=0o4755, uid=3)
    reference = faulty.add(build_image([lower.build(), upper.build()]), "owners")
    with pyctrd.Engine(snapshotter=request.param) as engine:
        yield engine.images.pull(reference)


def unmount(image: pyctrd.Image, *places: Path) -> None:
    """Take away what is mounted there."""
    for place in places:
        if place.is_mount():
            pyctrd.Images(image._rooms).unmount(place)


def owners(directory: Path) -> dict[str, tuple[int, int]]:
    """Of all that is in it."""
    found = {path.name: path.stat() for path in directory.iterdir()}
    return {name: (facts.st_uid, facts.st_gid) for name, facts in found.items()}


def test_owners_are_those_that_a_tenant_was_given(image: pyctrd.Image, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    image.mount(seen, uids=[pyctrd.IdRange(0, TENANT, COUNT)])
    try:
        assert owners(seen / "d") == {
            "root": (TENANT, TENANT),
            "user": (TENANT + 1000, TENANT + 1001),
            "far": (NOBODY, TENANT + 5),
            "setuid": (TENANT + 3, TENANT),
        }
        assert (seen / "d").stat().st_gid == TENANT + 8
        assert stat.S_IMODE((seen / "d/setuid").stat().st_mode) == 0o4755
        assert (seen / "d/setuid").read_bytes() == b"3" * 70_000
        with pytest.raises(OSError, match="Read-only"):
            (seen / "d/new").touch()
    finally:
        unmount(image, seen)


def test_tenants_see_one_image_at_once_each_with_its_own_ids(image: pyctrd.Image, tmp_path: Path) -> None:
    places = {start: tmp_path / str(start) for start in (0, TENANT, OTHER)}
    try:
        for start, place in places.items():
            place.mkdir()
            if start:
                users = [pyctrd.IdRange(0, start, 1000), pyctrd.IdRange(1000, start + 5000, 10)]
                image.mount(place, uids=users, gids=[pyctrd.IdRange(0, start, COUNT)])
            else:
                image.mount(place)
        for start, place in places.items():
            moved = start + 5000 if start else 1000
            assert owners(place / "d")["user"] == (moved, start + 1001)
    finally:
        unmount(image, *places.values())


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [(0, TENANT, 0)],
        [(-1, TENANT, 1)],
        [(0, 2**32 - 2, 2)],
        [(0, TENANT, 10), (9, OTHER, 10)],
        [(0, TENANT, 10), (10, TENANT + 9, 10)],
        [(n, n, 1) for n in range(341)],
    ],
    ids=["none", "empty", "negative", "beyond", "twice inside", "twice outside", "many"],
)
def test_ids_that_no_namespace_can_have_are_refused(
    image: pyctrd.Image, tmp_path: Path, ranges: list[pyctrd.IdRange]
) -> None:
    with pytest.raises(InvalidError, match="invalid uids"):
        image.mount(tmp_path, uids=ranges)
    assert not tmp_path.is_mount()
    assert image._rooms.database.snapshots.list() == []
