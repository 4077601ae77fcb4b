"""Parts of a blob: exactly those that were asked for, of the same blob and from the same place, or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from pyctrd.errors import NotFoundError, UnavailableError
from pyctrd.oci.reference import Reference
from pyctrd.registry.body import BlobBody, RangeRefusedError
from pyctrd.registry.client import Client
from tests.images import BuiltImage, Images
from tests.registry.bodies import drain, layer_of
from tests.registry_faults import Answer, FaultyRegistry

TAGGED = Answer(body=None, headers={"ETag": '"a"'})


@pytest.fixture
def body(faulty: FaultyRegistry, client: Client, image: BuiltImage) -> Iterator[BlobBody]:
    """A layer's body, whose answer has an entity tag."""
    reference = Reference.parse(faulty.add(image, "app"))
    faulty.lie(f"/blobs/{layer_of(image).digest}", TAGGED)
    with client.open_blob(reference, layer_of(image)) as opened:
        yield opened


def test_a_range_comes_beside_the_whole(images: Images, client: Client) -> None:
    reference, layer = Reference.parse(images.tree.reference), layer_of(images.tree.built)
    content = images.tree.built.layers[0].content
    with client.open_blob(reference, layer) as whole:
        for start, end in ((0, 1), (5, 300), (layer.size - 1, layer.size)):
            part = whole.open_range(start, end, layer.size)
            assert (part.offset, part.length) == (start, end - start)
            assert drain(part) == content[start:end]
        assert not whole.ranges.is_refused
        assert drain(whole) == content


REFUSALS = {
    "status 200": Answer(200, body=b"x" * 10),
    "status 416": Answer(416),
    "range 'bytes 6-15/": Answer(206, b"x" * 10, {"Content-Range": "bytes 6-15/4000"}),
    "range 'bytes 5-14/1'": Answer(206, b"x" * 10, {"Content-Range": "bytes 5-14/1"}),
    "range None": Answer(206, b"x" * 10),
    "length '9'": Answer(body=None, announced=9),
    "length None": Answer(body=None, chunked=True),
    "encoding 'gzip'": Answer(body=None, headers={"Content-Encoding": "gzip"}),
    "etag '\"b\"'": Answer(body=None, headers={"ETag": '"b"'}),
    "docker-content-digest 'sha256:0'": Answer(body=None, headers={"Docker-Content-Digest": "sha256:0"}),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_what_is_not_the_range_is_refused_and_the_registry_remembered(
    faulty: FaultyRegistry, client: Client, image: BuiltImage, body: BlobBody, why: str
) -> None:
    layer = layer_of(image)
    faulty.lie(f"/blobs/{layer.digest}", REFUSALS[why])
    with pytest.raises(RangeRefusedError) as caught:
        body.open_range(5, 15, layer.size)
    assert f"asked for bytes=5-14, got {why}" in str(caught.value)
    assert drain(body) == image.layers[0].content
    with client.open_blob(Reference.parse(f"{faulty.host}/app"), layer) as again:
        assert again.ranges.is_refused


def test_a_range_of_another_host_is_refused(faulty: FaultyRegistry, image: BuiltImage, body: BlobBody) -> None:
    layer = layer_of(image)
    with FaultyRegistry() as other, closing(Client(plain_http={other.host})) as elsewhere:
        other.add(image, "app")
        with elsewhere.open_blob(Reference.parse(f"{faulty.host}/app"), layer) as whole:
            faulty.lie(
                f"/blobs/{layer.digest}", Answer(307, headers={"Location": f"{other.base}/v2/app/blobs/{layer.digest}"})
            )
            with pytest.raises(RangeRefusedError, match=f"got host '{other.host}'"):
                whole.open_range(5, 15, layer.size)
    assert not body.ranges.is_refused  # another client's


@pytest.mark.parametrize(
    ("answer", "kind"), [(Answer(429), UnavailableError), (Answer(503), UnavailableError), (Answer(404), NotFoundError)]
)
def test_what_says_nothing_of_ranges_is_told_as_it_is(
    faulty: FaultyRegistry, image: BuiltImage, body: BlobBody, answer: Answer, kind: type[Exception]
) -> None:
    layer = layer_of(image)
    faulty.lie(f"/blobs/{layer.digest}", answer)
    with pytest.raises(kind):
        body.open_range(5, 15, layer.size)
    assert not body.ranges.is_refused
    assert drain(body.open_range(5, 15, layer.size)) == image.layers[0].content[5:15]


def test_a_range_whose_connection_breaks_says_so(faulty: FaultyRegistry, image: BuiltImage, body: BlobBody) -> None:
    layer = layer_of(image)
    faulty.lie(f"/blobs/{layer.digest}", Answer(body=None, cut=3))
    with pytest.raises(UnavailableError, match="after 3 of 10 bytes"):
        drain(body.open_range(5, 15, layer.size))
