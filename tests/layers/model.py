"""What layers mean, in memory: another opinion than the product's, from the image spec alone.

Spec:
    image-spec v1.1 layer.md, "Applying Changesets", "Whiteouts"; rule R19 for what a layer leaves to its base.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from tests.archives import MTIME, Tar
from tests.trees import Facts

SECOND_NS = 1_000_000_000
LINKS_MAX = 40
_TYPES = {
    b"0": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "character",
    b"4": "block",
    b"5": "directory",
    b"6": "fifo",
}
_DEVICES = ("character", "block")


class RefusedError(Exception):
    """A layer that cannot be applied."""


@dataclass(frozen=True)
class Entry:
    """What an archive says of one name."""

    name: bytes
    type: str = "file"
    content: bytes = b""
    link: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = MTIME * SECOND_NS
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


class Layer(Tar):
    """A tar under construction that remembers what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self._silent = False

    def add(self, name: str | bytes, *, mtime_ns: int | None = None, **options: Any) -> Self:
        """As ``Tar.add``, with a time to the nanosecond where one is given."""
        if mtime_ns is not None:
            seconds, rest = divmod(mtime_ns, SECOND_NS)
            options["mtime"] = seconds
            if rest:
                options["pax"] = {**options.get("pax", {}), "mtime": _decimal(mtime_ns)}
        super().add(name, **options)
        if not self._silent:
            self.say(_entry(name, mtime_ns=mtime_ns, **options))
        return self

    def sparse(self, name: str, size: int, pieces: Sequence[tuple[int, bytes]]) -> Self:
        self._silent = True
        super().sparse(name, size, pieces)
        self._silent = False
        return self.say(Entry(name.encode(), content=expand(size, pieces)))

    def __repr__(self) -> str:
        # What a failing property test prints.
        words = (f"{entry.type} {os.fsdecode(entry.name)}" for entry in self.entries)
        links = (f" -> {os.fsdecode(entry.link)}" if entry.link else "" for entry in self.entries)
        return "Layer({})".format(", ".join(word + link for word, link in zip(words, links, strict=True)))

    def say(self, *entries: Entry) -> Self:
        """Remember what bytes added by ``raw`` mean."""
        self.entries.extend(entries)
        return self


def expand(size: int, pieces: Sequence[tuple[int, bytes]]) -> bytes:
    """The content of a sparse file."""
    content = bytearray(size)
    for offset, piece in pieces:
        content[offset : offset + len(piece)] = piece
    return bytes(content)


def _entry(name: str | bytes, *, mtime_ns: int | None, **options: Any) -> Entry:
    link = options.get("link", b"")
    return Entry(
        name=os.fsencode(name),
        type=_TYPES[options.get("kind", b"0")],
        content=options.get("content", b""),
        link=os.fsencode(link),
        mode=options.get("mode", 0o644),
        uid=options.get("uid", 0),
        gid=options.get("gid", 0),
        mtime_ns=options.get("mtime", MTIME) * SECOND_NS if mtime_ns is None else mtime_ns,
        device=options.get("device", (0, 0)),
        xattrs=options.get("xattrs") or {},
    )


def _decimal(mtime_ns: int) -> bytes:
    sign, absolute = ("-", -mtime_ns) if mtime_ns < 0 else ("", mtime_ns)
    return f"{sign}{absolute // SECOND_NS}.{absolute % SECOND_NS:09}".encode()


@dataclass(eq=False)
class _Inode:
    entry: Entry


@dataclass(eq=False)
class _Name:
    inode: _Inode
    # The layer that made it, or listed it: whiteouts of the same layer leave it alone.
    layer: int
    children: dict[bytes, _Name] | None = None

    @property
    def type(self) -> str:
        return self.inode.entry.type


# A directory that no layer lists.
_IMPLIED = Entry(b"", type="directory", mode=0o755, mtime_ns=0)


class Tree:
    """Layers, applied one after the other."""

    def __init__(self) -> None:
        self._root = _Name(_Inode(_IMPLIED), -1, {})
        self._layer = -1
        # Directories that entries of this layer, markers among them, are in: as good as made by it.
        self._entered: set[_Name] = set()
        self.root_is_listed = False
        # A layer took away what one of its own entries had come through: what is left depends on who is asked.
        self.is_doubtful = False
        self._followed: set[_Name] = set()

    @classmethod
    def of(cls, layers: Sequence[Sequence[Entry]]) -> Tree:
        """The tree of layers, lowest first.

        Raises:
            RefusedError: One of them cannot be applied.
        """
        tree = cls()
        for layer in layers:
            tree.apply(layer)
        return tree

    def apply(self, entries: Sequence[Entry]) -> None:
        """Apply the next layer."""
        self._layer += 1
        self._entered.clear()
        self._followed.clear()
        for entry in entries:
            self._apply(entry)

    def facts(self) -> dict[bytes, Facts]:
        """As ``read_tree`` gives them of a directory."""
        found: dict[bytes, Facts] = {}
        groups: dict[int, list[bytes]] = {}
        for path, name in self._walk(b".", self._root):
            found[path] = _facts(name.inode.entry)
            if name.children is None:
                groups.setdefault(id(name.inode), []).append(path)
        for paths in groups.values():
            if len(paths) > 1:
                for path in paths:
                    found[path] = replace(found[path], same_as=min(paths))
        return found

    def _walk(self, path: bytes, name: _Name) -> Iterator[tuple[bytes, _Name]]:
        pending = [(path, name)]
        while pending:
            path, name = pending.pop()
            yield path, name
            prefix = b"" if path == b"." else path + b"/"
            pending += [(prefix + child, below) for child, below in (name.children or {}).items()]

    def _apply(self, entry: Entry) -> None:
        parts = _parts(entry.name)
        last = parts.pop() if parts and parts[-1] != b".." else b""
        way = self._enter(parts)
        if last == b"":
            self._list(way[-1], entry)
        elif last == b".wh..wh..opq":
            for child in list(_children(way[-1])):
                self._white_out(way[-1], child)
        elif last.startswith(b".wh..wh."):
            pass
        elif last.startswith(b".wh."):
            if last in (b".wh.", b".wh..", b".wh..."):
                raise RefusedError(entry.name)
            self._white_out(way[-1], last.removeprefix(b".wh."))
        else:
            self._make(way[-1], last, entry)

    def _list(self, name: _Name, entry: Entry) -> None:
        if entry.type != "directory":
            raise RefusedError(entry.name)
        name.inode = _Inode(entry)
        name.layer = self._layer
        if name is self._root:
            self.root_is_listed = True

    def _gone(self, name: _Name | None) -> None:
        """Note that a name is taken away or replaced."""
        if name is None or not self._followed:
            return
        below = {found for _, found in self._walk(b"", name)}
        if below & (self._followed | self._entered):
            self.is_doubtful = True

    def _make(self, parent: _Name, last: bytes, entry: Entry) -> None:
        siblings = _children(parent)
        there = siblings.get(last)
        if entry.type == "directory" and there is not None and there.children is not None:
            self._list(there, entry)
        elif entry.type == "hardlink":
            target = self._find(entry)
            if there is None or there.inode is not target.inode:
                if self._holds(there, target):
                    raise RefusedError(entry.name)
                self._gone(there)
                siblings[last] = _Name(target.inode, self._layer)
            siblings[last].layer = self._layer
        else:
            self._gone(there)
            siblings[last] = _Name(_Inode(entry), self._layer, {} if entry.type == "directory" else None)

    def _holds(self, there: _Name | None, target: _Name) -> bool:
        """Whether a link would take the place of the directory in which its target is."""
        return there is not None and any(name is target for _, name in self._walk(b"", there))

    def _find(self, entry: Entry) -> _Name:
        parts = _parts(entry.link)
        if not parts or parts[-1] == b"..":
            raise RefusedError(entry.name)
        way = self._resolve(parts[:-1])
        found = way and _children(way[-1]).get(parts[-1])
        if not found or found.children is not None:
            raise RefusedError(entry.name)
        return found

    def _white_out(self, parent: _Name, child: bytes) -> None:
        """Take away what lower layers have at a name; what this layer made stays, in directories that lose all else."""
        there = _children(parent).get(child)
        if there is None:
            return
        if there.children is not None:
            for below in list(there.children):
                self._white_out(there, below)
            if there.layer != self._layer and (there.children or there in self._entered):
                there.inode, there.layer = _Inode(_IMPLIED), self._layer
        if there.layer != self._layer:
            self._gone(there)
            del _children(parent)[child]

    def _enter(self, parts: Sequence[bytes]) -> list[_Name]:
        way = self._resolve(parts, make=True)
        if way is None:
            raise RefusedError(b"/".join(parts))
        self._entered.update(way)
        return way

    def _resolve(self, parts: Sequence[bytes], *, make: bool = False) -> list[_Name] | None:
        """The directory that a path leads to, with those above it, links followed; None where it is not there."""
        way = [self._root]
        pending = list(reversed(parts))
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                way = way[:-1] or way
                continue
            siblings = _children(way[-1])
            if part not in siblings:
                if not make:
                    return None
                siblings[part] = _Name(_Inode(_IMPLIED), self._layer, {})
            child = siblings[part]
            if child.type == "symlink":
                if child.layer != self._layer:
                    self._followed.add(child)
                links += 1
                if links > LINKS_MAX:
                    raise RefusedError(part)
                link = child.inode.entry.link
                way = way[:1] if link.startswith(b"/") else way
                pending += reversed(_parts(link))
            elif child.children is None:
                raise RefusedError(part)
            else:
                way = [*way, child]
        return way


def _children(name: _Name) -> dict[bytes, _Name]:
    assert name.children is not None
    return name.children


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def _facts(entry: Entry) -> Facts:
    return Facts(
        type=entry.type,
        mode=0o777 if entry.type == "symlink" else entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        size={"file": len(entry.content), "symlink": len(entry.link)}.get(entry.type, 0),
        content=hashlib.sha256(entry.content).hexdigest() if entry.type == "file" else "",
        link=os.fsdecode(entry.link) if entry.type == "symlink" else "",
        device=os.makedev(*entry.device) if entry.type in _DEVICES else 0,
        xattrs=tuple(
            sorted(
                (key, value)
                for key, value in entry.xattrs.items()
                # The kernel keeps user.* to files and directories; overlayfs' marks must not act.
                if ".overlay." not in key and (entry.type in ("file", "directory") or not key.startswith("user."))
            )
        ),
        same_as=b"",
    )
