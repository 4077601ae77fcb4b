"""Which user namespace a container is to have, in podman's words, and what its ids are on the host.

Spec:
    runtime-spec v1.1 config-linux.md, "User namespace mappings"; user_namespaces(7); podman-run(1), ``--userns``.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyctrd.errors import InvalidError, UnsupportedError
from pyctrd.oci.value import NamedTuple
from pyctrd.runtime.idmaps import OVERFLOW_ID, IdRange, check_ranges
from pyctrd.runtime.namespaces import JOINED
from pyctrd.runtime.words import passable

# Ids that images are made with: 0 to nobody's, and one that tools take for no id.
AUTO_IDS = 65536
_AUTO, _KEEP = "auto", "keep-id"


class IdMappings(NamedTuple):
    """What a user namespace's ids are on the host.

    Attributes:
        uids: Of users.
        gids: Of groups.
    """

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]

    @property
    def is_identity(self) -> bool:
        """Whether each id that it has is the same outside."""
        return all(item.inside == item.outside for item in (*self.uids, *self.gids))

    def outside(self, uid: int, gid: int) -> tuple[int, int]:
        """Owner and group on the host of what the container has as these; nobody's where it has no such ids."""
        return _outside(self.uids, uid), _outside(self.gids, gid)

    def inside(self, uid: int, gid: int) -> tuple[int, int]:
        """Owner and group in the container of what the host has as these; nobody's where they are not its own."""
        return _inside(self.uids, uid), _inside(self.gids, gid)

    def has_group(self, gid: int) -> bool:
        """Whether the container has such a group."""
        return _has(self.gids, gid)

    def check(self, *, uid: int, gids: Sequence[int]) -> None:
        """Refuse a process's ids that the namespace does not have: the runtime says "invalid argument" alone.

        Raises:
            InvalidError: One of them, or root, with whom the runtime begins.
        """
        for name, ranges, ids in (("user", self.uids, (0, uid)), ("group", self.gids, (0, *gids))):
            for number in ids:
                if not _has(ranges, number):
                    raise InvalidError(
                        f"{name}: {number}: not in the container's user namespace, which has {_shown(ranges)}",
                        field=name,
                        value=number,
                        hint="map it as well, or give the namespace more ids: --userns auto:size=N, --uidmap",
                    )

    def spec(self) -> dict[str, list[dict[str, int]]]:
        """The spec's ``uidMappings`` and ``gidMappings``."""
        pairs = (("uidMappings", self.uids), ("gidMappings", self.gids))
        return {
            name: [{"containerID": inside, "hostID": outside, "size": length} for inside, outside, length in ranges]
            for name, ranges in pairs
        }


class UsernsRequest(NamedTuple):
    """What a user asked for.

    Attributes:
        mode: "auto", "keep-id", "nomap", "private", ``container:NAME`` or a namespace's path.
        size: Ids that "auto" takes.
        uids: Of "private", as given; () takes those of ``subuid``.
        gids: Likewise.
        subuid: Whose ranges in /etc/subuid "private" has; "" for none.
        subgid: Likewise of /etc/subgid.
        keep: Which ids the caller is to have, of "keep-id"; None is the caller's own.
    """

    mode: str
    size: int = AUTO_IDS
    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()
    subuid: str = ""
    subgid: str = ""
    keep: tuple[int, int] | None = None


def read_userns(
    text: str, *, uids: Sequence[str] = (), gids: Sequence[str] = (), subuid: str = "", subgid: str = ""
) -> UsernsRequest | None:
    """A user's words; None for the namespace that the engine is in.

    Args:
        text: "host", ``auto[:size=N]``, ``keep-id[:uid=N,gid=N]``, "nomap", "private", ``container:NAME``, or
            ``ns:PATH``; "" is "private" where ids follow, else "host".
        uids: ``CONTAINER:HOST[:LENGTH]``.
        gids: Likewise; as ``uids`` where only these are given, and the other way round.
        subuid: A name in /etc/subuid.
        subgid: A name in /etc/subgid; ``subuid`` by default.

    Raises:
        InvalidError: There is none like it.
        UnsupportedError: It cannot be had yet.
    """
    has_ids = bool(uids or gids or subuid or subgid)
    mode, _, rest = text.partition(":")
    if has_ids:
        if text not in ("", "private"):
            raise InvalidError(f"invalid userns: {text}: its ids cannot be chosen", field="userns", value=text)
        if (uids or gids) and (subuid or subgid):
            raise InvalidError("invalid userns: uidmap or subuidname: expected one of them", field="userns", value=text)
        users, groups = [_read_range("uidmap", word) for word in uids], [_read_range("gidmap", word) for word in gids]
        return UsernsRequest(
            "private",
            uids=check_ranges("uidmap", users or groups) if users or groups else (),
            gids=check_ranges("gidmap", groups or users) if users or groups else (),
            subuid=subuid or subgid,
            subgid=subgid or subuid,
        )
    if text in ("", "host"):
        return None
    if mode == _AUTO:
        return UsernsRequest(_AUTO, size=_numbers(text, rest, "size").get("size", AUTO_IDS))
    if mode == _KEEP:
        found = _numbers(text, rest, "uid", "gid")
        keep = (found.get("uid", found.get("gid", 0)), found.get("gid", found.get("uid", 0))) if found else None
        return UsernsRequest(_KEEP, keep=keep)
    if text == "nomap" or (text.startswith(JOINED) and text != JOINED):
        return UsernsRequest(text)
    path = rest if mode == "ns" else text
    if path.startswith("/"):
        passable("userns", path)
        return UsernsRequest(path)
    expected = "host, auto, keep-id, nomap, private, container:NAME or ns:PATH"
    reason = "needs uidmap, gidmap or subuidname" if text == "private" else f"expected {expected}"
    raise InvalidError(f"invalid userns: {text}: {reason}", field="userns", value=text)


def parse_map(text: str) -> tuple[IdRange, ...]:
    """What the kernel says in ``/proc/PID/uid_map``."""
    return tuple(IdRange(*map(int, line.split())) for line in text.splitlines() if line.strip())


def _read_range(field: str, text: str) -> IdRange:
    words = text.split(":")
    if len(words) not in (2, 3) or not all(word.isascii() and word.isdigit() for word in words):
        raise InvalidError(
            f"invalid {field}: {text!r}: expected CONTAINER:HOST[:LENGTH], as 0:100000:65536", field=field, value=text
        )
    return IdRange(*map(int, (*words, "1")[:3]))


def _numbers(text: str, options: str, *names: str) -> dict[str, int]:
    found = {}
    for option in options.split(",") if options else ():
        name, _, value = option.partition("=")
        if name in ("uidmapping", "gidmapping"):
            raise UnsupportedError(
                f"unsupported: userns: {text}: {name}",
                feature=f"userns auto with {name}",
                needs="--uidmap and --gidmap",
            )
        if name not in names or not (value.isascii() and value.isdigit()) or (name == "size" and int(value) < 1):
            expected = " or ".join(f"{name}=N" for name in names)
            raise InvalidError(f"invalid userns: {text}: {option}: expected {expected}", field="userns", value=text)
        found[name] = int(value)
    return found


def _has(ranges: Sequence[IdRange], number: int) -> bool:
    return any(0 <= number - item.inside < item.length for item in ranges)


def _outside(ranges: Sequence[IdRange], number: int) -> int:
    found = (item.outside + number - item.inside for item in ranges if 0 <= number - item.inside < item.length)
    return next(found, OVERFLOW_ID)


def _inside(ranges: Sequence[IdRange], number: int) -> int:
    found = (item.inside + number - item.outside for item in ranges if 0 <= number - item.outside < item.length)
    return next(found, OVERFLOW_ID)


def _shown(ranges: Sequence[IdRange]) -> str:
    return ", ".join(f"{item.inside} to {item.inside + item.length - 1}" for item in ranges)
