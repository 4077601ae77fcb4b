"""The processes in a container, from the files of its control group and of /proc: no program is run in it or beside it.

Spec:
    proc_pid_stat(5), proc_pid_status(5), proc_pid_cmdline(5), user_namespaces(7).
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pyctrd.oci.value import NamedTuple
from pyctrd.runtime.cgroups import Groups

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMAND_MAX_BYTES = 64 << 10  # a process may have megabytes of arguments, and change them as it likes
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessInfo(NamedTuple):
    """One process of a container.

    Attributes:
        pid: On the host.
        container_pid: In the container.
        ppid: Its parent's on the host; of the container's first process a process outside.
        user: Name by the container's /etc/passwd, else the number that its user has in the container.
        cpu_ns: Processor time that it used, by the kernel's ticks.
        rss_bytes: Memory that it has mapped and that is there; what is shared counts for each.
        threads: How many.
        state: A letter: R runs, S sleeps, D waits for a device, T is stopped, Z has ended and waits for its parent.
        command: Its words, joined by spaces; the kernel's name in brackets where it has none.
    """

    pid: int
    container_pid: int
    ppid: int
    user: str
    cpu_ns: int
    rss_bytes: int
    threads: int
    state: str
    command: str


def list_processes(pid: int, container_id: str, names: Mapping[int, str]) -> list[ProcessInfo]:
    """All of a container, by their process ids.

    Args:
        pid: Its init.
        container_id: Names its groups.
        names: User names in the container, by number.

    Raises:
        FileNotFoundError, ProcessLookupError: It has ended.
    """
    groups = Groups.of_process(pid, container_id)
    ids = parse_id_map(Path(f"/proc/{pid}/uid_map").read_text())
    if groups.path:
        found = (_look_at(one, container_id, names, ids) for one in groups.processes())
    else:  # a user's may have no group: its pid namespace tells its processes, unless that is shared
        found = (_look_at(one, "", names, ids) for one in _of_namespace(pid))
    return [process for process in found if process is not None]


def _of_namespace(pid: int) -> list[int]:
    """Those in a process's pid namespace; where that is this process's own, the one alone."""
    own, wanted = (Path(f"/proc/{which}/ns/pid").readlink() for which in ("self", pid))
    if own == wanted:
        return [pid]
    found = []
    for path in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended, or is another user's
            if path.name.isdigit() and (path / "ns/pid").readlink() == wanted:
                found.append(int(path.name))
    return sorted(found)


def parse_id_map(text: str) -> list[tuple[int, int, int]]:
    """Ranges of a ``uid_map``: the first id in the namespace, the first outside, how many."""
    found = []
    for line in text.splitlines():
        inside, outside, count = (int(word) for word in line.split())
        found.append((inside, outside, count))
    return found


def parse_stat(text: str) -> tuple[str, int, int, int, int]:
    """State, parent, processor time in ns, threads and resident bytes, of ``/proc/PID/stat``.

    The command's name is in parentheses, and may hold any of them and spaces: what follows its last one counts.
    """
    fields = text.rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return fields[0], int(fields[1]), ticks * _TICK_NS, int(fields[17]), int(fields[21]) * _PAGE_BYTES


def _look_at(pid: int, container_id: str, names: Mapping[int, str], ids: list[tuple[int, int, int]]) -> (
    ProcessInfo | None
):  # fmt: skip
    """One process; None where it has ended, and where its number is another process's by now."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        directory = Path(f"/proc/{pid}")
        groups = (directory / "cgroup").read_text()
        state, ppid, cpu_ns, threads, rss_bytes = parse_stat((directory / "stat").read_text(errors="replace"))
        status = _fields((directory / "status").read_text(errors="replace"))
        with (directory / "cmdline").open("rb") as file:
            words = file.read(COMMAND_MAX_BYTES)
        # It had this number all along if it has not ended: then each of these files was its own.
        if _has_ended(pidfd) or container_id not in groups:
            return None
    except (FileNotFoundError, ProcessLookupError):
        return None
    finally:
        os.close(pidfd)
    uid = _inside(int(status["Uid"].split()[0]), ids)
    return ProcessInfo(
        pid=pid,
        container_pid=int(status["NSpid"].split()[-1]),
        ppid=ppid,
        user=names.get(uid, str(uid)),
        cpu_ns=cpu_ns,
        rss_bytes=rss_bytes,
        threads=threads,
        state=state,
        command=words.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace") or f"[{status['Name'].strip()}]",
    )


def _fields(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        found[key] = value
    return found


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _inside(uid: int, ids: list[tuple[int, int, int]]) -> int:
    """A host's user as the container sees it; unchanged where it does not."""
    for inside, outside, count in ids:
        if outside <= uid < outside + count:
            return inside + uid - outside
    return uid
