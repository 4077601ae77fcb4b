"""Volumes: made, filled from the image, shared, kept while somebody has them, and gone with whom they were made for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError
from tests.archives import Tar
from tests.images import Images, build_image
from tests.integration.conftest import Cli
from tests.trees import differences, read_tree

pytestmark = pytest.mark.root


def volumes() -> Path:
    return Path(os.environ["PYCTRD_ROOT"]) / "volumes"


def run(engine: pyctrd.Engine, images: Images, script: str, **options: object) -> pyctrd.Container:
    engine.images.pull(images.busybox.reference)
    container = engine.containers.run(images.busybox.reference, ["sh", "-c", script], **options)  # type: ignore[arg-type]
    assert container.wait(60).exit_code == 0, container.logs()
    return container


def test_a_volume_is_made_when_it_is_named_and_outlives_containers(engine: pyctrd.Engine, images: Images) -> None:
    first = run(engine, images, "echo kept > /data/file", binds=["data:/data"])
    second = run(engine, images, "cat /data/file; echo x > /data/file || echo refused", binds=["data:/data:ro"])
    assert second.logs().startswith("kept\n")
    assert "refused" in second.logs()
    volume = engine.volumes.get("data")
    assert sorted(volume.users()) == sorted([first.name, second.name])
    with pytest.raises(ConflictError, match="volume in use: data"):
        volume.remove()
    first.delete(volumes=True)
    second.delete(volumes=True)
    assert (volume.path / "file").read_text() == "kept\n"
    assert [space.name for space in engine.df().volumes] == ["data"]
    assert engine.check() == []
    volume.remove()
    assert engine.volumes.find("data") is None
    assert not volume.path.exists()
    with pytest.raises(NotFoundError):
        engine.volumes.remove("data")


def test_an_empty_volume_gets_what_the_image_has_there(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.busybox.reference)
    engine.volumes.create("filled", labels={"a": "b"})
    container = engine.containers.create(image, ["true"], binds=["filled:/etc", "empty:/home:nocopy"])
    from pyctrd.flows.run import mount_rootfs

    rootfs = mount_rootfs(container._rooms, container._record)
    filled, empty = engine.volumes.get("filled"), engine.volumes.get("empty")
    assert differences(read_tree(rootfs / "etc"), read_tree(filled.path)) == []
    assert list(empty.path.iterdir()) == []
    assert dict(filled.labels) == {"a": "b"}
    # What is in it already stays as it is.
    (filled.path / "mine").write_text("x")
    (filled.path / "passwd").unlink()
    run(engine, images, "test -e /etc/mine && ! test -e /etc/passwd", binds=["filled:/etc"])
    assert list(volumes().glob("*/.filling-*")) == []


def test_a_link_in_the_image_leads_to_nothing_of_the_host(engine: pyctrd.Engine, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    tar = Tar().symlink("evil", str(secret)).directory("inside").file("inside/f", b"x").symlink("good", "/inside")
    layout = tmp_path / "layout"
    build_image([tar.build()]).write_layout(layout)
    image = engine.images.load(str(layout), name="example.com/evil:1")[0]
    engine.containers.create(image, ["/x"], binds=["one:/evil", "two:/good"])
    assert list(engine.volumes.get("one").path.iterdir()) == []
    assert (engine.volumes.get("two").path / "f").read_bytes() == b"x"


def test_what_is_made_for_one_container_goes_with_it(engine: pyctrd.Engine, images: Images) -> None:
    container = run(engine, images, "echo x > /data/x", binds=["/data"])
    (anonymous,) = engine.volumes.list()
    assert anonymous.is_anonymous
    fork = container.fork()
    container.delete(volumes=True)
    assert [volume.name for volume in engine.volumes.list()] == [anonymous.name]
    fork.delete()
    assert engine.volumes.prune() == [anonymous.name]
    run(engine, images, "true", binds=["/data"]).delete(volumes=True)
    assert engine.volumes.list() == []
    engine.volumes.create("named")
    assert engine.volumes.prune() == []
    assert engine.volumes.prune(named=True) == ["named"]
    with pytest.raises(NotFoundError):
        engine.containers.create(images.busybox.reference, ["true"], binds=["/data"], user="nobody-of-this-name")
    assert engine.volumes.list() == []


def test_an_image_says_where_it_wants_volumes(engine: pyctrd.Engine, images: Images) -> None:
    base = run(engine, images, "mkdir /state; echo x > /state/x")
    image = base.commit("local/state:1", changes=["VOLUME /state"])
    container = engine.containers.create(image, ["true"], auto_remove=True)
    (volume,) = engine.volumes.list()
    assert (volume.path / "x").read_text() == "x\n"
    container.delete()
    assert engine.volumes.list() == []
    engine.containers.create(image, ["true"], binds=["mine:/state"])
    assert [volume.name for volume in engine.volumes.list()] == ["mine"]


def test_names_are_plain_and_taken_once(engine: pyctrd.Engine) -> None:
    engine.volumes.create("one")
    with pytest.raises(AlreadyExistsError):
        engine.volumes.create("one")
    for name in ("../x", ".hidden", "a/b", "-x"):
        with pytest.raises(InvalidError):
            engine.volumes.create(name)
    with pyctrd.Engine(namespace="other") as other:
        assert other.volumes.find("one") is None
        other.volumes.create("one")
    engine.namespaces.remove("other", force=True)
    assert not (volumes() / "other").exists()


def test_what_nobody_recorded_is_found_and_moved_away(engine: pyctrd.Engine) -> None:
    engine.volumes.create("one")
    (volumes() / "default/stray").mkdir()
    (finding,) = engine.check()
    assert (finding.kind, finding.name) == ("volume", "stray")
    assert all(done.repaired for done in engine.check(repair=True))
    assert engine.check() == []
    assert engine.volumes.create("stray").path.is_dir()


def test_the_command_line_has_volumes(cli: Cli, images: Images) -> None:
    assert cli("pull", images.busybox.reference).status == 0
    assert cli("volume", "create", "--label", "a=b", "one").out == "one\n"
    done = cli(
        "run", "--rm", "-v", "one:/data", "-v", "/other", images.busybox.reference, "sh", "-c", "echo x > /data/x"
    )
    assert done.status == 0, done.err
    assert cli("volume", "inspect", "one").lines[0]["labels"] == {"a": "b"}
    assert cli("volume", "ls", "-q").out == "one\n"
    assert "one" in cli("df").out
    assert cli("volume", "rm", "one").out == "one\n"
    assert cli("volume", "prune").out == ""
