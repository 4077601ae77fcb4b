"""Containers: made from an image, started, stopped and taken apart again."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd import _core
from pyctrd.errors import ConflictError, DeadlineError, InvalidError, NotFoundError
from pyctrd.flows.freeze import thaw
from pyctrd.flows.load import ensure_unpacked, get_image, image_layers, load_config
from pyctrd.flows.mount import record_snapshot, remove_frozen, rootfs_lock
from pyctrd.flows.removal import take_away
from pyctrd.flows.runs import notice, tell
from pyctrd.flows.runtimes import chosen_program
from pyctrd.flows.settle import join_again, name_files, settle_options
from pyctrd.metadata.containers import ContainerRecord
from pyctrd.metadata.namespaces import check_labels
from pyctrd.runtime.cgroup import require
from pyctrd.runtime.life import Life, is_wanted_stopped, read_life, write_life, write_policy
from pyctrd.runtime.mounts import Bind, ImageMount, Volume
from pyctrd.runtime.signals import signal_number
from pyctrd.runtime.spec import RunOptions, build_spec
from pyctrd.runtime.state import EXIT_RECORD
from pyctrd.runtime.users import find_groups, find_user

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord
    from pyctrd.oci.config import ImageConfig
    from pyctrd.oci.health import HealthCheck, HealthConfig
    from pyctrd.runtime.state import ContainerStatus, ExitStatus, State
    from pyctrd.snapshots.protocol import LayerRef, Snapshotter

SHORT_ID_CHARS = 12
# What looks like an id would stand for another container than the one that has it.
_ID = re.compile(r"[0-9a-f]{64}")
# As Docker's.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
PRIVATE_MODE = 0o700
# In the bundle, of a container with a user namespace of its own: what it was asked for, and the ids that it has.
USERNS = "userns.json"
# Likewise, of one with images mounted beside its own.
IMAGES = "images.json"
SIGKILL = 9
# After SIGKILL only the kernel is waited for: processes in uninterruptible sleep.
KILL_SECONDS = 30.0
# Ends that are looked at at once: each thread that does has a connection to the database, and hundreds may be waiting.
ENDS_MAX = 16
_noticing = threading.BoundedSemaphore(ENDS_MAX)


def create_container(
    rooms: Rooms,
    image: ImageRecord | None,
    options: RunOptions,
    *,
    rootfs: Path | None = None,
    overlay: bool = False,
    name: str = "",
    labels: Mapping[str, str] | None = None,
    auto_remove: bool = False,
    stop_signal: str = "",
    restart: str = "no",
    life: Life | None = None,
    health: HealthConfig | None = None,
) -> ContainerRecord:
    """Make a container: record it, then its root file system, mounted, and its bundle.

    Args:
        rooms: The engine's rooms.
        image: What it is made from; None where it is a directory.
        options: What the user wants other than the image says.
        rootfs: That directory, which stays whatever becomes of the container.
        overlay: What is written goes to a layer above it.
        name: Unique in the namespace; "" is the beginning of its id.
        labels: The caller's own.
        auto_remove: It is deleted when it ends.
        stop_signal: What ``stop`` sends first; "" is the image's, else SIGTERM.
        restart: Its restart policy.
        life: What its shim does for it; None is as by default.
        health: What the user says of its health check; None is nothing.

    Raises:
        AlreadyExistsError: The name is taken.
        InvalidError, NotFoundError, UnsupportedError: An option, or what it names, cannot be used. Nothing is left.
    """
    if os.geteuid() != 0:
        _refuse_unprivileged()
    config = _bare_config() if image is None else load_config(rooms, image)
    container_id = os.urandom(32).hex()
    record = ContainerRecord(
        namespace=rooms.namespace,
        id=container_id,
        name=name or container_id[:SHORT_ID_CHARS],
        image_name="" if image is None else image.name,
        image_digest="" if image is None else image.manifest_digest,
        snapshot_key=f"container-{container_id}",
        command=_words(config, options),
        labels=check_labels(labels or {}),
        auto_remove=auto_remove,
        stop_signal=stop_signal or config.stop_signal or "SIGTERM",
        runtime=chosen_program(rooms.settings).text,
        created_ns=time.time_ns(),
    )
    check_name(record.name)
    life = (life or Life())._replace(health=_health_check(config, health))
    signal_number(record.stop_signal)  # a wrong one is told now, not when it is needed
    if image is not None:
        ensure_unpacked(rooms, image)
    for mount in options.mounts:
        if isinstance(mount, ImageMount):
            ensure_unpacked(rooms, get_image(rooms, mount.image))
    with rooms.making_lock(shared=True):
        with rooms.collection_lock(shared=True):
            layers, by = _lies_on(rooms, image, rootfs, overlay=overlay)
            # The records come first: they keep the layers, and find what was made and mounted after a crash.
            snapshotter = record_snapshot(
                rooms,
                record.snapshot_key,
                kind="active",
                layers=layers,
                target=bundle_path(rooms, record) / "rootfs",
                container=record,
                snapshotter=by,
            )
        try:
            snapshotter.prepare(record.snapshot_key, layers)
            _make_bundle(rooms, record, config, options)
            if life.health is not None:
                from pyctrd.flows.alter import read_spec
                from pyctrd.flows.exec import check_exec

                check_exec(rooms.runtime(record.runtime), read_spec(record, bundle_path(rooms, record)))
            write_life(bundle_path(rooms, record), life)
            write_policy(bundle_path(rooms, record), restart)
        except BaseException:
            delete_container(rooms, record, force=True, volumes=True)
            raise
    return record


def _refuse_unprivileged() -> None:
    from pyctrd.flows.rootless import refuse_without_namespace

    refuse_without_namespace()


def _health_check(config: ImageConfig, wanted: HealthConfig | None) -> HealthCheck | None:
    run = config.raw.get("config") or {}
    if wanted is None and not run.get("Healthcheck"):
        return None
    from pyctrd.oci.health import find_health_check

    return find_health_check(run, wanted)


def check_name(name: str) -> None:
    """Refuse what is no container's name.

    Raises:
        InvalidError: It has other characters than Docker's have, or could be taken for an id.
    """
    if not _NAME.fullmatch(name) or _ID.fullmatch(name):
        raise InvalidError(
            f'invalid container name: {name!r}: expected letters, digits, "_", "." and "-", no sign first, no id',
            field="name",
            value=name,
        )


def _bare_config() -> ImageConfig:
    """What is said of a directory that is no image's: nothing."""
    from pyctrd.oci.config import ImageConfig, RootFS
    from pyctrd.oci.platform import Platform

    return ImageConfig(platform=Platform.host(), rootfs=RootFS(()))


def _lies_on(
    rooms: Rooms, image: ImageRecord | None, rootfs: Path | None, *, overlay: bool
) -> tuple[list[LayerRef], Snapshotter | None]:
    """What a container is made of: layers, for whichever snapshotter they suit, or a directory, and what shows that."""
    if image is not None:
        return image_layers(rooms, image), None
    from pyctrd.flows.choose import open_snapshotter
    from pyctrd.snapshots.directory import DIRECTORY, Directory, DirectoryOverlay
    from pyctrd.snapshots.protocol import LayerRef

    if rootfs is None or not rootfs.is_dir():
        raise NotFoundError(f"rootfs not found: {rootfs}", kind="directory", name=str(rootfs))
    kind = DirectoryOverlay.name if overlay else Directory.name
    return [LayerRef(DIRECTORY, rootfs.resolve())], open_snapshotter(rooms, kind)


def start_container(
    rooms: Rooms,
    record: ContainerRecord,
    *,
    terminal: bool = False,
    stdin: bool = False,
    attached: bool = False,
    restore: tuple[Path, Sequence[str]] | None = None,
) -> None:
    """Start a container that was made, or that has ended; or let it go on from a checkpoint.

    Raises:
        ConflictError: It runs.
        RuncError: The runtime refused; the container stays, to be looked at and deleted.
    """
    if os.geteuid() != 0:
        _refuse_unprivileged()
    rooms.runtime(record.runtime).end_orphan(record.id, bundle_path(rooms, record))
    if (bundle_path(rooms, record) / EXIT_RECORD).exists():
        notice(rooms, record)  # the next start removes what the last one left, and with it how its runs ended
    # Nobody may freeze or reset its files between their mount and its start.
    with rootfs_lock(rooms, record, shared=True):
        mount_rootfs(rooms, record)
        if (bundle_path(rooms, record) / IMAGES).exists():
            from pyctrd.flows.image_mounts import mount_images

            mount_images(rooms, record)
        join_again(rooms, record, bundle_path(rooms, record))
        rooms.runtime(record.runtime).start(
            record.id,
            bundle_path(rooms, record),
            terminal=terminal,
            stdin=stdin,
            attached=attached,
            transient=record.auto_remove,
            on_exit=_removal(rooms, record) if record.auto_remove and not attached else (),
            restore=restore,
        )
    notice(rooms, record)


def stop_container(rooms: Rooms, record: ContainerRecord, *, timeout: float | None = None) -> ExitStatus:
    """Ask a container to end, and kill it where it has not after ``timeout`` seconds; one that is paused goes on.

    None is the time that it was made with.

    Raises:
        ConflictError: It was never started.
        DeadlineError: The kernel could not end it.
    """
    bundle = bundle_path(rooms, record)
    # Before the signal, and before the look: a run that its policy begins meanwhile is ended by the shim.
    rooms.runtime(record.runtime).give_up_restarts(record.id, bundle)
    status = container_status(rooms, record)
    if status.exit is not None:
        return status.exit
    require_state(status, record, "stop", "running", "paused", "restarting", "stopped")
    if status.state == "paused":
        # Before the signal: youki says of a frozen one that has got any that it runs, and lets nobody resume it.
        with suppress(ConflictError, NotFoundError):  # somebody else let it go on, and it may have ended
            resume_container(rooms, record)
    _signal(rooms, record, signal_number(record.stop_signal))
    try:
        patience = read_life(bundle).stop_timeout_seconds if timeout is None else timeout
        ended = rooms.runtime(record.runtime).wait(record.id, bundle, patience)
    except DeadlineError:
        _signal(rooms, record, SIGKILL)
        ended = rooms.runtime(record.runtime).wait(record.id, bundle, KILL_SECONDS)
    notice(rooms, record)
    return ended


def wait_container(rooms: Rooms, record: ContainerRecord, timeout: float | None) -> ExitStatus:
    """Wait for its end; one that a killed process left frozen goes on first.

    Raises:
        ConflictError: It was never started.
        DeadlineError: ``timeout`` seconds went by.
    """
    thaw(rooms, record)
    rooms.runtime(record.runtime).end_orphan(record.id, bundle_path(rooms, record))
    ended = rooms.runtime(record.runtime).wait(record.id, bundle_path(rooms, record), timeout)
    with _noticing:
        notice(rooms, record)
    return ended


def delete_container(rooms: Rooms, record: ContainerRecord, *, force: bool = False, volumes: bool = False) -> None:
    """Take a container apart: process, mount, files, and last its record. Again is a no-op.

    Args:
        rooms: The engine's rooms.
        record: Which one.
        force: Kill it first, if it runs.
        volumes: Remove the volumes that were made for it alone; those of one that deletes itself go in any case.

    Raises:
        ConflictError: It runs, and ``force`` is not set.
    """
    bundle = bundle_path(rooms, record)
    snapshotter = rooms.snapshotter_for(record.snapshot_key)
    images = rooms.database.snapshots.of_images(record.id)
    if bundle.exists():
        rooms.runtime(record.runtime).end_orphan(record.id, bundle)
        rooms.runtime(record.runtime).delete(record.id, bundle, force=force)
        notice(rooms, record)  # how it ended is known from here on by the event alone
        snapshotter.unmount(bundle / "rootfs")
        if (bundle / "rootfs").is_symlink():
            from pyctrd.flows.userns import remove_place

            remove_place(record)
        for one in images:
            rooms.snapshotter_for(one.key).unmount(Path(one.target))
    # The bundle goes first, in one step: a record without one is what recovery finishes to delete.
    _remove_bundle(rooms, bundle)
    snapshotter.delete(record.snapshot_key)
    for one in images:
        rooms.snapshotter_for(one.key).delete(one.key)
    with rooms.database.write() as tx:
        own = tx.volumes.of_container(record.namespace, record.id) if volumes or record.auto_remove else []
        before = tx.snapshots.needed()
        tx.snapshots.delete(record.snapshot_key)
        for one in images:
            tx.snapshots.delete(one.key)
        tx.containers.delete(record.namespace, record.id)
        after = tx.snapshots.needed() if before else before
    if before != after:
        remove_frozen(rooms)
    if own:
        from pyctrd.flows.volumes import remove_anonymous

        remove_anonymous(rooms, record.namespace, own)


def get_container(rooms: Rooms, name: str) -> ContainerRecord:
    """By name, id, or the beginning of an id.

    Raises:
        NotFoundError: This namespace has no such container.
    """
    record = rooms.database.containers.find(rooms.namespace, name)
    if record is None:
        raise NotFoundError(f"container not found: {name}", kind="container", name=name, hint="list them: pyctrd ps -a")
    return record


def container_status(rooms: Rooms, record: ContainerRecord) -> ContainerStatus:
    """What it is doing now; one that a killed process left frozen goes on first."""
    thaw(rooms, record)
    return notice(rooms, record)


def kill_container(rooms: Rooms, record: ContainerRecord, number: int) -> None:
    """Send a signal to its first process; one that is paused has it when it goes on, but for SIGKILL.

    SIGKILL and its stop signal are the user's wish that it end: see ``stop``.

    Raises:
        ConflictError: It does not run.
    """
    status = container_status(rooms, record)
    if number in (SIGKILL, signal_number(record.stop_signal)):
        require_state(status, record, "kill", "running", "paused", "restarting")
        rooms.runtime(record.runtime).give_up_restarts(record.id, bundle_path(rooms, record))
        _signal(rooms, record, number)
    else:
        require_state(status, record, "kill", "running", "paused")
        rooms.runtime(record.runtime).kill(record.id, number)


def pause_container(rooms: Rooms, record: ContainerRecord) -> None:
    """Freeze its processes until ``resume_container``.

    Raises:
        ConflictError: It does not run, or is paused.
    """
    # What a killed process left frozen goes on first: or the next engine would take this for that.
    require_state(container_status(rooms, record), record, "pause", "running")
    require("pausing")
    rooms.runtime(record.runtime).pause(record.id)
    tell(rooms, record, "paused")


def resume_container(rooms: Rooms, record: ContainerRecord) -> None:
    """Let its processes go on.

    Raises:
        ConflictError: It is not paused.
    """
    if not thaw(rooms, record):
        require_state(notice(rooms, record), record, "resume", "paused")
        rooms.runtime(record.runtime).resume(record.id)
        tell(rooms, record, "resumed")


def bundle_path(rooms: Rooms, record: ContainerRecord) -> Path:
    """The container's directory: bundle, log and exit record."""
    return rooms.bundle(record.namespace, record.id)


def mount_rootfs(rooms: Rooms, record: ContainerRecord) -> Path:
    """The container's root file system, mounted where it has to be and is not: after a reboot it is gone."""
    snapshotter = rooms.snapshotter_of(record.snapshot_key)
    snapshot = None if snapshotter is None else snapshotter.find(record.snapshot_key)
    if snapshotter is None or snapshot is None:
        raise NotFoundError(
            f"snapshot not found: {record.snapshot_key}",
            kind="snapshot",
            name=record.snapshot_key,
            hint=f"the container cannot be used any more: pyctrd rm {record.name}",
        )
    target = bundle_path(rooms, record) / "rootfs"
    if target.is_symlink():
        from pyctrd.flows.userns import mount_mapped

        return mount_mapped(record, snapshotter, snapshot, target.parent)
    if snapshot.path is not None:
        return snapshot.path
    if not target.is_mount():
        snapshotter.mount(snapshot, target)
    return target


def make_bundle_directory(rooms: Rooms, record: ContainerRecord) -> Path:
    """The container's directory, made, with the mount point in it."""
    bundle = bundle_path(rooms, record)
    for directory in (bundle.parents[1], bundle.parent):
        directory.mkdir(mode=PRIVATE_MODE, exist_ok=True)
    for directory in (bundle, bundle / "rootfs"):
        directory.mkdir(mode=PRIVATE_MODE)
    return bundle


def _make_bundle(rooms: Rooms, record: ContainerRecord, config: ImageConfig, options: RunOptions) -> None:
    bundle = make_bundle_directory(rooms, record)
    if options.userns_request is not None:
        from pyctrd.flows.userns import settle_userns

        options = settle_userns(rooms, record, options, bundle)
    rootfs = mount_rootfs(rooms, record)
    if options.hooks_directories:
        options = _with_hooks(record, options)
    if any(isinstance(mount, ImageMount) for mount in options.mounts):
        from pyctrd.flows.image_mounts import resolve_images

        options = replace(options, mounts=resolve_images(rooms, record, options.mounts))
    if config.volumes or any(isinstance(mount, Volume) for mount in options.mounts):
        from pyctrd.flows.volumes import resolve_volumes

        mounts = resolve_volumes(
            rooms, record, options.mounts, rootfs=rootfs, declared=config.volumes, ids=options.id_mappings
        )
        options = replace(options, mounts=mounts)
    user = find_user(rootfs, options.user or config.user)
    if options.groups:
        user = user._replace(
            additional_gids=tuple(sorted({*user.additional_gids, *find_groups(rootfs, options.groups)}))
        )
    if options.id_mappings is not None:
        options.id_mappings.check(uid=user.uid, gids=(user.gid, *user.additional_gids))
    files = name_files(rooms, options, bundle, record.id)
    settled = settle_options(rooms, record, options, bundle)
    spec = build_spec(config, settled, container_id=record.id, rootfs=rootfs, user=user, files=files)
    rooms.runtime(record.runtime).create_bundle(bundle, spec, transient=record.auto_remove)


def _with_hooks(record: ContainerRecord, options: RunOptions) -> RunOptions:
    """The options with those of the host's hooks that are for such a container, before the caller's own."""
    from pyctrd.runtime.hooks import choose_hooks, read_hooks
    from pyctrd.runtime.init import INIT

    hooks = choose_hooks(
        read_hooks(options.hooks_directories),
        program=record.command[0] if record.command else "",
        annotations=options.annotations or {},
        has_bind_mounts=any(isinstance(mount, Bind | Volume) and mount.destination != INIT for mount in options.mounts),
    )
    for stage, entries in (options.hooks or {}).items():
        hooks.setdefault(stage, []).extend(entries)
    return replace(options, hooks=hooks, hooks_directories=())


def _remove_bundle(rooms: Rooms, bundle: Path) -> None:
    taken = take_away(rooms.root, bundle)
    if taken is not None:
        _core.remove_tree(taken.parent, taken.name)


def require_state(status: ContainerStatus, record: ContainerRecord, verb: str, *allowed: State) -> None:
    """Refuse what a container's state does not allow, before the runtime says so in words of its own."""
    if status.state not in allowed:
        raise ConflictError(
            f"container {record.name}: cannot {verb}: it is {status.state}",
            kind="container",
            name=record.name,
            state=status.state,
            allowed=",".join(allowed),
        )


def _signal(rooms: Rooms, record: ContainerRecord, number: int) -> None:
    try:
        rooms.runtime(record.runtime).kill(record.id, number)
    except (ConflictError, NotFoundError):
        # Without a pid namespace of its own, what its first process left may hold its output for a while after its end:
        # the record of that is still to come then. Between two runs there is nobody to hear it.
        bundle = bundle_path(rooms, record)
        status = rooms.runtime(record.runtime).status(record.id, bundle)
        if status.exit is None and status.state == "created" and not is_wanted_stopped(bundle):
            raise


def _words(config: ImageConfig, options: RunOptions) -> tuple[str, ...]:
    if options.entrypoint is not None:
        return (*options.entrypoint, *options.command)
    return (*config.entrypoint, *(options.command or config.cmd))


def _removal(rooms: Rooms, record: ContainerRecord) -> list[str]:
    """What the shim of a detached container runs at its end, with no engine there to do it."""
    if not sys.executable:
        raise InvalidError(
            "auto_remove: this interpreter does not know its own path",
            field="auto_remove",
            value="True",
            hint="delete the container when it has ended",
        )
    settings = rooms.settings
    return [
        sys.executable,
        *("-P", "-m", "pyctrd"),  # -P: not from the directory in which the shim happens to be
        *("--root", str(settings.root), "--state", str(settings.state), "--namespace", record.namespace),
        *("rm", "--force", record.id),
    ]
