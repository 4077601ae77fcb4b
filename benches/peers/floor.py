"""The machine's floor: what a pull must do at least, each stage alone, in the same run as the tools.

For every layer, in CPU seconds of one thread that does nothing else, with its input in memory:

- *receive*: its blob over HTTP from the same registry on loopback, into one buffer, thrown away;
- *blob digest*: SHA-256 of the blob by the engine's own code;
- *inflate*: the engine's own decoder over the blob. It is what reading the blob's tar member by member takes less what
  reading the plain tar so takes: a little less than the truth, never more;
- *tar digest*: SHA-256 of the tar, at the rate of 64 MiB of noise in the same round.

And for all layers together, in seconds of the *kernel* (what runs between its calls is left out), on the same new file
system, what the kernel has to do to take what the form of layers wants written:

- *tree* (directories: overlayfs): every directory, file and link made once, each file opened, written, given its time
  and closed relative to its directory; owners and modes only where they are not what was made;
- *objects* (composefs): each different content over 1 KiB as a file, the others at the end of one; and BLAKE3 of all
  contents, in CPU seconds;
- *image* (erofs): all contents one after the other into one file;
- *keep*: the blobs into files, as they came.

The floor of a form is the sum of these divided by the cores, but at least its longest serial chain: the slowest of the
stages that take one layer's bytes in their order (receive, the digests, inflate); they overlap one another, and layers
run beside each other. Left out are the parsing of tar, flushing, the database, the interpreter's start, and what the
registry takes of the same cores. ``flush_seconds`` tells how long the disk took for a tree: the peers do not wait for
that.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import mmap
import os
import resource
import stat
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import blake3

from benches.peers.corpus import Image, Layer, expand
from benches.peers.disk import written_bytes
from pyctrd import _core

TREE, OBJECTS, IMAGE = "tree", "objects", "image"
# As the engine's own default: up to so much no file is made for a content.
PACKED_BYTES = 1 << 10
_STEP_BYTES = 1 << 20
_BUFFER_BYTES = 256 << 10
_RATE_BYTES = 64 << 20
_OBJECT_FOLDERS = 256


@dataclass(frozen=True)
class LayerFloor:
    """CPU seconds of the stages that take a layer's bytes in their order."""

    receive: float
    blob_digest: float
    inflate: float
    tar_digest: float

    @property
    def total(self) -> float:
        """Of all of them."""
        return self.receive + self.blob_digest + self.inflate + self.tar_digest

    @property
    def slowest(self) -> float:
        """No pipeline is faster than its slowest stage."""
        return max(self.receive, self.blob_digest, self.inflate, self.tar_digest)


@dataclass(frozen=True)
class Floor:
    """Of one image, once.

    Attributes:
        layers: Their stages.
        keep: Seconds of the kernel for writing the blobs.
        write: Seconds for writing by form.
        flush_seconds: Wall time until a tree was on the disk.
    """

    layers: tuple[LayerFloor, ...]
    keep: float
    write: dict[str, float]
    flush_seconds: float

    def seconds(self, form: str, *, cores: int, blobs: bool = True) -> float:
        """Wall time below which this machine cannot bring the image in, with its blobs or without."""
        total = sum(layer.total for layer in self.layers) + self.write[known_form(form)]
        if blobs:
            total += self.keep
        return max(total / cores, *(layer.slowest for layer in self.layers))


class Node(NamedTuple):
    """An entry of a tar: what has to be made of it."""

    kind: str
    path: str
    start: int
    size: int
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    link: str


@dataclass(frozen=True)
class Subject:
    """A layer with its tar on disk and its entries known."""

    layer: Layer
    tar: Path
    nodes: tuple[Node, ...]


def known_form(form: str) -> str:
    """The form that a snapshotter's layers have here; what makes no file for a file at all is an image."""
    return form if form in {TREE, OBJECTS} else IMAGE


def prepare(images: Sequence[Image], directory: Path) -> dict[str, Subject]:
    """Expand every layer once; by diff_id. Nothing of it is measured."""
    directory.mkdir()
    found: dict[str, Subject] = {}
    for layer in (layer for image in images for layer in image.layers):
        if layer.diff_id not in found:
            tar = directory / layer.diff_id.replace(":", "-")
            tar.write_bytes(expand(layer))
            found[layer.diff_id] = Subject(layer, tar, tuple(_nodes(tar)))
    return found


def measure(image: Image, subjects: dict[str, Subject], disk: Path) -> Floor:
    """All stages of an image, one after the other; trees go to a new file system and stay there."""
    own = [subjects[layer.diff_id] for layer in image.layers]
    rate = _digest_rate()
    layers = tuple(_layer(image, layer, subject, rate) for layer, subject in zip(image.layers, own, strict=True))
    place = disk / "floor"
    place.mkdir()
    with _umask():
        keep = sum(_keep(layer, place / f"blob-{number}") for number, layer in enumerate(image.layers))
        trees = 0.0
        for number, subject in enumerate(own):
            trees += _write(subject, place / f"tree-{number}", _write_tree)
        start = time.monotonic()
        written_bytes(disk)
        flush = time.monotonic() - start
        _make_folders(place)
        known: set[bytes] = set()
        objects = hashed = images = 0.0
        for number, subject in enumerate(own):
            new, seconds = _new_contents(subject, known)
            hashed += seconds
            objects += _write(subject, place / f"pack-{number}", partial(_write_objects, new))
            images += _write(subject, place / f"image-{number}", _write_image)
    return Floor(layers, keep, {TREE: trees, OBJECTS: objects + hashed, IMAGE: images}, flush)


def _nodes(tar: Path) -> Iterator[Node]:
    kinds = {tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink"}
    with tarfile.open(tar) as archive:
        for member in archive:
            kind = kinds.get(member.type, "file" if member.isreg() else "")
            path = os.path.normpath(member.name)
            if not kind or member.sparse or path.startswith(".."):
                continue  # devices and holes are few; the floor may lie below them
            link = os.path.normpath(member.linkname) if kind == "hardlink" else member.linkname
            yield Node(
                kind,
                path,
                member.offset_data,
                member.size if kind == "file" else 0,
                member.mode,
                (member.uid, member.gid),
                int(member.mtime * 1e9),
                link,
            )


def _layer(image: Image, layer: Layer, subject: Subject, rate: float) -> LayerFloor:
    blob = layer.path.read_bytes()
    receive = _receive(image, layer)
    start = time.thread_time()
    assert _core.digest_bytes(blob) == layer.digest
    digest = time.thread_time() - start
    plain = _walk_seconds(subject.tar)
    inflate = max(0.0, _walk_seconds(layer.path) - plain)
    return LayerFloor(receive, digest, inflate, rate * subject.tar.stat().st_size)


def _receive(image: Image, layer: Layer) -> float:
    host, _, rest = image.reference.partition("/")
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    start = time.thread_time()
    connection = http.client.HTTPConnection(host)
    try:
        connection.request("GET", f"/v2/{rest.rpartition(':')[0]}/blobs/{layer.digest}")
        response = connection.getresponse()
        received = 0
        while count := response.readinto(buffer):
            received += count
    finally:
        connection.close()
    seconds = time.thread_time() - start
    assert received == layer.size
    return seconds


def _digest_rate() -> float:
    """CPU seconds for a byte."""
    noise = os.urandom(_STEP_BYTES) * (_RATE_BYTES // _STEP_BYTES)
    start = time.thread_time()
    _core.digest_bytes(noise)
    return (time.thread_time() - start) / len(noise)


def _walk_seconds(tar: Path) -> float:
    """CPU seconds for reading the members of an archive, plain or compressed, with no look at contents."""
    with tar.open("rb", buffering=0) as file:
        start = time.thread_time()
        reader = _core.ArchiveReader(file.fileno())
        while reader.next() is not None:
            pass
        return time.thread_time() - start


def _keep(layer: Layer, target: Path) -> float:
    blob = layer.path.read_bytes()
    start = _kernel_seconds()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    _put(descriptor, memoryview(blob))
    os.close(descriptor)
    return _kernel_seconds() - start


def _write(subject: Subject, target: Path, write: Callable[[memoryview, Sequence[Node], Path], None]) -> float:
    """Seconds of the kernel for writing a layer; its tar is mapped, and in memory."""
    with (
        subject.tar.open("rb") as file,
        mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE, prot=mmap.PROT_READ) as mapped,
        memoryview(mapped) as content,
    ):
        start = _kernel_seconds()
        write(content, subject.nodes, target)
        return _kernel_seconds() - start


def _write_tree(content: memoryview, nodes: Sequence[Node], target: Path) -> None:
    target.mkdir(0o755)
    top = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    parent, descriptor = "", os.dup(top)
    for node in nodes:
        folder, _, name = node.path.rpartition("/")
        if folder != parent:
            os.close(descriptor)
            descriptor = _open_folder(top, folder)
            parent = folder
        if name not in {"", "."}:
            # A second entry of a name, or a link to a lower layer's: the floor may lie below it.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                _make(content, node, name, descriptor, top)
    os.close(descriptor)
    os.close(top)


def _make(content: memoryview, node: Node, name: str, parent: int, top: int) -> None:
    times = (node.mtime_ns, node.mtime_ns)
    if node.kind == "file":
        made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, node.mode & 0o777, dir_fd=parent)
        _put(made, content[node.start : node.start + node.size])
        if node.owner != (0, 0):
            os.fchown(made, *node.owner)
        if stat.S_IMODE(node.mode) & ~0o777:
            os.fchmod(made, stat.S_IMODE(node.mode))
        os.utime(made, ns=times)
        os.close(made)
        return
    if node.kind == "hardlink":
        os.link(node.link, name, src_dir_fd=top, dst_dir_fd=parent, follow_symlinks=False)
        return
    if node.kind == "directory":
        os.mkdir(name, node.mode & 0o777, dir_fd=parent)
    else:
        os.symlink(node.link, name, dir_fd=parent)
    if node.owner != (0, 0):
        os.chown(name, *node.owner, dir_fd=parent, follow_symlinks=False)
    # A directory's would change with the next file in it: it is set at the end, which takes as long.
    os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)


def _open_folder(top: int, path: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY
    if not path:
        return os.dup(top)
    try:
        return os.open(path, flags, dir_fd=top)
    except FileNotFoundError:  # its archive does not list it
        done = ""
        for part in path.split("/"):
            done = f"{done}/{part}".lstrip("/")
            with contextlib.suppress(FileExistsError):
                os.mkdir(done, 0o755, dir_fd=top)
        return os.open(path, flags, dir_fd=top)


def _make_folders(place: Path) -> None:
    """What the objects stand in; a store has it before its first layer."""
    (place / "objects").mkdir()
    for number in range(_OBJECT_FOLDERS):
        (place / "objects" / f"{number:02x}").mkdir()


def _new_contents(subject: Subject, known: set[bytes]) -> tuple[dict[Node, str], float]:
    """The contents over the limit that no layer before had, each with its name; and CPU seconds for hashing all."""
    found: dict[Node, str] = {}
    seconds = 0.0
    content = subject.tar.read_bytes()
    with memoryview(content) as view:
        for node in subject.nodes:
            if node.kind != "file" or not node.size:
                continue
            data = view[node.start : node.start + node.size]
            start = time.thread_time()
            digest = blake3.blake3(data).digest()
            seconds += time.thread_time() - start
            if node.size > PACKED_BYTES and digest not in known:
                known.add(digest)
                found[node] = f"{digest[:1].hex()}/{digest[1:].hex()}"
    return found, seconds


def _write_objects(new: dict[Node, str], content: memoryview, nodes: Sequence[Node], target: Path) -> None:
    objects = os.open(target.parent / "objects", os.O_RDONLY | os.O_DIRECTORY)
    pack = io.BytesIO()
    for node in nodes:
        data = content[node.start : node.start + node.size]
        if node in new:
            made = os.open(new[node], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444, dir_fd=objects)
            _put(made, data)
            os.close(made)
        elif node.kind == "file" and node.size <= PACKED_BYTES:
            pack.write(data)
    os.close(objects)
    made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    _put(made, pack.getbuffer())
    os.close(made)


def _write_image(content: memoryview, nodes: Sequence[Node], target: Path) -> None:
    """As many bytes as the contents have; where in the tar they stand makes no difference to the kernel."""
    made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    _put(made, content[: sum(node.size for node in nodes)])
    os.close(made)


def _put(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data[:_STEP_BYTES]) :]


def _kernel_seconds() -> float:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_stime


@contextlib.contextmanager
def _umask() -> Iterator[None]:
    """Modes are what they are asked to be, with no second call."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)
