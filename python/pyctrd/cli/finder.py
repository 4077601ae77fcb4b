"""Modules of pyctrd found by their names' place, and their code read in one go: for the process of a command.

Python looks into each directory of a path, makes a list of what is there, and looks at every file several times: of
eighty modules that is a twentieth of a small pull. What is loaded is the same: the ``.pyc`` that Python would take, if
it is of this source. Whatever is not as it usually is (no ``.pyc``, an old one, one that goes by its source's hash) is
left to Python.
"""

from __future__ import annotations

import os
import sys

# What `importlib` has, which itself is loaded only if it is needed.
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER, SourceFileLoader

TYPE_CHECKING = False  # what `typing` has too, which is loaded only if it is needed
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

_PACKAGE = "pyctrd."
_HEAD_BYTES = 16
# Nothing larger is read here: ours are all smaller, and of a buffer of twice the size malloc would make a mapping.
_READ_BYTES = 1 << 16


class _Loader(SourceFileLoader):
    """Loads one module.

    Args:
        name: The module.
        path: Its source.
        cached: Where its ``.pyc`` is, if there is one.
        head: How that begins if it is of this source.

    Spec:
        PEP 552, "Specification": magic number, flags, the source's time and size.
    """

    def __init__(self, name: str, path: str, cached: str, head: bytes) -> None:
        super().__init__(name, path)
        self._cached = cached
        self._head = head

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code, out of its ``.pyc``; if there is none of this source, as Python gets it."""
        from marshal import loads

        try:
            descriptor = os.open(self._cached, os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = os.read(descriptor, _READ_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            content = b""
        if not content.startswith(self._head) or len(content) == _READ_BYTES:
            return super().get_code(fullname)
        code: CodeType = loads(memoryview(content)[_HEAD_BYTES:])  # noqa: S302 - what Python would load
        return code


class _Finder:
    """Finds modules of pyctrd, each in its package's directory."""

    def __init__(self, tag: str) -> None:
        self._tag = tag

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What is imported by a name; None for all that is not in pyctrd's own source."""
        if path is None or not name.startswith(_PACKAGE):
            return None
        (directory,) = path
        base = name.rpartition(".")[2]
        if (spec := self._spec(name, directory, base)) is None:
            package = f"{directory}/{base}"
            if (spec := self._spec(name, package, "__init__")) is not None:
                spec.submodule_search_locations = [package]
        return spec

    def _spec(self, name: str, directory: str, base: str) -> ModuleSpec | None:
        source = f"{directory}/{base}.py"
        try:
            found = os.stat(source)  # noqa: PTH116 - pathlib is not loaded yet
        except OSError:
            return None
        numbers = (0, int(found.st_mtime), found.st_size)
        head = MAGIC_NUMBER + b"".join((number & 0xFFFFFFFF).to_bytes(4, "little") for number in numbers)
        cached = f"{directory}/__pycache__/{base}.{self._tag}.pyc"
        spec = ModuleSpec(name, _Loader(name, source, cached, head), origin=source)
        spec.cached = cached
        spec.has_location = True
        return spec


def find_quickly() -> None:
    """From now on, find pyctrd's modules by their place; where Python keeps its ``.pyc`` elsewhere, change nothing."""
    tag = sys.implementation.cache_tag
    if tag and sys.pycache_prefix is None and sys.flags.optimize == 0:
        sys.meta_path.insert(0, _Finder(tag))
