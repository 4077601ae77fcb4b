"""Limits: what a layer may have, to the byte, in both writers and in a pull; and memory that no claim moves."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pyctrd
from pyctrd import _core
from pyctrd.errors import InvalidError, UnsafeArchiveError
from tests.archives import Tar, base_256, compress_gzip, compress_zstd, gnu_long, header, padded, pax_header, record
from tests.children import Child
from tests.cli.commands import run
from tests.content.stores import files_below, sha256
from tests.hostile.documents import GOOD, leftovers, root
from tests.images import Blob, BuiltImage, build_image
from tests.registry_faults import FaultyRegistry

pytestmark = pytest.mark.root

MIB = 1 << 20
# The design's budget for a process that pulls (rule R11).
BUDGET_BYTES = 150 * MIB
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
WAYS = ("unpack", "ingest", "pull")


@pytest.fixture(name="registry")
def _registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as running:
        yield running


@dataclass(frozen=True)
class Packed:
    """A layer that is too large to hold uncompressed."""

    blob: Blob
    diff_id: str

    @classmethod
    def of(cls, pieces: Iterable[bytes]) -> Packed:
        """One gzip member of the pieces of a tar."""
        import hashlib

        packer, digest, parts = zlib.compressobj(6, wbits=31), hashlib.sha256(), []
        for piece in pieces:
            digest.update(piece)
            parts.append(packer.compress(piece))
        parts.append(packer.flush())
        return cls(Blob(GZIP, b"".join(parts)), f"sha256:{digest.hexdigest()}")

    @classmethod
    def tar(cls, content: bytes) -> Packed:
        """A tar in gzip."""
        return cls(Blob(GZIP, compress_gzip(content)), sha256(content))

    @property
    def image(self) -> BuiltImage:
        """An image with this layer alone."""
        return build_image([]).with_diff_ids([self.diff_id], layers=[self.blob])


def apply(way: str, packed: Packed, registry: FaultyRegistry, directory: Path, **limits: int) -> None:
    """Unpack a layer in one of the ways, under limits; nothing is left of it afterwards."""
    chosen = pyctrd.Limits(**limits)
    blob = packed.blob
    if way == "unpack":
        file, target = directory / "layer", directory / "target"
        file.write_bytes(blob.content)
        pyctrd.unpack(file, target, diff_id=packed.diff_id, digest=blob.digest, limits=chosen)
        _core.remove_tree(directory, "target")
    elif way == "ingest":
        store = directory / "store"
        store.mkdir(exist_ok=True)
        ingest = _core.Ingest(
            store, "one", digest=blob.digest, diff_id=packed.diff_id, unpack=True, limits=chosen, size=len(blob.content)
        )
        try:
            ingest.write(blob.content)
            ingest.finish()
        finally:
            ingest.abort()
            assert files_below(store) == []
    else:
        with pyctrd.Engine(limits=chosen) as engine:
            reference = registry.add(packed.image, "limits")
            try:
                engine.images.pull(reference)
            except UnsafeArchiveError:
                assert leftovers(engine) == []
                raise
            engine.images.remove(reference)


def refused(way: str, packed: Packed, registry: FaultyRegistry, directory: Path, **limits: int) -> UnsafeArchiveError:
    with pytest.raises(UnsafeArchiveError) as caught:
        apply(way, packed, registry, directory, **limits)
    return caught.value


def comment(count: int) -> bytes:
    """An extended header whose one record has so many bytes."""
    bodies = (record(b"comment", b"x" * length) for length in range(count - 20, count))
    body = next(body for body in bodies if len(body) == count)
    return header(b"PaxHeaders/x", kind=b"x", size=count) + padded(body)


# Limit → (its value, a tar that has exactly as much, one that has one more); several for those with several sources.
BORDERS: dict[str, tuple[str, int, bytes, bytes]] = {
    "entries": (
        "entries",
        3,
        Tar().file("a").file("b").file("c").build(),
        Tar().file("a").file("b").file("c").file("d").build(),
    ),
    "entries-markers": (
        "entries",
        2,
        Tar().whiteout("a").file("b").build(),
        Tar().whiteout("a").whiteout("b").file("c").build(),
    ),
    "entries-unlisted": ("entries", 3, Tar().file("a/b/c").build(), Tar().file("a/b/c/d").build()),
    "bytes": (
        "bytes",
        1000,
        Tar().file("a", bytes(500)).file("b", bytes(500)).build(),
        Tar().file("a", bytes(500)).file("b", bytes(501)).build(),
    ),
    "bytes-replaced": (
        "bytes",
        1000,
        Tar().file("a", bytes(500)).file("a", bytes(500)).build(),
        Tar().file("a", bytes(500)).file("a", bytes(501)).build(),
    ),
    "bytes-holes": (
        "bytes",
        1000,
        Tar().sparse("a", 1000, [(900, b"x" * 100)]).build(),
        Tar().sparse("a", 1001, [(900, b"x" * 100)]).build(),
    ),
    "name_bytes": ("name_bytes", 20, Tar().file("a" * 20).build(), Tar().file("a" * 21).build()),
    "name_bytes-pax": ("name_bytes", 200, Tar().file("a" * 200).build(), Tar().file("a" * 201).build()),
    "name_bytes-link": (
        "name_bytes",
        20,
        Tar().directory("d" * 17).symlink("s", "d" * 17).file("s/12").build(),
        Tar().directory("d" * 17).symlink("s", "d" * 17).file("s/123").build(),
    ),
    "depth": ("depth", 3, Tar().file("a/b/c").build(), Tar().file("a/b/c/d").build()),
    "depth-whiteout": ("depth", 3, Tar().file("a/b/.wh.c").build(), Tar().file("a/b/c/.wh.d").build()),
    "depth-link": (
        "depth",
        3,
        Tar().directory("a").directory("a/b").symlink("s", "a/b").file("s/c").build(),
        Tar().directory("a").directory("a/b").symlink("s", "a/b").file("s/c/d").build(),
    ),
    "xattr_bytes": (
        "xattr_bytes",
        100,
        Tar().file("a", xattrs={"user.a": b"x" * 44, "user.b": b"y" * 44}).build(),
        Tar().file("a", xattrs={"user.a": b"x" * 44, "user.b": b"y" * 45}).build(),
    ),
    "header_bytes": (
        "header_bytes",
        700,
        Tar().raw(comment(700)).file("a").build(),
        Tar().raw(comment(701)).file("a").build(),
    ),
    "header_bytes-together": (
        "header_bytes",
        700,
        Tar().raw(comment(300)).raw(comment(400)).file("a").raw(comment(700)).file("b").build(),
        Tar().raw(comment(300)).raw(comment(401)).file("a").build(),
    ),
    "header_bytes-name": (
        "header_bytes",
        201,
        Tar().raw(gnu_long(b"L", b"n" * 200)).file("a").build(),
        Tar().raw(gnu_long(b"L", b"n" * 201)).file("a").build(),
    ),
}


# the values


def test_the_defaults_are_the_native_ones() -> None:
    assert dict(_core.DEFAULT_LIMITS) == dataclasses.asdict(pyctrd.Limits())
    assert [name for name, _ in _core.DEFAULT_LIMITS] == [field.name for field in dataclasses.fields(pyctrd.Limits)]


def test_limits_are_a_value_that_is_given_by_name() -> None:
    limits = pyctrd.Limits(entries=5)
    assert dataclasses.replace(limits, depth=3) == pyctrd.Limits(entries=5, depth=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        limits.entries = 6  # type: ignore[misc] # what is tested
    with pytest.raises(TypeError):
        pyctrd.Limits(5)  # type: ignore[call-arg] # what is tested


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(pyctrd.Limits)])
@pytest.mark.parametrize("value", [0, -1, 2**63, 1.5, "5", True, None])
def test_a_limit_that_is_no_positive_number_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidError, match=name) as caught:
        pyctrd.Limits(**{name: value})
    assert (caught.value.field, caught.value.value) == (name, value)


@pytest.mark.parametrize(("name", "most"), [("name_bytes", 4095), ("header_bytes", 64 * MIB), ("entries", 2**63 - 1)])
def test_a_limit_can_be_raised_so_far(name: str, most: int) -> None:
    assert getattr(pyctrd.Limits(**{name: most}), name) == most
    with pytest.raises(InvalidError, match=str(most)):
        pyctrd.Limits(**{name: most + 1})


# the borders


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", BORDERS)
def test_what_is_exactly_allowed_passes(case: str, way: str, registry: FaultyRegistry, tmp_path: Path) -> None:
    limit, most, allowed, _ = BORDERS[case]
    apply(way, Packed.tar(allowed), registry, tmp_path, **{limit: most})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", BORDERS)
def test_one_more_is_refused_by_the_limits_name(case: str, way: str, registry: FaultyRegistry, tmp_path: Path) -> None:
    limit, most, _, too_much = BORDERS[case]
    error = refused(way, Packed.tar(too_much), registry, tmp_path, **{limit: most})
    assert error.limit == limit
    assert f"{limit}={most}" in str(error)
    assert f"--limit {limit}=" in error.hint
    assert f"Limits({limit}=" in error.hint
    apply(way, Packed.tar(too_much), registry, tmp_path, **{limit: most + 512})


@pytest.mark.parametrize("case", ["sparse-text", "sparse-blocks"])
@pytest.mark.parametrize("way", WAYS)
def test_a_sparse_map_is_in_front_of_the_entry_too(
    case: str, way: str, registry: FaultyRegistry, tmp_path: Path
) -> None:
    if case == "sparse-text":
        tar = Tar().sparse("s", 1 << 20, [(n, b"") for n in range(100)]).build()
        records = int(tar[124:135], 8)  # bytes of the extended header
        exactly = records + 512
    else:
        pairs = [(number, 12, b"%011o\0" % number) for number in range(4)]
        first = {386 + 24 * n: octets + b"%011o\0" % 0 for n, _, octets in pairs} | {482: b"\1", 483: b"%011o\0" % 100}
        more = b"".join(b"%011o\0%011o\0" % (number, 0) for number in range(4, 25)) + bytes(8)
        tar = Tar().raw(header(b"s", kind=b"S", magic=b"ustar  \0", fields=first) + more).build()
        exactly = 512
    apply(way, Packed.tar(tar), registry, tmp_path, header_bytes=exactly)
    assert refused(way, Packed.tar(tar), registry, tmp_path, header_bytes=exactly - 1).limit == "header_bytes"


@pytest.fixture(scope="module", name="zeros")
def _zeros() -> Packed:
    """65 MiB of zeros: a thousandth of that as gzip."""
    return Packed.of([header(b"z", size=65 * MIB), *[bytes(MIB)] * 65, bytes(1024)])


@pytest.mark.parametrize("way", WAYS)
def test_the_ratio_is_held_against_what_really_came_out(
    way: str, zeros: Packed, registry: FaultyRegistry, tmp_path: Path
) -> None:
    ratio = (65 * MIB + 1536) // len(zeros.blob.content)
    assert ratio > 900
    apply(way, zeros, registry, tmp_path, ratio=ratio + 100)
    error = refused(way, zeros, registry, tmp_path, ratio=ratio - 100)
    assert error.limit == "ratio"
    assert f"ratio={ratio - 100}" in str(error)


@pytest.mark.parametrize("way", WAYS)
def test_the_ratio_counts_only_once_64_mib_came_out(way: str, registry: FaultyRegistry, tmp_path: Path) -> None:
    exactly = Packed.of([header(b"z", size=64 * MIB - 1536), bytes(64 * MIB - 1536), bytes(1024)])
    apply(way, exactly, registry, tmp_path, ratio=1)
    longer = Packed.of([header(b"z", size=64 * MIB - 1536), bytes(64 * MIB - 1536), bytes(1025)])
    assert refused(way, longer, registry, tmp_path, ratio=1).limit == "ratio"


def test_zstd_that_says_one_block_over_and_over_is_refused_by_default(registry: FaultyRegistry, tmp_path: Path) -> None:
    tar = header(b"z", size=100 * MIB) + bytes(100 * MIB + 1024)
    packed = Packed(Blob(GZIP.replace("gzip", "zstd"), compress_zstd(tar)), sha256(tar))
    assert refused("pull", packed, registry, tmp_path).limit == "ratio"
    apply("pull", packed, registry, tmp_path, ratio=1_000_000)


def test_a_pull_without_unpacking_has_a_ratio_too(registry: FaultyRegistry, zeros: Packed) -> None:
    with pyctrd.Engine(limits=pyctrd.Limits(ratio=100)) as engine:
        with pytest.raises(UnsafeArchiveError):
            engine.images.pull(registry.add(zeros.image, "limits"), unpack=False)
        assert leftovers(engine) == []


def test_a_refused_layer_leaves_room_for_a_good_one(registry: FaultyRegistry) -> None:
    with pyctrd.Engine(limits=pyctrd.Limits(entries=2)) as engine:
        too_much = Packed.tar(Tar().file("a").file("b").file("c").build())
        with pytest.raises(UnsafeArchiveError) as caught:
            engine.images.pull(registry.add(too_much.image, "limits"))
        assert too_much.blob.digest in str(caught.value)
        engine.images.pull(registry.add(GOOD, "limits"))
        assert engine.check(digests=True) == []


# the command line


def test_the_command_line_sets_limits(registry: FaultyRegistry, tmp_path: Path) -> None:
    tar = Tar().file("a", bytes(2048)).file("b").build()
    (tmp_path / "layer").write_bytes(tar)
    reference = registry.add(Packed.tar(tar).image, "limits")
    unpack = ["unpack", str(tmp_path / "layer"), str(tmp_path / "target")]
    for words in (unpack, ["pull", reference], ["run", reference, "true"]):
        done = run(words[0], "--limit", "bytes=1k", "--limit", "entries=5", *words[1:])
        assert done.status == (125 if words[0] == "run" else 1)
        assert "bytes=1024" in done.err
        assert "hint: " in done.err
        assert "--limit bytes=" in done.err
    assert run(*unpack, "--limit", "bytes=2k", "--limit", "entries=2").status == 0
    assert run("pull", "-q", "--limit", "bytes=1k", "--limit", "bytes=2k", reference).status == 0


@pytest.mark.parametrize(
    "word", ["bytes", "bytes=", "bytes=-1", "bytes=1t", "bytes=0", "size=1", "=1", "name_bytes=5k"]
)
def test_a_limit_that_makes_no_sense_is_wrong_usage(word: str, tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(Tar().build())
    done = run("unpack", "--limit", word, str(tmp_path / "layer"), str(tmp_path / "target"))
    assert (done.status, done.out) == (2, "")
    assert "--limit" in done.err
    assert not (tmp_path / "target").exists()


# hostile cases, by their ids; memory is measured in a process of its own


PULL = """
import json, sys, pyctrd
reference, limits = sys.argv[1], json.loads(sys.argv[2])
with pyctrd.Engine(limits=pyctrd.Limits(**limits)) as engine:
    try:
        engine.images.pull(reference)
        said = "accepted"
    except pyctrd.errors.UnsafeArchiveError as error:
        said = error.limit or error.reason
status = open("/proc/self/status").read()
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
print(json.dumps([said, peak * 1024]), flush=True)
"""


def pull_in_child(registry: FaultyRegistry, packed: Packed, limits: Mapping[str, int]) -> str:
    """Pull in a process whose memory is held against the budget, and in time; what came of it."""
    with Child(PULL, registry.add(packed.image, "limits"), json.dumps(limits)) as child:
        said, peak = json.loads(child.hear())
    assert peak < BUDGET_BYTES, f"{peak // MIB} MiB"
    return str(said)


def disk_bytes(directory: Path) -> int:
    """What is allocated beneath a directory."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))


def left_by_child() -> list[str]:
    with pyctrd.Engine() as engine:
        return leftovers(engine)


def many_zeros() -> Iterator[bytes]:
    """1 GiB of zeros in 100,000 files."""
    size = (1 << 30) // 100_000 + 1
    data = bytes(size + -size % 512)
    for number in range(100_000):
        yield header(b"z%d" % number, size=size) + data
    yield bytes(1024)


@dataclass(frozen=True)
class Case:
    """A layer, the limits that it is pulled under, and the limit that refuses it."""

    make: Callable[[], Packed]
    limits: Mapping[str, int]
    expected: str


CASES = {
    "L161": Case(
        lambda: Packed.tar(Tar().raw(comment(2 * MIB)).file("a").build()),
        {},
        "header_bytes",
    ),
    "L187": Case(
        lambda: Packed.tar(Tar().sparse("s", 100 << 30, [(50 << 30, b"x" * 4096)]).build()),
        {"bytes": 1 << 30},
        "bytes",
    ),
    "L221": Case(
        lambda: Packed(
            # No single segment, no content size, a window of 2^30 bytes; then a block that claims all of it.
            Blob(GZIP.replace("gzip", "zstd"), bytes([0x28, 0xB5, 0x2F, 0xFD, 0, 20 << 3, 2, 0, 16]) + bytes(4096)),
            sha256(b""),
        ),
        {},
        "zstd frame asks for a window of more than 134217728 bytes",
    ),
    "L222": Case(
        lambda: Packed.of([header(b"z", size=1 << 30), *[bytes(MIB)] * 1024, bytes(1024)]),
        {"bytes": 100 * MIB},
        "bytes",
    ),
    "L223": Case(lambda: Packed.of(many_zeros()), {"bytes": 100 * MIB}, "bytes"),
    "L224": Case(
        lambda: Packed.of([*(header(b"f%d" % number) for number in range(1001)), bytes(1024)]),
        {"entries": 1000},
        "entries",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_hostile_layer_is_refused_in_bounded_memory(name: str, registry: FaultyRegistry, tmp_path: Path) -> None:
    case = CASES[name]
    packed = case.make()
    assert pull_in_child(registry, packed, case.limits) == case.expected
    assert left_by_child() == []
    assert disk_bytes(root()) < 8 * MIB
    error = refused("unpack", packed, registry, tmp_path, **case.limits)
    assert case.expected in (error.limit, error.reason)


@pytest.mark.usefixtures("as_directories")
def test_l187_holes_take_no_disk_where_they_are_allowed(registry: FaultyRegistry, tmp_path: Path) -> None:
    packed = CASES["L187"].make()
    assert pull_in_child(registry, packed, {}) == "accepted"
    (file,) = root().glob("layers/sha256/*/tree/s")
    assert file.stat().st_size == 100 << 30
    assert disk_bytes(root()) < 8 * MIB
    with file.open("rb") as opened:
        opened.seek(50 << 30)
        assert opened.read(4097) == b"x" * 4096 + b"\0"


def test_l224_a_thousand_entries_are_a_thousand(registry: FaultyRegistry) -> None:
    packed = Packed.of([*(header(b"f%d" % number) for number in range(1000)), bytes(1024)])
    assert pull_in_child(registry, packed, {"entries": 1000}) == "accepted"


# linear in what is there


def claims(size: int) -> dict[str, bytes]:
    """Archives of a few blocks that claim to have so many bytes of something."""
    number = base_256(size, 12)
    digits = str(size).encode()
    text = padded(b"%d\n0\n0\n" % size)
    sparse = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0"}
    return {
        "file": header(b"f", size=number) + bytes(512),
        "file-pax": pax_header({"size": digits}) + header(b"f") + b"x" * 512,
        "extended": header(b"x", kind=b"x", size=number) + b"x" * 512,
        "global": header(b"x", kind=b"g", size=number) + b"x" * 512,
        "long-name": header(b"x", kind=b"L", size=number) + b"x" * 512,
        "long-link": header(b"x", kind=b"K", size=number) + b"x" * 512,
        "record": header(b"x", kind=b"x", size=512) + b"%d comment=" % size + b"x" * 500,
        "sparse-count": pax_header({**sparse, "GNU.sparse.realsize": b"1"}) + header(b"f", size=512) + text,
        "sparse-size": pax_header({**sparse, "GNU.sparse.realsize": digits}) + header(b"f", size=512) + padded(b"0\n"),
        "sparse-old": header(b"f", kind=b"S", magic=b"ustar  \0", fields={386: number + number, 483: number}),
        "directory": header(b"d", kind=b"5", size=number),
    }


BOTH_WRITERS = """
import glob, json, os, sys, pyctrd
from pyctrd import _core
directory, store = sys.argv[1:3]
for path in sorted(glob.glob(directory + "/*")):
    content = open(path, "rb").read()
    digest = _core.digest_bytes(content)
    ingest = _core.Ingest(store, "one", digest=digest, unpack=True)
    for call in (lambda: pyctrd.unpack(path, store + "/target"), lambda: (ingest.write(content), ingest.finish())):
        try:
            call()
        except pyctrd.errors.UnsafeArchiveError:
            pass
    ingest.abort()
    _core.remove_tree(store, "target")
status = open("/proc/self/status").read()
print(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024, flush=True)
"""


def peak_of(archives: Mapping[str, bytes], directory: Path) -> int:
    """The most memory of a process that unpacks archives with both writers; it has a minute for them."""
    for part in ("archives", "store"):
        (directory / part).mkdir()
    for name, content in archives.items():
        (directory / "archives" / name).write_bytes(content)
    with Child(BOTH_WRITERS, directory / "archives", directory / "store") as child:
        return int(child.hear())


def test_no_claim_moves_the_memory_or_the_disk(tmp_path: Path) -> None:
    archives = {
        f"{name}-{exponent}": archive
        for exponent in range(20, 41, 4)
        for name, archive in claims(1 << exponent).items()
    }
    assert len(archives) == 66
    assert peak_of(archives, tmp_path) < BUDGET_BYTES
    assert disk_bytes(tmp_path / "store") < MIB


def test_a_zstd_frame_that_claims_a_size_gets_no_memory_for_it(registry: FaultyRegistry) -> None:
    for exponent in (20, 30, 40):
        # Single segment: the claimed size is the window.
        claimed = bytes([0x28, 0xB5, 0x2F, 0xFD, 0xE0]) + (1 << exponent).to_bytes(8, "little") + b"\x09\0\0x"
        packed = Packed(Blob(GZIP.replace("gzip", "zstd"), claimed), sha256(b""))
        assert "zstd" in pull_in_child(registry, packed, {})


def entries(count: int) -> bytes:
    return b"".join(header(b"f%d" % number) for number in range(count))


# What costs a writer most for what it is; each must end within the child's minute, in bounded memory.
STRESS: dict[str, Callable[[], bytes]] = {
    "deep": lambda: b"".join(
        pax_header({"path": b"%d/" % number + b"d/" * 1000 + b"f"}) + header(b"f") for number in range(3)
    ),
    "deep-and-back": lambda: b"".join(
        pax_header({"path": b"d/" * 800 + b"../" * 800 + b"%d" % number}) + header(b"f") for number in range(200)
    ),
    "links": lambda: b"".join(
        [header(b"l%d" % n, kind=b"2", link=b"l%d" % (n + 1)) for n in range(39)]
        + [header(b"l39/", kind=b"5")]
        + [header(b"l0/f%d" % n) for n in range(5_000)]
    ),
    "xattrs": lambda: pax_header([(f"SCHILY.xattr.user.{n:x}", b"") for n in range(35_000)]) + header(b"f"),
    "sparse-map": lambda: (
        pax_header({"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.realsize": b"1"})
        + header(b"f", size=512 * 2040)
        + padded(b"250000\n" + b"0\n0\n" * 250_000)[: 512 * 2040].ljust(512 * 2040, b"\0")
    ),
    "opaque": lambda: b"".join([header(b"d/%d" % n) for n in range(5_000)] + [header(b"d/.wh..wh..opq")] * 5_000),
    "whiteout": lambda: b"".join([header(b"d/%d" % n) for n in range(5_000)] + [header(b".wh.d")] * 5_000),
    "replaced": lambda: b"".join([header(b"d/f"), header(b"d")] * 5_000),
    "members": lambda: b"",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRESS)
def test_what_costs_most_for_its_size_ends_in_time_and_memory(name: str, tmp_path: Path) -> None:
    archive = STRESS[name]()
    content = compress_gzip(archive + bytes(1024))
    if name == "members":
        content += compress_gzip(b"") * 100_000
    assert peak_of({"one": content}, tmp_path) < BUDGET_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("way", ["unpack", "ingest"])
def test_paths_of_directories_that_no_entry_lists_may_not_outgrow_the_archive(
    way: str, registry: FaultyRegistry, tmp_path: Path
) -> None:
    # Each entry of 6 KB asks for a thousand directories, whose paths have 2 MB in the index.
    names = (b"%04d/" % number + b"abc/" * 1000 + b"f" for number in range(20))
    archive = b"".join(pax_header({"path": name}) + header(b"f") for name in names)
    error = refused(way, Packed.tar(archive + bytes(1024)), registry, tmp_path)
    assert "too few of the directories" in error.reason


@pytest.mark.slow
def test_200_000_entries_end_in_time(registry: FaultyRegistry, tmp_path: Path) -> None:
    packed = Packed.of([entries(200_000), bytes(1024)])
    with Child(PULL, registry.add(packed.image, "limits"), "{}") as child:
        said, peak = json.loads(child.hear())
    assert said == "accepted"
    # Names are kept until the index is written: linear in entries, under a KiB for each beside what any pull takes.
    assert peak < BUDGET_BYTES + 200_000 * 1024
