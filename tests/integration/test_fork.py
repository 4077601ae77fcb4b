"""Fork, snapshot and rollback: a container's files are kept as they are, and begun with again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd.errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError
from tests.children import until
from tests.images import Images
from tests.integration.conftest import Cli
from tests.trees import differences, read_tree

pytestmark = pytest.mark.root

# Of each kind of change one: added, changed, removed, a directory made anew, another kind, other attributes, links.
SCRIPT = """
set -e
echo new > /etc/new
echo more >> /etc/motd
rm /etc/os-release
rm -r /home/app; mkdir /home/app; echo mine > /home/app/mine
rm /bin/cat; mkdir /bin/cat
chmod 4600 /etc/group
ln /etc/new /etc/other-name
ln -s /nowhere /etc/link
mkfifo /etc/fifo
chmod 700 /
"""
SECOND = "rm /home/app/mine; rm -r /etc; mkdir /etc; echo second > /etc/second; rmdir /bin/cat; echo x > /bin/cat"


@pytest.fixture(params=["overlayfs", "native", "composefs", "erofs"])
def opened(request: pytest.FixtureRequest, state: Path) -> Iterator[pyctrd.Engine]:
    """An engine with each snapshotter; its containers end with the test."""
    del state
    with pyctrd.Engine(snapshotter=request.param) as engine:
        yield engine
        for container in engine.containers.list():
            container.delete(force=True)
        assert engine.check(digests=True) == []
        assert list((Path(os.environ["PYCTRD_ROOT"]) / "snapshots").glob("frozen-*")) == []


def changed(engine: pyctrd.Engine, images: Images, script: str = SCRIPT, **options: Any) -> pyctrd.Container:
    """A container that has changed things, and ended."""
    engine.images.pull(images.busybox.reference)
    container = engine.containers.run(images.busybox.reference, ["sh", "-c", script], **options)
    assert container.wait(60).exit_code == 0, container.logs()
    return container


def rootfs(engine: pyctrd.Engine, container: pyctrd.Container) -> Path:
    """Where its files can be seen, mounted now."""
    from pyctrd.flows.run import mount_rootfs

    return mount_rootfs(engine._rooms, container._record)


def tree(engine: pyctrd.Engine, container: pyctrd.Container) -> dict[bytes, Any]:
    return read_tree(rootfs(engine, container))


def write(engine: pyctrd.Engine, container: pyctrd.Container, script: str) -> None:
    """Change a container's files without running it."""
    subprocess.run(["/bin/sh", "-ec", script], cwd=rootfs(engine, container), check=True)


def test_a_fork_has_entry_by_entry_what_its_source_has(opened: pyctrd.Engine, images: Images) -> None:
    source = changed(opened, images)
    before = tree(opened, source)
    fork = source.fork(name="forked")
    assert (fork.name, fork.status.state, fork.command) == ("forked", "created", source.command)
    assert differences(before, tree(opened, fork)) == []
    assert differences(before, tree(opened, source)) == []
    # Each goes its own way, through several generations.
    write(opened, fork, SECOND.replace("/", "./", 1).replace(" /", " ./"))
    assert differences(before, tree(opened, source)) == []
    second = fork.fork()
    after = tree(opened, fork)
    assert b"etc/second" in after
    assert b"etc/motd" not in after
    assert differences(after, tree(opened, second)) == []
    assert {tuple(change) for change in fork.diff()} == {tuple(change) for change in second.diff()}
    # And survives those that it was made from.
    source.delete()
    fork.delete()
    assert opened.check(digests=True) == []
    assert differences(after, tree(opened, second)) == []


def test_a_fork_runs_and_commits_what_was_written_in_all_turns(opened: pyctrd.Engine, images: Images) -> None:
    source = changed(opened, images, "echo one > /one; rm /etc/motd; mkdir /d; echo kept > /d/kept")
    fork = source.fork()
    write(opened, fork, "echo two > two; rm d/kept; echo again > etc/motd")
    changes = {tuple(change) for change in fork.diff() if not change.path.startswith(("/dev", "/proc", "/sys"))}
    assert changes == {("A", "/one"), ("A", "/two"), ("A", "/d"), ("C", "/etc"), ("C", "/etc/motd")}
    image = fork.commit("local/forked:1")
    assert (image.read_file("/one"), image.read_file("/two")) == (b"one\n", b"two\n")
    assert image.read_file("/etc/motd") == b"again\n"
    fork.start()
    assert fork.wait(60).exit_code == 0
    assert "File exists" in fork.logs()


def test_a_fork_has_an_id_and_a_host_name_of_its_own(opened: pyctrd.Engine, images: Images) -> None:
    source = changed(opened, images, "hostname > /name; echo $HOSTNAME >> /name; cat /proc/self/cgroup")
    fork = source.fork()
    fork.start()
    assert fork.wait(60).exit_code == 0
    name = (rootfs(opened, fork) / "name").read_text().split()
    assert name == [fork.id[:12]] * 2
    assert fork.id[:12] != source.id[:12]


def test_a_running_container_is_copied_and_runs_on(opened: pyctrd.Engine, images: Images) -> None:
    opened.images.pull(images.busybox.reference)
    script = "echo one > /one; ln /one /two; truncate -s 1048576 /hole; echo ready; while :; do sleep 1; done"
    source = opened.containers.run(images.busybox.reference, ["sh", "-c", script])
    for line in source.log_lines(follow=True):
        assert line.text == "ready\n"
        break
    fork = source.fork()
    name = source.snapshot("running")
    assert source.status.state == "running"
    found = tree(opened, fork)
    assert found[b"one"].same_as == found[b"two"].same_as
    assert (rootfs(opened, fork) / "hole").stat().st_blocks == 0
    with pytest.raises(ConflictError, match="is running, must be stopped"):
        source.rollback(name)
    write(opened, source, "rm one")
    source.rollback(name, restart=True)
    assert source.status.state == "running"
    until(lambda: (rootfs(opened, source) / "one").read_text() == "one\n")  # its script writes it anew
    source.stop(0)
    assert differences(found, tree(opened, fork)) == []


def test_a_rollback_sets_back_what_was_written_since(opened: pyctrd.Engine, images: Images) -> None:
    container = changed(opened, images)
    first = tree(opened, container)
    assert container.snapshot("first") == "first"
    write(opened, container, "echo second > etc/second; rm etc/new; chmod 755 .")
    second = tree(opened, container)
    name = container.snapshot()
    write(opened, container, "rm -r etc")
    assert [one.name for one in container.snapshots()] == ["first", name]
    for wanted, expected in (("first", first), (name, second), ("first", first), ("first", first)):
        container.rollback(wanted)
        assert differences(expected, tree(opened, container)) == []
        write(opened, container, "echo more > etc/more")
    container.delete_snapshot("first")
    container.delete_snapshot("first")
    container.rollback(name)
    assert differences(second, tree(opened, container)) == []
    with pytest.raises(NotFoundError, match="snapshot not found: first"):
        container.rollback("first")
    assert opened.check(digests=True) == []


def test_names_are_taken_once_and_are_plain(opened: pyctrd.Engine, images: Images) -> None:
    container = changed(opened, images, "true", name="one")
    container.snapshot("a")
    with pytest.raises(AlreadyExistsError):
        container.snapshot("a")
    with pytest.raises(InvalidError):
        container.snapshot("../a")
    with pytest.raises(AlreadyExistsError):
        container.fork(name="one")
    assert [one.name for one in opened.containers.list()] == ["one"]


def test_what_did_not_change_is_not_frozen_again(state: Path, images: Images) -> None:
    del state
    with pyctrd.Engine(snapshotter="overlayfs") as engine:
        source = changed(engine, images)
        forks = [source.fork() for _ in range(5)]
        assert len(list((Path(os.environ["PYCTRD_ROOT"]) / "snapshots").glob("frozen-*"))) == 1
        assert engine.df().containers
        for container in (source, *forks):
            container.delete()
        assert list((Path(os.environ["PYCTRD_ROOT"]) / "snapshots").glob("frozen-*")) == []


def test_the_command_line_forks_and_sets_back(cli: Cli, images: Images) -> None:
    assert cli("pull", images.busybox.reference).status == 0
    assert cli("run", "--name", "one", images.busybox.reference, "sh", "-c", "echo x > /x").status == 0
    assert cli("snapshot", "create", "one", "clean").out == "clean\n"
    forked = cli("fork", "--name", "two", "--json", "one").lines[0]
    assert forked["name"] == "two"
    assert cli("snapshot", "rollback", "one", "clean").status == 0
    assert [line["name"] for line in cli("snapshot", "ls", "--json", "one").lines] == ["clean"]
    assert cli("snapshot", "rm", "one", "clean").out == "clean\n"
    assert cli("snapshot", "rollback", "one", "clean").status == 1
    assert cli("rm", "one", "two").status == 0
    assert cli("check").status == 0


def test_a_database_that_is_built_anew_knows_what_lies_on_what(opened: pyctrd.Engine, images: Images) -> None:
    source = changed(opened, images)
    source.snapshot("kept")
    fork = source.fork()
    before = tree(opened, fork)
    assert fork._rooms.snapshotter is not None
    subprocess.run(["umount", "-l", str(rootfs(opened, fork))], check=False)
    opened.close()
    root = Path(os.environ["PYCTRD_ROOT"])
    for path in root.glob("pyctrd.db*"):
        path.unlink()
    with pyctrd.Engine() as again:
        assert all(finding.repaired for finding in again.check(repair=True))
        again.gc()
        found = again.containers.get(fork.id)
        assert differences(before, tree(again, found)) == []
        for container in again.containers.list():
            container.delete()
