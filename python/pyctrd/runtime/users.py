"""Who a container's process is: ``user[:group]`` looked up in the root file system's own files.

An image's files are anyone's: they are opened beneath the root by the kernel, only as regular files, and
read up to a limit.

Spec:
    image-spec v1.1 config.md, "User".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyctrd import _core
from pyctrd.errors import InvalidError, NotFoundError
from pyctrd.oci.value import NamedTuple

FILE_MAX_BYTES = 4 << 20  # the largest real group files, of directory servers' exports, stay below 1 MiB
ID_MAX = 2**31 - 1  # as Docker and runc: ids above are refused by several file systems
GROUPS_MAX = 65536  # NGROUPS_MAX of Linux


class User(NamedTuple):
    """A process's identity.

    Attributes:
        uid: User id in the container.
        gid: Group id in the container.
        additional_gids: Supplementary groups, without ``gid``, ascending.
        home: From the passwd file; "/" where it says nothing.
    """

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    home: str = "/"


class _Account(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: frozenset[str]


def find_user(rootfs: Path, text: str) -> User:
    """Look up ``user``, ``uid``, ``user:group``, ``uid:gid`` and their mixtures.

    A number needs no entry. The groups that list the user count only where no group is given, as in Docker.

    Args:
        rootfs: The container's "/", as the host sees it.
        text: What the image or the user says; "" is root.

    Raises:
        InvalidError: An id is out of range, or a file is too large or not a file.
        NotFoundError: A name is in no file of the root file system; ``kind`` is "user" or "group".
    """
    user_text, colon, group_text = text.partition(":")
    if colon and not group_text:
        raise InvalidError(f'user: {text!r}: expected a group after ":"', field="user", value=text)
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        account = _find_account(root, user_text or "0")
        if group_text:
            return User(account.uid, _find_gid(root, group_text), (), account.home)
        listed = {group.gid for group in _groups(root) if account.name and account.name in group.members}
        gids = tuple(sorted(listed - {account.gid}))[:GROUPS_MAX]
        return User(account.uid, account.gid, gids, account.home)
    finally:
        os.close(root)


def user_names(rootfs: Path) -> dict[int, str]:
    """The names of the users that a root file system knows, by number; the first line of a number counts.

    Raises:
        InvalidError: The file is too large.
    """
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found: dict[int, str] = {}
        for account in _accounts(root):
            found.setdefault(account.uid, account.name)
        return found
    finally:
        os.close(root)


def find_groups(rootfs: Path, texts: Iterable[str]) -> tuple[int, ...]:
    """The numbers of groups, given as names or numbers.

    Args:
        rootfs: The container's "/", as the host sees it.
        texts: Names, which the root file system's own file has, or numbers.

    Raises:
        InvalidError, NotFoundError: As ``find_user``.
    """
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return tuple(_find_gid(root, text) for text in texts)
    finally:
        os.close(root)


def _find_account(root: int, text: str) -> _Account:
    uid = _number(text, "user")
    for account in _accounts(root):
        # Digits are a number and never a name: or an image could have "1000" be whoever it likes, root among them.
        if account.uid == uid if uid is not None else account.name == text:
            return account
    if uid is None:
        raise NotFoundError(
            f"user not found: {text}: no such name in the image's /etc/passwd",
            kind="user",
            name=text,
            hint="give a number, or a name that the image knows",
        )
    return _Account("", uid, 0, "/")


def _find_gid(root: int, text: str) -> int:
    gid = _number(text, "group")
    if gid is not None:
        return gid
    for group in _groups(root):
        if group.name == text:
            return group.gid
    raise NotFoundError(
        f"group not found: {text}: no such name in the image's /etc/group",
        kind="group",
        name=text,
        hint="give a number, or a name that the image knows",
    )


def _number(text: str, field: str) -> int | None:
    if not (text.isascii() and text.removeprefix("-").isdigit()):
        return None
    value = int(text) if len(text) <= len(str(ID_MAX)) else ID_MAX + 1
    if not 0 <= value <= ID_MAX:
        raise InvalidError(f"{field}: {text}: expected an id of at most {ID_MAX}", field=field, value=text)
    return value


def _accounts(root: int) -> Iterator[_Account]:
    for name, fields in _entries(root, "/etc/passwd"):
        if len(fields) >= 5 and (uid := _id(fields[1])) is not None and (gid := _id(fields[2])) is not None:
            home = fields[4] if fields[4].startswith("/") else "/"
            yield _Account(name, uid, gid, home)


def _groups(root: int) -> Iterator[_Group]:
    for name, fields in _entries(root, "/etc/group"):
        if len(fields) >= 2 and (gid := _id(fields[1])) is not None:
            members = fields[2].split(",") if len(fields) > 2 else ()
            yield _Group(name, gid, frozenset(member for member in members if member))


def _id(text: str) -> int | None:
    """The number in a file's column; a line without a good one is skipped, as by libc."""
    if text.isascii() and text.isdigit() and len(text) <= len(str(ID_MAX)):
        value = int(text)
        return value if value <= ID_MAX else None
    return None


def _entries(root: int, path: str) -> Iterator[tuple[str, list[str]]]:
    """Name and remaining columns of each line; nothing where there is no such file."""
    try:
        fd = _core.open_in_root(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return
    with os.fdopen(fd, "rb") as file:
        body = file.read(FILE_MAX_BYTES + 1)
    if len(body) > FILE_MAX_BYTES:
        raise InvalidError(f"{path}: expected at most {FILE_MAX_BYTES} bytes", field="user", value=path)
    for line in body.decode("utf-8", "replace").split("\n"):  # as libc: nothing else ends a line
        name, *fields = line.strip().split(":")
        if name and not name.startswith(("#", "+", "-")):
            yield name, fields
