"""T01, T02, T09: what one tenant has does not exist for another."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import pyctrd
from pyctrd.errors import NotFoundError
from tests.images import Images

pytestmark = pytest.mark.root

NOBODYS = f"sha256:{'0' * 64}"


def refused(call: Callable[[str], object], name: str) -> str:
    """What a refusal says, without the name that was asked for."""
    with pytest.raises(NotFoundError) as caught:
        call(name)
    assert caught.value.name == name
    return str(caught.value).replace(name, "…")


def test_t01_t02_a_digest_of_another_is_answered_as_one_that_nobody_has(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images
) -> None:
    image = a.images.pull(images.busybox.reference)
    digests = [item.digest for item in a.content.list()]
    assert image.digest in digests
    for call in (b.content.info, b.content.open, b.content.check, b.images.get):
        assert {refused(call, digest) for digest in digests} == {refused(call, NOBODYS)}
    assert b.images.find(image.digest) is None
    assert b.content.list() == []


def test_t02_a_layer_of_another_is_not_rebuilt(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images, tmp_path_factory: pytest.TempPathFactory
) -> None:
    diff_id = str(a.images.pull(images.busybox.reference).config.rootfs.diff_ids[0])
    target = tmp_path_factory.mktemp("rebuilt") / "tar"

    def rebuild(name: str) -> int:
        return b.content.rebuild(name, target)

    assert refused(rebuild, diff_id) == refused(rebuild, NOBODYS)
    assert not target.exists()


def test_t09_names_and_ids_of_another_lead_nowhere(a: pyctrd.Engine, b: pyctrd.Engine, images: Images) -> None:
    image = a.images.pull(images.busybox.reference)
    made = a.containers.create(image, ["true"], name="theirs")
    assert b.images.list() == []
    assert b.containers.list() == []
    for name in (image.name, f"../a/{image.name}"):
        assert refused(b.images.get, name) == refused(b.images.get, "example.com/nothing:1").replace(
            "example.com/nothing:1", "…"
        )
        with pytest.raises(NotFoundError):
            b.images.remove(name, force=True)
    for name in (made.name, made.id, made.id[:12], f"../a/{made.id}", f"a/{made.name}", "../a", ""):
        refused(b.containers.get, name)
        assert b.containers.find(name) is None
        for key in ("since", "before"):
            refused(lambda of: b.containers.list(filters={key: of}), name)  # noqa: B023 - called at once
        assert list(b.events(types=["container"], containers=[name])) == []
    assert made.id not in b.metrics()
    assert b.containers.stats() == []
    own = b.containers.create(b.images.pull(image.name), ["true"], name="theirs")  # the name is free for b
    assert own.id != made.id
    assert a.containers.get("theirs").id == made.id
    made.rename("another")
    own.rename("another")  # which is free for b, too


def test_t09_usage_and_lists_are_the_same_whatever_others_do(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images
) -> None:
    image = b.images.pull(images.busybox.reference)
    before = (b.content.usage(), b.content.list(), [known.name for known in b.images.list()])
    a.images.pull(image.name)
    a.images.pull(images.app.reference)
    assert (b.content.usage(), b.content.list(), [known.name for known in b.images.list()]) == before
    for known in a.images.list():
        a.images.remove(known.name)
    assert (b.content.usage(), b.content.list(), [known.name for known in b.images.list()]) == before
    assert b.check(digests=True) == []
