"""Children that have a user namespace: to unpack in, or for the namespace alone.

To one that unpacks 0 is the user, and other owners are subordinate ids.

A process with threads, as any that has pulled is, cannot enter a user namespace itself. The child is this module run as
a program: it enters one, says so, is given ids by newuidmap and newgidmap, reads what to do, and answers with what came
of it. Both write Python literals: whatever a child that read a hostile archive may say, it is data and nothing else.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyctrd import _core, errors
from pyctrd.content.limits import Limits
from pyctrd.errors import PyctrdError, UnsupportedError
from pyctrd.runtime.idmaps import IdMaps, IdRange, map_ids, write_ids
from pyctrd.runtime.shim import SHIM

_FIELDS = (
    "digest",
    "size",
    "compression",
    "diff_id",
    "layer_bytes",
    "layer_entries",
    "implied",
    "foreign_links",
    "skipped_xattrs",
    "unrecorded_owners",
)


def unpack_mapped(maps: IdMaps, request: Mapping[str, Any]) -> _core.Ingested:
    """Run ``_core.unpack`` in a child with ids; an interrupt or the end of this process ends the child as well.

    Args:
        maps: The ids that the child gets.
        request: ``source``, ``dest``, ``diff_id``, ``digest``, and ``limits`` by name or None.

    Raises:
        UnsupportedError: No user namespace can be made, or it gets no ids.
        PyctrdError, OSError: As raised in the child.
    """
    with _start() as child:
        try:
            answer, complaint = _converse(child, maps, request)
        except BaseException:
            child.kill()
            raise
    if not answer:
        raise _silent(child, complaint)
    result = _read(answer)
    if "error" in result:
        raise _restore(result)
    return _core.Ingested(**result)


def open_user_namespace(uids: Sequence[IdRange], gids: Sequence[IdRange]) -> int:
    """A user namespace with some ids and no process in it: a descriptor, the caller's to close.

    Raises:
        UnsupportedError: None can be made, or this process may not give it the ids.
    """
    pipe = subprocess.PIPE
    # The shim's program: it starts in a millisecond, where an interpreter takes a hundred.
    with subprocess.Popen([str(SHIM), "--as-holder"], stdin=pipe, stdout=pipe) as child:
        try:
            said = child.stdout.readline().decode(errors="replace").strip() if child.stdout else ""
            if said != "ok":
                raise _no_namespace({"message": said or "it ended"}, feature="id-mapped mounts")
            write_ids(child.pid, uids, gids)
            return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            child.kill()


def read_maps(path: str) -> tuple[str, str]:
    """The ids of the user namespace at a path, as the kernel shows users' and groups'.

    Raises:
        OSError: It cannot be entered.
    """
    found = re.fullmatch(r"/proc/(\d+)/ns/user", path)
    if found:
        return _maps_of(int(found[1]))
    code = "import os, sys; from pyctrd import _core; _core.join_namespace(os.open(sys.argv[1], os.O_RDONLY))"
    code += "; print(flush=True); sys.stdin.read()"
    with _start("-c", code, path) as child:
        try:
            if not (child.stdout and child.stdout.readline()):
                raise _silent(child, child.communicate()[1])
            return _maps_of(child.pid)
        finally:
            child.kill()


def _maps_of(pid: int) -> tuple[str, str]:
    users, groups = (Path(f"/proc/{pid}/{name}").read_text() for name in ("uid_map", "gid_map"))
    return users, groups


def _start(*words: str) -> subprocess.Popen[bytes]:
    """An interpreter that runs this module, or other words."""
    command = [sys.executable, "-P", *(words or ("-m", "pyctrd.flows.mapped", str(os.getpid())))]
    # Found where this process found us, however that was.
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)


def _silent(child: subprocess.Popen[bytes], complaint: bytes) -> PyctrdError:
    lines = complaint.decode(errors="replace").strip().splitlines() or [f"status {child.returncode}"]
    return PyctrdError(f"child in a user namespace: ended without an answer: {lines[-1]}")


def _converse(child: subprocess.Popen[bytes], maps: IdMaps, request: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Give the child its ids and what to do: its answer, b"" where it ended without one, and what it complained of."""
    greeting = child.stdout.readline() if child.stdout else b""
    if not greeting:
        return child.communicate()
    if refused := _read(greeting):
        raise _no_namespace(refused, feature='ownership "mapped"')
    map_ids(child.pid, maps)
    return child.communicate(ascii(dict(request)).encode())


def main() -> None:
    """Be the child: the parent's process id is the only argument."""
    # A terminal interrupts parent and child alike: the parent decides, and says so by ending this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _core.enter_user_namespace(parent=int(sys.argv[1]))
    except OSError as error:
        _say(_describe(error))
        return
    _say({})
    text = sys.stdin.read()
    if not text:
        return  # it got no ids
    request = ast.literal_eval(text)
    limits = request.pop("limits")
    try:
        done = _core.unpack(**request, limits=None if limits is None else Limits(**limits), ownership="mapped")
    except (PyctrdError, OSError) as error:
        _say(_describe(error))
    else:
        _say({name: getattr(done, name) for name in _FIELDS})


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(f"{dict(answer)!a}\n")
    sys.stdout.flush()


def _read(line: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = ast.literal_eval(line.decode())
    return answer


def _describe(error: PyctrdError | OSError) -> dict[str, Any]:
    """An error as literals."""
    if isinstance(error, PyctrdError):
        attributes = {name: value for name, value in vars(error).items() if not name.startswith("_")}
        return {"error": type(error).__name__, "message": str(error), "attributes": attributes}
    name = None if error.filename is None else os.fsencode(error.filename)
    return {"error": "OSError", "errno": error.errno, "message": error.strerror, "filename": name}


def _restore(described: Mapping[str, Any]) -> PyctrdError | OSError:
    """The error again, of the class and with the words that it had."""
    if described["error"] == "OSError":
        name = described["filename"]
        return OSError(described["errno"], described["message"], None if name is None else os.fsdecode(name))
    kind = getattr(errors, described["error"])
    error: PyctrdError = kind(described["message"], **described["attributes"])
    return error


def _no_namespace(described: Mapping[str, Any], *, feature: str) -> UnsupportedError:
    needs = f"user namespaces that a user may make ({described['message']})"
    return UnsupportedError(
        f"unsupported: {feature}: needs {needs}",
        feature=feature,
        needs=needs,
        hint="see sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone and "
        'kernel.apparmor_restrict_unprivileged_userns; ownership "recorded" needs none',
    )


if __name__ == "__main__":
    main()
