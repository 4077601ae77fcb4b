"""Verification policies: what may come in, and that nothing is left of what may not."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import InvalidError, PolicyError
from pyctrd.oci.digest import Digest
from pyctrd.oci.media_types import OCI_CONFIG, OCI_MANIFEST
from pyctrd.policies import CosignKey, Policy, allow, by_repository, pinned
from tests.archives import Tar
from tests.images import Images, Pushed, build_image
from tests.integration.conftest import Cli
from tests.registries import Registry

pytestmark = pytest.mark.root

KINDS = {"ec": ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"], "rsa": ["RSA"], "ed25519": ["ED25519"]}


class Signer:
    """A key pair, by openssl."""

    def __init__(self, directory: Path, kind: str = "ec") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._kind = kind
        self._key = directory / "key.pem"
        self.public = directory / "key.pub"
        openssl("genpkey", "-algorithm", *KINDS[kind], "-out", self._key)
        openssl("pkey", "-in", self._key, "-pubout", "-out", self.public)

    def sign(self, content: bytes) -> str:
        """The signature, in base64."""
        path = self._key.with_name("content")
        path.write_bytes(content)
        if self._kind == "ed25519":
            made = openssl("pkeyutl", "-sign", "-rawin", "-inkey", self._key, "-in", path)
        else:
            made = openssl("dgst", "-sha256", "-sign", self._key, path)
        return base64.b64encode(made).decode()


def openssl(*words: str | Path) -> bytes:
    return subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True).stdout


@pytest.fixture(name="image")
def _image(images: Images) -> Pushed:
    """An image that no other test signs."""
    return images.push(build_image([Tar().file("mine", os.urandom(16)).build()]), tag="1")


@pytest.fixture(name="opened")
def _opened(state: Path) -> Iterator[ExitStack]:
    """Closes engines."""
    del state
    with ExitStack() as stack:
        yield stack


def payload_of(digest: str, name: str = "") -> bytes:
    critical = {"identity": {"docker-reference": name}, "image": {"docker-manifest-digest": digest}}
    return json.dumps({"critical": critical | {"type": "cosign container image signature"}, "optional": None}).encode()


def sign_as_cosign(registry: Registry, image: Pushed, payload: bytes, *signatures: str) -> None:
    """Store signatures of a payload under the tag where cosign keeps them."""
    repository = image.reference.partition("/")[2].partition(":")[0]
    digest, config = str(Digest.of(payload)), b"{}"
    registry.put_blob(repository, digest, payload)
    registry.put_blob(repository, str(Digest.of(config)), config)
    layers = [
        {
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "digest": digest,
            "size": len(payload),
            "annotations": {"dev.cosignproject.cosign/signature": signature},
        }
        for signature in signatures
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
        "layers": layers,
    }
    tag = image.built.manifest.digest.replace(":", "-") + ".sig"
    registry.put_manifest(repository, tag, OCI_MANIFEST, json.dumps(manifest).encode())


def pull(opened: ExitStack, image: Pushed, policy: Policy) -> pyctrd.Image:
    engine = opened.enter_context(pyctrd.Engine(policy=policy))
    return engine.images.pull(image.reference)


def assert_refused(opened: ExitStack, image: Pushed, policy: Policy, why: str) -> None:
    """It is refused, and nothing of it is there."""
    engine = opened.enter_context(pyctrd.Engine(policy=policy))
    with pytest.raises(PolicyError, match=why) as caught:
        engine.images.pull(image.reference)
    assert (caught.value.reference, caught.value.digest) == (image.reference, image.built.manifest.digest)
    assert engine.images.list() == []
    assert not any((Path(os.environ["PYCTRD_ROOT"]) / "content/blobs").glob("*/*"))
    with engine.images.pull_many([image.reference]) as results:
        assert [type(result.error) for result in results] == [PolicyError]
    assert engine.check() == []


def test_a_callable_sees_what_comes_and_decides(opened: ExitStack, image: Pushed) -> None:
    seen: list[pyctrd.Candidate] = []

    def policy(candidate: pyctrd.Candidate) -> bool:
        seen.append(candidate)
        return len(seen) > 2

    assert_refused(opened, image, policy, "the policy said no")
    assert pull(opened, image, policy).digest == image.built.manifest.digest
    assert seen[0].reference == image.reference
    assert seen[0].digest == seen[0].manifest_digest == image.built.manifest.digest
    assert seen[0].config is not None
    assert [str(layer.digest) for layer in seen[0].manifest.layers] == [blob.digest for blob in image.built.layers]


def test_an_error_of_the_callable_is_the_pulls(opened: ExitStack, image: Pushed) -> None:
    def policy(candidate: pyctrd.Candidate) -> None:
        raise ZeroDivisionError(candidate.reference)

    with pytest.raises(ZeroDivisionError):
        pull(opened, image, policy)


def test_only_what_was_pinned_comes_in(opened: ExitStack, image: Pushed) -> None:
    digest, name = image.built.manifest.digest, image.reference.rpartition(":")[0]
    assert_refused(opened, image, pinned({}), "no digest was pinned")
    assert_refused(opened, image, pinned({image.reference: f"sha256:{'0' * 64}"}), "was pinned")
    for known in ({image.reference: digest}, {name: digest}):
        assert pull(opened, image, pinned(known)).digest == digest
    with pytest.raises(InvalidError):
        pinned({name: "latest"})


def test_an_index_or_its_manifest_may_be_pinned(opened: ExitStack, images: Images) -> None:
    image = images.multi_platform
    found = pull(opened, image, pinned({image.reference: image.built.manifest.digest}))
    assert pull(opened, image, pinned({image.reference: found.manifest_digest})).digest == found.digest


def test_the_policy_of_the_longest_name_is_asked(opened: ExitStack, image: Pushed) -> None:
    host, name = image.reference.partition("/")[0], image.reference.rpartition(":")[0]
    assert_refused(opened, image, by_repository({f"{host}/tes": allow}), "no policy")
    assert_refused(opened, image, by_repository({host: allow, name: pinned({})}), "pinned")
    assert pull(opened, image, by_repository({host: pinned({}), name: allow})).name == image.reference
    assert pull(opened, image, by_repository({}, default=allow)).name == image.reference


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_a_key_signed_comes_in(
    opened: ExitStack, registry: Registry, image: Pushed, tmp_path: Path, kind: str
) -> None:
    signer, other = Signer(tmp_path / "one", kind), Signer(tmp_path / "other", kind)
    payload = payload_of(image.built.manifest.digest)
    assert_refused(opened, image, CosignKey(signer.public), "no signature")
    sign_as_cosign(registry, image, payload, other.sign(payload), "no base64", signer.sign(payload))
    assert pull(opened, image, CosignKey(signer.public)).digest == image.built.manifest.digest
    assert pull(opened, image, CosignKey(signer.public.read_bytes())).digest == image.built.manifest.digest


@pytest.mark.parametrize("wrong", ["other key", "other digest", "other payload", "no json"])
def test_what_is_not_signed_as_it_must_be_is_refused(
    opened: ExitStack, registry: Registry, image: Pushed, tmp_path: Path, wrong: str
) -> None:
    signer, other = Signer(tmp_path / "one"), Signer(tmp_path / "other")
    payload = payload_of(image.built.manifest.digest)
    signature = signer.sign(payload)
    if wrong == "other key":
        signature = other.sign(payload)
    elif wrong == "other digest":
        payload = payload_of(f"sha256:{'1' * 64}")
        signature = signer.sign(payload)
    elif wrong == "other payload":
        payload += b" "
    else:
        payload = b"[1"
        signature = signer.sign(payload)
    sign_as_cosign(registry, image, payload, signature)
    assert_refused(opened, image, CosignKey(signer.public), "no signature")


def test_a_signature_of_another_repository_is_refused_where_the_name_counts(
    opened: ExitStack, registry: Registry, image: Pushed, tmp_path: Path
) -> None:
    signer, name = Signer(tmp_path / "one"), image.reference.rpartition(":")[0]
    payload = payload_of(image.built.manifest.digest, "elsewhere/app")
    sign_as_cosign(registry, image, payload, signer.sign(payload))
    assert_refused(opened, image, CosignKey(signer.public, identity=True), "no signature")
    assert pull(opened, image, CosignKey(signer.public)).name == image.reference
    payload = payload_of(image.built.manifest.digest, name)
    sign_as_cosign(registry, image, payload, signer.sign(payload))
    assert pull(opened, image, CosignKey(signer.public, identity=True)).name == image.reference


def bundle_of(signer: Signer, digest: str) -> bytes:
    """A sigstore bundle of a statement of an image."""
    kind = "application/vnd.in-toto+json"
    subject: Any = {"digest": {"sha256": digest.removeprefix("sha256:")}}
    payload = json.dumps({"_type": "https://in-toto.io/Statement/v1", "subject": [subject]}).encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"sig": signer.sign(signed)}],
    }
    kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
    return json.dumps({"mediaType": kind, "verificationMaterial": {}, "dsseEnvelope": envelope}).encode()


@pytest.mark.parametrize("right", [True, False])
def test_a_bundle_among_the_referrers_is_a_signature(
    opened: ExitStack, image: Pushed, tmp_path: Path, *, right: bool
) -> None:
    signer = Signer(tmp_path / "one")
    bundle = tmp_path / "bundle.json"
    bundle.write_bytes(bundle_of(signer, image.built.manifest.digest if right else f"sha256:{'1' * 64}"))
    kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
    with pyctrd.Engine() as engine:
        engine.registry.repository(image.reference).attach([(bundle, kind)], artifact_type=kind)
    if right:
        assert pull(opened, image, CosignKey(signer.public)).digest == image.built.manifest.digest
    else:
        assert_refused(opened, image, CosignKey(signer.public), "no signature")


def test_what_is_no_public_key_is_told(tmp_path: Path) -> None:
    wrong = tmp_path / "key"
    wrong.write_text("nothing")
    with pytest.raises(InvalidError, match="invalid public key"):
        CosignKey(wrong)
    with pytest.raises(FileNotFoundError):
        CosignKey(tmp_path / "absent")


def test_the_command_line_takes_a_key(
    cli: Cli, registry: Registry, image: Pushed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = Signer(tmp_path / "one")
    done = cli("pull", "--verify-key", str(signer.public), image.reference)
    assert (done.status, done.err.splitlines()[0].partition(":")[2].strip()[:13]) == (1, "image refused")
    monkeypatch.setenv("PYCTRD_VERIFY_KEY", str(signer.public))
    assert cli("pull", image.reference).status == 1
    payload = payload_of(image.built.manifest.digest)
    sign_as_cosign(registry, image, payload, signer.sign(payload))
    assert cli("pull", image.reference).status == 0
