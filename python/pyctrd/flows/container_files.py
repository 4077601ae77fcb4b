"""Files of a container, in and out, running or not: as tar archives, or from and to the host's own directories.

A container may change its names while they are looked up. So each path is resolved by the kernel beneath a descriptor
of its root directory, and from there on every step is one name in an open directory.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypedDict

from pyctrd import _core
from pyctrd.errors import ConflictError, InvalidError, NotFoundError, UnsafeArchiveError
from pyctrd.flows.freeze import held_still
from pyctrd.flows.mount import rootfs_lock
from pyctrd.flows.run import USERNS, bundle_path, container_status, mount_rootfs
from pyctrd.snapshots.copies import TreeCopy, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.runtime.userns import IdMappings

CHUNK_BYTES = 1 << 20
_PATH_ONLY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def copy_archive_in(
    rooms: Rooms, record: ContainerRecord, path: str, data: bytes | IO[bytes], *, archive: bool
) -> None:
    """Unpack a tar into a directory of a container; see ``Container.copy_to``.

    It is unpacked into a directory of ours first, by what unpacks layers: an archive that is refused changes nothing.
    """
    with (
        _core.Workspace(str(rooms.root), os.urandom(16).hex()) as workspace,
        _seen(rooms, record) as root,
    ):
        spooled, staged = workspace.path / "archive", workspace.path / "tree"
        with spooled.open("xb") as file:
            if isinstance(data, (bytes, bytearray, memoryview)):
                file.write(data)
            else:
                shutil.copyfileobj(data, file, CHUNK_BYTES)
        _refuse_whiteouts(spooled)
        staged.mkdir(mode=0o755)
        _core.unpack(spooled, staged, diff_id=None, digest=None, limits=None, ownership="keep")
        with _directory_in(root, path) as target, opened(os.fspath(staged), _LIST) as source:
            mappings = _mappings(rooms, record)
            with file_ids(mappings):
                TreeCopy(target, **_owners(rooms, record, mappings, archive), root=root, at=_plain(path)).run(source)


def _refuse_whiteouts(archive: Path) -> None:
    """Refuse names that only a layer can mean: what unpacks one would leave them out."""
    with opened(os.fspath(archive), os.O_RDONLY) as source:
        reader = _core.ArchiveReader(source)
        while (member := reader.next()) is not None:
            if any(name.startswith(b".wh.") for name in member.name.split(b"/")):
                reason = "a name that begins with .wh. is a layer's whiteout"
                shown = os.fsdecode(member.name)
                raise UnsafeArchiveError(f"unsafe archive: {shown}: {reason}", entry=member.name, reason=reason)


def copy_archive_out(rooms: Rooms, record: ContainerRecord, path: str) -> Iterator[bytes]:
    """What is at a path of a container, as a tar; see ``Container.copy_from``."""
    with _seen(rooms, record) as root, _parent_of(root, path) as (parent, name):
        yield from _Writer(_mappings(rooms, record)).tree(parent, name, name)


def export_container(
    rooms: Rooms, record: ContainerRecord, target: str | os.PathLike[str] | IO[bytes], *, pause: bool
) -> None:
    """All of a container's root file system, as a tar; see ``Container.export``."""
    with ExitStack() as held:
        held.enter_context(rootfs_lock(rooms, record, shared=True))
        rootfs = mount_rootfs(rooms, record)
        if pause:
            held.enter_context(held_still(rooms, record))
        root = held.enter_context(opened(os.fspath(rootfs), _LIST))
        if isinstance(target, (str, os.PathLike)):
            file: IO[bytes] = held.enter_context(Path(target).open("wb"))
        else:
            file = target
        for chunk in _Writer(_mappings(rooms, record)).content(root):
            file.write(chunk)


def copy_in(rooms: Rooms, record: ContainerRecord, source: str | os.PathLike[str], path: str, *, archive: bool) -> None:
    """Copy the host's file or directory to a path of a container; see ``Container.copy_file_to``."""
    there = os.path.abspath(source) + _tail(os.fspath(source))  # noqa: PTH100 - no link is followed
    with _seen(rooms, record) as root, opened("/", _PATH_ONLY) as host, _parent_of(host, there) as (parent, name):
        mappings = _mappings(rooms, record)
        with file_ids(mappings):
            _copy(parent, name, root, path, _owners(rooms, record, mappings, archive))


def copy_out(
    rooms: Rooms, record: ContainerRecord, path: str, target: str | os.PathLike[str], *, archive: bool
) -> None:
    """Copy a file or directory of a container to the host; see ``Container.copy_file_from``."""
    with _seen(rooms, record) as root, opened("/", _PATH_ONLY) as host, _parent_of(root, path) as (parent, name):
        mappings = _mappings(rooms, record)
        owners: _Owners = {"owner": (os.geteuid(), os.getegid())}
        if archive:
            owners = {} if mappings is None else {"shift": mappings.inside}
        _copy(parent, name, host, os.path.abspath(target) + _tail(os.fspath(target)), owners)  # noqa: PTH100 - as above


def _copy(parent: int, name: bytes, root: int, path: str, owners: _Owners) -> None:
    """As cp -r and docker cp: into a directory that is there, else as the last name of a path."""
    try:
        with _directory_in(root, path) as target:
            copy = TreeCopy(target, **owners, root=root, at=_plain(path))
            if name == b".":
                with opened(b".", _LIST, parent) as source:
                    copy.run(source)
            else:
                copy.add(parent, name, name)
            return
    except (NotFoundError, InvalidError):
        if path.endswith(("/", "/.")):
            raise
    above, _, last = path.rstrip("/").rpartition("/")
    with _directory_in(root, above or "/") as target:
        copy = TreeCopy(target, **owners, root=root, at=_plain(above))
        copy.add(parent, name, os.fsencode(last))


@contextmanager
def _seen(rooms: Rooms, record: ContainerRecord) -> Iterator[int]:
    """A container's root directory: of one that runs as its processes see it, with all that is mounted there."""
    with rootfs_lock(rooms, record, shared=True):
        status = container_status(rooms, record)
        if status.state in ("running", "paused") and status.pid:
            try:
                root = os.open(f"/proc/{status.pid}/root", _PATH_ONLY)
            except (FileNotFoundError, ProcessLookupError):
                root = -1
            # Its number may be another process' by now: it was not, if the same one is still there.
            if root >= 0 and container_status(rooms, record).pid == status.pid:
                try:
                    yield root
                finally:
                    os.close(root)
                return
            if root >= 0:
                os.close(root)
        with opened(os.fspath(mount_rootfs(rooms, record)), _PATH_ONLY) as root:
            yield root


@contextmanager
def _directory_in(root: int, path: str) -> Iterator[int]:
    """A directory beneath a root, links followed within it.

    Raises:
        NotFoundError: There is none.
        InvalidError: It is none, or the path has a NUL.
    """
    node = _node_in(root, path, follow=True)
    try:
        if not stat.S_ISDIR(os.fstat(node).st_mode):
            raise InvalidError(f"no directory: {path}", field="path", value=path)
        with opened(b".", _LIST, node) as directory:
            yield directory
    finally:
        os.close(node)


@contextmanager
def _parent_of(root: int, path: str) -> Iterator[tuple[int, bytes]]:
    """The directory that a path's last name is in, and that name; a link there is not followed.

    Of a path that ends with a slash or a dot it is the directory itself that is meant, by the name ".".

    Raises:
        NotFoundError: There is nothing.
    """
    above, _, last = path.rpartition("/")
    if last in ("", ".", ".."):
        above, last = path, "."
    with _directory_in(root, above or "/") as parent:
        name = os.fsencode(last)
        try:
            os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError as error:
            raise _not_found(path) from error
        yield parent, name


def _node_in(root: int, path: str, *, follow: bool) -> int:
    if "\0" in path:
        raise InvalidError(f"invalid path: {path!r}: a NUL character cannot be passed", field="path", value=path)
    try:
        return _core.open_node(root, path or "/", follow=follow)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _not_found(path) from error


def _not_found(path: str) -> NotFoundError:
    return NotFoundError(f"no such file or directory: {path}", kind="file", name=path)


def _plain(path: str) -> bytes:
    return os.fsencode(path).rstrip(b"/")


def _tail(path: str) -> str:
    """What ``abspath`` takes away: that the content of a directory is meant."""
    return "/." if path.endswith(("/", "/.")) or path == "." else ""


def _owner(rooms: Rooms, record: ContainerRecord) -> tuple[int, int]:
    """Who the container's process is."""
    import orjson

    user = orjson.loads((bundle_path(rooms, record) / "config.json").read_bytes())["process"]["user"]
    return int(user["uid"]), int(user["gid"])


class _Owners(TypedDict, total=False):
    """Whose copied files become: one's, or another's each."""

    owner: tuple[int, int]
    shift: Callable[[int, int], tuple[int, int]]


def _mappings(rooms: Rooms, record: ContainerRecord) -> IdMappings | None:
    """What the ids that a container's files have are on the host; None where they are the same."""
    bundle = bundle_path(rooms, record)
    if not (bundle / USERNS).exists():
        return None
    from pyctrd.flows.userns import read_mappings

    return read_mappings(bundle)


def _owners(rooms: Rooms, record: ContainerRecord, mappings: IdMappings | None, archive: bool) -> _Owners:  # noqa: FBT001 - the caller's own
    """Whose files become that come in: the process's, or in an archive whoever has these ids in the container."""
    if archive:
        return {} if mappings is None else {"shift": mappings.outside}
    owner = _owner(rooms, record)
    return {"owner": owner if mappings is None else mappings.outside(*owner)}


@contextmanager
def file_ids(mappings: IdMappings | None) -> Iterator[None]:
    """Let this thread make files where a container's are mounted mapped: the kernel takes only whom the mount maps."""
    if mappings is None or mappings.is_identity:
        yield
        return
    _core.set_file_ids(*mappings.outside(0, 0))
    try:
        yield
    finally:
        _core.set_file_ids(os.geteuid(), os.getegid())


class _Writer:
    """The entries of a tar, parents first and by name.

    Spec:
        POSIX.1-2008 pax, "pax Interchange Format"; xattrs as ``SCHILY.xattr.``.
    """

    def __init__(self, mappings: IdMappings | None = None) -> None:
        self._linked: dict[tuple[int, int], bytes] = {}
        self._mappings = mappings

    def _header(
        self, found: os.stat_result, kind: bytes, path: bytes, *, link: bytes = b"", xattrs_of: int | str | None = None
    ) -> bytes:
        uid, gid = found.st_uid, found.st_gid
        owner = (uid, gid) if self._mappings is None else self._mappings.inside(uid, gid)
        return _header(found, owner, kind, path, link=link, xattrs_of=xattrs_of)

    def tree(self, parent: int, name: bytes, as_name: bytes) -> Iterator[bytes]:
        """One thing and all that is in it, and the archive's end."""
        if name == b".":
            with opened(name, _LIST, parent) as directory:
                yield from self.content(directory)
            return
        yield from self._entry(parent, name, as_name)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def content(self, directory: int) -> Iterator[bytes]:
        """All that is in a directory, and the archive's end."""
        yield from self._below(directory, b"")
        yield bytes(2 * tarfile.BLOCKSIZE)

    def _below(self, directory: int, path: bytes) -> Iterator[bytes]:
        for name in sorted(map(os.fsencode, os.listdir(directory))):
            yield from self._entry(directory, name, path + name)

    def _entry(self, parent: int, name: bytes, path: bytes) -> Iterator[bytes]:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is None:
            return  # a socket: whoever listens on it is elsewhere
        if kind == tarfile.DIRTYPE:
            with opened(name, _LIST, parent) as below:
                yield self._header(os.fstat(below), kind, path, xattrs_of=below)
                yield from self._below(below, path + b"/")
            return
        key = (found.st_dev, found.st_ino)
        if found.st_nlink > 1:
            if (first := self._linked.get(key)) is not None:
                yield self._header(found, tarfile.LNKTYPE, path, link=first)
                return
            self._linked[key] = path
        if kind != tarfile.REGTYPE:
            link = os.readlink(name, dir_fd=parent) if kind == tarfile.SYMTYPE else b""
            yield self._header(found, kind, path, link=link, xattrs_of=f"/proc/self/fd/{parent}/{os.fsdecode(name)}")
            return
        with opened(name, _READ, parent) as content:
            yield from self._file(content, path)

    def _file(self, content: int, path: bytes) -> Iterator[bytes]:
        found = os.fstat(content)
        if not stat.S_ISREG(found.st_mode):
            raise _changed(path)
        yield self._header(found, tarfile.REGTYPE, path, xattrs_of=content)
        left = found.st_size
        while left:
            chunk = os.read(content, min(CHUNK_BYTES, left))
            if not chunk:
                raise _changed(path)
            left -= len(chunk)
            yield chunk
        yield bytes(-found.st_size % tarfile.BLOCKSIZE)


def _changed(path: bytes) -> ConflictError:
    shown = os.fsdecode(path)
    return ConflictError(f"changed while it is read: {shown}", kind="file", name=shown, state="written to")


def _header(
    found: os.stat_result,
    owner: tuple[int, int],
    kind: bytes,
    path: bytes,
    *,
    link: bytes = b"",
    xattrs_of: int | str | None = None,
) -> bytes:
    info = tarfile.TarInfo(os.fsdecode(path))
    info.type = kind
    info.mode, (info.uid, info.gid) = stat.S_IMODE(found.st_mode), owner
    info.mtime = found.st_mtime_ns // 10**9
    info.size = found.st_size if kind == tarfile.REGTYPE else 0
    info.linkname = os.fsdecode(link)
    if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
    info.pax_headers = {}
    if found.st_mtime_ns % 10**9:
        info.pax_headers["mtime"] = f"{info.mtime}.{found.st_mtime_ns % 10**9:09}"
    if xattrs_of is not None:
        follow = isinstance(xattrs_of, int)
        for name in sorted(os.listxattr(xattrs_of, follow_symlinks=follow)):
            value = os.getxattr(xattrs_of, name, follow_symlinks=follow)
            info.pax_headers[f"SCHILY.xattr.{name}"] = value.decode(errors="surrogateescape")
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
