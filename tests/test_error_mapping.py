"""Errors: every native one becomes its class with its attributes, and the classes are those that callers were told."""

from __future__ import annotations

import errno
import inspect
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyctrd import _core, errors
from pyctrd.content.limits import Limits
from pyctrd.errors import PyctrdError
from pyctrd.flows.mapped import unpack_mapped
from pyctrd.runtime.idmaps import IdMaps, Range
from tests.archives import Tar

ERROR_RS = (Path(__file__).parents[1] / "rust/src/error.rs").read_text()
ZEROS = f"sha256:{'0' * 64}"
EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

# Class → its bases and attributes, as STYLE's section 6 draws them, and those that came since.
TREE: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "PyctrdError": (("Exception",), {"hint"}),
    "InvalidError": (("PyctrdError", "ValueError"), {"field", "value"}),
    "NotFoundError": (("PyctrdError", "LookupError"), {"kind", "name"}),
    "AlreadyExistsError": (("PyctrdError",), {"kind", "name"}),
    "ConflictError": (("PyctrdError",), {"kind", "name", "state", "allowed"}),
    "QuotaError": (("PyctrdError",), {"namespace", "limit_bytes", "use_bytes", "need_bytes"}),
    "IntegrityError": (("PyctrdError",), {"subject", "expected", "actual"}),
    "DigestMismatchError": (("IntegrityError",), set()),
    "SizeMismatchError": (("IntegrityError",), set()),
    "DiffIDMismatchError": (("IntegrityError",), set()),
    "PolicyError": (("PyctrdError",), {"reference", "digest", "reason"}),
    "UnsafeArchiveError": (("PyctrdError",), {"entry", "offset", "reason", "limit"}),
    "UnsupportedError": (("PyctrdError",), {"feature", "needs"}),
    "RegistryError": (("PyctrdError",), {"method", "url", "status", "codes"}),
    "AuthenticationError": (("RegistryError",), set()),
    "DeniedError": (("RegistryError",), set()),
    "UnavailableError": (("RegistryError",), {"retry_after_seconds"}),
    "UnreachableError": (("UnavailableError",), set()),
    "RuncError": (("PyctrdError",), {"argv", "exit_status", "stderr"}),
    "CommandNotFoundError": (("RuncError",), set()),
    "CommandNotExecutableError": (("RuncError",), set()),
    "NetlinkError": (("PyctrdError", "OSError"), {"request", "extack"}),
    "DetachedError": (("PyctrdError",), set()),
    "DeadlineError": (("PyctrdError", "TimeoutError"), {"operation", "timeout_seconds"}),
    "CancelledError": (("PyctrdError",), set()),
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def ingest(root: Path, **options: object) -> _core.Ingest:
    return _core.Ingest(root, "one", digest=EMPTY, **options)  # type: ignore[arg-type] # each caller gives what fits


def already_exists(directory: Path) -> None:
    first = ingest(directory)
    try:
        ingest(directory)
    finally:
        first.abort()


def cancelled(directory: Path) -> None:
    given_up = ingest(directory)
    given_up.abort()
    given_up.buffer()


def conflict(directory: Path) -> None:
    with _core.FileLock(directory / "lock") as lock:
        lock.acquire()


def size_mismatch(directory: Path) -> None:
    short = ingest(directory, size=2)
    short.write(b"x")
    short.finish()


def unsupported(directory: Path) -> None:
    reading, writing = os.pipe()
    try:
        _core.spawn_shim([b"/bin/false"], report=writing)
    finally:
        os.close(reading)
        os.close(writing)


def diff_id_mismatch(directory: Path) -> None:
    (directory / "tree").mkdir()
    _core.unpack(write(directory / "layer", Tar().build()), directory / "tree", diff_id=ZEROS)


def unsafe_archive(directory: Path) -> None:
    (directory / "tree").mkdir()
    _core.unpack(write(directory / "layer", Tar().file(".wh...").build()), directory / "tree")


def over_limit(directory: Path) -> None:
    (directory / "tree").mkdir()
    archive = Tar().file("a").file("b").build()
    _core.unpack(write(directory / "layer", archive), directory / "tree", limits=Limits(entries=1))


def digest_mismatch(directory: Path) -> None:
    _core.verify_file(write(directory / "file", b""), ZEROS)


def unmapped_id(directory: Path) -> None:
    if shutil.which("newuidmap") is None:
        pytest.skip("needs newuidmap")
    (directory / "tree").mkdir()
    layer = write(directory / "layer", Tar().file("f", gid=7).build())
    alone = IdMaps((Range(os.getuid(), 1),), (Range(os.getgid(), 1),))
    request = {"source": str(layer), "dest": str(directory / "tree"), "diff_id": None, "digest": None, "limits": None}
    unpack_mapped(alone, request)


# Variant of rust/src/error.rs → how to get it, its class, and what its attributes must be.
MAPPED: dict[str, tuple[Callable[[Path], object], type[Exception], dict[str, object]]] = {
    "Io": (lambda d: _core.digest_file(d / "missing"), FileNotFoundError, {"errno": errno.ENOENT}),
    "DigestMismatch": (digest_mismatch, errors.DigestMismatchError, {"expected": ZEROS, "actual": EMPTY}),
    "SizeMismatch": (size_mismatch, errors.SizeMismatchError, {"expected": 2, "actual": 1}),
    "DiffIdMismatch": (diff_id_mismatch, errors.DiffIDMismatchError, {"expected": ZEROS}),
    "UnsafeArchive": (unsafe_archive, errors.UnsafeArchiveError, {"entry": b".wh...", "offset": 0}),
    "OverLimit": (over_limit, errors.UnsafeArchiveError, {"entry": b"b", "offset": 512, "limit": "entries"}),
    "Invalid": (
        lambda d: _core.verify_file(d, "md5:0"),
        errors.InvalidError,
        {"field": "digest", "value": "md5:0"},
    ),
    "UnmappedId": (unmapped_id, errors.UnsupportedError, {"feature": "owner gid 7 of f"}),
    "Unsupported": (unsupported, errors.UnsupportedError, {"feature": "container shim"}),
    "NotFound": (_core.LayerIndex, errors.NotFoundError, {"kind": "layer"}),
    "AlreadyExists": (already_exists, errors.AlreadyExistsError, {"kind": "ingest", "name": "one"}),
    "Conflict": (conflict, errors.ConflictError, {"kind": "lock", "allowed": "free"}),
    "Cancelled": (cancelled, errors.CancelledError, {}),
}


def variants(source: str) -> list[str]:
    """The names of the variants of ``pub enum Error``."""
    body = source.partition("pub enum Error {")[2].partition("\n}")[0]
    return re.findall(r"^    ([A-Z]\w*)", body, re.MULTILINE)


def test_every_native_variant_is_listed_here() -> None:
    assert sorted(variants(ERROR_RS)) == sorted(MAPPED)
    assert variants("pub enum Error {\n    /// A.\n    A,\n    B {\n        c: u8,\n    },\n}\n") == ["A", "B"]


@pytest.mark.parametrize("variant", MAPPED)
def test_a_native_error_becomes_its_class_with_its_attributes(variant: str, tmp_path: Path) -> None:
    raises, kind, attributes = MAPPED[variant]
    with pytest.raises(kind) as caught:
        raises(tmp_path)
    assert type(caught.value) is kind
    assert {name: getattr(caught.value, name) for name in attributes} == attributes
    text = str(caught.value)
    assert text
    assert not text.endswith(".")
    if isinstance(caught.value, PyctrdError):
        own = [cls for cls in kind.__mro__ if cls.__name__ in TREE]
        assert {name for cls in own for name in TREE[cls.__name__][1]} <= vars(caught.value).keys()
    else:
        assert caught.value.filename == str(tmp_path / "missing")  # type: ignore[attr-defined] # an OSError


def test_the_classes_are_those_that_were_promised() -> None:
    here = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    assert here == set(TREE)


@pytest.mark.parametrize("name", TREE)
def test_a_class_has_its_bases_and_attributes(name: str) -> None:
    kind = getattr(errors, name)
    bases, attributes = TREE[name]
    assert tuple(base.__name__ for base in kind.__bases__) == bases
    made = kind("what: which one")
    assert attributes | {"hint"} <= vars(made).keys()
    assert str(made) == "what: which one"
    assert kind("x", hint="do this").hint == "do this"


def test_what_may_be_tried_again_can_be_told_from_what_may_not() -> None:
    assert not issubclass(errors.IntegrityError, errors.UnavailableError)
    assert not issubclass(errors.DeniedError, errors.UnavailableError)
    assert issubclass(errors.DeadlineError, OSError)  # a TimeoutError is one
