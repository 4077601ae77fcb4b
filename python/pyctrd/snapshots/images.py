"""Stacks' images, mounted: once for each, for as long as an overlay needs it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from pyctrd import _core
from pyctrd.errors import ConflictError, PyctrdError, naming
from pyctrd.snapshots.store import PRIVATE_MODE

# Of one image's directory: where it is mounted, which file that was, and a file for each overlay that needs it.
_TARGET = "image"
_SOURCE = "source"
_USERS = "users"


class ImageMounts:
    """``<state>/mounts/<of a root>/<of a stack>/``: ``image`` is the mount, ``users`` says where overlays are.

    A reboot empties the state directory and ends the mounts alike. An overlay keeps what it is made of for itself: a
    mount that goes while one is there takes nothing from it, but the next one pays for a new mount.

    Args:
        state: The engine's state directory.
        root: The engine's root, whose images these are: others may have the same state directory.
    """

    def __init__(self, state: Path, root: Path) -> None:
        self._directory = state / "mounts" / _name(root.resolve())[:16]

    @contextmanager
    def held(self, image: Path, target: Path, *, devices: Sequence[Path] = ()) -> Iterator[Path]:
        """Mount an image, if it is not, for an overlay that the ``with`` block mounts at a path: where the image is.

        Nobody releases anything meanwhile: an image that went before the overlay is there would leave it empty.

        Args:
            image: A file in the directory of its stack.
            target: Where the overlay is going to be.
            devices: The files that have its other blocks, in the image's order.
        """
        with self._locked():
            try:
                yield self._mount(image, target, devices)
            except BaseException as error:
                try:
                    self._let_go(_name(target))
                except (PyctrdError, OSError) as left:
                    error.add_note(str(left))
                raise

    def release(self, target: Path) -> None:
        """Unmount what an overlay held and no other does; one that held nothing is no error."""
        if self._directory.is_dir():
            with self._locked():
                self._let_go(_name(target))

    def collect(self) -> None:
        """Release what is held for overlays that are gone: a killed process, or ``umount``, leaves such."""
        if not self._directory.is_dir():
            return
        with self._locked():
            held = {user.name: Path(os.fsdecode(user.read_bytes())) for user in self._directory.glob(f"*/{_USERS}/*")}
            for name, target in held.items():
                if not target.is_mount():
                    self._let_go(name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        mounts = self._directory.parent
        for directory in (mounts.parent, mounts, self._directory):  # of parents mkdir leaves the mode to the umask
            directory.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with naming(self._directory):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _mount(self, image: Path, user: Path, devices: Sequence[Path]) -> Path:
        place = self._directory / image.parent.name
        target, source = place / _TARGET, place / _SOURCE
        identity = "\n".join(map(_identify, (image, *devices)))
        if not target.is_mount() or source.read_text() != identity:
            for directory in (place, target, place / _USERS):
                if not directory.is_dir():
                    directory.mkdir(mode=PRIVATE_MODE)
            _unmount_all(target)  # the image was made anew, as a repair does: whoever has the old one keeps it
            _write(source, identity.encode())
            _core.mount_erofs(image, target, devices=devices)
        _write(place / _USERS / _name(user), os.fsencode(user))
        return target

    def _let_go(self, user: str) -> None:
        for place in list(self._directory.iterdir()):
            users = place / _USERS
            with suppress(FileNotFoundError):
                (users / user).unlink()
            if users.is_dir() and any(users.iterdir()):
                continue
            _unmount_all(place / _TARGET)
            _core.remove_tree(self._directory, place.name)


def _identify(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_dev} {stat.st_ino} {stat.st_ctime_ns}"


def _write(path: Path, content: bytes) -> None:
    with naming(path), open(path, "wb", opener=partial(os.open, mode=0o600)) as file:
        file.write(content)


def _name(path: Path) -> str:
    return _core.digest_bytes(os.fsencode(path)).partition(":")[2][:32]


def _unmount_all(target: Path) -> None:
    while target.is_mount():
        try:
            _core.unmount(target)  # at its end the image's file is closed, and its disk may be unmounted
        except ConflictError:
            _core.unmount(target, lazy=True)  # somebody looks at it
