"""D15, T16, T21: things of a store that are gone, cut, empty, others, or too many are named and mended."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import pyctrd
from tests.archives import Tar
from tests.cli.commands import run
from tests.images import Images, build_image
from tests.registry_faults import FaultyRegistry

pytestmark = pytest.mark.root


def kept(root: Path) -> dict[str, str]:
    """Every file of the store that has content, by its path; but for the database, locks and quarantine."""
    found = {}
    for part in ("content/blobs", "layers", "containers"):
        for path in sorted((root / part).rglob("*")):
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def blob_path(root: Path, digest: str) -> Path:
    """Where a blob is."""
    return root / "content/blobs" / digest.replace(":", "/")


def remove(path: Path) -> None:
    """Take it away."""
    path.unlink()


def cut(path: Path) -> None:
    """Leave the first half."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    """Leave nothing but the name."""
    path.unlink()
    path.touch()


def flip(path: Path) -> None:
    """Change one bit, so that the digest alone tells."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


DAMAGES = [remove, cut, empty, flip]


def which(image: pyctrd.Image, kind: str) -> str:
    """The digest of an image's blob of a kind."""
    manifest = image.manifest
    return str({"config": manifest.config.digest, "layer": manifest.layers[0].digest}.get(kind, image.manifest_digest))


@pytest.mark.parametrize("kind", ["manifest", "config", "layer"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_d15_a_blob_is_named_and_fetched_again_and_all_else_is_the_same(
    engine: pyctrd.Engine, images: Images, root: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    engine.images.pull(images.many_layers.reference)
    other = engine.images.pull(images.busybox.reference)
    digest = which(engine.images.get(images.many_layers.reference), kind)
    before = kept(root)
    damage(blob_path(root, digest))
    named = [(found.kind, found.name) for found in engine.check(digests=True) if found.kind == "blob"]
    assert named == [("blob", digest)]
    done = engine.check(digests=True, repair=True)
    assert [(found.name, found.repaired) for found in done] == [(digest, True)]
    assert "fetched again from" in done[0].repair
    assert engine.check(digests=True) == []
    assert kept(root) == before
    assert engine.images.get(other.name).digest == other.digest
    assert any((root / "quarantine").iterdir()) if damage is not remove else not (root / "quarantine").exists()


def test_a_full_quota_keeps_nothing_from_being_fetched_again(engine: pyctrd.Engine, images: Images, root: Path) -> None:
    pushed = images.push(build_image([Tar().file("f", b"content").build()]))
    with pyctrd.Engine(namespace="other") as other:
        image = other.images.pull(pushed.reference)
    engine.namespaces.set("default", quota=0)
    blob_path(root, str(image.manifest.layers[0].digest)).unlink()
    assert [finding.repaired for finding in engine.check(repair=True)] == [True]
    assert engine.check(digests=True) == []


@pytest.mark.parametrize("kind", ["manifest", "layer"])
def test_d15_what_nobody_can_give_again_is_dropped_and_told(
    engine: pyctrd.Engine, images: Images, root: Path, tmp_path: Path, kind: str
) -> None:
    build_image([Tar().file("file", b"content\n" * 100).build()]).write_layout(tmp_path / "layout")
    [loaded] = engine.images.load(tmp_path / "layout", name="example.com/loaded:1")
    other = engine.images.pull(images.busybox.reference)
    digest = which(loaded, kind)
    remove(blob_path(root, digest))
    done = {(found.kind, found.name): found for found in engine.check(repair=True)}
    assert "record dropped" in done["blob", digest].repair
    if kind == "manifest":
        assert done["image", loaded.name].repaired
        assert [image.name for image in engine.images.list()] == [other.name]
        assert all(found.repaired for found in engine.check(repair=True))  # what only that image had
        assert engine.check(digests=True) == []
    else:  # it runs as before from its unpacked layer, and says what it lacks until it comes in again
        assert not done["image", loaded.name].repaired
        assert "load or pull the image again" in done["image", loaded.name].repair
        assert loaded.read_file("file") == b"content\n" * 100
        engine.images.load(tmp_path / "layout", name="example.com/loaded:1")
        assert engine.check(digests=True) == []


def test_d15_a_blob_is_kept_recorded_while_its_registry_cannot_be_reached(engine: pyctrd.Engine, root: Path) -> None:
    image = build_image([Tar().file("file", b"content\n").build()])
    with FaultyRegistry() as registry:
        pulled = engine.images.pull(registry.add(image, "image"))
        digest = which(pulled, "layer")
        remove(blob_path(root, digest))
    [found] = engine.check(repair=True)
    assert (found.name, found.repaired) == (digest, False)
    assert "cannot be fetched again now" in found.repair
    assert engine.content.info(digest).size > 0


@pytest.mark.usefixtures("as_directories")
@pytest.mark.parametrize("damage", ["gone", "a file less", "a file longer", "another byte", "index cut", "frame cut"])
def test_t21_a_damaged_layer_is_named_and_unpacked_again(
    engine: pyctrd.Engine, images: Images, root: Path, damage: str
) -> None:
    image = engine.images.pull(images.busybox.reference)
    diff_id = str(image.config.rootfs.diff_ids[0])
    layer = root / "layers" / diff_id.replace(":", "/")
    before = kept(root)
    files = sorted(path for path in (layer / "tree").rglob("*") if path.is_file() and not path.is_symlink())
    file = max(files, key=lambda path: path.stat().st_size)
    if damage == "gone":
        shutil.rmtree(layer)
    elif damage == "a file less":
        file.unlink()
    elif damage == "a file longer":
        with file.open("ab") as longer:
            longer.write(b"x")
    elif damage == "another byte":
        with file.open("r+b") as changed:
            first = changed.read(1)
            changed.seek(0)
            changed.write(bytes([first[0] ^ 1]))
    else:
        cut(layer / damage.partition(" ")[0])
    [found] = engine.check(digests=True)
    assert (found.kind, found.name) == ("layer", diff_id)
    done = engine.check(digests=True, repair=True)
    assert [(found.name, found.repaired) for found in done] == [(diff_id, True)]
    assert engine.check(digests=True) == []
    assert kept(root) == before


@pytest.mark.usefixtures("as_directories")
def test_t21_damage_that_check_names_gets_into_no_new_container(
    engine: pyctrd.Engine, images: Images, root: Path
) -> None:
    image = engine.images.pull(images.busybox.reference)
    layer = root / "layers" / str(image.config.rootfs.diff_ids[0]).replace(":", "/")
    with (layer / "tree/bin/busybox").open("ab") as longer:
        longer.write(b"x")
    assert engine.check(repair=True)[0].repaired
    container = engine.containers.run(image, ["sh", "-c", "wc -c < /bin/busybox"])
    assert container.wait(60).exit_code == 0
    assert int(container.logs()) == (layer / "tree/bin/busybox").stat().st_size


def test_d15_a_container_whose_snapshot_is_gone_is_named_and_deleted_and_others_stay(
    engine: pyctrd.Engine, images: Images, root: Path
) -> None:
    engine.images.pull(images.busybox.reference)
    lost = engine.containers.create(images.busybox.reference, ["true"], name="lost")
    engine.containers.create(images.busybox.reference, ["true"], name="stays")
    subprocess.run(["umount", str(root / "containers/default" / lost.id / "rootfs")], check=True)
    shutil.rmtree(root / "snapshots" / f"container-{lost.id}")
    [found] = engine.check()
    assert (found.kind, found.name, found.cause) == ("container", "lost", "lost")
    assert [found.repaired for found in engine.check(repair=True)] == [True]
    assert engine.check() == []
    assert [container.name for container in engine.containers.list()] == ["stays"]


def test_d15_extra_files_are_named_and_moved_to_quarantine_and_read_no_more(
    engine: pyctrd.Engine, images: Images, root: Path
) -> None:
    image = engine.images.pull(images.busybox.reference)
    before = kept(root)
    digest = hashlib.sha256(b"extra").hexdigest()
    (root / "content/blobs/sha256" / digest).write_bytes(b"extra")
    (root / "content/blobs/sha256/README").write_bytes(b"extra")
    shutil.copytree(root / "layers/sha256" / image.config.rootfs.diff_ids[0].hex, root / "layers/sha256" / digest)
    (root / "snapshots/view-extra").mkdir()
    done = engine.check(repair=True)
    assert sorted((found.kind, found.cause) for found in done) == [
        ("blob", "unrecorded"),
        ("file", "foreign"),
        ("layer", "unrecorded"),
        ("snapshot", "unrecorded"),
    ]
    assert all(found.repaired for found in done)
    assert engine.check(digests=True) == []
    assert kept(root) == before
    assert len(list((root / "quarantine").iterdir())) == 4


def test_t16_a_flipped_bit_of_a_stored_document_is_found(engine: pyctrd.Engine, images: Images, root: Path) -> None:
    image = engine.images.pull(images.busybox.reference)
    flip(blob_path(root, image.manifest_digest))
    [found] = [found for found in engine.check(digests=True) if found.kind == "blob"]
    assert found.name == image.manifest_digest


def test_the_command_says_what_repair_did_and_fails_for_what_it_could_not(
    engine: pyctrd.Engine, images: Images, root: Path
) -> None:
    image = engine.images.pull(images.busybox.reference)
    digest = which(image, "layer")
    remove(blob_path(root, digest))
    before = run("check", "--deep")
    assert before.status == 1
    assert f"blob {digest}: recorded and not on disk\n  repair: it is fetched again" in before.out
    [line] = run("check", "--json", "--repair").lines
    assert (line["kind"], line["name"], line["repaired"]) == ("blob", digest, True)
    assert run("check", "--deep").out == "clean\n"


def test_repair_of_a_clean_store_does_nothing(engine: pyctrd.Engine, images: Images, root: Path) -> None:
    engine.images.pull(images.many_layers.reference)
    engine.containers.create(images.many_layers.reference, ["true"])
    before = kept(root)
    assert engine.check(digests=True, repair=True) == []
    assert kept(root) == before
    assert not (root / "quarantine").exists()
