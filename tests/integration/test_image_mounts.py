"""Images mounted in containers beside their own: what is seen of them, who holds them, and what a kill leaves."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import ConflictError, IntegrityError, InvalidError, NotFoundError
from pyctrd.runtime.mount_options import parse_mount
from pyctrd.runtime.mounts import ImageMount
from tests.children import Child
from tests.images import Images
from tests.integration.conftest import Cli
from tests.runtimes import ending

pytestmark = pytest.mark.root
DEADLINE_SECONDS = 60.0
TOOLS = "localhost/tools:1"


@pytest.fixture(params=["overlayfs", "native", "composefs"])
def engine(request: pytest.FixtureRequest, state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pyctrd.Engine]:
    """With one snapshotter after the other; its containers end with the test."""
    del state
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", request.param)
    with ending() as opened:
        yield opened


@pytest.fixture
def busybox(engine: pyctrd.Engine, images: Images) -> pyctrd.Image:
    """What containers are made from."""
    return engine.images.pull(images.busybox.reference)


@pytest.fixture
def tools(engine: pyctrd.Engine, busybox: pyctrd.Image) -> pyctrd.Image:
    """What is mounted: a file, a directory, links within it and out of it."""
    script = "mkdir -p /data/in; echo of the image > /data/in/file; ln -s in /data/near; ln -s /data/in /data/far"
    container = engine.containers.run(busybox, ["sh", "-c", script])
    assert container.wait(DEADLINE_SECONDS).exit_code == 0
    made = container.commit(TOOLS)
    container.delete()
    return made


def said(container: pyctrd.Container) -> str:
    """All that a container prints when it is started now."""
    before = container.logs()
    container.start()
    ended = container.wait(DEADLINE_SECONDS)
    assert ended.exit_code == 0, container.logs()
    return container.logs().removeprefix(before)


def mounts_of(root: Path) -> list[str]:
    """What is mounted beneath a directory."""
    targets = (line.split(" ")[1] for line in Path("/proc/self/mounts").read_text().splitlines())
    return [target for target in targets if target.startswith(str(root.resolve()))]


def leftovers(engine: pyctrd.Engine) -> list[str]:
    """What is left of image mounts, in the records and on disk."""
    root = Path(engine.info()["root"])
    on_disk = [path.name for path in (root / "snapshots").glob("mount-*")]
    recorded = [snapshot.key for snapshot in engine._rooms.database.snapshots.of_images()]
    return [*on_disk, *recorded, *mounts_of(root / "containers")]


def test_an_image_is_seen_read_only_in_whole_and_in_part(
    engine: pyctrd.Engine, busybox: pyctrd.Image, tools: pyctrd.Image
) -> None:
    script = (
        "cat /all/data/in/file /part/file /link/file /one; "
        "for d in /all /part /link; do touch $d/x 2>/dev/null && echo wrote; done; "
        "readlink /all/data/far; true"
    )
    container = engine.containers.create(
        busybox,
        ["sh", "-c", script],
        mounts=[
            f"type=image,source={TOOLS},target=/all",
            f"type=image,src={tools.manifest_digest},dst=/part,subpath=data/in",
            f"type=image,source={TOOLS},destination=/link,image-subpath=data/far,readonly",
            f"type=image,source={TOOLS},destination=/one,subpath=data/near/file",
        ],
    )
    assert said(container) == "of the image\n" * 4 + "/data/in\n"
    shown = {mount["destination"]: mount for mount in container.inspect()["mounts"]}
    assert (shown["/all"]["type"], shown["/all"]["image"], shown["/all"]["read_only"]) == ("image", TOOLS, True)
    container.delete()
    assert leftovers(engine) == []


def test_what_is_written_stays_with_the_container(
    engine: pyctrd.Engine, busybox: pyctrd.Image, tools: pyctrd.Image
) -> None:
    script = "cat /t/data/in/file; echo more >> /t/data/in/file"
    mount = f"type=image,source={TOOLS},target=/t,rw=true"
    container = engine.containers.create(busybox, ["sh", "-c", script], mounts=[mount])
    assert said(container) == "of the image\n"
    fork = container.fork()
    assert said(container) == "of the image\nmore\n"
    assert said(fork) == "of the image\nmore\n"
    assert tools.read_file("/data/in/file") == b"of the image\n"
    other = engine.containers.create(busybox, ["cat", "/t/data/in/file"], mounts=[mount])
    assert said(other) == "of the image\n"
    for one in (container, fork, other):
        one.delete()
    assert leftovers(engine) == []
    assert engine.check() == []


def test_a_fork_has_a_view_of_its_own(engine: pyctrd.Engine, busybox: pyctrd.Image, tools: pyctrd.Image) -> None:
    del tools
    mount = f"type=image,source={TOOLS},target=/t,subpath=data/in"
    container = engine.containers.create(busybox, ["cat", "/t/file"], mounts=[mount])
    fork = container.fork()
    container.delete()
    assert said(fork) == "of the image\n"
    fork.delete()
    assert leftovers(engine) == []


def test_an_image_is_held_while_it_is_mounted(
    cli: Cli, engine: pyctrd.Engine, busybox: pyctrd.Image, tools: pyctrd.Image
) -> None:
    container = engine.containers.create(
        busybox, ["cat", "/t/data/in/file"], name="holder", mounts=[f"type=image,source={TOOLS},target=/t"]
    )
    layer = str(tools.config.rootfs.diff_ids[-1])
    with pytest.raises(ConflictError, match="by container holder"):
        engine.images.remove(TOOLS)
    assert "by container holder" in cli("rmi", TOOLS).err
    engine.images.remove(TOOLS, force=True)
    engine.gc()
    kept = {
        one.name: one.reason
        for one in engine.gc(dry_run=True, all_namespaces=True).items
        if one.kind == "layer" and one.kept
    }
    assert kept[layer] == "container holder"
    assert said(container) == "of the image\n"
    container.delete()
    assert layer in {one.name for one in engine.gc(all_namespaces=True).items}
    assert leftovers(engine) == []


def test_images_are_mounted_again_after_a_reboot(
    engine: pyctrd.Engine, busybox: pyctrd.Image, tools: pyctrd.Image, state: Path
) -> None:
    del tools
    mounts = [f"type=image,source={TOOLS},target=/a", f"type=image,source={TOOLS},target=/b,rw=true,subpath=data"]
    container = engine.containers.create(
        busybox, ["sh", "-c", "cat /a/data/in/file /b/in/file; echo x >> /b/in/file"], mounts=mounts
    )
    assert said(container) == "of the image\n" * 2
    # What a reboot ends: mounts, and the state directory.
    for target in reversed(mounts_of(Path(engine.info()["root"]))):
        subprocess.run(["umount", target], check=True)
    for target in reversed(mounts_of(state)):
        subprocess.run(["umount", target], check=True)
    subprocess.run(["rm", "-rf", "--", *state.iterdir()], check=True)
    with pyctrd.Engine() as after:
        assert said(after.containers.get(container.id)) == "of the image\n" * 2 + "x\n"
        after.containers.get(container.id).delete()
        assert leftovers(after) == []
        assert after.check() == []


def test_a_link_that_a_container_puts_in_its_place_leads_nowhere(
    engine: pyctrd.Engine, busybox: pyctrd.Image, tools: pyctrd.Image
) -> None:
    del tools
    mounts = [
        f"type=image,source={TOOLS},target=/part,rw=true,subpath=data/in",
        f"type=image,source={TOOLS},target=/all,rw=true",
    ]
    container = engine.containers.create(busybox, ["ls", "/part"], mounts=mounts)
    # As a container could that has all of the same snapshot: runtimes follow links of a bind's source.
    snapshot = next(Path(container.inspect()["bundle_path"]).glob("images/0/data/in"), None)
    if snapshot is None:
        snapshot = Path(container.inspect()["mounts"][0]["source"])
    subprocess.run(["rm", "-rf", str(snapshot)], check=True)
    snapshot.symlink_to("/etc")
    with pytest.raises((IntegrityError, NotFoundError)):
        container.start()
    assert container.status.state == "created"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("type=image,target=/t", "source=IMAGE"),
        ("type=image,source=x,target=/t,subpath=/etc", "without"),
        ("type=image,source=x,target=/t,subpath=../etc", "without"),
        ("type=image,source=x,target=/t,rw=true,readonly", "contradict"),
        ("type=image,source=x,target=/t,rw=maybe", "true or false"),
        ("type=image,source=x,target=/t,subpaht=a", "did you mean subpath"),
        ("type=image,source=x,target=/", "absolute path"),
    ],
)
def test_a_wrong_mount_is_told(text: str, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        parse_mount(text)
    assert parse_mount("type=image,src=x:1,dst=/t,readwrite=true,subpath=a") == ImageMount(
        "x:1", "/t", writable=True, subpath="a"
    )


def test_what_is_missing_is_told_and_nothing_is_left(
    engine: pyctrd.Engine, busybox: pyctrd.Image, tools: pyctrd.Image
) -> None:
    del tools
    with pytest.raises(NotFoundError, match="image not found: localhost/none:1"):
        engine.containers.create(busybox, ["true"], mounts=["type=image,source=localhost/none:1,target=/t"])
    with pytest.raises(NotFoundError, match="has no data/nothing"):
        engine.containers.create(
            busybox, ["true"], mounts=[f"type=image,source={TOOLS},target=/t,subpath=data/nothing"]
        )
    assert engine.containers.list() == []
    assert leftovers(engine) == []


def test_commands_pull_what_is_to_be_mounted(cli: Cli, engine: pyctrd.Engine, images: Images) -> None:
    del engine
    mount = f"type=image,source={images.busybox.reference},target=/t"
    done = cli("run", "--rm", "--mount", mount, images.busybox.reference, "ls", "/t/bin/busybox")
    assert (done.status, done.out) == (0, "/t/bin/busybox\n"), done.err


KILLED = """
import os, sys, signal
import pyctrd
from pyctrd.flows import image_mounts

where, mount = sys.argv[1:3]
real = getattr(image_mounts, where)

def die(*words, **more):
    if os.environ.get("AFTER"):
        real(*words, **more)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(image_mounts, where, die)
with pyctrd.Engine() as engine:
    engine.containers.create(sys.argv[3], ["true"], mounts=[mount])
"""


@pytest.mark.parametrize("after", ["", "1"])
@pytest.mark.parametrize("where", ["_record", "_make", "_source", "_write"])
def test_a_kill_at_any_step_leaves_nothing(
    engine: pyctrd.Engine,
    busybox: pyctrd.Image,
    tools: pyctrd.Image,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    after: str,
) -> None:
    del tools
    monkeypatch.setenv("AFTER", after)
    mount = f"type=image,source={TOOLS},target=/t,rw=true"
    with Child(KILLED, where, mount, busybox.name) as child:
        assert child.hear() == ""
    with pyctrd.Engine() as next_one:
        assert next_one.containers.list() == []
        assert leftovers(next_one) == []
        assert next_one.check() == []
