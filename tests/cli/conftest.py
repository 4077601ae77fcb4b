"""Images for the command line: true ones in a real registry, false ones in one that lies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.archives import Tar
from tests.cli.commands import Nobody, as_nobody, run
from tests.images import BuiltImage, Images, build_image
from tests.registry_faults import FaultyRegistry


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    """A registry that lies when it is told to."""
    with FaultyRegistry() as running:
        yield running


@pytest.fixture(scope="session")
def small() -> BuiltImage:
    """An image of one layer."""
    return build_image([Tar().file("file", b"content\n" * 100).build()])


@pytest.fixture
def stored(images: Images) -> str:
    """The reference of an image whose blobs are in the store, which takes no rights."""
    reference = images.multi_platform.reference
    assert run("pull", "-q", "--no-unpack", reference).status == 0
    return reference


@pytest.fixture
def nobody() -> Iterator[Nobody]:
    """The command line without any rights."""
    with as_nobody() as user:
        yield user
