"""Mounts as users of Docker and Podman write them: ``-v``, ``--mount`` and ``--tmpfs``.

Spec:
    docker-run(1) and podman-run(1), ``--volume``, ``--mount``, ``--tmpfs``.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyctrd.errors import InvalidError, UnsupportedError
from pyctrd.runtime.mounts import PROPAGATIONS, TMPFS_FLAGS, Bind, ImageMount, Mount, Tmpfs, Volume

MOUNTINFO = Path("/proc/self/mountinfo")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_BIND_FLAGS = ("nosuid", "nodev", "noexec", "suid", "dev", "exec")
# Relabelling is SELinux's, "cached" and the like are of Docker on other systems: nothing follows from them here.
_MEANINGLESS = {"z": "relabels files for SELinux", "Z": "relabels files for SELinux"}
_MEANINGLESS |= dict.fromkeys(("cached", "delegated", "consistent"), "is for hosts that run Docker in a machine")
_TMPFS_OPTION = re.compile(
    r"(?:size|nr_blocks)=\d+[kKmMgG%]?|nr_inodes=\d+[kKmMgG]?|mode=[0-7]{1,4}|[ug]id=\d+|huge=\w+"
)
_TMPFS_WORDS = (
    "ro",
    "rw",
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "sync",
    "noatime",
    "relatime",
    "tmpcopyup",
)
_TRUE = ("", "true", "1")
_FALSE = ("false", "0")


@dataclass
class _Form:
    """What is known of a bind or a volume while it is read."""

    text: str
    read_only: bool = False
    recursive_read_only: bool = False
    propagation: str = "rprivate"
    recursive: bool = True
    copy: bool = True
    flags: list[str] = field(default_factory=list)
    mode: str = ""

    def take(self, word: str) -> None:
        """One option of ``-v``."""
        if word in ("ro", "rw", "rro"):
            if self.mode not in ("", word):
                raise _wrong("volume", self.text, f"{self.mode} and {word} contradict each other")
            self.mode = word
            self.read_only, self.recursive_read_only = word != "rw", word == "rro"
        elif word in PROPAGATIONS:
            self.propagation = word
        elif word in ("bind", "rbind"):
            self.recursive = word == "rbind"
        elif word in ("nocopy", "copy"):
            self.copy = word == "copy"
        elif word in _BIND_FLAGS:
            self.flags.append(word)
        elif word in _MEANINGLESS:
            logging.getLogger("pyctrd.runtime").debug("volume option %s ignored: it %s", word, _MEANINGLESS[word])
        else:
            raise _wrong("volume", self.text, f"unknown option {word!r}{_close(word, _words())}")

    def bind(self, source: str, destination: str) -> Bind:
        return Bind(
            source, destination, self.read_only, self.recursive_read_only, self.propagation, self.recursive,
            tuple(self.flags),
        )  # fmt: skip

    def volume(self, name: str, destination: str) -> Volume:
        if name and not _NAME.fullmatch(name):
            raise _wrong("volume", self.text, "a volume's name has letters, digits, _ . - (a path begins with / or .)")
        if self.recursive_read_only or not self.recursive:
            raise _wrong("volume", self.text, "rro and bind are for parts of the host")
        return Volume(name, destination, self.read_only, self.propagation, tuple(self.flags), self.copy)


def parse_volume(text: str) -> Bind | Volume:
    """Read ``-v``'s ``[SOURCE:]DESTINATION[:OPTION,…]``; a name, or no source, is a volume's.

    Options: ro, rw, rro; private, rprivate, shared, rshared, slave, rslave; bind, rbind; nosuid, nodev, noexec; nocopy;
    z and Z are ignored.

    Raises:
        InvalidError: It does not have this form.
    """
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise _wrong("volume", text, "expected SOURCE:DESTINATION[:ro|rw] with paths")
    source, destination, options = "", parts[0], ""
    if len(parts) > 1:
        source, destination = parts[0], parts[1]
        options = parts[2] if len(parts) == 3 else ""
    form = _Form(text)
    for word in options.split(",") if options else ():
        form.take(word)
    _check_destination("volume", text, destination)
    if source.startswith(("/", ".")):
        return form.bind(str(Path.cwd() / source), destination)
    return form.volume(source, destination)


def parse_mount(text: str) -> Mount:
    """Read ``--mount``'s ``type=bind|tmpfs|volume|image,source=…,target=…,…``.

    Raises:
        InvalidError: It does not have this form.
        UnsupportedError: Another type.
    """
    keys: dict[str, str] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        key = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}.get(key, key)
        if key in keys:
            raise _wrong("mount", text, f"{key} is given twice")
        keys[key] = value
    kind = keys.pop("type", "volume")
    reader = _READERS.get(kind)
    if reader is None:
        raise UnsupportedError(
            f"unsupported: mount: {text}: type {kind}", feature=f"mount type {kind}", needs=" or ".join(_READERS)
        )
    target = keys.pop("target", "")
    _check_destination("mount", text, target)
    made = reader(text, target, keys)
    if keys:
        known = ("type", "source", "target", "readonly", *_KEYS[kind])
        word = next(iter(keys))
        raise _wrong("mount", text, f"unknown key {word!r} for type {kind}{_close(word, known)}")
    return made


def parse_tmpfs(text: str) -> Tmpfs:
    """Read ``--tmpfs``'s ``DESTINATION[:OPTION,…]``; without options that say otherwise: noexec, nosuid, nodev.

    Raises:
        InvalidError: It does not have this form.
    """
    destination, _, rest = text.partition(":")
    _check_destination("tmpfs", text, destination)
    words = rest.split(",") if rest else []
    for word in words:
        if word not in _TMPFS_WORDS and not _TMPFS_OPTION.fullmatch(word):
            raise _wrong("tmpfs", text, f"unknown option {word!r}{_close(word, (*_TMPFS_WORDS, 'size=', 'mode='))}")
    opposites = {flag: flag.removeprefix("no") for flag in TMPFS_FLAGS}
    flags = [flag for flag in TMPFS_FLAGS if opposites[flag] not in words and flag not in words]
    return Tmpfs(destination, (*flags, *words))


def read_only_tmpfs(mounts: Iterable[Mount]) -> list[Tmpfs]:
    """Where a container with a read-only root can write all the same, as Podman has it, but where a mount is anyway."""
    taken = {posixpath.normpath(mount.destination) for mount in mounts}
    modes = {"/run": "755", "/tmp": "1777", "/var/tmp": "1777"}  # noqa: S108  # paths in the container, mounted anew
    return [Tmpfs(path, ("nosuid", "nodev", f"mode={mode}")) for path, mode in modes.items() if path not in taken]


def check_propagation(bind: Bind) -> None:
    """Refuse a bind that cannot propagate, since the mount that its source is on does not.

    Raises:
        InvalidError: That mount is private.
    """
    where = Path(bind.source).resolve()
    best, peers = "", ""
    for line in MOUNTINFO.read_text().splitlines():
        fields = line.split(" ")
        place = fields[4].encode().decode("unicode_escape") if "\\" in fields[4] else fields[4]
        if len(place) >= len(best) and where.is_relative_to(place):
            best, peers = place, " ".join(fields[6 : fields.index("-")])
    if "shared:" in peers or ("slave" in bind.propagation and "master:" in peers):
        return
    raise InvalidError(
        f"volume: {bind.source}: {bind.propagation} needs a shared mount, and {best} is private",
        field="volume",
        value=bind.source,
        hint=f"mount --make-rshared {best}",
    )


def _read_bind(text: str, target: str, keys: dict[str, str]) -> Bind:
    form = _form(text, keys)
    source = keys.pop("source", "")
    if not source.startswith(("/", ".")):
        raise _wrong("mount", text, "expected source=PATH")
    recursive = keys.pop("bind-recursive", "enabled")
    if recursive not in ("enabled", "disabled", "writable", "readonly"):
        raise _wrong("mount", text, "bind-recursive is enabled, disabled, writable or readonly")
    if recursive == "readonly" and not form.read_only:
        raise _wrong("mount", text, "bind-recursive=readonly needs readonly")
    form.recursive = recursive != "disabled" and not _flag(text, keys, "bind-nonrecursive")
    form.recursive_read_only = recursive == "readonly"
    return form.bind(str(Path.cwd() / source), target)


def _read_volume(text: str, target: str, keys: dict[str, str]) -> Volume:
    form = _form(text, keys)
    form.copy = not _flag(text, keys, "volume-nocopy")
    return form.volume(keys.pop("source", ""), target)


def _read_tmpfs(text: str, target: str, keys: dict[str, str]) -> Tmpfs:
    words = []
    if size := keys.pop("tmpfs-size", ""):
        words.append(f"size={size.rstrip('bB')}")
    if mode := keys.pop("tmpfs-mode", ""):
        words.append(f"mode={mode}")
    if _flag(text, keys, "readonly"):
        words.append("ro")
    return parse_tmpfs(":".join((target, ",".join(words))) if words else target)


def _read_image(text: str, target: str, keys: dict[str, str]) -> ImageMount:
    image = keys.pop("source", "")
    if not image:
        raise _wrong("mount", text, "expected source=IMAGE")
    subpath = keys.pop("subpath", "") or keys.pop("image-subpath", "")
    if subpath.startswith("/") or ".." in subpath.split("/"):
        raise _wrong("mount", text, 'subpath: expected a path within the image, without ".."')
    writable = _flag(text, keys, "rw") or _flag(text, keys, "readwrite")
    if _flag(text, keys, "readonly") and writable:
        raise _wrong("mount", text, "readonly and rw contradict each other")
    return ImageMount(image, target, writable, subpath)


_READERS: Mapping[str, Callable[[str, str, dict[str, str]], Mount]] = {
    "bind": _read_bind,
    "tmpfs": _read_tmpfs,
    "volume": _read_volume,
    "image": _read_image,
}
_KEYS = {
    "bind": ("bind-propagation", "bind-recursive", "bind-nonrecursive"),
    "tmpfs": ("tmpfs-size", "tmpfs-mode"),
    "volume": ("volume-nocopy",),
    "image": ("rw", "readwrite", "subpath", "image-subpath"),
}


def _form(text: str, keys: dict[str, str]) -> _Form:
    form = _Form(text, read_only=_flag(text, keys, "readonly"))
    propagation = keys.pop("bind-propagation", "rprivate")
    if propagation not in PROPAGATIONS:
        raise _wrong("mount", text, f"bind-propagation is one of {', '.join(PROPAGATIONS)}")
    form.propagation = propagation
    return form


def _flag(text: str, keys: dict[str, str], name: str) -> bool:
    if name not in keys:
        return False
    value = keys.pop(name)
    if value not in (*_TRUE, *_FALSE):
        raise _wrong("mount", text, f"{name}: expected true or false")
    return value in _TRUE


def _check_destination(field_name: str, text: str, destination: str) -> None:
    if not destination.startswith("/") or posixpath.normpath(destination) == "/":
        raise _wrong(field_name, text, 'expected an absolute path in the container, other than "/"')
    if ".." in destination.split("/"):
        raise _wrong(field_name, text, 'a path in the container without ".."')


def _words() -> tuple[str, ...]:
    return ("ro", "rw", "rro", *PROPAGATIONS, *_BIND_FLAGS, "nocopy")


def _close(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    found = get_close_matches(word, list(known), n=2)
    return f", did you mean {' or '.join(found)}?" if found else ""


def _wrong(field_name: str, text: str, why: str) -> InvalidError:
    return InvalidError(f"{field_name}: {text}: {why}", field=field_name, value=text)
