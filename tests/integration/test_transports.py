"""Images by transport: ``oci:PATH[:NAME]`` and the like, loaded and pulled."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import InvalidError, NotFoundError
from pyctrd.flows.load import get_image
from pyctrd.flows.save import save_to
from tests.archives import Tar
from tests.images import Images, build_image
from tests.integration.conftest import Cli

pytestmark = pytest.mark.root

ONE = build_image([Tar().file("f", b"one").build()])
TWO = build_image([Tar().file("f", b"two").build()])
NAMES = ["docker.io/local/one:1", "docker.io/local/one:2", "registry.example/two:3"]


@pytest.fixture(name="saved")
def _saved(engine: pyctrd.Engine, tmp_path: Path) -> Path:
    """A directory with two images in each form, one of them under two names."""
    place = tmp_path / "saved"
    place.mkdir()
    for name, built in zip(NAMES, (ONE, ONE, TWO), strict=True):
        built.write_layout(tmp_path / name[-5:-2])
        engine.images.load(tmp_path / name[-5:-2], name=name)
    for form in ("oci", "oci-archive", "docker-archive"):
        engine.images.save(NAMES, place / form, format=form)
    return place


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_an_image_is_meant_by_its_tag_or_its_full_name(saved: Path, form: str) -> None:
    source = f"{form}:{saved / form}"
    with pyctrd.Engine(namespace="other") as other:
        for word in ("2", "local/one:2", "docker.io/local/one:2"):
            assert [image.name for image in other.images.load(f"{source}:{word}")] == [NAMES[1]]
        image = other.images.pull(f"{source}:registry.example/two:3")
        assert (image.name, image.read_file("/f")) == (NAMES[2], b"two")
        assert sorted(image.name for image in other.images.load(source)) == NAMES
        with pytest.raises(InvalidError, match="several images") as caught:
            other.images.pull(source)
        assert f"{source}:NAME" in caught.value.hint
        with pytest.raises(NotFoundError, match=r"'absent': it has docker\.io/local/one:1"):
            other.images.pull(f"{source}:absent")


def test_a_pull_from_an_archive_keeps_blobs_or_not(saved: Path) -> None:
    with pyctrd.Engine(namespace="other") as other:
        image = other.images.pull(f"oci:{saved / 'oci'}:3", keep_blobs=False)
        assert image.digest == TWO.digest
        assert not other.content.info(TWO.layers[0].digest).is_stored
        other.images.pull(f"oci:{saved / 'oci'}:3")
        assert other.content.info(TWO.layers[0].digest).is_stored


def test_what_is_there_must_be_what_was_said(engine: pyctrd.Engine, saved: Path, tmp_path: Path) -> None:
    for wrong in ("oci:{}/oci-archive", "oci-archive:{}/oci", "oci-archive:{}/docker-archive", "docker-archive:{}/oci"):
        with pytest.raises(InvalidError, match="invalid image source"):
            engine.images.load(wrong.format(saved))
    with pytest.raises(NotFoundError, match="absent"):
        engine.images.pull(f"oci:{saved}/absent")
    with pytest.raises(InvalidError, match="invalid transport"):
        engine.images.pull("oci:")
    ONE.write_layout(tmp_path / "tagged", tag="here")
    with pytest.raises(InvalidError, match="only the tag 'here'"):
        engine.images.pull(f"oci:{tmp_path / 'tagged'}:here")
    (image,) = engine.images.load(f"oci:{tmp_path / 'tagged'}:here", name="local/tagged")
    assert image.name == "docker.io/local/tagged:here"


def test_many_pulls_are_of_registries_alone(engine: pyctrd.Engine, images: Images, saved: Path) -> None:
    references = [images.busybox.reference, f"oci:{saved / 'oci'}:3"]
    with engine.images.pull_many(references) as results:
        ended = {result.reference: result.error for result in results}
    assert ended[references[0]] is None
    assert "only images of registries" in str(ended[references[1]])


def test_the_commands_take_transports(cli: Cli, saved: Path, tmp_path: Path) -> None:
    assert cli("-n", "other", "pull", "-q", f"oci:{saved / 'oci'}:3").out == f"{TWO.digest}\n"
    assert cli("-n", "other", "load", "-q", "-i", f"docker-archive:{saved / 'docker-archive'}:1").out == f"{NAMES[0]}\n"
    ONE.write_layout(tmp_path / "tagged", tag="here")
    refused = cli("pull", f"oci:{tmp_path / 'tagged'}")
    assert (refused.status, refused.out) == (1, "")
    assert "hint: give it one: --name REFERENCE" in refused.err


def test_an_image_is_saved_under_the_name_that_a_transport_says(engine: pyctrd.Engine, saved: Path) -> None:
    rooms = engine.images._rooms
    record = get_image(rooms, NAMES[0])
    for form in ("oci", "oci-archive", "docker-archive"):
        place = saved / f"new-{form}"
        save_to(rooms, record, f"{form}:{place}:registry.example/else:4")
        with pyctrd.Engine(namespace=form) as other:
            assert [image.name for image in other.images.load(place)] == ["registry.example/else:4"]
        save_to(rooms, record, f"{form}:{place}-tag:work")
        with pyctrd.Engine(namespace=f"{form}-tag") as other:
            (image,) = other.images.load(f"{form}:{place}-tag:work", name="registry.example/named")
            assert image.name == "registry.example/named:work"
        save_to(rooms, record, f"{form}:{place}-own")
        with pyctrd.Engine(namespace=f"{form}-own") as other:
            assert [image.name for image in other.images.load(f"{place}-own")] == NAMES[:1]
    # Under a tag alone it takes the place of whatever has that.
    layout = saved / "oci"
    save_to(rooms, get_image(rooms, NAMES[2]), f"oci:{layout}:1")
    with pyctrd.Engine(namespace="last") as other:
        (image,) = other.images.load(f"oci:{layout}:1", name="local/last")
        assert image.digest == TWO.digest
        assert [image.name for image in other.images.load(f"oci:{layout}:2")] == NAMES[1:2]
    with pytest.raises(InvalidError, match="is no tag"):
        save_to(rooms, record, f"oci:{layout}:-")
