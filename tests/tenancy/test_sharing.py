"""T03, T04, T05: what one tenant is given of what another has, with proof and for the naming."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import (
    AuthenticationError,
    DeniedError,
    DiffIDMismatchError,
    DigestMismatchError,
    NotFoundError,
    PyctrdError,
    QuotaError,
    SizeMismatchError,
)
from tests.archives import Tar
from tests.images import Blob, BuiltImage, Images, build_image
from tests.registry_faults import Answer, FaultyRegistry

pytestmark = pytest.mark.root

DEADLINE_SECONDS = 60.0
BASIC = {"WWW-Authenticate": 'Basic realm="faulty"'}


def private(seed: int, *, layers: int = 1) -> BuiltImage:
    """An image that nobody could guess."""
    noise = random.Random(seed)
    return build_image(
        [Tar().file(f"secret-{n}", noise.randbytes(50_000)).build() for n in range(layers)], compression="none"
    )


def received(engine: pyctrd.Engine) -> int:
    """Bytes that came into an engine, over all of its pulls."""
    return engine.stages().get("receive", {}).get("bytes", 0)


def layers_size(built: BuiltImage) -> int:
    """Bytes of its layers."""
    return sum(len(layer.content) for layer in built.layers)


def asked(faulty: FaultyRegistry, blob: Blob) -> list[str]:
    """How a blob was asked for."""
    return [request.method for request in faulty.requests(blob.digest)]


def make_shared(engine: pyctrd.Engine, *names: str) -> None:
    """Give namespaces the policy."""
    for name in names:
        engine.namespaces.set(name, policy="shared")


def without_layer(built: BuiltImage, directory: Path) -> Path:
    """A layout of the image in which its layer is missing."""
    built.write_layout(directory)
    (directory / "blobs/sha256" / built.layers[0].digest.removeprefix("sha256:")).unlink()
    return directory


# With proof


def test_t04_what_the_registry_shows_to_b_is_not_downloaded_again(
    a: pyctrd.Engine, b: pyctrd.Engine, images: Images
) -> None:
    built = private(1, layers=3)
    reference = images.push(built).reference
    a.images.pull(reference)
    image = b.images.pull(reference)
    assert received(a) > layers_size(built)
    assert received(b) < layers_size(built)  # documents alone
    assert image.read_file("/secret-2") == a.images.get(reference).read_file("/secret-2")
    assert [item._replace(namespace="", created_ns=0) for item in b.content.list()] == [
        item._replace(namespace="", created_ns=0) for item in a.content.list()
    ]
    blobs = Path(os.environ["PYCTRD_ROOT"], "content", "blobs", "sha256")
    assert len(list(blobs.iterdir())) == 5
    assert a.check(digests=True) == []


def test_t04_proof_is_one_question_for_each_layer(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    built = private(2, layers=2)
    reference = faulty.add(built, "mine")
    a.images.pull(reference)
    assert [asked(faulty, layer) for layer in built.layers] == [["GET"], ["GET"]]
    b.images.pull(reference)
    assert [asked(faulty, layer) for layer in built.layers] == [["GET", "HEAD"], ["GET", "HEAD"]]


def test_t04_a_registry_of_b_proves_nothing_and_one_copy_is_on_disk_after(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built = private(3)
    a.images.pull(faulty.add(built, "mine"))
    blob = Path(os.environ["PYCTRD_ROOT"], "content/blobs/sha256", built.layers[0].digest.removeprefix("sha256:"))
    before = blob.stat().st_ino
    with FaultyRegistry() as own:
        b.images.pull(own.add(built, "b/own"))
        assert asked(own, built.layers[0]) == ["GET"]
    assert blob.stat().st_ino == before
    assert a.check(digests=True) == []


@pytest.mark.parametrize("host", ["own", "same"])
def test_a_registry_of_b_that_claims_to_have_a_blob_gets_it_none(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry, host: str
) -> None:
    built = private(4)
    a.images.pull(faulty.add(built, "a/private"))
    with FaultyRegistry() as own:
        evil = own if host == "own" else faulty  # or another repository of the host that the store got it from
        reference = evil.add(built, "b/evil")
        evil.lie(f"b/evil/blobs/{built.layers[0].digest}", *[Answer(404, b"")] * 9)
        with pytest.raises(NotFoundError, match="blob not found"):
            b.images.pull(reference)
    assert b.content.list() == []
    assert a.check(digests=True) == []


def test_t03_wrong_credentials_get_nothing_from_disk(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built = private(5)
    reference = faulty.add(built, "mine")
    faulty.basic = ("a", "right")
    pinned = f"{reference.removesuffix(':latest')}@{built.digest}"
    with pyctrd.Engine(namespace="a", credentials={faulty.host: ("a", "right")}) as owner:
        owner.images.pull(pinned)
    absent = f"{reference.removesuffix(':latest')}@sha256:{'0' * 64}"
    said = []
    for wanted in (pinned, reference, absent):
        with pyctrd.Engine(namespace="b", credentials={faulty.host: ("b", "wrong")}) as thief:
            with pytest.raises(AuthenticationError) as caught:
                thief.images.pull(wanted)
            said.append(str(caught.value).replace(wanted, "…"))
            assert received(thief) == 0
    assert len(set(said)) == 1  # for what a has and for what nobody has
    assert b.content.list() == []
    assert b.images.list() == []


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(401, b"", BASIC), AuthenticationError),
        (Answer(403, b""), DeniedError),
        (Answer(404, b""), NotFoundError),
    ],
)
def test_t03_a_manifest_alone_does_not_give_its_layers(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry, answer: Answer, kind: type[PyctrdError]
) -> None:
    built, other = private(6), private(7)
    a.images.pull(faulty.add(built, "mine"))
    errors = []
    for image in (built, other):  # what a has, and what nobody has
        reference = faulty.add(image, "mine")
        faulty.lie(f"/blobs/{image.layers[0].digest}", *[answer] * 9)
        with pytest.raises(kind) as caught:
            b.images.pull(reference)
        errors.append(str(caught.value).replace(image.layers[0].digest, "…"))
        assert b.content.list() == []
    assert errors[0] == errors[1]
    assert a.check(digests=True) == []


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500, b""),
        Answer(204, b""),
        Answer(206, b""),
        Answer(200, b"", announced=7),
        Answer(302, b"", {"Location": "http://192.0.2.1/elsewhere"}),
    ],
)
def test_another_answer_than_a_plain_yes_is_none(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry, answer: Answer
) -> None:
    built = private(8)
    reference = faulty.add(built, "mine")
    a.images.pull(reference)
    faulty.lie(f"/blobs/{built.layers[0].digest}", answer)
    b.images.pull(reference)
    assert asked(faulty, built.layers[0]) == ["GET", "HEAD", "GET"]
    assert received(b) > layers_size(built)


def test_what_was_loaded_is_proved_by_no_registry(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry, tmp_path: Path
) -> None:
    built = private(9)
    built.write_layout(tmp_path / "layout")
    reference = faulty.add(built, "mine")
    a.images.load(tmp_path / "layout", name=reference)
    b.images.pull(reference)
    assert asked(faulty, built.layers[0]) == ["GET"]


def test_a_claim_of_another_size_is_not_believed(a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry) -> None:
    built = private(10)
    a.images.pull(faulty.add(built, "mine"))
    manifest = json.loads(built.manifest.content)
    manifest["layers"][0]["size"] += 1
    liar = BuiltImage(Blob(built.manifest.media_type, json.dumps(manifest).encode()), built.blobs)
    with pytest.raises(SizeMismatchError):
        b.images.pull(faulty.add(liar, "mine"))
    assert asked(faulty, built.layers[0]) == ["GET", "GET"]
    assert b.content.list() == []


def test_a_layer_is_given_for_what_it_is_and_not_for_what_a_config_says(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built, secret = private(11), private(12)
    for image, name in ((built, "mine"), (secret, "secret")):
        a.images.pull(faulty.add(image, name))
    liar = built.with_diff_ids([Blob("", secret.tars[0]).digest])
    with pytest.raises(DiffIDMismatchError):
        b.images.pull(faulty.add(liar, "mine"))
    assert b.content.list() == []
    assert a.check(digests=True) == []


def test_what_was_only_stored_is_unpacked_from_the_store(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built = private(13)
    reference = faulty.add(built, "mine")
    a.images.pull(reference, unpack=False)
    image = b.images.pull(reference)
    assert asked(faulty, built.layers[0]) == ["GET", "HEAD"]
    assert len(image.read_file("/secret-0")) == 50_000
    assert a.check(digests=True) == []


def test_t05_bytes_under_the_digest_of_another_are_refused_and_its_own_stay(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built = private(14)
    image = a.images.pull(faulty.add(built, "mine"))
    with FaultyRegistry() as own:
        reference = own.add(built, "b/own")
        wrong = random.Random(0).randbytes(len(built.layers[0].content))
        own.lie(f"/blobs/{built.layers[0].digest}", Answer(body=wrong))
        with pytest.raises(DigestMismatchError):
            b.images.pull(reference)
    assert b.content.list() == []
    assert a.check(digests=True) == []
    assert len(image.read_file("/secret-0")) == 50_000


def test_an_unfinished_transfer_is_shared_with_nobody(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built = private(15)
    reference = faulty.add(built, "mine")
    go = threading.Event()
    faulty.lie(f"/blobs/{built.layers[0].digest}", Answer(body=None, stall=go))
    with ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(a.images.pull, reference)
        assert faulty.stalled.wait(DEADLINE_SECONDS)
        assert b.content.list() == []
        with pytest.raises(NotFoundError):
            b.content.open(built.layers[0].digest)
        faulty.basic = ("a", "right")  # nothing more for b, whatever a has by now
        with pytest.raises(AuthenticationError):
            b.images.pull(reference)
        go.set()
        pulling.result(DEADLINE_SECONDS)
    assert a.check(digests=True) == []


def test_a_transfer_that_a_tenant_makes_slow_holds_nobody_else_up(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built = private(18)
    honest = faulty.add(built, "honest")
    with FaultyRegistry() as slow:
        reference = slow.add(built, "mine")
        go = threading.Event()
        slow.lie(f"/blobs/{built.layers[0].digest}", Answer(body=None, stall=go))
        with ThreadPoolExecutor(2) as pool:
            pulling = pool.submit(b.images.pull, reference)
            try:
                assert slow.stalled.wait(DEADLINE_SECONDS)
                assert pool.submit(a.images.pull, honest).result(DEADLINE_SECONDS).read_file("/secret-0")
                assert not pulling.done()
            finally:
                go.set()
            pulling.result(DEADLINE_SECONDS)
    assert a.check(digests=True) == []


def test_what_goes_while_it_is_given_is_brought_in_instead(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    old, new = private(16), private(17)
    both = build_image([*old.tars, *new.tars])
    a.images.pull(faulty.add(build_image(old.tars), "mine"))
    reference = faulty.add(both, "mine")
    go = threading.Event()
    faulty.lie(f"/blobs/{both.layers[1].digest}", Answer(body=None, stall=go))
    with ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(b.images.pull, reference)
        try:
            assert faulty.stalled.wait(DEADLINE_SECONDS)
            while "HEAD" not in asked(faulty, both.layers[0]):
                assert not pulling.done()
            b.namespaces.remove("a", force=True)
        finally:
            go.set()
        image = pulling.result(DEADLINE_SECONDS)
    assert asked(faulty, both.layers[0]) == ["GET", "HEAD", "GET"]
    assert len(image.read_file("/secret-0")) == 50_000
    assert b.check(digests=True) == []
    b.images.remove(image.name)
    assert b.check(digests=True) == []


def test_t06_what_a_removes_and_collects_stays_for_b(a: pyctrd.Engine, b: pyctrd.Engine, images: Images) -> None:
    built = private(18, layers=2)
    reference = images.push(built).reference
    a.images.pull(reference)
    image = b.images.pull(reference)
    a.images.remove(reference)
    assert a.content.list() == []
    assert len(image.read_file("/secret-1")) == 50_000
    for layer in built.layers:
        with b.content.open(layer.digest) as file:
            assert file.read() == layer.content
    assert b.check(digests=True) == []
    a.images.pull(reference)  # and now it is b who has it
    b.images.remove(reference)
    assert len(a.images.get(reference).read_file("/secret-1")) == 50_000
    a.images.remove(reference)
    assert not any(path.is_file() for path in Path(os.environ["PYCTRD_ROOT"], "content", "blobs").rglob("*"))
    assert a.check(digests=True) == []


# For the naming


def test_two_shared_namespaces_have_what_one_of_them_has(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built = private(19)
    make_shared(a, "a", "b")
    a.images.pull(faulty.add(built, "mine"))
    with FaultyRegistry() as own:
        image = b.images.pull(own.add(built, "b/own"))
        assert asked(own, built.layers[0]) == []
    assert len(image.read_file("/secret-0")) == 50_000
    assert a.check(digests=True) == []


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_shared_namespace_gets_nothing_of_an_isolated_one_for_the_naming(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry, tmp_path: Path, who: str
) -> None:
    built = private(20)
    make_shared(a, who)
    a.images.pull(faulty.add(built, "mine"))
    with FaultyRegistry() as own:
        b.images.pull(own.add(built, "b/own"))
        assert asked(own, built.layers[0]) == ["GET"]
    b.images.remove(b.images.list()[0].name)
    with pytest.raises(NotFoundError):
        b.images.load(without_layer(built, tmp_path / "layout"), name="example.com/x:1")


def test_what_was_given_for_the_naming_is_no_proof_for_the_next(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built = private(21)
    make_shared(a, "a", "b")
    a.images.pull(faulty.add(built, "mine"))
    with FaultyRegistry() as own, pyctrd.Engine(namespace="c") as c:
        reference = own.add(built, "b/own")
        b.images.pull(reference)  # and never asked that registry for the layer
        own.lie(f"/blobs/{built.layers[0].digest}", *[Answer(404, b"")] * 9)
        with pytest.raises(NotFoundError):
            c.images.pull(reference)
        assert asked(own, built.layers[0]) == ["GET"]


@pytest.mark.parametrize("holder", ["nobody", "a"])
def test_a_load_with_a_missing_blob_fails_alike_whoever_has_it(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry, tmp_path: Path, holder: str
) -> None:
    built = private(22)
    if holder == "a":
        a.images.pull(faulty.add(built, "mine"))
    layout = without_layer(built, tmp_path / "layout")
    with pytest.raises(NotFoundError) as caught:
        b.images.load(layout, name="example.com/x:1")
    digest = built.layers[0].digest
    assert str(caught.value) == f"blob not found: {digest}: {layout} has no blobs/{digest.replace(':', '/')}"
    assert b.content.list() == []


def test_a_shared_namespace_loads_what_it_only_names(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry, tmp_path: Path
) -> None:
    built = private(23)
    make_shared(a, "a", "b")
    a.images.pull(faulty.add(built, "mine"))
    (image,) = b.images.load(without_layer(built, tmp_path / "layout"), name="example.com/x:1")
    assert len(image.read_file("/secret-0")) == 50_000
    shutil.rmtree(tmp_path / "layout")
    assert a.check(digests=True) == []


# What it tells


@pytest.mark.parametrize("policy", ["isolated", "shared"])
def test_a_quota_refuses_alike_whoever_has_the_blob(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry, policy: str
) -> None:
    built, other = private(24), private(25)
    assert len(built.layers[0].content) == len(other.layers[0].content)
    if policy == "shared":
        make_shared(a, "a", "b")
    a.images.pull(faulty.add(built, "mine"))
    size = len(built.layers[0].content)
    for quota in (0, size - 1, size, size + 100):
        b.namespaces.set("b", quota=quota)
        said = []
        for image in (built, other):
            before = len(faulty.seen)
            with pytest.raises(QuotaError) as caught:
                b.images.pull(faulty.add(image, "mine"))
            assert not [seen for seen in faulty.seen[before:] if image.layers[0].digest in seen.path]
            said.append((str(caught.value), b.content.usage()))
        assert said[0] == said[1]


def test_progress_says_the_same_of_what_was_given_as_of_what_came(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    given, fresh = private(26), private(27)
    a.images.pull(faulty.add(build_image(given.tars), "mine"))
    both = build_image([*given.tars, *fresh.tars])
    seen: list[pyctrd.LayerProgress] = []

    def watch(progress: pyctrd.PullProgress) -> None:
        seen.extend(progress.layers)

    b.images.pull(faulty.add(both, "mine"), progress=watch)
    assert asked(faulty, both.layers[0])[-1] == "HEAD"
    for layer in both.layers:
        of_it = [one for one in seen if one.digest == layer.digest]
        assert {one.state for one in of_it} <= {"waiting", "pulling", "done"}
        assert (of_it[-1].state, of_it[-1].received_bytes) == ("done", len(layer.content))
        assert {one.source for one in of_it} - {""} == {faulty.host}


def test_progress_says_what_the_store_gave_where_both_namespaces_share(
    a: pyctrd.Engine, b: pyctrd.Engine, faulty: FaultyRegistry
) -> None:
    built = private(29)
    a.images.pull(faulty.add(built, "mine"))
    make_shared(a, "a", "b")
    seen: list[pyctrd.PullProgress] = []
    b.images.pull(faulty.add(built, "other"), progress=seen.append)
    assert [layer.source for layer in seen[-1].layers] == ["store"]


def test_given_content_is_charged_as_if_it_had_come(a: pyctrd.Engine, b: pyctrd.Engine, images: Images) -> None:
    built = private(28)
    reference = images.push(built).reference
    a.images.pull(reference)
    b.images.pull(reference)
    assert b.content.usage() == a.content.usage()
    assert a.namespaces.usage("a").exclusive_bytes == 0
