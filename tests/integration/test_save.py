"""Save: what goes out is what came in, the same bytes each time, and whole or not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import (
    AlreadyExistsError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    PyctrdError,
)
from pyctrd.oci.platform import Platform
from tests.archives import Tar
from tests.content.stores import files_below
from tests.images import Blob, BuiltImage, build_image, build_index, tree_tars
from tests.integration.conftest import command
from tests.integration.saves import FORMS, TREE, members, put, read, save_to, tree_of

pytestmark = pytest.mark.root

HOST = str(Platform.host())
OTHER = "linux/s390x"
DEADLINE_SECONDS = 60.0
PLAIN = build_image([Tar().file("plain", b"not compressed" * 99).build()], compression="none")
ARTIFACT_CONFIG = Blob("application/vnd.example.thing+json", b"{}")


@pytest.fixture(name="tree")
def _tree(engine: pyctrd.Engine, tmp_path: Path) -> pyctrd.Image:
    return put(engine, TREE, "local/tree:1", tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_saved_is_loaded_as_what_it_was(
    engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path, form: str
) -> None:
    saved = save_to(engine, "local/tree:1", form, tmp_path / "saved")
    with pyctrd.Engine(namespace="other") as other:
        (loaded,) = other.images.load(saved)
        assert loaded.name == tree.name
        assert list(loaded.walk()) == list(tree.walk())
        assert loaded.config == tree.config
        assert (loaded.digest == tree.digest) == (form != "docker-archive")
        again = save_to(other, loaded.name, form, tmp_path / "again")
    if form == "oci":
        assert tree_of(again) == tree_of(saved)
    else:
        assert again.read_bytes() == saved.read_bytes()
    assert engine.check(digests=True) == []


@pytest.mark.parametrize("form", FORMS)
def test_the_same_images_give_the_same_bytes_in_any_order(
    engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path, form: str
) -> None:
    put(engine, PLAIN, "local/plain:1", tmp_path)
    put(engine, TREE, "local/tree:2", tmp_path)
    names = ["local/tree:1", "local/plain:1", "local/tree:2"]
    first = save_to(engine, names, form, tmp_path / "first")
    second = save_to(engine, [*reversed(names), names[0]], form, tmp_path / "second")
    if form == "oci":
        assert tree_of(first) == tree_of(second)
        return
    assert first.read_bytes() == second.read_bytes()
    found = members(first)
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in found.values()} == {(0, 0, 0, "")}
    assert list(found) == sorted(found)


def test_what_images_have_in_common_is_there_once(engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path) -> None:
    put(engine, TREE, "local/tree:2", tmp_path)
    put(engine, build_image([*tree_tars(), Tar().file("more").build()]), "local/more:1", tmp_path)
    docker = save_to(engine, ["local/tree:1", "local/tree:2", "local/more:1"], "docker-archive", tmp_path / "docker")
    listed = {tuple(image["RepoTags"]): image for image in json.loads(read(docker, "manifest.json"))}
    assert sorted(listed) == [("docker.io/local/more:1",), ("docker.io/local/tree:1", "docker.io/local/tree:2")]
    assert len([name for name in members(docker) if name.endswith(".tar") and "/" not in name]) == 4
    for image in listed.values():
        assert [hashlib.sha256(read(docker, name)).hexdigest() for name in image["Layers"]] == [
            name.removesuffix(".tar") for name in image["Layers"]
        ]
    known = json.loads(read(docker, "repositories"))
    assert known["docker.io/local/tree"]["1"] == known["docker.io/local/tree"]["2"]
    archive = save_to(engine, ["local/tree:1", "local/tree:2"], "oci-archive", tmp_path / "oci")
    assert len([name for name in members(archive) if name.startswith("blobs/sha256/")]) == 1 + 1 + 3
    index = json.loads(read(archive, "index.json"))
    assert [entry["annotations"] for entry in index["manifests"]] == [
        {"io.containerd.image.name": f"docker.io/local/tree:{tag}", "org.opencontainers.image.ref.name": tag}
        for tag in ("1", "2")
    ]


def test_an_index_goes_with_the_platforms_that_are_there(engine: pyctrd.Engine, tmp_path: Path) -> None:
    made = {name: build_image([Tar().file("platform", name.encode()).build()], platform=name) for name in (OTHER, HOST)}
    built = build_index(made)
    image = put(engine, built, "local/multi:1", tmp_path)
    one = save_to(engine, image.name, "oci", tmp_path / "one")
    present = {f"sha256:{path.name}" for path in (one / "blobs/sha256").iterdir()}
    assert present == {built.digest, made[HOST].digest, *(blob.digest for blob in made[HOST].blobs)}
    assert put(engine, built, "local/multi:2", tmp_path, platform=OTHER).digest == built.digest
    both = save_to(engine, image.name, "oci-archive", tmp_path / "both")
    assert {f"blobs/sha256/{blob.digest[7:]}" for child in made.values() for blob in child.blobs} <= set(members(both))
    with pyctrd.Engine(namespace="other") as other:
        for platform in (OTHER, HOST):
            (loaded,) = other.images.load(both, platform=platform)
            assert (loaded.digest, loaded.read_file("/platform")) == (built.digest, platform.encode())
    # Another tenant's content is not there for this one.
    with pyctrd.Engine(namespace="third") as third:
        put(third, built, "local/multi:1", tmp_path)
        alone = save_to(third, "local/multi:1", "oci", tmp_path / "alone")
    assert tree_of(alone) == tree_of(one)


def test_a_platform_that_is_chosen_goes_alone(engine: pyctrd.Engine, tmp_path: Path) -> None:
    made = {name: build_image([Tar().file("platform", name.encode()).build()], platform=name) for name in (OTHER, HOST)}
    built = build_index(made)
    name = f"local/multi@{built.digest}"
    put(engine, built, name, tmp_path)
    saved = save_to(engine, name, "oci", tmp_path / "saved", platform=HOST)
    (entry,) = json.loads((saved / "index.json").read_bytes())["manifests"]
    assert entry["digest"] == made[HOST].digest
    assert entry["annotations"] == {"io.containerd.image.name": f"docker.io/local/multi@{made[HOST].digest}"}
    with pyctrd.Engine(namespace="other") as other:
        assert other.images.load(saved)[0].digest == made[HOST].digest
    with pytest.raises(NotFoundError, match="it is not in the store") as caught:
        engine.images.save(name, tmp_path / "none", platform=OTHER)
    assert OTHER in caught.value.hint
    with pytest.raises(NotFoundError, match="the image has"):
        engine.images.save(name, tmp_path / "none", platform="linux/mips")
    put(engine, TREE, "local/tree:1", tmp_path)
    with pytest.raises(NotFoundError, match=f"the image is for {HOST}"):
        engine.images.save("local/tree:1", tmp_path / "none", platform=OTHER)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_streams_are_written_without_seeking(
    engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path, form: str
) -> None:
    wanted = save_to(engine, tree.name, form, tmp_path / "file").read_bytes()
    memory = io.BytesIO()
    engine.images.save(tree.name, memory, format=form)  # type: ignore[arg-type]
    assert memory.getvalue() == wanted
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    came: list[bytes] = []

    def drain() -> None:
        with os.fdopen(reader, "rb") as file:
            came.append(file.read())

    thread = threading.Thread(target=drain)
    thread.start()
    with os.fdopen(writer, "wb", buffering=0) as pipe:
        engine.images.save(tree.name, pipe, format=form)  # type: ignore[arg-type]
    thread.join()
    assert came == [wanted]
    with (tmp_path / "appended").open("wb") as file:
        file.write(b"before")
        engine.images.save(tree.name, file, format=form)  # type: ignore[arg-type]
        file.write(b"after")
    assert (tmp_path / "appended").read_bytes() == b"before" + wanted + b"after"


def test_a_file_is_replaced_and_a_link_to_one_stays(engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"before")
    target.chmod(0o600)
    link.symlink_to(target)
    save_to(engine, tree.name, "docker-archive", link)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert "manifest.json" in members(target)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    engine.images.save(tree.name, "/dev/null")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_images_are_added_to_a_layout_and_replace_those_of_their_name(
    engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    layout.mkdir()
    save_to(engine, tree.name, "oci", layout)
    before = json.loads((layout / "index.json").read_bytes())
    before["annotations"] = {"kept": "as it was"}
    (layout / "index.json").write_text(json.dumps(before))
    put(engine, PLAIN, "local/plain:1", tmp_path)
    save_to(engine, "local/plain:1", "oci", layout)
    put(engine, PLAIN, "local/tree:1", tmp_path)
    save_to(engine, "local/tree:1", "oci", layout)
    after = json.loads((layout / "index.json").read_bytes())
    assert after["annotations"] == {"kept": "as it was"}
    named = {entry["annotations"]["io.containerd.image.name"]: entry["digest"] for entry in after["manifests"]}
    assert named == {"docker.io/local/plain:1": PLAIN.digest, "docker.io/local/tree:1": PLAIN.digest}
    assert (layout / "blobs/sha256" / TREE.digest[7:]).exists()  # what nobody names is not ours to take away


def test_a_tag_that_another_tool_wrote_is_the_name_of_its_image(engine: pyctrd.Engine, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    TREE.write_layout(layout, tag="1")
    put(engine, PLAIN, "local/plain:1", tmp_path)
    put(engine, PLAIN, "local/plain:2", tmp_path)
    save_to(engine, "local/plain:2", "oci", layout)
    assert len(json.loads((layout / "index.json").read_bytes())["manifests"]) == 2
    save_to(engine, "local/plain:1", "oci", layout)
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    assert sorted(entry["annotations"]["io.containerd.image.name"] for entry in entries) == [
        "docker.io/local/plain:1",
        "docker.io/local/plain:2",
    ]


def test_a_damaged_blob_of_a_layout_is_written_again(engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path) -> None:
    layout = save_to(engine, tree.name, "oci", tmp_path / "layout")
    whole = tree_of(layout)
    blob = layout / "blobs/sha256" / TREE.layers[0].digest[7:]
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    (layout / "blobs/sha256" / TREE.layers[1].digest[7:]).write_bytes(b"short")
    save_to(engine, tree.name, "oci", layout)
    assert tree_of(layout) == whole


def test_an_artifact_goes_as_oci_alone(engine: pyctrd.Engine, tmp_path: Path) -> None:
    thing = Blob("application/vnd.example.thing", b"some bytes")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": ARTIFACT_CONFIG.descriptor,
        "layers": [thing.descriptor],
    }
    body = json.dumps(manifest).encode()
    artifact = BuiltImage(Blob("application/vnd.oci.image.manifest.v1+json", body), (ARTIFACT_CONFIG, thing))
    put(engine, artifact, "local/thing:1", tmp_path, unpack=False)
    saved = save_to(engine, "local/thing:1", "oci-archive", tmp_path / "saved")
    assert read(saved, f"blobs/sha256/{thing.digest[7:]}") == b"some bytes"
    assert "manifest.json" not in members(saved)
    with pyctrd.Engine(namespace="other") as other:
        assert other.images.load(saved, unpack=False)[0].digest == artifact.digest
    with pytest.raises(InvalidError, match="another kind of artifact"):
        engine.images.save("local/thing:1", tmp_path / "docker", format="docker-archive")
    assert not (tmp_path / "docker").exists()


@pytest.mark.parametrize("snapshotter", ["overlayfs", "composefs", "erofs"])
def test_layers_without_blobs_are_made_again_where_that_gives_the_same_bytes(
    state: Path, tmp_path: Path, snapshotter: str
) -> None:
    with pyctrd.Engine(keep_blobs=False, snapshotter=snapshotter) as engine:
        for name, built in (("tree", TREE), ("plain", PLAIN)):
            put(engine, built, f"local/{name}:1", tmp_path)
        docker = save_to(engine, ["local/tree:1", "local/plain:1"], "docker-archive", tmp_path / "docker")
        for tar in (*TREE.tars, *PLAIN.tars):
            assert read(docker, f"{hashlib.sha256(tar).hexdigest()}.tar") == tar
        for form in ("oci", "oci-archive"):
            with pytest.raises(NotFoundError, match="blob not kept") as caught:
                engine.images.save("local/tree:1", tmp_path / "none", format=form)
            assert "pyctrd convert" in caught.value.hint
            assert not (tmp_path / "none").exists()
            saved = save_to(engine, "local/plain:1", form, tmp_path / form)
            with pyctrd.Engine(namespace=form) as other:
                assert other.images.load(saved)[0].digest == PLAIN.digest
        assert files_below(Path(os.environ["PYCTRD_ROOT"]) / "content/ingest") == []


def test_images_that_were_not_unpacked_are_saved(engine: pyctrd.Engine, tmp_path: Path) -> None:
    image = put(engine, TREE, "local/tree:1", tmp_path, unpack=False)
    for form in FORMS:
        saved = save_to(engine, image.name, form, tmp_path / form)
        with pyctrd.Engine(namespace=form) as other:
            assert other.images.load(saved)[0].config == image.config


def blob_path(digest: str) -> Path:
    return Path(os.environ["PYCTRD_ROOT"]) / "content/blobs/sha256" / digest.removeprefix("sha256:")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
@pytest.mark.parametrize("damage", ["other bytes", "short", "missing"])
def test_a_damaged_blob_is_never_written_in_silence(
    engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path, form: str, which: str, damage: str
) -> None:
    digest = {"manifest": TREE.digest, "config": TREE.blobs[0].digest, "layer": TREE.layers[1].digest}[which]
    path = blob_path(digest)
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-1] if damage == "short" else content[:-9] + b"!" + content[-8:])
    kept = tmp_path / "kept"
    save_dir = kept / "saved"
    kept.mkdir()
    with pytest.raises(PyctrdError) as caught:
        engine.images.save(tree.name, save_dir, format=form)  # type: ignore[arg-type]
    assert isinstance(caught.value, IntegrityError)
    assert list(kept.iterdir()) == []
    if form != "oci":
        save_dir.write_bytes(b"before")
        with pytest.raises(IntegrityError):
            engine.images.save(tree.name, save_dir, format=form)  # type: ignore[arg-type]
        assert save_dir.read_bytes() == b"before"


def test_a_layout_is_as_it_was_after_a_failure(engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path) -> None:
    put(engine, PLAIN, "local/plain:1", tmp_path)
    layout = save_to(engine, "local/plain:1", "oci", tmp_path / "layout")
    before = tree_of(layout)
    path = blob_path(max(blob.digest for blob in TREE.layers))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(IntegrityError, match="digest mismatch"):
        save_to(engine, tree.name, "oci", layout)
    assert tree_of(layout) == before


def test_what_cannot_be_saved_is_one_clear_error(engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path) -> None:
    file, directory = tmp_path / "file", tmp_path / "directory"
    file.write_bytes(b"here")
    directory.mkdir()
    (directory / "notes").write_bytes(b"mine")
    by_digest = put(engine, TREE, f"local/tree@{TREE.digest}", tmp_path).name
    cases: list[tuple[Any, Any, str, type[Exception], str]] = [
        ("local/absent:1", tmp_path / "new", "oci", NotFoundError, "image not found"),
        ([], tmp_path / "new", "oci", InvalidError, "no images"),
        (tree.name, tmp_path / "new", "zip", InvalidError, "invalid format: 'zip'"),
        (tree.name, file, "oci", InvalidError, "it is no directory"),
        (tree.name, directory, "oci", InvalidError, "no OCI layout"),
        (tree.name, directory, "oci-archive", InvalidError, "it is a directory"),
        (tree.name, tmp_path / "no/such", "oci-archive", NotFoundError, "directory not found"),
        (tree.name, tmp_path / "no/such", "oci", NotFoundError, "directory not found"),
        (tree.name, io.BytesIO(), "oci", InvalidError, "a layout is a directory"),
        (tree.name, io.StringIO(), "oci-archive", InvalidError, "a text file"),
        (by_digest, tmp_path / "new", "docker-archive", InvalidError, "no tag"),
    ]
    for names, dest, form, error, told in cases:
        with pytest.raises(error) as caught:
            engine.images.save(names, dest, format=form)  # type: ignore[arg-type]
        assert told in str(caught.value)
    assert not (tmp_path / "new").exists()
    assert file.read_bytes() == b"here"
    assert [path.name for path in directory.iterdir()] == ["notes"]
    save_to(engine, by_digest, "oci-archive", tmp_path / "digest")
    with pyctrd.Engine(namespace="other") as other:
        assert other.images.load(tmp_path / "digest")[0].name == by_digest


def test_one_tag_is_one_image(engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path) -> None:
    pinned = put(engine, TREE, f"local/tree:1@{TREE.digest}", tmp_path).name
    saved = save_to(engine, [tree.name, pinned], "docker-archive", tmp_path / "saved")
    assert [image["RepoTags"] for image in json.loads(read(saved, "manifest.json"))] == [["docker.io/local/tree:1"]]
    put(engine, PLAIN, "local/tree:1", tmp_path)
    with pytest.raises(InvalidError, match="ambiguous name"):
        save_to(engine, [tree.name, pinned], "docker-archive", tmp_path / "none")
    both = save_to(engine, [tree.name, pinned], "oci-archive", tmp_path / "both")
    with pyctrd.Engine(namespace="other") as other:
        assert {image.name: image.digest for image in other.images.load(both)} == {
            tree.name: PLAIN.digest,
            pinned: TREE.digest,
        }


def test_links_in_a_layout_lead_nowhere(engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    layout = tmp_path / "layout"
    PLAIN.write_layout(layout)
    (layout / "blobs").rename(tmp_path / "blobs")
    (layout / "blobs").symlink_to(outside)
    with pytest.raises(InvalidError, match="blobs in it is no directory"):
        save_to(engine, tree.name, "oci", layout)
    (layout / "blobs").unlink()
    (tmp_path / "blobs").rename(layout / "blobs")
    digest = TREE.layers[0].digest[7:]
    (outside / "file").write_bytes(b"outside")
    (layout / "blobs/sha256" / digest).symlink_to(outside / "file")
    save_to(engine, tree.name, "oci", layout)
    assert (outside / "file").read_bytes() == b"outside"
    assert (layout / "blobs/sha256" / digest).read_bytes() == TREE.layers[0].content
    assert [path.name for path in outside.iterdir()] == ["file"]


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_is_told_and_leaves_nothing(engine: pyctrd.Engine, tmp_path: Path, form: str) -> None:
    large = build_image([Tar().file("large", os.urandom(3 << 20)).build()])
    put(engine, large, "local/large:1", tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    try:
        with pytest.raises(OSError, match="No space left") as caught:
            save_to(engine, "local/large:1", form, disk / "saved")
        assert str(disk) in str(caught.value.filename)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert engine.check() == []


def test_a_layout_that_comes_there_meanwhile_is_not_overwritten(
    engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path
) -> None:
    layout = tmp_path / "layout"

    def intrude(told: pyctrd.PullProgress) -> None:
        if told.phase == "resolving":
            return
        with suppress(FileExistsError):
            layout.mkdir()
        (layout / "mine").write_bytes(b"here")

    with pytest.raises(AlreadyExistsError, match="meanwhile"):
        save_to(engine, tree.name, "oci", layout, progress=intrude)
    assert [path.name for path in layout.iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_writers_of_one_layout_come_one_after_the_other(
    engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    layout.mkdir()
    names = [f"local/image-{number}:1" for number in range(6)]
    for number, name in enumerate(names):
        put(engine, build_image([Tar().file("f", b"%d" % number).build()]), name, tmp_path)
    running = [
        subprocess.Popen(command("save", "-q", "--format", "oci", "-o", str(layout), name), stderr=subprocess.PIPE)
        for name in names
    ]
    for process in running:
        _, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert (process.returncode, err) == (0, b"")
    with pyctrd.Engine(namespace="other") as other:
        assert sorted(image.name for image in other.images.load(layout)) == [f"docker.io/{name}" for name in names]


def test_progress_tells_of_each_layer(engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path) -> None:
    for form in FORMS:
        seen: list[pyctrd.PullProgress] = []
        save_to(engine, tree.name, form, tmp_path / form, progress=seen.append)
        assert {progress.reference for progress in seen} == {str(tmp_path / form)}
        assert {layer.digest for layer in seen[-1].layers} == {layer.digest for layer in TREE.layers}
        assert all(layer.state == "done" and layer.received_bytes == layer.size_bytes for layer in seen[-1].layers)

    def give_up(told: pyctrd.PullProgress) -> None:
        if told.layers:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save_to(engine, tree.name, "docker-archive", tmp_path / "stopped", progress=give_up)
    assert not (tmp_path / "stopped").exists()


def test_what_is_saved_is_kept_until_it_is_written(engine: pyctrd.Engine, tree: pyctrd.Image, tmp_path: Path) -> None:
    gone: list[str] = []

    def remove(told: pyctrd.PullProgress) -> None:
        if told.layers and not gone:
            gone.append(tree.name)
            with pyctrd.Engine() as other:
                other.images.remove("local/tree:1")

    saved = save_to(engine, tree.name, "docker-archive", tmp_path / "saved", progress=remove)
    assert gone == [tree.name]
    assert engine.images.list() == []
    with pyctrd.Engine(namespace="other") as other:
        assert other.images.load(saved)[0].read_file("/a/file") == b"second\n"
    engine.gc()
    assert engine.content.list() == []
    assert engine.check(digests=True) == []
