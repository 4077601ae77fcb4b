"""Load: what Docker before 1.10 saved, a directory for each layer, and no list but ``repositories``."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import InvalidError, NotFoundError, PyctrdError, UnsafeArchiveError, UnsupportedError
from tests.archives import Tar, compress_zstd
from tests.content.stores import files_below
from tests.images import tree_tars

pytestmark = pytest.mark.root

EMPTY = bytes(1024)
RUN = {"Cmd": ["sh"], "Env": ["PATH=/bin"], "User": "app"}


def id_of(name: str) -> str:
    """A layer's id: random, in those days."""
    return hashlib.sha256(name.encode()).hexdigest()


def old_layer(name: str, tar: bytes, *, parent: str = "", **said: Any) -> dict[str, bytes]:
    """A layer's directory."""
    document = {"id": id_of(name), "created": "2015-01-01T00:00:00Z", "Size": 12, **said}
    document |= {"parent": id_of(parent)} if parent else {}
    return {
        f"{id_of(name)}/VERSION": b"1.0",
        f"{id_of(name)}/json": json.dumps(document).encode(),
        f"{id_of(name)}/layer.tar": tar,
    }


def old_files(names: Mapping[str, Mapping[str, str]] | None) -> dict[str, bytes]:
    """Three layers and one without files, over one another; two of them are images."""
    base, middle, top = tree_tars()
    files = old_layer("base", base, container_config={"Cmd": ["/bin/sh", "-c", "#(nop) ADD"]}, author="somebody")
    files |= old_layer("middle", middle, parent="base", config={"Cmd": ["middle"]}, architecture="amd64", os="linux")
    files |= old_layer("nothing", EMPTY, parent="middle", comment="nothing but a setting")
    files |= old_layer("top", top, parent="nothing", config=RUN, architecture="amd64", os="linux", throwaway=True)
    if names is not None:
        listed = {repository: {tag: id_of(name) for tag, name in tags.items()} for repository, tags in names.items()}
        files["repositories"] = json.dumps(listed).encode()
    return files


NAMES = {"local/old": {"1": "top", "latest": "top"}, "registry.example/middle": {"2": "middle"}}


def write(path: Path, files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> Path:
    """A tar of files and symbolic links."""
    tar = Tar()
    for name, content in files.items():
        tar.file(name, content)
    for name, target in (links or {}).items():
        tar.symlink(name, target)
    path.write_bytes(tar.build())
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_images_of_the_first_form_are_loaded_with_their_names_and_history(
    engine: pyctrd.Engine, tmp_path: Path, *, packed: bool
) -> None:
    archive = write(tmp_path / "old", old_files(NAMES))
    if packed:
        archive.write_bytes(gzip.compress(archive.read_bytes()))
    loaded = {image.name: image for image in engine.images.load(archive)}
    assert sorted(loaded) == [
        "docker.io/local/old:1",
        "docker.io/local/old:latest",
        "registry.example/middle:2",
    ]
    top = loaded["docker.io/local/old:1"]
    assert top.digest == loaded["docker.io/local/old:latest"].digest
    assert top.read_file("/a/file") == b"second\n"
    assert top.read_file("/empty/now") == b"a directory"
    assert (top.config.cmd, top.config.user, top.platform) == (("sh",), "app", "linux/amd64")
    assert len(top.config.rootfs.diff_ids) == 4
    assert {"id", "parent", "Size", "throwaway"}.isdisjoint(top.config.raw)
    assert top.config.raw["history"] == [
        {"created": "2015-01-01T00:00:00Z", "created_by": "/bin/sh -c #(nop) ADD", "author": "somebody"},
        {"created": "2015-01-01T00:00:00Z"},
        {"created": "2015-01-01T00:00:00Z", "comment": "nothing but a setting"},
        {"created": "2015-01-01T00:00:00Z"},
    ]
    assert loaded["registry.example/middle:2"].config.cmd == ("middle",)
    assert engine.check(digests=True) == []


def test_an_image_that_had_no_name_is_the_layer_that_is_nobodys_parent(engine: pyctrd.Engine, tmp_path: Path) -> None:
    archive = write(tmp_path / "old", old_files(None))
    with pytest.raises(InvalidError, match="nameless"):
        engine.images.load(archive)
    (image,) = engine.images.load(archive, name="local/old:1")
    assert image.config.user == "app"


def test_links_and_compressed_layers_of_the_first_form_are_read(engine: pyctrd.Engine, tmp_path: Path) -> None:
    files = old_files(NAMES)
    plain = write(tmp_path / "plain", files)
    (wanted, *_) = engine.images.load(plain)
    linked = {f"{id_of('top')}/layer.tar": "../shared.tar"}
    files["shared.tar"] = files.pop(f"{id_of('top')}/layer.tar")
    files[f"{id_of('base')}/layer.tar"] = gzip.compress(files[f"{id_of('base')}/layer.tar"])
    with pyctrd.Engine(namespace="other") as other:
        (image, *_) = other.images.load(write(tmp_path / "linked", files, linked))
        assert image.config.rootfs == wanted.config.rootfs
        assert list(image.walk()) == list(wanted.walk())


def said(name: str, **fields: Any) -> bytes:
    return json.dumps({"id": id_of(name), **fields}).encode()


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({f"{id_of('base')}/json": None}, NotFoundError, "layer not found"),
        ({f"{id_of('base')}/layer.tar": None}, NotFoundError, "layer.tar"),
        ({f"{id_of('base')}/json": said("base", parent=id_of("top"))}, InvalidError, "each once"),
        ({f"{id_of('base')}/json": said("base", parent="../../etc")}, InvalidError, "64 lower-case hex digits"),
        ({f"{id_of('base')}/json": said("else")}, InvalidError, "as its directory is called"),
        ({f"{id_of('base')}/json": b"[]"}, InvalidError, "an object"),
        ({f"{id_of('top')}/json": said("top", config={"Env": 3})}, InvalidError, "Env"),
        ({"repositories": b"[]"}, InvalidError, "an object"),
        ({"repositories": b'{"local/x": {"1": "/etc/passwd"}}'}, InvalidError, "64 lower-case hex digits"),
        ({"repositories": b'{"local/x": {"1": 3}}'}, InvalidError, "a string"),
        ({"repositories": b'{"LOCAL": {"1": "%s"}}' % id_of("top").encode()}, InvalidError, "must be lower case"),
        ({f"{id_of('base')}/layer.tar": gzip.compress(b"x" * 99)[:-9]}, UnsafeArchiveError, "no gzip"),
        ({f"{id_of('base')}/layer.tar": compress_zstd(EMPTY)}, UnsupportedError, "zstd"),
        ({f"{id_of('base')}/layer.tar": b"no tar at all" * 99}, UnsafeArchiveError, "sha256"),
    ],
)
def test_what_is_wrong_with_the_first_form_is_refused_whole(
    engine: pyctrd.Engine, tmp_path: Path, change: dict[str, bytes | None], error: type[PyctrdError], told: str
) -> None:
    files = {name: content for name, content in (old_files(NAMES) | change).items() if content is not None}
    with pytest.raises(error) as caught:
        engine.images.load(write(tmp_path / "old", files))
    assert told in str(caught.value)
    assert engine.images.list() == []
    assert engine.content.list() == []
    assert files_below(tmp_path / "root/content") == []


def test_a_layer_that_expands_without_end_is_refused(state: Path, tmp_path: Path) -> None:
    files = old_files(NAMES) | {f"{id_of('base')}/layer.tar": gzip.compress(bytes(1 << 20))}
    with pyctrd.Engine(limits=pyctrd.Limits(bytes=512 << 10)) as engine:
        with pytest.raises(UnsafeArchiveError, match="over the limit bytes"):
            engine.images.load(write(tmp_path / "old", files))
        assert engine.content.list() == []


def test_documents_that_are_made_are_bounded(
    engine: pyctrd.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyctrd.content.old_docker_archive.MADE_MAX_BYTES", 1 << 20)
    files = old_files(NAMES) | {f"{id_of('base')}/json": said("base", comment="x" * (1 << 20))}
    with pytest.raises(InvalidError, match="too much is said of them"):
        engine.images.load(write(tmp_path / "old", files))
