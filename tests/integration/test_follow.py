"""A pull as an iterator over its events, with the image at its end."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import CancelledError, NotFoundError
from tests.archives import Tar
from tests.children import until
from tests.content.stores import files_below
from tests.images import Images, build_image
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root


def threads() -> list[str]:
    """Those of pulls."""
    own = ("pyctrd-pull", "pyctrd-following")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(own)]


@pytest.fixture
def stalling(faulty: FaultyRegistry) -> str:
    """An image whose layer stands still in its middle, the first time."""
    built = build_image([Tar().file("f", os.urandom(4 << 20)).build()], compression="none")
    faulty.lie(built.layers[0].digest, Answer(body=None, stall=threading.Event()))
    return faulty.add(built, "stalling")


def test_its_events_come_and_then_the_image(engine: pyctrd.Engine, images: Images) -> None:
    with engine.images.follow_pull(images.busybox.reference) as transfer:
        phases = [event.phase for event in transfer]
        assert [phases[0], phases[-1]] == ["resolving", "done"]
        assert transfer.is_over
    assert transfer.result().digest == images.busybox.built.digest
    assert engine.images.follow_pull(images.tree.reference).result().digest == images.tree.built.digest


def test_its_error_comes_in_their_place(engine: pyctrd.Engine, images: Images) -> None:
    failing = engine.images.follow_pull(f"{images.busybox.reference}-and-not-there")
    with pytest.raises(NotFoundError):
        list(failing)
    with pytest.raises(NotFoundError):
        failing.result()


def test_leaving_the_block_gives_it_up(engine: pyctrd.Engine, root: Path, stalling: str) -> None:
    with engine.images.follow_pull(stalling) as transfer:
        for event in transfer:
            if event.received_bytes:
                break
    until(lambda: threads() == [])
    with pytest.raises(CancelledError):
        transfer.result()
    assert {Path(name).name for name in files_below(root / "content/ingest")} <= {"data", "lock"}
    assert engine.check() == []
    assert engine.images.follow_pull(stalling).result().name == stalling
    assert engine.check(digests=True) == []


def test_one_that_nobody_has_any_more_ends(engine: pyctrd.Engine, faulty: FaultyRegistry, stalling: str) -> None:
    transfer = engine.images.follow_pull(stalling)
    until(faulty.stalled.is_set)
    del transfer
    gc.collect()
    until(lambda: threads() == [])
    assert engine.check() == []


def test_a_registry_that_says_nothing_is_not_waited_for(engine: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    reference = faulty.add(build_image([Tar().file("f", b"x").build()]), "app")
    stall = threading.Event()
    faulty.lie("/manifests/latest", Answer(body=None, stall=stall))
    transfer = engine.images.follow_pull(reference)
    until(faulty.stalled.is_set)
    transfer.close()
    stall.set()
    with pytest.raises(CancelledError):
        transfer.result()


def test_an_engine_that_is_closed_gives_it_up(faulty: FaultyRegistry, root: Path, stalling: str) -> None:
    del root
    with pyctrd.Engine() as engine:
        transfer = engine.images.follow_pull(stalling)
        until(faulty.stalled.is_set)
    assert transfer.is_over
    with pytest.raises(CancelledError):
        list(transfer)
