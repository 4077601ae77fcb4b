"""``engine.namespaces``: the tenants of a store, seen by whoever keeps it."""

from __future__ import annotations

from pyctrd import namespaces
from pyctrd.aio.face import Face, calls


class Namespaces(Face[namespaces.Namespaces]):
    """As ``pyctrd.Namespaces``."""

    create = calls(namespaces.Namespaces.create)
    get = calls(namespaces.Namespaces.get)
    list = calls(namespaces.Namespaces.list)
    set = calls(namespaces.Namespaces.set)
    usage = calls(namespaces.Namespaces.usage)
    remove = calls(namespaces.Namespaces.remove)
