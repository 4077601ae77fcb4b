"""docs/docker-py.md: the right side of each row is run against a real container."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from tests.children import until
from tests.images import Images
from tests.runtimes import ending

pytestmark = pytest.mark.root

DOCUMENT = Path(__file__).parents[1] / "docs" / "docker-py.md"
ROW = re.compile(r"^\| (`.+`.*?) \| `(.+)` \|$", re.MULTILINE)
ROWS = ROW.findall(DOCUMENT.read_text())
ROWS_MIN = 50


@pytest.fixture
def engine(state: Path) -> Iterator[pyctrd.Engine]:
    """An engine over the test's root; its containers end with the test."""
    del state
    with ending() as opened:
        yield opened


def test_every_row_of_the_table_is_read() -> None:
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    assert len(lines) == len(ROWS) >= ROWS_MIN
    assert len({docker for docker, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("docker", "code"), ROWS, ids=[docker[:60] for docker, _ in ROWS])
def test_a_row_does_what_it_says(docker: str, code: str, engine: pyctrd.Engine, images: Images, tmp_path: Path) -> None:
    image = engine.images.pull(images.busybox.reference)
    container = engine.containers.run(image, ["sleep", "1000"], name="the-one")
    until(lambda: container.status.state == "running")
    names = {"pyctrd": pyctrd, "engine": engine, "image": image, "container": container}
    names |= {"reference": images.busybox.reference, "path": tmp_path / "file"}
    exec(compile("\n".join(code.split("; ")), docker, "exec"), names)  # noqa: S102 - our own document
    ran = names.get("ran")
    if isinstance(ran, pyctrd.Container):
        assert ran.wait(60).exit_code == 0
        # One that is deleted at its end is gone soon.
        until(lambda: docker.find("remove=True") < 0 or engine.containers.find(ran.id) is None)
