"""A container's user namespace: which ids it has, and its files mounted with them.

On disk files have the ids that the container sees, so that a layer, a copy or a commit is the same whatever it runs
with. Its root file system is mounted so that they are its own ids on the host (Linux 5.12, for overlayfs 5.19).

The runtime's child looks for it as the container's root, which is nobody on the host: no directory of ours lets it
through. So it is mounted in a directory of its own, which that root owns; ``rootfs`` in the bundle is a link to there.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from pyctrd.errors import ConflictError, InvalidError, UnsupportedError
from pyctrd.flows.run import USERNS
from pyctrd.runtime.idmaps import IdRange, check_ranges, named_ranges
from pyctrd.runtime.namespaces import JOINED
from pyctrd.runtime.userns import IdMappings, UsernsRequest, parse_map

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord
    from pyctrd.runtime.idmaps import Range
    from pyctrd.runtime.options import RunOptions
    from pyctrd.snapshots.protocol import Snapshot, Snapshotter

# Beneath it each container has a directory; it is gone after a reboot, as all that is mounted there.
MAPPED = Path("/run/pyctrd-mapped")
# Whose ranges "auto" takes from: podman's.
AUTO_NAME = "containers"
_AUTO = "auto"
_SELF = Path("/proc/self")
MOUNTINFO = _SELF / "mountinfo"


def settle_userns(rooms: Rooms, record: ContainerRecord, options: RunOptions, bundle: Path) -> RunOptions:
    """The options with the ids of the container's user namespace, which are its own from now on.

    Args:
        rooms: The engine's rooms.
        record: The container.
        options: As its user gave them.
        bundle: Where it is recorded.

    Raises:
        InvalidError, NotFoundError, ConflictError: What is asked for is not there.
        UnsupportedError: This host cannot do it.
    """
    from dataclasses import replace

    request = options.userns_request
    if request is None:
        return options
    _refuse_nested()
    mode, mappings = _choose(rooms, request, bundle)
    if mappings is None:
        return options
    mappings.check(uid=0, gids=())
    prepare_place(record, bundle, mappings)
    return replace(options, userns=mode, id_mappings=mappings)


def read_mappings(bundle: Path) -> IdMappings | None:
    """The ids of a container's user namespace; None where it has none of its own."""
    try:
        found = orjson.loads((bundle / USERNS).read_bytes())
    except FileNotFoundError:
        return None
    return _parse(found)


def fork_userns(rooms: Rooms, source: Path, bundle: Path, record: ContainerRecord, spec: dict[str, Any]) -> None:
    """Give a container that begins with another one's files a user namespace as that one has; of "auto" ids of its own.

    Args:
        rooms: The engine's rooms.
        source: The other one's bundle.
        bundle: Its own.
        record: The container.
        spec: Its ``config.json``, which is changed.
    """
    try:
        found = orjson.loads((source / USERNS).read_bytes())
    except FileNotFoundError:
        return
    mappings = _parse(found)
    if found["mode"] == _AUTO:
        size = sum(item.length for item in mappings.uids)
        mappings = _take(rooms, bundle, size)
        spec["linux"] |= mappings.spec()
    else:
        _write(bundle, found["mode"], mappings)
    prepare_place(record, bundle, mappings)


def prepare_place(record: ContainerRecord, bundle: Path, mappings: IdMappings) -> None:
    """Have ``rootfs`` in a new bundle lead to where the container's root may go."""
    if mappings.is_identity:
        return
    target = bundle / "rootfs"
    target.rmdir()
    target.symlink_to(_place(record) / "rootfs")


def is_mapped(bundle: Path) -> bool:
    """Whether the container's files are mounted with other owners."""
    return (bundle / "rootfs").is_symlink()


def mount_mapped(record: ContainerRecord, snapshotter: Snapshotter, snapshot: Snapshot, bundle: Path) -> Path:
    """Mount a container's root file system with the ids of its user namespace, where it is not mounted.

    Raises:
        UnsupportedError: The kernel, its file system or this process's rights do not allow it.
    """
    from pyctrd.flows.mapped import open_user_namespace

    target = _place(record) / "rootfs"
    if f" {target} " in MOUNTINFO.read_text():  # a bind is on the file system of what it is on: stat does not tell
        return target
    mappings = read_mappings(bundle)
    assert mappings is not None  # noqa: S101 - it was written before the link was made
    MAPPED.mkdir(mode=0o711, exist_ok=True)
    MAPPED.chmod(0o711)  # whatever the umask
    _place(record).mkdir(mode=0o700, exist_ok=True)
    os.chown(_place(record), *mappings.outside(0, 0))
    target.mkdir(mode=0o700, exist_ok=True)
    ids = open_user_namespace(mappings.uids, mappings.gids)
    try:
        snapshotter.mount(snapshot, target, ids=ids)
    finally:
        os.close(ids)
    return target


def remove_place(record: ContainerRecord) -> None:
    """Take the directory away in which a container's root file system was mounted, if it had one."""
    for path in (_place(record) / "rootfs", _place(record)):
        with suppress(FileNotFoundError):
            path.rmdir()


def _choose(rooms: Rooms, request: UsernsRequest, bundle: Path) -> tuple[str, IdMappings | None]:
    """What the spec says of it, and its ids; None where it turns out to be the engine's own."""
    mode = request.mode
    if mode == _AUTO:
        return "private", _take(rooms, bundle, request.size)
    if mode.startswith(JOINED):
        return _joined(rooms, mode, bundle)
    if mode.startswith("/"):
        mappings = _of_namespace(mode)
        _write(bundle, "path", mappings)
        return mode, mappings
    if mode == "private":
        mappings = _given(request)
    elif mode == "keep-id" and request.keep is None:
        mappings = IdMappings(*(parse_map((_SELF / name).read_text()) for name in ("uid_map", "gid_map")))
        mappings = IdMappings(*(tuple(IdRange(a, a, n) for a, _, n in ranges) for ranges in mappings))
    else:
        raise InvalidError(
            f"invalid userns: {mode}: is for a caller that is not root",
            field="userns",
            value=mode,
            hint="use auto, or private with uidmap",
        )
    _write(bundle, mode, mappings)
    return "private", mappings


def _given(request: UsernsRequest) -> IdMappings:
    if request.uids:
        return IdMappings(request.uids, request.gids)
    return IdMappings(
        check_ranges("uidmap", _one_after_another(named_ranges(request.subuid))),
        check_ranges("gidmap", _one_after_another(named_ranges(request.subgid, groups=True))),
    )


def _one_after_another(ranges: Sequence[Range]) -> list[IdRange]:
    made, inside = [], 0
    for start, length in ranges:
        made.append(IdRange(inside, start, length))
        inside += length
    return made


def _joined(rooms: Rooms, mode: str, bundle: Path) -> tuple[str, IdMappings | None]:
    from pyctrd.flows.settle import find_running

    other, _ = find_running(rooms, mode.removeprefix(JOINED))
    mappings = read_mappings(rooms.bundle(other.namespace, other.id))
    if mappings is None:
        return "host", None
    _write(bundle, "joined", mappings)
    return mode, mappings


def _of_namespace(path: str) -> IdMappings:
    """The ids of the namespace at a path, which only a process in it can be asked for."""
    from pyctrd.flows.mapped import read_maps

    try:
        own = Path(path).stat().st_ino == (_SELF / "ns/user").stat().st_ino
    except OSError as error:
        raise InvalidError(f"userns: {path}: {error.strerror}", field="userns", value=path) from error
    if own:
        raise InvalidError(
            f"userns: {path}: is the namespace that the engine is in", field="userns", value=path, hint="use host"
        )
    uids, gids = read_maps(path)
    if not uids or not gids:
        raise InvalidError(f"userns: {path}: no ids are mapped in it", field="userns", value=path)
    return IdMappings(parse_map(uids), parse_map(gids))


def _take(rooms: Rooms, bundle: Path, size: int) -> IdMappings:
    """Ids that no other container of this store has, recorded as this one's: they are free when its bundle is gone."""
    lock = rooms.lock("store", "userns")
    lock.acquire()
    try:
        used = list(_used(rooms))
        uids = _free(named_ranges(AUTO_NAME), [item for found in used for item in found.uids], size, "users")
        gids = _free(
            named_ranges(AUTO_NAME, groups=True), [item for found in used for item in found.gids], size, "groups"
        )
        mappings = IdMappings((IdRange(0, uids, size),), (IdRange(0, gids, size),))
        _write(bundle, _AUTO, mappings)
    finally:
        lock.release()
    return mappings


def _used(rooms: Rooms) -> Iterator[IdMappings]:
    for path in (rooms.root / "containers").glob(f"*/*/{USERNS}"):
        with suppress(FileNotFoundError):  # it is just being deleted
            yield _parse(orjson.loads(path.read_bytes()))


def _free(ranges: Sequence[Range], used: Sequence[IdRange], size: int, what: str) -> int:
    """The first of so many ids in a row that nobody uses.

    Raises:
        ConflictError: There are not so many.
    """
    taken = sorted((item.outside, item.outside + item.length) for item in used)
    for start, length in ranges:
        at = start
        for first, after in taken:
            if first - at >= size:
                break
            at = max(at, after)
        if start + length - at >= size:
            return at
    raise ConflictError(
        f"no free ids: {size} {what} in a row, of the ranges of {AUTO_NAME}: {len(taken)} are in use",
        kind="range of ids",
        name=AUTO_NAME,
        state="in use",
        allowed="free",
        hint=f"give {AUTO_NAME} more in /etc/subuid and /etc/subgid, or take fewer: auto:size=N",
    )


def _write(bundle: Path, mode: str, mappings: IdMappings) -> None:
    from pyctrd.runtime.life import replace_durably

    body = {"mode": mode, "uids": list(map(list, mappings.uids)), "gids": list(map(list, mappings.gids))}
    replace_durably(bundle / USERNS, orjson.dumps(body))


def _parse(found: dict[str, Any]) -> IdMappings:
    return IdMappings(*(tuple(IdRange(*item) for item in found[name]) for name in ("uids", "gids")))


def _place(record: ContainerRecord) -> Path:
    return MAPPED / record.id


def _refuse_nested() -> None:
    from pyctrd.snapshots.overlayfs import in_user_namespace

    if in_user_namespace():
        needs = "root of the host: the kernel lets nobody else mount files with other owners"
        raise UnsupportedError(
            f"unsupported: a user namespace within another: needs {needs}",
            feature="a user namespace within another",
            needs=needs,
            hint="leave --userns out: a user's containers are in a namespace of that user's already",
        )
