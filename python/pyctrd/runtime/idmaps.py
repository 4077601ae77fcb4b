"""Subordinate ids: which a user has, and how a user namespace gets them.

Spec:
    subuid(5), subgid(5), newuidmap(1), user_namespaces(7).
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from pyctrd.errors import DeadlineError, InvalidError, UnsupportedError
from pyctrd.oci.value import NamedTuple

MAPPED = 'ownership "mapped"'  # what a caller wants ids for, in errors
SUBUID = Path("/etc/subuid")
SUBGID = Path("/etc/subgid")
MAP_SECONDS = 30.0  # newuidmap answers within milliseconds; a directory service that it asks may be slow
_RANGES_MAX = 340  # the kernel's
_ID_MAX = 2**32 - 1  # this one is nobody, and "unchanged"
OVERFLOW_ID = 65534  # whose all is that a namespace has no id for
_ENOUGH = 65536  # ids that images are made with: 0 to nobody's


class Range(NamedTuple):
    """Ids on the host that belong together.

    Attributes:
        start: The first.
        length: Their number.
    """

    start: int
    length: int


class IdRange(NamedTuple):
    """Ids of a user namespace, and what they are outside.

    Attributes:
        inside: The first of them: as an image's files have it.
        outside: The first of them on the host.
        length: Their number.
    """

    inside: int
    outside: int
    length: int


class IdMaps(NamedTuple):
    """What a user namespace is to have: 0 is the user, 1 and those after it are the ranges, one after the other.

    Attributes:
        uids: The user's uid, then the ranges of /etc/subuid.
        gids: The user's gid, then the ranges of /etc/subgid.
    """

    uids: tuple[Range, ...]
    gids: tuple[Range, ...]


def find_id_maps(*, feature: str = MAPPED) -> IdMaps:
    """The maps for this process' user, root included.

    Raises:
        UnsupportedError: newuidmap or newgidmap is missing, or the user has no ranges.
        InvalidError: A line of theirs cannot be read.
    """
    for program in ("newuidmap", "newgidmap"):
        if shutil.which(program) is None:
            needs = f"{program}, which is not installed"
            raise _unsupported(feature, needs, "install it (Debian: apt-get install uidmap)")
    uid = os.getuid()
    names = {str(uid)}
    with suppress(KeyError):  # a number with no name may have ranges as well
        names.add(pwd.getpwuid(uid).pw_name)
    user = max(names, key=lambda name: not name.isdigit())
    found = []
    for path, own in ((SUBUID, uid), (SUBGID, os.getgid())):
        ranges = _read_ranges(path, names)
        if not ranges:
            raise _unsupported(
                feature,
                f"a range of ids for user {user} in {path}",
                f"as root add a line {user}:FIRST:{_ENOUGH} to it, with ids that nobody has"
                + (", or record ownership" if feature == MAPPED else ""),
            )
        found.append((Range(own, 1), *ranges))
    return IdMaps(*found)


def check_ranges(name: str, ranges: Sequence[IdRange]) -> tuple[IdRange, ...]:
    """The ranges, if a user namespace can have them.

    Raises:
        InvalidError: There are none or more than 340, one is empty or reaches beyond the last id, or two overlap.
    """
    found = tuple(IdRange(*found) for found in ranges)
    wrong = None
    if not 0 < len(found) <= _RANGES_MAX:
        wrong = f"{len(found)} ranges: expected 1 to {_RANGES_MAX}"
    for item in found:
        if item.length < 1 or min(item) < 0 or max(item.inside, item.outside) + item.length > _ID_MAX:
            wrong = f"{':'.join(map(str, item))}: expected INSIDE:OUTSIDE:LENGTH, up to {_ID_MAX - 1}"
    for first in (0, 1):
        in_order = sorted(found, key=lambda item: item[first])
        for item, after in pairwise(in_order):
            if item[first] + item.length > after[first]:
                wrong = f"{':'.join(map(str, item))} and {':'.join(map(str, after))} overlap"
    if wrong is not None:
        raise InvalidError(f"invalid {name}: {wrong}", field=name, value=ranges)
    return found


def write_ids(pid: int, uids: Sequence[IdRange], gids: Sequence[IdRange]) -> None:
    """Give a process' new user namespace ids that only root may give.

    Raises:
        UnsupportedError: This process may not give them.
    """
    for name, ranges in (("uid_map", uids), ("gid_map", gids)):
        try:
            Path(f"/proc/{pid}/{name}").write_bytes("".join(f"{a} {b} {c}\n" for a, b, c in ranges).encode())
        except PermissionError as error:
            raise UnsupportedError(
                "unsupported: id-mapped mounts: needs root rights (CAP_SETUID, CAP_SETGID)",
                feature="id-mapped mounts",
                needs="root rights (CAP_SETUID, CAP_SETGID)",
            ) from error


def map_ids(pid: int, maps: IdMaps, *, feature: str = MAPPED) -> None:
    """Give a process' new user namespace its ids.

    Raises:
        UnsupportedError: newuidmap or newgidmap refused.
        DeadlineError: One of them does not end.
    """
    for program, ranges in (("newuidmap", maps.uids), ("newgidmap", maps.gids)):
        command = [program, str(pid), *_arguments(ranges)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=MAP_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise DeadlineError(
                f"{program}: not done within {MAP_SECONDS:.0f} s", operation=program, timeout_seconds=MAP_SECONDS
            ) from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().replace("\n", "; ") or f"status {done.returncode}"
            raise _unsupported(
                feature,
                f"{program} to work: {said}",
                f"{program} must be set-uid root or have cap_setuid or cap_setgid, and no range may be another's",
            )


def named_ranges(name: str, *, groups: bool = False) -> list[Range]:
    """What a user has in /etc/subuid, or in /etc/subgid.

    Raises:
        UnsupportedError: Nothing.
        InvalidError: A line cannot be read.
    """
    path = SUBGID if groups else SUBUID
    if found := _read_ranges(path, {name}):
        return found
    needs = f"a range of ids for {name} in {path}"
    raise UnsupportedError(
        f"unsupported: user namespaces of {name}: needs {needs}",
        feature=f"user namespaces of {name}",
        needs=needs,
        hint=f"as root add a line with ids that nobody has to {path}, as {name}:2147483648:1073741824",
    )


def _arguments(ranges: Sequence[Range]) -> list[str]:
    """Triples of first id inside, first id on the host, number."""
    words, inside = [], 0
    for start, length in ranges:
        words += [str(inside), str(start), str(length)]
        inside += length
    return words


def _read_ranges(path: Path, names: set[str]) -> list[Range]:
    """The ranges that any of a user's names has in a file."""
    try:
        lines = path.read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        name, *numbers = line.strip().split(":")
        if name not in names:
            continue
        if len(numbers) != 2 or not all(part.isascii() and part.isdigit() for part in numbers):
            raise InvalidError(
                f"invalid range of ids: {path}, line {number}: expected {name}:FIRST:COUNT", field=str(path), value=line
            )
        if int(numbers[1]) > 0:
            found.append(Range(int(numbers[0]), int(numbers[1])))
    return found


def _unsupported(feature: str, needs: str, hint: str) -> UnsupportedError:
    return UnsupportedError(f"unsupported: {feature}: needs {needs}", feature=feature, needs=needs, hint=hint)
