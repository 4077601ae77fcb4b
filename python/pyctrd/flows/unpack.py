"""Unpack one layer file, with no engine."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict
from pathlib import Path

from pyctrd import _core
from pyctrd.content.limits import Limits
from pyctrd.errors import InvalidError, NotFoundError, UnsupportedError

DIRECTORY_MODE = 0o755
OWNERSHIPS = ("keep", "mapped", "recorded")
# What of an entry takes rights that a user has not, as the native core names it.
_OPERATIONS = ("chown: ", "chmod: ", "mknod: ", "set xattr: ", "remove xattr: ")
_OTHERWISE = {"keep": 'root, or ownership "mapped" or "recorded"', "mapped": 'root, or ownership "recorded"'}


def unpack_file(
    layer: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    diff_id: str | None = None,
    digest: str | None = None,
    limits: Limits | None = None,
    ownership: str = "keep",
) -> _core.Ingested:
    """Apply a layer file to a directory; see ``pyctrd.unpack``."""
    if ownership not in OWNERSHIPS:
        expected = ", ".join(OWNERSHIPS)
        raise InvalidError(
            f"invalid ownership: {ownership!r}: expected one of {expected}", field="ownership", value=ownership
        )
    if not Path(layer).is_file():
        raise NotFoundError(f"layer file not found: {layer}", kind="file", name=os.fspath(layer))
    try:
        if ownership == "mapped":
            return _unpack_mapped(layer, dest, diff_id, digest, limits)
        _make(dest)
        return _core.unpack(layer, dest, diff_id=diff_id, digest=digest, limits=limits, ownership=ownership)
    except PermissionError as error:
        if refusal := _explain(error, ownership):
            raise refusal from error
        raise


def _unpack_mapped(
    layer: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    diff_id: str | None,
    digest: str | None,
    limits: Limits | None,
) -> _core.Ingested:
    from pyctrd.flows.mapped import unpack_mapped
    from pyctrd.runtime.idmaps import find_id_maps

    maps = find_id_maps()
    _make(dest)
    request = {"source": os.fspath(layer), "dest": os.fspath(dest), "diff_id": diff_id, "digest": digest}
    return unpack_mapped(maps, {**request, "limits": None if limits is None else asdict(limits)})


def _make(dest: str | os.PathLike[str]) -> None:
    Path(dest).mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)


def _explain(error: PermissionError, ownership: str) -> UnsupportedError | None:
    """What a user who may not do what an archive asks for can do instead; None where another way would not help."""
    lacks_rights = error.errno == errno.EPERM and str(error.strerror).startswith(_OPERATIONS)
    if not lacks_rights or ownership not in _OTHERWISE or (ownership == "keep" and os.geteuid() == 0):
        return None
    name = repr(os.fsencode(error.filename))[2:-1]
    feature, needs = f'ownership "{ownership}": {name}: {error.strerror}', _OTHERWISE[ownership]
    return UnsupportedError(f"unsupported: {feature}: needs {needs}", feature=feature, needs=needs)
