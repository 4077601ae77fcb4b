"""A container's control groups: their directories, and the numbers in their files.

Spec:
    cgroups(7), "/proc/PID/cgroup"; proc_pid_mountinfo(5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from typing import Self

MOUNTINFO = Path("/proc/self/mountinfo")
# Of version 1; of version 2 a controller is there if its files are.
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "freezer")
# A number that stands for no limit: version 1 has the largest one that is whole pages.
UNLIMITED_BYTES = 1 << 62


class Groups(NamedTuple):
    """The directories of one container.

    Attributes:
        v1: By controller.
        v2: None where version 2 is not mounted. In a hybrid hierarchy it is, and has no controllers.
        path: In the hierarchy, as in the spec's ``cgroupsPath``; "" where there is none.
    """

    v1: Mapping[str, Path]
    v2: Path | None
    path: str = ""

    @classmethod
    def of_process(cls, pid: int, container_id: str) -> Self:
        """Those of the container whose init has this process id.

        Raises:
            FileNotFoundError, ProcessLookupError: It is gone.
        """
        return cls.parse(Path(f"/proc/{pid}/cgroup").read_text(), MOUNTINFO.read_text(), container_id)

    @classmethod
    def parse(cls, groups: str, mounts: str, container_id: str) -> Self:
        """Find them.

        Args:
            groups: Text of ``/proc/PID/cgroup``.
            mounts: Text of ``/proc/self/mountinfo``.
            container_id: A component of the path that has it is the container's own group: its init may have moved
                into one beneath, as systemd does. A group without it is not the container's, and left out.
        """
        paths = dict(_paths(groups, container_id))
        v1: dict[str, Path] = {}
        v2: Path | None = None
        for kind, options, root, target in _mounts(mounts):
            names = [""] if kind == "cgroup2" else [name for name in CONTROLLERS if name in options]
            for name in names:
                if name not in paths or (found := _beneath(root, target, paths[name])) is None:
                    continue
                if name:
                    v1.setdefault(name, found)
                else:
                    v2 = v2 or found
        return cls(v1, v2, paths.get("memory") or paths.get("") or next(iter(paths.values()), ""))

    def directory(self, controller: str, file: str) -> Path | None:
        """The directory whose file is asked for: of version 1 for a controller; "" is version 2."""
        directory = self.v1.get(controller) if controller else self.v2
        return directory if directory is not None and (directory / file).exists() else None

    def text(self, controller: str, file: str) -> str | None:
        """A file's text; None where it is not there, or cannot be read on this kernel."""
        directory = self.v1.get(controller) if controller else self.v2
        if directory is None:
            return None
        try:
            return (directory / file).read_text()
        except OSError:
            return None

    def number(self, controller: str, file: str) -> int | None:
        """A file's one number; None where it is not there, or says that there is no limit."""
        return parse_number(self.text(controller, file))

    def table(self, controller: str, file: str) -> dict[str, int]:
        """A file of a key and a number on each line; empty where it is not there."""
        return parse_table(self.text(controller, file))

    def processes(self) -> list[int]:
        """Process ids in the container's group and those beneath it, in their order."""
        directory = self.v1.get("pids") or self.v1.get("memory") or self.v1.get("freezer") or self.v2
        directory = directory or next(iter(self.v1.values()), None)
        found: set[int] = set()
        for group in () if directory is None else (directory, *_within(directory)):
            try:
                found.update(map(int, (group / "cgroup.procs").read_text().split()))
            except OSError:
                continue  # removed just now, or threaded: its processes are listed above it
        return sorted(found)


def parse_number(text: str | None) -> int | None:
    """One number; None for "max", for version 1's largest number, and for what is none."""
    word = (text or "").strip()
    if not word.removeprefix("-").isdigit():
        return None
    value = int(word)
    return None if value < 0 or value >= UNLIMITED_BYTES else value


def parse_table(text: str | None) -> dict[str, int]:
    """Lines of ``KEY NUMBER``."""
    found = {}
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdigit():
            found[key] = int(value)
    return found


def _paths(groups: str, container_id: str) -> Iterator[tuple[str, str]]:
    """Controller ("" for version 2) and path of each group that is the container's own."""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        at = path.find(container_id)
        if at < 0:
            continue
        end = path.find("/", at)
        own = path if end < 0 else path[:end]
        for name in controllers.split(",") if controllers else [""]:
            yield name, own


def _mounts(text: str) -> Iterator[tuple[str, list[str], str, str]]:
    """Kind, options, root and target of each control group's mount."""
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            fields = head.split(" ")
            yield kind, options.split(","), fields[3], fields[4]


def _beneath(root: str, target: str, path: str) -> Path | None:
    """A group's directory, where a mount shows all of the hierarchy, or a part in which the group is."""
    prefix = root.rstrip("/")
    if not path.startswith(prefix + "/") or ".." in path.split("/"):
        return None
    return Path(target + path[len(prefix) :])


def _within(directory: Path) -> Iterator[Path]:
    """The groups beneath one, in whatever depth."""
    try:
        groups = sorted(entry for entry in directory.iterdir() if entry.is_dir())
    except OSError:
        return
    for group in groups:
        yield group
        yield from _within(group)
