"""What convert wrote, as other tools read it: skopeo, podman, buildah and containerd, from a real registry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pyctrd
from tests.archives import Tar
from tests.chunked import decompress_zstd, read_files, read_table, without_places
from tests.content.stores import blob_path
from tests.images import Images, Pushed, build_image, busybox_tar
from tests.integration import peers
from tests.registries import Registry
from tests.relays import Relay
from tests.trees import Facts, differences, read_tree

pytestmark = pytest.mark.root

PACKINGS = ("gzip", "zstd", "zstd:chunked", "none")
_STORAGE = """[storage]
driver = "overlay"
graphroot = "{store}/root"
runroot = "{short}/run"
[storage.options]
pull_options = {{enable_partial_images = "{partial}", use_hard_links = "false", ostree_repos = ""}}
"""


def needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def run(*words: str, **environment: str) -> str:
    """A program's output."""
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@pytest.fixture(name="source")
def _source(images: Images) -> Pushed:
    """An image with files of several chunks, holes, links and whiteouts."""
    first = Tar().directory("d", mode=0o750, uid=7, gid=8).file("d/gone", b"1").file("d/old", b"old" * 900)
    first.file("holes", b"a" * 5000 + bytes(20_000) + os.urandom(200_000)).hardlink("linked", "d/old")
    second = (
        Tar()
        .directory("d", mode=0o750, uid=7, gid=8)
        .whiteout("d/gone")
        .file("d/new", b"new", xattrs={"user.note": b"\0\xff"})
        .symlink("s", "d/new")
    )
    return images.push(build_image([busybox_tar(), first.build(), second.build()], config={"Cmd": ["sh"]}))


@pytest.fixture(name="converted")
def _converted(
    source: Pushed, registry: Registry, engine: pyctrd.Engine, root: Path
) -> Callable[[str], tuple[pyctrd.Image, str]]:
    """Converts the image and puts it into the registry: the image, and its repository and tag there."""

    def convert(packing: str) -> tuple[pyctrd.Image, str]:
        before = engine.images.pull(source.reference)
        image = engine.images.convert(before.name, "local/converted:1", compression=packing)  # type: ignore[arg-type] # one of them
        repository = f"converted/{packing.replace(':', '-')}-{image.manifest_digest[7:19]}"
        for blob in (image.manifest.config, *image.manifest.layers):
            registry.put_blob(repository, str(blob.digest), blob_path(root, str(blob.digest)).read_bytes())
        body = blob_path(root, image.manifest_digest).read_bytes()
        registry.put_manifest(repository, "1", image.manifest.media_type, body)
        return image, f"{repository}:1"

    return convert


@pytest.fixture(name="expected")
def _expected(source: Pushed, engine: pyctrd.Engine, tmp_path: Path) -> dict[bytes, Facts]:
    """The image's files, as we mount them."""
    target = tmp_path / "expected"
    target.mkdir()
    with engine.images.pull(source.reference).mounted(target):
        return read_tree(target)


@pytest.mark.parametrize("packing", PACKINGS)
def test_skopeo_inspects_and_copies_it(
    converted: Callable[[str], tuple[pyctrd.Image, str]], registry: Registry, tmp_path: Path, packing: str
) -> None:
    needs("skopeo")
    image, name = converted(packing)
    skopeo = ("skopeo", "--insecure-policy")
    told = json.loads(run(*skopeo, "inspect", "--tls-verify=false", f"docker://{registry.host}/{name}"))
    assert told["Layers"] == [str(layer.digest) for layer in image.manifest.layers]
    layout = tmp_path / "layout"
    copy = ("copy", "-q", "--src-tls-verify=false", "--preserve-digests")
    kept = ("--dest-oci-accept-uncompressed-layers",)
    run(*skopeo, *copy, *kept, f"docker://{registry.host}/{name}", f"oci:{layout}:1")
    for blob in (image.manifest.config, *image.manifest.layers):
        assert (layout / "blobs/sha256" / blob.digest.hex).stat().st_size == blob.size


@pytest.mark.parametrize("packing", PACKINGS)
def test_our_own_pull_of_it_gives_the_source_entry_by_entry(
    converted: Callable[[str], tuple[pyctrd.Image, str]],
    expected: dict[bytes, Facts],
    registry: Registry,
    tmp_path: Path,
    packing: str,
) -> None:
    image, name = converted(packing)
    target = tmp_path / "mounted"
    target.mkdir()
    with pyctrd.Engine(root=tmp_path / "another") as other:
        again = other.images.pull(f"{registry.host}/{name}")
        assert again.digest == image.digest
        with again.mounted(target):
            assert differences(expected, read_tree(target)) == []


@pytest.mark.parametrize("snapshotter", ["composefs", "erofs", "overlayfs"])
def test_our_own_pull_of_a_new_version_fetches_what_is_new(
    images: Images, registry: Registry, root: Path, snapshotter: str, tmp_path: Path
) -> None:
    told = []
    same = {f"file-{number}": os.urandom(300_000) for number in range(10)}
    with pyctrd.Engine(namespace="maker") as maker:
        for version in ("1", "2"):
            tar = Tar()
            for name, content in (same | {"new": os.urandom(50_000)}).items():
                tar.file(name, content)
            before = maker.images.pull(images.push(build_image([tar.build()])).reference)
            image = maker.images.convert(before.name, f"local/made:{version}", compression="zstd:chunked")
            for blob in (image.manifest.config, *image.manifest.layers):
                registry.put_blob("parts/ours", str(blob.digest), blob_path(root, str(blob.digest)).read_bytes())
            body = blob_path(root, image.manifest_digest).read_bytes()
            registry.put_manifest("parts/ours", version, image.manifest.media_type, body)
    (tmp_path / "mounted").mkdir()
    with (
        Relay(registry.host) as relay,
        pyctrd.Engine(namespace="taker", snapshotter=snapshotter, keep_blobs=False) as taker,
    ):
        for version in ("1", "2"):
            relay.told_bytes()
            image = taker.images.pull(f"{relay.host}/parts/ours:{version}")
            told.append(relay.told_bytes())
            with image.mounted(tmp_path / "mounted") as target:
                assert {path.name: path.read_bytes() for path in target.iterdir() if path.name != "new"} == same
        assert taker.check(digests=True) == []
    assert told[0] > 3_000_000
    assert told[1] < 500_000


@pytest.fixture(name="podman")
def _podman(tmp_path: Path, state: Path) -> Iterator[Callable[[str, str, str], str]]:
    """Pulls with podman or buildah, into a store of its own for each setting: where the image's files are."""
    Path(os.environ["REGISTRY_AUTH_FILE"]).write_text("{}")  # it wants the file that is named
    mounted: list[tuple[list[str], str]] = []

    def pull(tool: str, reference: str, partial: str) -> str:
        needs(tool)
        config = tmp_path / f"storage-{tool}-{partial}.conf"
        config.write_text(
            _STORAGE.format(store=tmp_path / f"{tool}-{partial}", short=state / f"{tool}-{partial}", partial=partial)
        )
        # Which blobs it has seen elsewhere is remembered in its home.
        environment = {"CONTAINERS_STORAGE_CONF": str(config), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
        if tool == "buildah":
            run("buildah", "pull", "-q", "--tls-verify=false", reference, **environment)
            name = run("buildah", "from", "--pull-never", reference, **environment).strip()
            mounted.append((["buildah", "umount", name], str(config)))
            return run("buildah", "mount", name, **environment).strip()
        words = ["podman", "--tmpdir", str(tmp_path / "tmp"), "--events-backend", "none"]
        run(*words, "pull", "-q", "--tls-verify=false", reference, **environment)
        mounted.append(([*words, "image", "umount", reference], str(config)))
        return run(*words, "image", "mount", reference, **environment).strip()

    yield pull
    for words, config in mounted:
        subprocess.run(words, env=os.environ | {"CONTAINERS_STORAGE_CONF": config}, capture_output=True, check=False)


# A mount of theirs has what the runtime will mount over; these are of the mount, not of the image.
MOUNTS = frozenset({b"."})


def seen(path: str) -> dict[bytes, Facts]:
    return {name: facts for name, facts in read_tree(Path(path)).items() if name not in MOUNTS}


@pytest.mark.parametrize("tool", ["podman", "buildah"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_podman_and_buildah_have_the_same_files(
    converted: Callable[[str], tuple[pyctrd.Image, str]],
    expected: dict[bytes, Facts],
    registry: Registry,
    podman: Callable[[str, str, str], str],
    packing: str,
    tool: str,
) -> None:
    _, name = converted(packing)
    found = seen(podman(tool, f"{registry.host}/{name}", "false"))
    wanted = {name: facts for name, facts in expected.items() if name not in MOUNTS}
    assert differences(wanted, found) == []


def test_podman_fetches_single_files_by_the_table(
    converted: Callable[[str], tuple[pyctrd.Image, str]],
    expected: dict[bytes, Facts],
    registry: Registry,
    podman: Callable[[str, str, str], str],
) -> None:
    image, name = converted("zstd:chunked")
    with Relay(registry.host) as relay:
        found = seen(podman("podman", f"{relay.host}/{name}", "true"))
        asked = [request for request in relay.asked() if "/blobs/" in request.path]
    for layer in image.manifest.layers:
        ranges = [request.range for request in asked if request.path.endswith(str(layer.digest))]
        # The table first, then what it names: never the whole.
        offset, length, *_ = layer.annotations["io.containers.zstd-chunked.manifest-position"].split(":")
        assert ranges[0] == f"bytes={offset}-{int(offset) + int(length) - 1}"
        assert len(ranges) > 1
        assert None not in ranges
    # Podman 4.3 gives what it fetches so the time of the fetch, and directories to root: also of images of its own.
    wanted = {name: _as_root(facts) for name, facts in expected.items() if name not in MOUNTS}
    found = {name: _as_root(facts) for name, facts in found.items()}
    assert differences(wanted, found, ignore=frozenset({"mtime_ns"})) == []


def _as_root(facts: Facts) -> Facts:
    return replace(facts, uid=0, gid=0) if facts.type == "directory" else facts


def test_the_table_says_what_skopeo_says(
    source: Pushed,
    converted: Callable[[str], tuple[pyctrd.Image, str]],
    root: Path,
    tmp_path: Path,
) -> None:
    needs("skopeo")
    image, _ = converted("zstd:chunked")
    layout = tmp_path / "layout"
    words = ("--src-tls-verify=false", "--dest-compress-format", "zstd:chunked", f"docker://{source.reference}")
    run("skopeo", "--insecure-policy", "copy", "-q", *words, f"oci:{layout}:1")
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(_blob(layout, index["manifests"][0]["digest"]))
    for theirs, layer in zip(manifest["layers"], image.manifest.layers, strict=True):
        blob, own = _blob(layout, theirs["digest"]), blob_path(root, str(layer.digest)).read_bytes()
        # skopeo 1.9 loses zeros at an archive's end.
        assert decompress_zstd(blob).rstrip(b"\0") == decompress_zstd(own).rstrip(b"\0")
        table, said = read_table(own, layer.annotations), read_table(blob, theirs["annotations"])
        assert [_comparable(entry) for entry in without_places(table)] == [
            _comparable(entry) for entry in without_places(said)
        ]
        assert read_files(own, table)


def _blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()


def _comparable(entry: dict[str, object]) -> dict[str, object]:
    """Times without what they leave open: the zone, and the beginning of Go's calendar for one that is not set."""
    times = {key: str(value).replace("+00:00", "Z") for key, value in entry.items() if key.endswith("time")}
    set_times = {key: value for key, value in times.items() if not value.startswith("0001-")}
    return {key: value for key, value in entry.items() if key not in times} | set_times


@pytest.mark.parametrize("packing", PACKINGS)
def test_containerd_unpacks_it(
    converted: Callable[[str], tuple[pyctrd.Image, str]],
    expected: dict[bytes, Facts],
    registry: Registry,
    tmp_path: Path,
    packing: str,
) -> None:
    needs("containerd", "ctr")
    _, name = converted(packing)
    target = tmp_path / "containerd"
    target.mkdir()
    reference = f"{registry.host}/{name}"
    with peers.containerd() as ctr:
        ctr("images", "pull", "--plain-http", reference)
        ctr("images", "mount", reference, str(target))
        found = seen(str(target))
        ctr("images", "unmount", "--rm", str(target))
    wanted = {name: facts for name, facts in expected.items() if name not in MOUNTS}
    assert differences(wanted, found) == []
