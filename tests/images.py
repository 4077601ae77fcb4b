"""Small real images, made with no network: from Debian's busybox-static and from tars of the tests' own."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pyctrd.oci.media_types import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
)
from pyctrd.oci.platform import Platform
from tests.archives import Tar, compress_gzip, compress_zstd
from tests.registries import Registry

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda content: content,
    "gzip": compress_gzip,
    "zstd": compress_zstd,
}
_OCI_LAYERS = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
_DOCKER_LAYERS = {
    "none": "application/vnd.docker.image.rootfs.diff.tar",
    "gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "zstd": "application/vnd.docker.image.rootfs.diff.tar.zstd",
}
# cap_net_bind_service=ep as the kernel stores it: version 2, effective, two words each.
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
APPLETS = [
    "cat",
    "chmod",
    "cp",
    "date",
    "dd",
    "df",
    "echo",
    "env",
    "expr",
    "false",
    "head",
    "hostname",
    "id",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mount",
    "nproc",
    "printenv",
    "ps",
    "pwd",
    "rm",
    "seq",
    "sh",
    "sleep",
    "stat",
    "stty",
    "tail",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "tty",
    "uname",
    "wc",
    "whoami",
    "yes",
]


@dataclass(frozen=True)
class Blob:
    """Bytes with a media type."""

    media_type: str
    content: bytes = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """sha256 of the bytes."""
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    @property
    def descriptor(self) -> dict[str, Any]:
        """As JSON documents carry it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.content)}


@dataclass(frozen=True)
class BuiltImage:
    """An image in memory.

    Attributes:
        manifest: What a reference names: a manifest, or an index.
        blobs: Everything that the registry must have before.
        children: Of an index, the images.
        tars: The uncompressed layers, lowest first.
    """

    manifest: Blob
    blobs: tuple[Blob, ...] = ()
    children: tuple[BuiltImage, ...] = ()
    tars: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def digest(self) -> str:
        """Of the manifest."""
        return self.manifest.digest

    @property
    def layers(self) -> tuple[Blob, ...]:
        """The layers' blobs, lowest first."""
        return self.blobs[1:]

    def push(self, registry: Registry, repository: str, *, tag: str | None = None) -> str:
        """Put it into a registry; returns the reference."""
        for child in self.children:
            child.push(registry, repository)
        for blob in self.blobs:
            registry.put_blob(repository, blob.digest, blob.content)
        target = tag or self.digest
        registry.put_manifest(repository, target, self.manifest.media_type, self.manifest.content)
        return f"{registry.host}/{repository}{':' if tag else '@'}{target}"

    def with_diff_ids(self, diff_ids: Sequence[str], *, layers: Sequence[Blob] | None = None) -> BuiltImage:
        """The same layers (or others) under a config that claims other diff_ids."""
        config, manifest = json.loads(self.blobs[0].content), json.loads(self.manifest.content)
        config["rootfs"]["diff_ids"] = list(diff_ids)
        described = Blob(self.blobs[0].media_type, _json(config))
        kept = self.layers if layers is None else tuple(layers)
        manifest |= {"config": described.descriptor, "layers": [layer.descriptor for layer in kept]}
        return BuiltImage(Blob(self.manifest.media_type, _json(manifest)), (described, *kept), tars=self.tars)

    def write_layout(self, directory: Path, *, tag: str = "latest") -> None:
        """Write it as an OCI layout, for skopeo and umoci.

        Spec:
            image-spec v1.1 image-layout.md.
        """
        blobs = directory / "blobs/sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        for blob in (self.manifest, *self.blobs, *(b for child in self.children for b in child.blobs)):
            (blobs / blob.digest.removeprefix("sha256:")).write_bytes(blob.content)
        for child in self.children:
            (blobs / child.digest.removeprefix("sha256:")).write_bytes(child.manifest.content)
        entry = self.manifest.descriptor | {"annotations": {"org.opencontainers.image.ref.name": tag}}
        (directory / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [entry]}))


def build_image(
    tars: Sequence[bytes],
    *,
    compression: str | Sequence[str] = "gzip",
    config: Mapping[str, Any] | None = None,
    platform: str = "",
    docker: bool = False,
) -> BuiltImage:
    """An image of some layers.

    Args:
        tars: Uncompressed layers, lowest first.
        compression: "none", "gzip" or "zstd", for all or for each.
        config: The config's ``config`` object: Env, Cmd, …
        platform: ``os/architecture``; the host's by default.
        docker: Docker's media types instead of OCI's.
    """
    forms = [compression] * len(tars) if isinstance(compression, str) else list(compression)
    types = _DOCKER_LAYERS if docker else _OCI_LAYERS
    layers = [Blob(types[form], COMPRESSORS[form](tar)) for form, tar in zip(forms, tars, strict=True)]
    made_for = Platform.parse(platform) if platform else Platform.host()
    body = {
        "architecture": made_for.architecture,
        "os": made_for.os,
        "created": "2024-01-01T00:00:00Z",
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [Blob("", tar).digest for tar in tars]},
    }
    if made_for.variant:
        body["variant"] = made_for.variant
    described = Blob(DOCKER_CONFIG if docker else OCI_CONFIG, _json(body))
    manifest_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    manifest = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": described.descriptor,
        "layers": [layer.descriptor for layer in layers],
    }
    return BuiltImage(Blob(manifest_type, _json(manifest)), (described, *layers), tars=tuple(tars))


def build_index(images: Mapping[str, BuiltImage]) -> BuiltImage:
    """An index of images by platform, in the mapping's order."""
    entries = []
    for name, image in images.items():
        platform = Platform.parse(name)
        described = {"os": platform.os, "architecture": platform.architecture}
        if platform.variant:
            described["variant"] = platform.variant
        entries.append(image.manifest.descriptor | {"platform": described})
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return BuiltImage(Blob(OCI_INDEX, _json(body)), children=tuple(images.values()))


def busybox_tar(applets: Sequence[str] = APPLETS) -> bytes:
    """A root file system of Debian's busybox-static and links to it: enough to run a shell."""
    program = shutil.which("busybox")
    if program is None:
        raise FileNotFoundError("busybox: install busybox-static")
    tar = Tar()
    for name in ("bin", "dev", "etc", "home", "home/app", "proc", "root", "run", "sys", "usr", "usr/bin", "var"):
        tar.directory(name, uid=1000 if name == "home/app" else 0, gid=1000 if name == "home/app" else 0)
    tar.directory("tmp", mode=0o1777)
    tar.file("bin/busybox", Path(program).read_bytes(), mode=0o755)
    for applet in applets:
        tar.symlink(f"bin/{applet}", "busybox")
    tar.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n")
    tar.file("etc/group", b"root:x:0:\napp:x:1000:\naudio:x:29:app\n")
    tar.file("etc/os-release", b'NAME="busybox"\nID=busybox\n')
    tar.file("etc/motd", b"hello from a layer\n")
    tar.file("bin/no-interpreter", b"#!/does/not/exist\n", mode=0o755)
    tar.file("bin/not-executable", b"#!/bin/sh\n", mode=0o644)
    return tar.build()


def tree_tars() -> list[bytes]:
    """Three layers that have between them everything that a layer can say."""
    base = (
        Tar()
        .directory("a", mode=0o750, uid=1000, gid=1001)
        .file("a/file", b"first\n", mode=0o640, uid=12, gid=34)
        .file("a/gone", b"to be removed\n")
        .file("a/set-id", b"x", mode=0o6755)
        .hardlink("a/linked", "a/file")
        .symlink("a/absolute", "/a/file")
        .symlink("a/dangling", "nowhere")
        .directory("cleared", mode=0o700)
        .file("cleared/old", b"old")
        .directory("cleared/under")
        .file("cleared/under/deep", b"deep")
        .directory("replaced")
        .file("replaced/inside", b"inside")
        .directory("sticky", mode=0o1777)
        .fifo("pipe")
        .device("null", stat.S_IFCHR, 1, 3)
        .device("loop", stat.S_IFBLK, 7, 300)
        .file("long/" + "/".join(["directory-" + "x" * 60] * 4) + "/file", b"deep down")
        .file("umlaut-\xfc", b"utf-8")
        .file("empty")
        .file("attributes", b"x", xattrs={"user.note": b"value \x00\xff binary", "security.capability": CAPABILITY})
        .file("nanoseconds", b"x", pax={"mtime": b"1700000000.123456789"})
        .file("ancient", b"x", mtime=0)
        .file("far-owner", b"x", uid=3_000_000, gid=4_000_000)
        .sparse("sparse", 1 << 20, [(0, b"head" * 128), (512 * 1024, b"middle--" * 192), ((1 << 20) - 4, b"tail")])
    )
    middle = (
        Tar()
        .directory("a", mode=0o711, uid=1, gid=2)
        .whiteout("a/gone")
        .file("cleared/new", b"new")
        .opaque("cleared")
        .file("replaced", b"a file now")
        .file("implied/parent/file", b"its directories are not listed")
        .file("a/file", b"second\n", mode=0o600)
    )
    top = Tar().hardlink("a/again", "a/set-id").whiteout("empty").directory("empty").file("empty/now", b"a directory")
    return [base.build(), middle.build(), top.build()]


@dataclass(frozen=True)
class Pushed:
    """An image that a registry serves."""

    reference: str
    built: BuiltImage


class Images:
    """The images of a test session, each built and pushed when it is first asked for.

    Args:
        registry: Where they are pushed.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._pushed = 0

    @cached_property
    def busybox(self) -> Pushed:
        """Something to run: a shell, users root and app."""
        config = {"Env": ["PATH=/bin", "GREETING=hello"], "Cmd": ["sh"], "Labels": {"made.by": "tests"}}
        return self.push(build_image([busybox_tar()], config=config), "busybox", tag="latest")

    @cached_property
    def app(self) -> Pushed:
        """busybox with every field of the config set."""
        config = {
            "Env": ["PATH=/bin", "MODE=image"],
            "Entrypoint": ["/bin/echo", "entry"],
            "Cmd": ["argument"],
            "User": "app",
            "WorkingDir": "/home/app",
            "StopSignal": "SIGUSR1",
            "ExposedPorts": {"80/tcp": {}},
            "Volumes": {"/data": {}},
            "Labels": {"made.by": "tests"},
        }
        return self.push(build_image([busybox_tar()], config=config), "app", tag="1.0")

    @cached_property
    def tree(self) -> Pushed:
        """Every kind of entry, in gzip layers."""
        return self.push(build_image(tree_tars()), "tree", tag="gzip")

    @cached_property
    def tree_zstd(self) -> Pushed:
        """The same in zstd."""
        return self.push(build_image(tree_tars(), compression="zstd"), "tree", tag="zstd")

    @cached_property
    def tree_plain(self) -> Pushed:
        """The same uncompressed, with Docker's media types."""
        return self.push(build_image(tree_tars(), compression="none", docker=True), "tree", tag="plain")

    @cached_property
    def many_layers(self) -> Pushed:
        """120 layers, a file each."""
        tars = [Tar().file(f"layer-{number:03}", b"%d" % number).build() for number in range(120)]
        return self.push(build_image(tars), "many", tag="latest")

    @cached_property
    def multi_platform(self) -> Pushed:
        """An index: the host's platform and two that it is not."""
        host = str(Platform.host())
        others = [name for name in ("linux/s390x", "linux/riscv64") if name != host]
        images = {
            name: build_image([Tar().file("platform", name.encode()).build()], platform=name)
            for name in (*others, host)
        }
        return self.push(build_index(images), "multi", tag="latest")

    def push(self, image: BuiltImage, repository: str = "", *, tag: str | None = None) -> Pushed:
        """Push a test's own image, by default to a repository that no other test has."""
        if not repository:
            self._pushed += 1
            repository = f"test/image-{self._pushed}"
        return Pushed(image.push(self._registry, repository, tag=tag), image)


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
