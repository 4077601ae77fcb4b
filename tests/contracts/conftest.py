"""The implementations of each protocol, and a root directory for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyctrd.snapshots.native import Native
from pyctrd.snapshots.overlayfs import Overlayfs
from pyctrd.snapshots.protocol import Snapshotter

# Opens a root: a second object over the same one is what another process has.
Opens = Callable[[Path], Snapshotter]
SNAPSHOTTERS: tuple[type[Overlayfs | Native], ...] = (Overlayfs, Native)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty root."""
    made = tmp_path / "store"
    made.mkdir()
    return made


@pytest.fixture(params=SNAPSHOTTERS, ids=lambda implementation: implementation.name)
def opens(request: pytest.FixtureRequest) -> Opens:
    """One implementation after the other."""
    implementation: Opens = request.param
    return implementation


@pytest.fixture
def snapshotter(opens: Opens, root: Path) -> Snapshotter:
    """One implementation after the other, over the root."""
    return opens(root)
