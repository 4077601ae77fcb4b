"""The implementations of each protocol, and a root directory for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pyctrd import _core
from pyctrd.snapshots.protocol import Snapshotter
from tests.layers import ways

# Opens a root: a second object over the same one is what another process has.
Opens = Callable[[Path], Snapshotter]
SNAPSHOTTERS: dict[str, Opens] = {
    name: partial(ways.open_snapshotter, name)
    for name in ("overlayfs", "native", "composefs", "erofs", ways.DIRECTORIES)
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty root."""
    made = tmp_path / "store"
    made.mkdir()
    return made


@pytest.fixture(params=SNAPSHOTTERS)
def opens(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opens]:
    """One implementation after the other; layers are unpacked as it wants them."""
    implementation = SNAPSHOTTERS[request.param]
    monkeypatch.setattr(ways, "DEFAULT_FORM", implementation(tmp_path / "asked").form)
    yield implementation
    unmount_below(tmp_path)


@pytest.fixture
def snapshotter(opens: Opens, root: Path) -> Snapshotter:
    """One implementation after the other, over the root."""
    return opens(root)


def unmount_below(directory: Path) -> None:
    """Take away the mounts of images that a test has left, as a snapshotter does when its snapshots are deleted."""
    with Path("/proc/self/mounts").open() as file:
        mounted = [line.split()[1] for line in file]
    for target in reversed(mounted):
        if target.startswith(f"{directory}/"):
            _core.unmount(target, lazy=True)
