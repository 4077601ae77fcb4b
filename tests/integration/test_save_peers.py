"""Save and its peers: docker, containerd, podman, skopeo, crane and umoci read what we write, and we what they do."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyctrd
from pyctrd.oci.platform import Platform
from tests.archives import Tar
from tests.images import BuiltImage, build_image, build_index, busybox_tar
from tests.integration import peers
from tests.integration.peers import Tool, run, skopeo
from tests.registries import Registry

pytestmark = pytest.mark.root

HOST = str(Platform.host())
OTHER = "linux/s390x"
SHARED = Tar().file("shared", b"by both").whiteout("etc/motd").build()
# The same layer twice, and one that is compressed otherwise.
FIRST = build_image([busybox_tar(), SHARED, SHARED], config={"Cmd": ["sh"], "Env": ["PATH=/bin"]})
SECOND = build_image([busybox_tar(), Tar().file("only", b"here").build()], compression=["zstd", "none"])
NAMES = ["docker.io/local/first:1", "docker.io/local/first:2", "docker.io/local/second:1"]
TREES: dict[str, dict[str, bytes | None]] = {
    "first": {"shared": b"by both", "etc/passwd": None},
    "second": {"only": b"here", "etc/motd": b"hello from a layer\n"},
}


@pytest.fixture(name="docker", scope="module")
def _docker() -> Iterator[Tool]:
    if why := peers.lacking("docker", "dockerd", "containerd", "runc"):
        pytest.skip(why)
    with peers.docker() as tool:
        yield tool


@pytest.fixture(name="ctr", scope="module")
def _ctr() -> Iterator[Tool]:
    if why := peers.lacking("containerd", "ctr"):
        pytest.skip(why)
    with peers.containerd() as tool:
        yield tool


@pytest.fixture(name="podman")
def _podman() -> Iterator[Tool]:
    if why := peers.lacking("podman"):
        pytest.skip(why)
    with peers.podman() as tool:
        yield tool


@pytest.fixture(name="stored")
def _stored(engine: pyctrd.Engine, tmp_path: Path) -> pyctrd.Engine:
    """An engine with two images, one of them under two names."""
    put(engine, FIRST, NAMES[0], tmp_path / "first")
    put(engine, FIRST, NAMES[1], tmp_path / "first")
    put(engine, SECOND, NAMES[2], tmp_path / "second")
    return engine


def put(engine: pyctrd.Engine, built: BuiltImage, name: str, layout: Path, **options: str) -> pyctrd.Image:
    built.write_layout(layout)
    (image,) = engine.images.load(layout, name=name, platform=options.get("platform"))
    return image


def config_id(built: BuiltImage) -> str:
    """What Docker and Podman call an image."""
    return built.blobs[0].digest


def assert_contents(image: pyctrd.Image, which: str) -> None:
    """Fail where an image that came back has something else."""
    for name, content in TREES[which].items():
        assert content is None or image.read_file(f"/{name}") == content
    assert (image.config.rootfs, image.config.cmd, image.config.env) == {
        "first": (image.config.rootfs, ("sh",), ("PATH=/bin",)),
        "second": (image.config.rootfs, (), ()),
    }[which]
    built = FIRST if which == "first" else SECOND
    wanted = json.loads(built.blobs[0].content)["rootfs"]["diff_ids"]
    assert [str(diff_id) for diff_id in image.config.rootfs.diff_ids] == wanted


def assert_loaded(engine: pyctrd.Engine, saved: Path, names: list[str]) -> None:
    """Fail where a peer's archive does not give the images."""
    with pyctrd.Engine(namespace=f"from-{saved.name}") as other:
        loaded = {image.name: image for image in other.images.load(saved)}
        assert sorted(loaded) == sorted(names)
        for name, image in loaded.items():
            assert_contents(image, "first" if "first" in name else "second")
        assert other.check() == []


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_docker_reads_and_writes(stored: pyctrd.Engine, docker: Tool, tmp_path: Path, form: str) -> None:
    # Docker 20.10 knows no zstd.
    names = NAMES if form == "docker-archive" else NAMES[:2]
    stored.images.save(names, tmp_path / "saved", format=form)  # type: ignore[arg-type]
    docker("load", "-i", str(tmp_path / "saved"))
    for name in names:
        said = json.loads(docker("image", "inspect", name))[0]
        assert said["Id"] == config_id(FIRST if "first" in name else SECOND)
    docker("save", "-o", str(tmp_path / "by-docker"), *names)
    assert_loaded(stored, tmp_path / "by-docker", names)
    with (
        subprocess.Popen(["cat", str(tmp_path / "by-docker")], stdout=subprocess.PIPE) as pipe,
        pyctrd.Engine(namespace="streamed") as other,
    ):
        assert pipe.stdout is not None
        assert sorted(image.name for image in other.images.load(pipe.stdout)) == sorted(names)
    docker("rmi", *names)


def test_what_docker_writes_is_read_in_the_old_form_too(stored: pyctrd.Engine, docker: Tool, tmp_path: Path) -> None:
    stored.images.save(NAMES, tmp_path / "saved", format="docker-archive")
    docker("load", "-i", str(tmp_path / "saved"))
    docker("save", "-o", str(tmp_path / "new"), *NAMES)
    without_list(tmp_path / "new", tmp_path / "old")
    assert_loaded(stored, tmp_path / "old", NAMES)
    # Ours without its list is what Docker before 1.10 read; today's reads that still.
    docker("rmi", *NAMES)
    without_list(tmp_path / "saved", tmp_path / "ours")
    assert_loaded(stored, tmp_path / "ours", NAMES)
    docker("load", "-i", str(tmp_path / "ours"))
    said = json.loads(docker("image", "inspect", *NAMES))
    assert [image["RootFS"]["Layers"] for image in said] == [
        json.loads(built.blobs[0].content)["rootfs"]["diff_ids"] for built in (FIRST, FIRST, SECOND)
    ]
    docker("rmi", *NAMES)


def without_list(archive: Path, target: Path) -> None:
    """An archive in which only the old form is left."""
    with tarfile.open(archive) as source, tarfile.open(target, "w") as made:
        for member in source:
            if member.name != "manifest.json":
                made.addfile(member, source.extractfile(member) if member.isreg() else None)


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_podman_reads_and_writes(stored: pyctrd.Engine, podman: Tool, tmp_path: Path, form: str) -> None:
    stored.images.save(NAMES, tmp_path / "saved", format=form)  # type: ignore[arg-type]
    podman("load", "-q", "-i", str(tmp_path / "saved"))
    for name in NAMES:
        said = json.loads(podman("image", "inspect", name))[0]
        assert f"sha256:{said['Id']}" == config_id(FIRST if "first" in name else SECOND)
    podman("save", "-q", "-m", "-o", str(tmp_path / "by-podman"), *NAMES)
    assert_loaded(stored, tmp_path / "by-podman", NAMES)
    podman("save", "-q", "--format", "oci-archive", "-o", str(tmp_path / "by-podman-oci"), NAMES[2])
    assert_loaded(stored, tmp_path / "by-podman-oci", NAMES[2:])


def test_podman_reads_one_image_as_it_was(stored: pyctrd.Engine, podman: Tool, tmp_path: Path) -> None:
    stored.images.save(NAMES[0], tmp_path / "archive")
    podman("load", "-q", "-i", str(tmp_path / "archive"))
    assert json.loads(podman("image", "inspect", NAMES[0]))[0]["Digest"] == FIRST.digest
    stored.images.save(NAMES[2], tmp_path / "layout", format="oci")
    image = podman("pull", "-q", f"oci:{tmp_path / 'layout'}:1").strip()
    assert f"sha256:{image}" == config_id(SECOND)


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_skopeo_reads_and_writes(stored: pyctrd.Engine, tmp_path: Path, form: str) -> None:
    for name, built in ((NAMES[0], FIRST), (NAMES[2], SECOND)):
        saved = tmp_path / f"saved-{built.digest[7:15]}"
        stored.images.save(name, saved, format=form)  # type: ignore[arg-type]
        source = f"{form}:{saved}:{name}" if form == "docker-archive" else f"{form}:{saved}:1"
        copied = tmp_path / f"copied-{built.digest[7:15]}"
        skopeo(source, f"oci:{copied}:{name}")
        assert_loaded(stored, copied, [name])
        said = json.loads(run("skopeo", "inspect", "--raw", source))
        if form != "docker-archive":
            assert said == json.loads(built.manifest.content)
    if form == "docker-archive":
        stored.images.save(NAMES, tmp_path / "several", format="docker-archive")
        listed = json.loads(run("skopeo", "list-tags", f"docker-archive:{tmp_path / 'several'}"))
        assert sorted(listed["Tags"]) == NAMES


def test_containerd_reads_and_writes(stored: pyctrd.Engine, ctr: Tool, tmp_path: Path) -> None:
    stored.images.save(NAMES, tmp_path / "saved")
    ctr("images", "import", "--no-unpack", str(tmp_path / "saved"))
    listed = {line.split()[0]: line.split()[2] for line in ctr("images", "ls").splitlines()[1:]}
    assert listed == dict(zip(NAMES, (FIRST.digest, FIRST.digest, SECOND.digest), strict=True))
    ctr("images", "export", str(tmp_path / "by-containerd"), *NAMES)
    assert_loaded(stored, tmp_path / "by-containerd", NAMES)
    ctr("images", "rm", *NAMES)


def test_umoci_reads_and_writes(stored: pyctrd.Engine, tmp_path: Path) -> None:
    if why := peers.lacking("umoci"):
        pytest.skip(why)
    layout = tmp_path / "layout"
    stored.images.save(NAMES[:2], layout, format="oci")
    assert run("umoci", "ls", "--layout", str(layout)).split() == ["1", "2"]
    run("umoci", "unpack", "--image", f"{layout}:2", str(tmp_path / "bundle"))
    assert (tmp_path / "bundle/rootfs/shared").read_bytes() == b"by both"
    assert not (tmp_path / "bundle/rootfs/etc/motd").exists()
    run("umoci", "config", "--image", f"{layout}:1", "--tag", "worker", "--config.user", "app")
    with pyctrd.Engine(namespace="other") as other:
        image = other.images.load(f"oci:{layout}:worker", name="local/worker")[0]
        assert (image.name, image.config.user) == ("docker.io/local/worker:worker", "app")
    # Its own images have tags alone: one that is saved under a tag takes the place of that.
    put(stored, SECOND, "local/third:worker", tmp_path / "second")
    stored.images.save("local/third:worker", layout, format="oci")
    assert sorted(run("umoci", "ls", "--layout", str(layout)).split()) == ["1", "2", "worker"]


def test_crane_reads_and_writes(stored: pyctrd.Engine, registry: Registry, tmp_path: Path) -> None:
    if why := peers.lacking("crane"):
        pytest.skip(why)
    stored.images.save(NAMES[0], tmp_path / "layout", format="oci")
    stored.images.save(NAMES[0], tmp_path / "docker.tar", format="docker-archive")
    stored.images.save(NAMES[0], tmp_path / "oci.tar", format="oci-archive")
    run("crane", "validate", "--tarball", str(tmp_path / "docker.tar"))
    for what in ("layout", "docker.tar", "oci.tar"):
        reference = f"{registry.host}/crane/{what.replace('.', '-')}:1"
        run("crane", "push", "--insecure", str(tmp_path / what), reference)
        with pyctrd.Engine(namespace=f"pulled-{what}") as other:
            image = other.images.pull(reference)
            assert_contents(image, "first")
            if what == "layout":
                assert image.digest == FIRST.digest
        for form in ("tarball", "oci"):
            target = tmp_path / f"by-crane-{form}-{what}"
            run("crane", "pull", "--insecure", "--format", form, reference, str(target))
            with pyctrd.Engine(namespace=f"{form}-{what}") as other:
                assert_contents(other.images.load(target, name="local/crane:1")[0], "first")


def test_an_index_with_one_platform_of_several_is_read(
    engine: pyctrd.Engine, ctr: Tool, podman: Tool, tmp_path: Path
) -> None:
    made = {name: build_image([Tar().file("platform", name.encode()).build()], platform=name) for name in (OTHER, HOST)}
    built = build_index(made)
    name = put(engine, built, "docker.io/local/multi:1", tmp_path / "in").name
    engine.images.save(name, tmp_path / "saved")
    engine.images.save(name, tmp_path / "layout", format="oci")
    skopeo(f"oci-archive:{tmp_path / 'saved'}:1", f"oci:{tmp_path / 'copied'}:x")
    assert json.loads((tmp_path / "copied/index.json").read_bytes())["manifests"][0]["digest"] == made[HOST].digest
    skopeo(f"oci:{tmp_path / 'layout'}:1", f"docker-archive:{tmp_path / 'copied.tar'}:{name}")
    podman("load", "-q", "-i", str(tmp_path / "saved"))
    said = json.loads(podman("image", "inspect", name))[0]
    assert f"sha256:{said['Id']}" == config_id(made[HOST])
    ctr("images", "import", "--no-unpack", str(tmp_path / "saved"))
    assert built.digest in ctr("images", "ls")
    ctr("images", "rm", name)
    # umoci takes no index: the platform's manifest alone is for it.
    engine.images.save(name, tmp_path / "alone", format="oci", platform=HOST)
    if not peers.lacking("umoci"):
        run("umoci", "unpack", "--image", f"{tmp_path / 'alone'}:1", str(tmp_path / "bundle"))
        assert (tmp_path / "bundle/rootfs/platform").read_bytes() == HOST.encode()
