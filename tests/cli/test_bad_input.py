"""Everything that can be wrong with a pull: one line that names it, the right status, and nothing left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pyctrd.oci.media_types import OCI_MANIFEST
from tests.cli.commands import environment, is_one_error, run, spoiled
from tests.images import Blob, BuiltImage
from tests.registry_faults import Answer, FaultyRegistry, make_certificates

# A registry that asks for more patience than anybody has is not asked again.
A_DAY = {"Retry-After": "86400"}
BASIC = {"WWW-Authenticate": 'Basic realm="here"'}


def fails(*words: str, told: list[str], env: dict[str, str] | None = None) -> None:
    """A pull that fails says why in one line, and leaves nothing."""
    done = run("pull", "-q", "--no-unpack", *words, env=env)
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err), done.err
    assert [text for text in told if text not in done.err] == []
    assert "internal error" not in done.err
    assert run("check").out == "clean\n"
    assert run("images", "-q").out == ""
    blobs = Path(os.environ["PYCTRD_ROOT"], "content")
    assert [path for path in blobs.rglob("*") if path.is_file()] == []


def changed(image: BuiltImage, **layer: Any) -> Blob:
    """The image's manifest with other words about its layer."""
    document = json.loads(image.manifest.content)
    document["layers"][0] |= layer
    return Blob(OCI_MANIFEST, json.dumps(document).encode())


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("no-such-host.invalid/x", ["unknown host", "no-such-host.invalid", "hint: "]),
        ("127.0.0.1:1/x", ["127.0.0.1:1", "connection refused", "hint: "]),
        ("[::1]:1/x", ["[::1]:1"]),
        ("Not A Reference", ["'Not A Reference'", "hint: "]),
        ("", ["''"]),
        ("x" * 300, ["longer than 255"]),
        ("localhost:99999/x", ["localhost:99999"]),
        ("x@sha256:abc", ["sha256:abc"]),
    ],
)
def test_a_reference_that_leads_nowhere_is_named(reference: str, told: list[str]) -> None:
    fails(reference, told=told)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(401, headers=BASIC), ["credentials needed", "pyctrd login HOST"]),
        (Answer(403), ["access denied", "HOST/repository"]),
        (Answer(404), ["not found", "HOST/repository:latest", "hint: "]),
        (Answer(429, headers=A_DAY), ["too many requests", "HOST", "try again later"]),
        (Answer(503, headers=A_DAY), ["503", "HOST"]),
        (Answer(418), ["418", "HOST"]),
        (Answer(200, b"<html>", {"Content-Type": OCI_MANIFEST}), ["manifest", "JSON"]),
        (Answer(200, b"[]", {"Content-Type": OCI_MANIFEST}), ["manifest"]),
        (Answer(200, b"{}", {"Content-Type": OCI_MANIFEST}), ["manifest"]),
        (Answer(200, b"{}", {"Content-Type": "text/html"}), ["manifest"]),
        (Answer(200, b" " * (5 << 20), {"Content-Type": OCI_MANIFEST}), ["manifest"]),
    ],
    ids=["401", "403", "404", "429", "503", "418", "no JSON", "a list", "empty", "HTML", "5 MiB"],
)
def test_a_manifest_that_does_not_come_is_named(
    faulty: FaultyRegistry, small: BuiltImage, answer: Answer, told: list[str]
) -> None:
    reference = faulty.add(small, "repository")
    faulty.lie("/manifests/latest", *[answer] * 8)
    fails(reference, told=[text.replace("HOST", faulty.host) for text in told])


@pytest.mark.parametrize(
    ("part", "kind"),
    [("config", "wrong"), ("config", "short"), ("layer", "wrong"), ("layer", "short"), ("layer", "404")],
)
def test_a_blob_that_is_not_what_was_announced_is_named(
    faulty: FaultyRegistry, small: BuiltImage, part: str, kind: str
) -> None:
    reference = faulty.add(small, "repository")
    blob = small.layers[0] if part == "layer" else small.blobs[0]
    answers = {
        "wrong": Answer(200, spoiled(blob.content)),
        "short": Answer(200, blob.content[:20]),
        "404": Answer(404),
    }
    faulty.lie(blob.digest, *[answers[kind]] * 8)
    told = {
        "wrong": ["digest mismatch", "expected", "got"],
        "short": [str(len(blob.content)), "20"],
        "404": ["not found"],
    }
    fails(reference, told=[blob.digest, *told[kind]])


@pytest.mark.parametrize("size", [1, -1, 2**40])
def test_a_size_that_is_not_the_blobs_is_named(faulty: FaultyRegistry, small: BuiltImage, size: int) -> None:
    faulty.add(small, "repository")
    true = len(small.layers[0].content)
    said = size if size > 1 else true + size
    reference = faulty.add_manifest(changed(small, size=said), "repository", tag="sized")
    fails(reference, told=["size mismatch", small.layers[0].digest, str(said)])


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        ({"size": 2**63}, ["layers[0].size", str(2**63)]),
        ({"size": 2**60}, ["layers[0].size", str(2**60), str(2**40)]),
        ({"size": -1}, ["layers[0].size", "-1"]),
        ({"size": "1"}, ["layers[0].size"]),
        ({"digest": "sha256:abc"}, ["layers[0].digest", "sha256:abc"]),
        ({"digest": "md5:" + "0" * 32}, ["layers[0].digest", "md5"]),
        ({"digest": "sha256:../../../etc/passwd"}, ["layers[0].digest"]),
        ({"mediaType": "application/x-unknown"}, ["unknown media type", "layers[0]", "application/x-unknown"]),
        ({"mediaType": "\x1b[31mred/\n"}, ["layers[0]"]),
        ({"mediaType": 1}, ["layers[0].mediaType"]),
    ],
)
def test_a_layer_that_is_none_is_named(
    faulty: FaultyRegistry, small: BuiltImage, layer: dict[str, Any], told: list[str]
) -> None:
    faulty.add(small, "repository")
    fails(faulty.add_manifest(changed(small, **layer), "repository", tag="changed"), told=told)


def test_a_platform_that_the_image_has_not_is_named(faulty: FaultyRegistry, small: BuiltImage) -> None:
    reference = faulty.add(small, "repository")
    fails(reference, "--platform", "plan9/mips", told=["no matching platform", "plan9/mips", reference, "--platform"])
    fails(reference, "--platform", "linux", told=["linux"])
    fails(reference, "--platform", "a/b/c/d", told=["a/b/c/d"])


def test_a_certificate_of_an_unknown_authority_is_refused_and_a_known_one_taken(
    small: BuiltImage, tmp_path: Path
) -> None:
    ca, certificate = make_certificates(tmp_path / "certificates")
    with FaultyRegistry(tls=certificate) as registry:
        reference = registry.add(small, "repository")
        fails(reference, told=["TLS", registry.host, "--ca"])
        fails(reference, "--ca", str(certificate[1]), told=[str(certificate[1])])
        assert run("pull", "-q", "--no-unpack", "--ca", str(ca), reference).out == f"{small.digest}\n"


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"auths": {"HOST": {"auth": "?"}}}'])
def test_a_credentials_file_that_is_wrong_is_named(faulty: FaultyRegistry, small: BuiltImage, content: str) -> None:
    reference = faulty.add(small, "repository")
    faulty.basic = ("user", "secret")
    file = Path(os.environ["REGISTRY_AUTH_FILE"])
    file.write_text(content.replace("HOST", faulty.host))
    fails(reference, told=[str(file)])


def test_wrong_credentials_are_refused_and_not_shown(faulty: FaultyRegistry, small: BuiltImage) -> None:
    reference = faulty.add(small, "repository")
    faulty.basic = ("user", "right")
    file = Path(os.environ["REGISTRY_AUTH_FILE"])
    file.write_text(json.dumps({"auths": {faulty.host: {"auth": "dXNlcjpzZWNyZXQtd29yZA=="}}}))  # user:secret-word
    fails(reference, told=[faulty.host])
    for word in ("secret-word", "dXNlcjpzZWNyZXQtd29yZA=="):
        assert word not in run("--debug", "pull", "--no-unpack", reference).err


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PYCTRD_DURABILITY", "perhaps"), ("PYCTRD_NAMESPACE", "not a name")],
)
def test_a_variable_that_is_wrong_is_named(variable: str, value: str) -> None:
    done = run("pull", "-q", "x", env=environment(**{variable: value}))
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert repr(value) in done.err


@pytest.mark.parametrize("spoil", ["root", "state", "database"])
def test_a_directory_that_is_none_is_named(tmp_path: Path, spoil: str) -> None:
    place = tmp_path / "root/pyctrd.db" if spoil == "database" else tmp_path / spoil
    place.parent.mkdir(exist_ok=True)
    place.write_text("no database\n" * 1000)
    done = run("images")
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert str(place) in done.err
    assert place.read_text() == "no database\n" * 1000


@pytest.mark.root
@pytest.mark.parametrize("setting", [{"PYCTRD_RUNTIME": "/no/such/runc"}, {"PATH": "/no/such/directory"}])
def test_a_runtime_that_is_not_there_is_named_and_leaves_no_container(
    faulty: FaultyRegistry, small: BuiltImage, state: Path, setting: dict[str, str]
) -> None:
    del state
    reference = faulty.add(small, "repository")
    assert run("pull", "-q", reference).status == 0
    done = run("run", reference, "true", env=environment(**setting))
    assert (done.status, done.out) == (125, "")
    assert is_one_error(done.err)
    assert f"runtime not found: {setting.get('PYCTRD_RUNTIME', 'runc')}" in done.err
    assert "hint: install it" in done.err
    assert run("ps", "-aq").out == ""
    assert run("check").out == "clean\n"
    told = run("info", env=environment(**setting))
    assert told.status == 0  # and the rest goes on
