"""Unpacked layers on disk, by diff_id: ``layers/<alg>/<hex>/{index,frame}`` with ``tree/``, ``pack`` or ``blocks``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pyctrd import _core
from pyctrd.content import INGESTS
from pyctrd.content.names import scan_digests, walk_digests, walk_strays
from pyctrd.errors import IntegrityError, InvalidError, NotFoundError
from pyctrd.oci.digest import Digest

_Form = Literal["tree", "objects", "blocks"]
# What a layer has in each form.
_KEPT_IN: Mapping[_Form, str] = {"tree": "tree", "objects": "pack", "blocks": "blocks"}


class Layers:
    """The unpacked layers of a root, shared by all images that have them.

    Args:
        root: The engine's root directory.
    """

    def __init__(self, root: Path) -> None:
        self._layers = root / "layers"
        self._ingests = root / INGESTS
        self._trash = root / "trash"

    def staged(self, ingest_id: str) -> Path:
        """Where an ingest keeps a layer that has no name yet."""
        return self._ingests / ingest_id / "layer"

    def path(self, diff_id: str | Digest) -> Path:
        """Where a layer is, or would be.

        Raises:
            InvalidError: The diff_id is no digest; so no path can leave the store.
        """
        parsed = Digest.parse(str(diff_id))
        return self._layers / parsed.algorithm / parsed.hex

    def exists(self, diff_id: str | Digest) -> bool:
        """Whether it is there."""
        return self.path(diff_id).is_dir()

    def may_have_form(self, diff_id: str | Digest, form: _Form) -> bool:
        """As ``has_form``, at one look: after a crash it may not be whole."""
        return (self.path(diff_id) / _KEPT_IN[form]).exists()

    def has_form(self, diff_id: str | Digest, form: _Form) -> bool:
        """Whether it is there, and was unpacked so; it may have been in either way.

        Raises:
            InvalidError: The index is damaged in front; behind that nobody looks here.
        """
        path = self.path(diff_id)
        if form == "tree":
            return (path / "tree").is_dir()
        if not (path / _KEPT_IN[form]).exists():
            return False
        # Where a layer gets another form the index is the last to come.
        has_pack, has_blocks = _core.layer_forms(path)
        return has_pack if form == "objects" else has_blocks

    def lists_contents(self, diff_id: str | Digest) -> bool:
        """Whether it has a list of its files' contents, by which a table of contents is looked up."""
        return (self.path(diff_id) / "digests").exists()

    @staticmethod
    def index_bytes(places: Sequence[Path]) -> int:
        """Bytes of the indexes of layers, by where they are; of one that is gone by now none."""
        found = 0
        for place in places:
            with suppress(FileNotFoundError):
                found += (place / "index").stat().st_size
        return found

    def open_index(self, diff_id: str | Digest) -> _core.LayerIndex:
        """Its index: every entry with all metadata, with no look at the tree.

        Raises:
            NotFoundError: It is not there.
            InvalidError: The index is damaged.
        """
        if not self.exists(diff_id):
            raise _missing(diff_id)
        return _core.LayerIndex(self.path(diff_id))

    def walk(self) -> Iterator[Digest]:
        """The diff_ids of all layers, sorted."""
        return walk_digests(self._layers)

    def scan(self) -> Iterator[str]:
        """As ``walk``, in no order and with no list of all."""
        return scan_digests(self._layers)

    def strays(self) -> Iterator[Path]:
        """What somebody else put among them; it is never touched."""
        return walk_strays(self._layers)

    def delete(self, diff_id: str | Digest, *, missing_ok: bool = False) -> None:
        """Rename it into ``trash/``: it is gone in one step, and what it takes is removed from there.

        Raises:
            NotFoundError: It is not there, and ``missing_ok`` is not set.
        """
        name = os.urandom(16).hex()
        self._trash.mkdir(mode=0o700, exist_ok=True)
        try:
            self.path(diff_id).rename(self._trash / name)
        except FileNotFoundError as error:
            if missing_ok:
                return
            raise _missing(diff_id) from error

    def rebuild(self, diff_id: str | Digest, dest: Path | None = None) -> int:
        """Write its tar again, bit for bit as it came, from the tree and what was kept of the archive around it.

        Args:
            diff_id: Which layer; what is written hashes to this.
            dest: A new file; None only proves that it could be written.

        Returns:
            Bytes of the tar.

        Raises:
            DiffIDMismatchError: The tree was changed.
            NotFoundError: The layer is not there.
            InvalidError: What was kept of the archive is damaged.
            OSError: The disk, or a file of the tree that cannot be read.
        """
        if not self.exists(diff_id):
            raise _missing(diff_id)
        return _core.rebuild_layer(self.path(diff_id), str(diff_id), dest)

    def verify(self, diff_id: str | Digest) -> None:
        """Read its index and compare it with the tree: types and sizes of what is listed. Objects are not looked at.

        Raises:
            IntegrityError: They differ, or the index is damaged.
            NotFoundError: It is not there.
        """
        if not self.exists(diff_id):
            raise _missing(diff_id)
        try:
            index = self.open_index(diff_id)
            for part, least in (("pack", index.pack_bytes), ("blocks", index.blocks_bytes)):
                if least is not None:
                    _check_length(self.path(diff_id), part, least, str(diff_id))
            apart = index.pack_bytes is not None or index.blocks_bytes is not None
            if apart and not self.has_form(diff_id, "tree"):
                return
            tree = os.open(self.path(diff_id) / "tree", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (InvalidError, NotFoundError, OSError) as error:
            why = "its index is missing" if isinstance(error, NotFoundError) else str(error)
            raise IntegrityError(f"layer damaged: {diff_id}: {why}", subject=str(diff_id)) from error
        try:
            for entry in index.walk():
                if entry.path and entry.kind not in ("foreign", "whiteout"):
                    _compare(tree, entry, str(diff_id))
        finally:
            os.close(tree)


def _check_length(layer: Path, part: str, least: int, diff_id: str) -> None:
    size = (layer / part).stat().st_size
    if size < least:
        raise IntegrityError(
            f"layer damaged: {diff_id}: its {part} has {size} bytes, expected at least {least}",
            subject=diff_id,
            expected=least,
            actual=size,
        )


_TYPES = {
    "directory": 0o040000,
    "symlink": 0o120000,
    "file": 0o100000,
    "character": 0o020000,
    "block": 0o060000,
    "fifo": 0o010000,
}
_TYPE_MASK = 0o170000


def _compare(tree: int, entry: _core.Entry, diff_id: str) -> None:
    name = os.fsdecode(entry.path)
    try:
        found = os.stat(entry.path, dir_fd=tree, follow_symlinks=False)
    except OSError as error:
        if entry.kind == "hardlink" and isinstance(error, FileNotFoundError):
            return  # another name of a foreign link, which has nothing in the tree either
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise IntegrityError(
            f"layer damaged: {diff_id}: {name}: {why}", subject=diff_id, expected=name, actual=why
        ) from error
    expected = _TYPES.get(entry.kind)
    if expected is not None and found.st_mode & _TYPE_MASK != expected:
        raise IntegrityError(
            f"layer damaged: {diff_id}: {name}: is no {entry.kind}", subject=diff_id, expected=entry.kind, actual=name
        )
    if entry.kind == "file" and found.st_size != entry.size:
        raise IntegrityError(
            f"layer damaged: {diff_id}: {name}: has {found.st_size} bytes, expected {entry.size}",
            subject=diff_id,
            expected=entry.size,
            actual=found.st_size,
        )


def _missing(diff_id: str | Digest) -> NotFoundError:
    return NotFoundError(f"layer not found: {diff_id}", kind="layer", name=str(diff_id))
