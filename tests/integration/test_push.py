"""Push, copy and what else a repository can do: against docker-registry, read back by others and by ourselves."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import (
    InvalidError,
    NotFoundError,
    PyctrdError,
    UnreachableError,
    UnsupportedError,
)
from tests.archives import Tar
from tests.children import until
from tests.images import Images, Pushed, build_image, build_index
from tests.integration.conftest import Cli, command
from tests.registries import Registry
from tests.relays import Relay
from tests.upload_faults import UploadRegistry

pytestmark = pytest.mark.root


@pytest.fixture(name="other")
def _other(tmp_path: Path) -> Iterator[Registry]:
    """A second registry, empty."""
    with Registry(tmp_path / "other") as running:
        yield running


def served(host: str, repository: str, target: str) -> bytes:
    """What a registry serves as a manifest."""
    connection = http.client.HTTPConnection(host, timeout=10)
    accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
    connection.request("GET", f"/v2/{repository}/manifests/{target}", headers={"Accept": accept})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, body
    return body


def sha256(path: Path) -> str:
    return subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]


@pytest.mark.parametrize("name", ["busybox", "tree", "tree_zstd", "many_layers"])
def test_what_is_pushed_is_what_was_pulled(engine: pyctrd.Engine, images: Images, other: Registry, name: str) -> None:
    pushed: Pushed = getattr(images, name)
    image = engine.images.pull(pushed.reference)
    target = f"{other.host}/team/{name.replace('_', '-')}:1"
    assert engine.images.push(image.name, target) == image.manifest_digest
    assert served(other.host, f"team/{name.replace('_', '-')}", "1") == pushed.built.manifest.content
    again = engine.images.pull(target)
    assert again.manifest_digest == image.manifest_digest


def test_skopeo_and_podman_read_what_was_pushed(
    engine: pyctrd.Engine, images: Images, other: Registry, tmp_path: Path, state: Path
) -> None:
    image = engine.images.pull(images.tree.reference)
    engine.images.push(image.name, f"{other.host}/app:1")
    layout = tmp_path / "layout"
    words = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false"]
    subprocess.run([*words, f"docker://{other.host}/app:1", f"oci:{layout}:1"], check=True)
    listed = json.loads((layout / "index.json").read_text())["manifests"]
    assert [entry["digest"] for entry in listed] == [image.manifest_digest]
    store = ["podman", "--root", str(tmp_path / "p/root"), "--runroot", str(state / "run"), "--storage-driver=vfs"]
    try:
        # Podman wants the files that these name to be there.
        named = ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG")
        environment = {name: value for name, value in os.environ.items() if name not in named}
        words = ["pull", "-q", "--tls-verify=false", f"{other.host}/app:1"]
        subprocess.run([*store, *words], check=True, env=environment)
    finally:
        subprocess.run([*store, "system", "reset", "--force"], check=False, capture_output=True)


def test_a_second_push_sends_nothing(engine: pyctrd.Engine, images: Images, other: Registry) -> None:
    image = engine.images.pull(images.busybox.reference)
    engine.images.push(image.name, f"{other.host}/app:1")
    told: list[pyctrd.PullProgress] = []
    engine.images.push(image.name, f"{other.host}/app:2", progress=told.append)
    assert {layer.state for layer in told[-1].layers} == {"present"}


def test_within_a_registry_blobs_are_mounted(engine: pyctrd.Engine, images: Images, registry: Registry) -> None:
    image = engine.images.pull(images.busybox.reference)
    told: list[pyctrd.PullProgress] = []
    engine.images.push(image.name, f"{registry.host}/mounted/{os.getpid()}:1", progress=told.append)
    assert {layer.state for layer in told[-1].layers} == {"mounted"}


def test_all_blobs_are_told_of_to_their_end(engine: pyctrd.Engine, images: Images, other: Registry) -> None:
    image = engine.images.pull(images.busybox.reference)
    told: list[pyctrd.PullProgress] = []
    engine.images.push(image.name, f"{other.host}/app:1", progress=told.append)
    assert {layer.state for layer in told[-1].layers} == {"done"}
    assert {layer.digest for layer in told[-1].layers} == {blob.digest for blob in images.busybox.built.blobs}
    assert all(layer.received_bytes == layer.size_bytes for layer in told[-1].layers)


def test_layers_whose_blobs_were_not_kept_are_handed_on(engine: pyctrd.Engine, images: Images, other: Registry) -> None:
    image = engine.images.pull(images.tree.reference, keep_blobs=False)
    assert engine.images.push(image.name, f"{other.host}/tree:1") == image.manifest_digest
    assert engine.images.pull(f"{other.host}/tree:1").manifest_digest == image.manifest_digest


def test_a_blob_that_nobody_has_is_one_clear_error(
    engine: pyctrd.Engine, images: Images, other: Registry, tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    images.tree.built.write_layout(layout)
    with pyctrd.Engine(keep_blobs=False) as lean:
        lean.images.load(layout, name="local/tree:1")
    with pytest.raises(NotFoundError, match="blob not stored") as caught:
        engine.images.push("local/tree:1", f"{other.host}/tree:1")
    assert "convert" in caught.value.hint
    with pytest.raises(NotFoundError):
        engine.images.pull(f"{other.host}/tree:1")


def test_an_index_goes_with_all_its_platforms_if_that_is_asked_for(
    engine: pyctrd.Engine, images: Images, other: Registry
) -> None:
    image = engine.images.pull(images.multi_platform.reference)
    assert engine.images.push(image.name, f"{other.host}/one:1") == image.manifest_digest
    # Of the others only what the registry has is there: it is handed on.
    assert engine.images.push(image.name, f"{other.host}/all:1", all_platforms=True) == image.digest
    assert served(other.host, "all", "1") == images.multi_platform.built.manifest.content
    with pyctrd.Engine() as second:
        found = second.images.pull(f"{other.host}/all:1", platform="linux/s390x", unpack=False)
        assert found.platform == "linux/s390x"


@pytest.mark.parametrize("compression", ["zstd", "zstd:chunked", "gzip", "none"])
def test_layers_are_sent_in_the_form_that_is_asked_for(
    engine: pyctrd.Engine, images: Images, other: Registry, compression: str
) -> None:
    image = engine.images.pull(images.tree.reference)
    digest = engine.images.push(image.name, f"{other.host}/tree:1", compression=compression)  # type: ignore[arg-type] # each is one
    found = engine.images.pull(f"{other.host}/tree:1")
    assert found.manifest_digest == digest
    assert found.config.rootfs.diff_ids == image.config.rootfs.diff_ids
    assert [known.name for known in engine.images.list() if "push" in known.name] == []


def test_a_push_in_chunks_arrives(engine: pyctrd.Engine, images: Images, other: Registry) -> None:
    image = engine.images.pull(images.busybox.reference)
    assert engine.images.push(image.name, f"{other.host}/app:1", chunk_bytes=100_000) == image.manifest_digest
    assert served(other.host, "app", "1") == images.busybox.built.manifest.content


def test_a_push_over_a_connection_that_breaks_arrives(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    with UploadRegistry() as uploads:
        uploads.cuts.extend([100_000, 200_000])
        engine.images.push(image.name, f"{uploads.host}/app:1")
        assert all(uploads.blobs[blob.digest] == blob.content for blob in images.busybox.built.blobs)


def test_a_failed_push_names_nothing(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    with UploadRegistry() as uploads:
        uploads.statuses.extend([403])
        with pytest.raises(pyctrd.errors.DeniedError):
            engine.images.push(image.name, f"{uploads.host}/app:1")
        assert uploads.manifests == {}


def test_what_may_not_be_passed_on_stays(engine: pyctrd.Engine, images: Images, other: Registry) -> None:
    built = build_image([Tar().file("a", b"a").build()])
    document = json.loads(built.manifest.content)
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "urls": ["https://example.com/layer"],
    }
    document["layers"][0] |= foreign
    body = json.dumps(document).encode()
    pushed = images.push(replace(built, manifest=replace(built.manifest, content=body)))
    image = engine.images.pull(pushed.reference)
    told: list[pyctrd.PullProgress] = []
    with UploadRegistry() as uploads:
        engine.images.push(image.name, f"{uploads.host}/app:1", progress=told.append)
        assert list(uploads.blobs) == [document["config"]["digest"]]


def test_a_target_with_another_digest_is_refused(engine: pyctrd.Engine, images: Images, other: Registry) -> None:
    image = engine.images.pull(images.busybox.reference)
    with pytest.raises(InvalidError, match="the image is"):
        engine.images.push(image.name, f"{other.host}/app@sha256:{'0' * 64}")
    assert engine.images.push(image.name, f"{other.host}/app@{image.manifest_digest}") == image.manifest_digest
    with pytest.raises(NotFoundError):
        list(engine.registry.repository(f"{other.host}/app").tags())


def test_an_unknown_host_and_an_unknown_image_are_one_error(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    with pytest.raises(UnreachableError):
        engine.images.push(image.name, "127.0.0.1:1/app:1")
    with pytest.raises(NotFoundError, match="image not found"):
        engine.images.push("no/such:1", "127.0.0.1:1/app:1")


def test_ctrl_c_ends_a_push_that_stands_still(images: Images, cli: Cli, registry: Registry) -> None:
    done = cli("pull", images.busybox.reference)
    assert done.status == 0, done.err
    with Relay(registry.host) as relay:
        relay.let_through(100)
        plain = ["--plain-http", relay.host]  # else it is asked whether it speaks TLS, and stands still at that
        child = subprocess.Popen(command("push", *plain, images.busybox.reference, f"{relay.host}/stalled:1"))
        until(relay.is_spent)
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130


def test_a_pushed_image_survives_what_removes_it_here(engine: pyctrd.Engine, images: Images, other: Registry) -> None:
    image = engine.images.pull(images.busybox.reference)
    engine.images.push(image.name, f"{other.host}/app:1")
    engine.images.remove(image.name)
    assert engine.images.pull(f"{other.host}/app:1").manifest_digest == image.manifest_digest
    assert engine.check(digests=True) == []


@pytest.mark.parametrize("form", ["oci", "oci-archive"])
def test_a_layout_or_an_archive_is_pushed_to_as_well(
    engine: pyctrd.Engine, images: Images, tmp_path: Path, form: str
) -> None:
    image = engine.images.pull(images.multi_platform.reference, all_platforms=True)
    one, every = f"{form}:{tmp_path}/one:team/app:1", f"{form}:{tmp_path}/all:team/app:1"
    assert engine.images.push(image.name, one) == image.manifest_digest
    assert engine.images.push(image.name, every, all_platforms=True) == image.digest
    assert engine.images.pull(one).digest == image.manifest_digest
    assert engine.images.pull(every).digest == image.digest
    with pytest.raises(InvalidError, match="as they are"):
        engine.images.push(image.name, one, compression="zstd")


def test_a_copy_keeps_every_digest(engine: pyctrd.Engine, images: Images, other: Registry) -> None:
    source = images.multi_platform
    digest = engine.images.copy(source.reference, f"{other.host}/copied:1")
    assert digest == source.built.manifest.digest
    assert served(other.host, "copied", "1") == source.built.manifest.content
    for child in source.built.children:
        assert served(other.host, "copied", child.manifest.digest) == child.manifest.content
    assert engine.images.list() == []
    assert not any((Path(os.environ["PYCTRD_ROOT"]) / "content").glob("blobs/*/*"))


def test_a_copy_puts_each_document_once_and_the_name_last(
    engine: pyctrd.Engine, images: Images, other: Registry
) -> None:
    source = images.multi_platform
    with Relay(other.host) as relay:
        engine.images.copy(source.reference, f"{relay.host}/once:1")
        put = [asked.path.rpartition("/")[2] for asked in relay.asked() if asked.method == "PUT"]
    manifests = [name for name in put if "digest=" not in name]  # else an upload's end
    assert sorted(manifests) == sorted(["1", *(child.digest for child in source.built.children)])
    assert served(other.host, "once", source.built.digest) == source.built.manifest.content


def test_one_platform_is_copied_if_that_is_asked_for(engine: pyctrd.Engine, images: Images, other: Registry) -> None:
    digest = engine.images.copy(images.multi_platform.reference, f"{other.host}/one:1", platform="linux/s390x")
    assert digest in {child.manifest.digest for child in images.multi_platform.built.children}
    with pytest.raises(NotFoundError, match="no matching platform"):
        engine.images.copy(images.multi_platform.reference, f"{other.host}/one:1", platform="plan9/mips")


def test_a_second_copy_asks_for_no_blob(engine: pyctrd.Engine, images: Images, other: Registry) -> None:
    with Relay(images.busybox.reference.partition("/")[0]) as relay:
        source = images.busybox.reference.replace(images.busybox.reference.partition("/")[0], relay.host)
        engine.images.copy(source, f"{other.host}/app:1")
        assert relay.told_bytes() > images.busybox.built.layers[0].descriptor["size"]
        engine.images.copy(source, f"{other.host}/app:2")
        assert relay.told_bytes() < 5_000
        assert sorted(engine.registry.repository(f"{other.host}/app").tags()) == ["1", "2"]


def test_a_copy_brings_referrers_and_what_tells_of_these(
    engine: pyctrd.Engine, images: Images, registry: Registry, other: Registry, tmp_path: Path
) -> None:
    name = f"referred/{os.getpid()}"
    built = build_index({"linux/amd64": build_image([Tar().file("r", os.urandom(8)).build()], platform="linux/amd64")})
    built.push(registry, name, tag="1")
    bill, signature = tmp_path / "sbom.json", tmp_path / "signature"
    bill.write_text("{}")
    signature.write_text("signed")
    repository = engine.registry.repository(f"{registry.host}/{name}:1")
    child = built.children[0].manifest.digest
    of_index = repository.attach([(bill, "application/spdx+json")], artifact_type="application/spdx+json")
    of_child = repository.attach([signature], artifact_type="application/x-signature", target=child)
    of_bill = repository.attach([signature], artifact_type="application/x-signature", target=of_index)
    engine.images.copy(f"{registry.host}/{name}:1", f"{other.host}/{name}:1")
    copied = engine.registry.repository(f"{other.host}/{name}:1")
    assert copied.referrers() == []
    engine.images.copy(f"{registry.host}/{name}:1", f"{other.host}/{name}:1", referrers=True)
    assert [str(entry.digest) for entry in copied.referrers()] == [of_index]
    assert [str(entry.digest) for entry in copied.referrers(child)] == [of_child]
    assert [str(entry.digest) for entry in copied.referrers(of_index)] == [of_bill]
    assert served(other.host, name, of_bill) == served(registry.host, name, of_bill)


def test_artifacts_are_attached_listed_and_deleted(
    engine: pyctrd.Engine, images: Images, other: Registry, tmp_path: Path
) -> None:
    image = engine.images.pull(images.busybox.reference)
    engine.images.push(image.name, f"{other.host}/app:1")
    repository = engine.registry.repository(f"{other.host}/app:1")
    bill = tmp_path / "sbom.json"
    bill.write_text('{"spdxVersion": "SPDX-2.3"}')
    first = repository.attach([(bill, "application/spdx+json")], artifact_type="application/spdx+json")
    second = repository.attach([], artifact_type="application/x-note", annotations={"said": "hello"})
    assert {str(entry.digest) for entry in repository.referrers()} == {first, second}
    found = repository.referrers(artifact_type="application/x-note")
    assert [(str(entry.digest), entry.annotations) for entry in found] == [(second, {"said": "hello"})]
    document = json.loads(repository.manifest(first)[1])
    assert document["subject"]["digest"] == image.manifest_digest
    assert document["layers"][0]["digest"] == f"sha256:{sha256(bill)}"
    assert repository.has_blob(f"sha256:{sha256(bill)}", bill.stat().st_size)
    repository.delete(first)
    assert [str(entry.digest) for entry in repository.referrers()] == [second]
    repository.delete(second)
    assert repository.referrers() == []


def test_a_repository_finds_lists_and_deletes(engine: pyctrd.Engine, images: Images, other: Registry) -> None:
    built = images.busybox.built
    for number in range(5):
        built.push(other, "app", tag=f"v{number}")
    repository = engine.registry.repository(f"{other.host}/app")
    assert sorted(repository.tags()) == [f"v{number}" for number in range(5)]
    found = repository.find("v1")
    assert found is not None
    assert (str(found.digest), found.size) == (built.manifest.digest, len(built.manifest.content))
    assert repository.find("nope") is None
    assert repository.manifest("v1")[1] == built.manifest.content
    assert repository.put_manifest(built.manifest.content, "v9") == built.manifest.digest
    with pytest.raises(UnsupportedError, match="not deleted"):  # docker-registry deletes by digest only
        repository.delete("v1")
    repository.delete(built.manifest.digest)
    assert repository.find("v1") is None
    with pytest.raises(NotFoundError):
        repository.delete(built.manifest.digest)


def test_an_image_gets_another_name(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    named = engine.images.tag(image.name, "team/app:1")
    assert named.name == "docker.io/team/app:1"
    assert named.manifest_digest == image.manifest_digest
    engine.images.remove(image.name)
    assert named.read_file("/bin/busybox")
    assert engine.check() == []
    with pytest.raises(InvalidError, match="no digest"):
        engine.images.tag(named.name, f"team/app@{image.manifest_digest}")
    with pytest.raises(NotFoundError):
        engine.images.tag("no/such:1", "team/other:1")


def test_credentials_are_tried_and_kept(engine: pyctrd.Engine, registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "docker" / "config.json"
    assert engine.registry.login(registry.host, "ada", "secret") == Path(os.environ["REGISTRY_AUTH_FILE"])
    assert engine.registry.login(registry.host, "ada", "secret", file=file) == file
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["auths"][registry.host]["auth"] == "YWRhOnNlY3JldA=="
    assert engine.registry.logout(registry.host, file=file)
    assert not engine.registry.logout(registry.host, file=file)
    with pytest.raises(InvalidError, match="invalid registry"):
        engine.registry.login("no host", "ada", "secret")


def test_the_command_line_pushes_copies_lists_and_deletes(
    cli: Cli, images: Images, other: Registry, tmp_path: Path
) -> None:
    assert cli("pull", "-q", images.busybox.reference).status == 0
    digest = images.busybox.built.manifest.digest
    assert cli("tag", images.busybox.reference, f"{other.host}/app:1").status == 0
    assert cli("push", f"{other.host}/app:1").out == f"{digest}\n"
    assert cli("copy", f"{other.host}/app:1", f"{other.host}/app:2", "--json").lines == [
        {"name": f"{other.host}/app:2", "digest": digest}
    ]
    assert sorted(cli("search-tags", f"{other.host}/app").out.split()) == ["1", "2"]
    bill = tmp_path / "sbom.json"
    bill.write_text("{}")
    attached = cli("attach", "--type", "application/spdx+json", f"{other.host}/app:1", f"{bill}:application/json").out
    told = cli("referrers", f"{other.host}/app:1", "--json").lines
    assert [(line["digest"], line["artifact_type"]) for line in told] == [(attached.strip(), "application/spdx+json")]
    assert cli("delete", f"{other.host}/app@{digest}").status == 0
    left = cli("search-tags", f"{other.host}/app").out.split()
    assert [tag for tag in left if not tag.startswith("sha256-")] == []  # of an old registry, clients keep referrers so
    done = cli("push", "no/such:1")
    assert (done.status, done.err.splitlines()[0]) == (1, "pyctrd: image not found: no/such:1")
    assert cli("delete", f"{other.host}/app").status == 2
    done = cli("login", "-u", "ada", "--password-stdin", other.host, text="secret\n")
    assert done.status == 0, done.err
    assert "secret" not in done.err
    assert cli("logout", other.host).status == 0


def test_an_interrupted_push_is_gone_on_with_by_the_next(
    engine: pyctrd.Engine, images: Images, other: Registry
) -> None:
    image = engine.images.pull(images.tree.reference)

    def give_up(told: pyctrd.PullProgress) -> None:
        if told.layers:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.images.push(image.name, f"{other.host}/tree:1", progress=give_up)
    with pytest.raises(PyctrdError):
        engine.images.pull(f"{other.host}/tree:1")
    assert engine.images.push(image.name, f"{other.host}/tree:1") == image.manifest_digest
