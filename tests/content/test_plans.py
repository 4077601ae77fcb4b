"""Layers with tables of contents, made again from parts: of blobs that other programs wrote, and of hostile ones."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyctrd import Limits, _core
from pyctrd.errors import DigestMismatchError, InvalidError, PyctrdError
from pyctrd.oci.descriptor import ESTARGZ_DIGEST, ZSTD_CHUNKED_DIGEST, Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.toc import TABLE_MAX_BYTES, ZSTD_POSITION, ZSTD_SPLIT_POSITION, find_table
from tests.archives import zstd_skippable
from tests.tocs import Tabled, digest_of, estargz, estargz_tar, go_tar, zstd_chunked, zstd_frame

VECTORS = Path(__file__).parents[1] / "vectors" / "toc"
FORMS = ("objects", "tree", "blocks")


def noise(seed: int, count: int) -> bytes:
    """Bytes that no compressor makes fewer."""
    return random.Random(seed).randbytes(count)


FILES = (
    {"d/": b""} | {f"d/{n}": noise(n, 20_000 + n) for n in range(9)} | {"d/short": b"short", "d/last": noise(99, 99)}
)
FIRST = go_tar(FILES)
SECOND = go_tar(FILES | {"d/3": noise(333, 20_003), "d/new": b"new"})


def vector(name: str) -> Tabled:
    """A layer that another program wrote."""
    content = (VECTORS / name).read_bytes()
    return Tabled("", content, json.loads((VECTORS / f"{name}.json").read_bytes()))


def tar_of(layer: Tabled) -> bytes:
    """What a layer comes to, by decoders that are not ours."""
    if ESTARGZ_DIGEST in layer.annotations:
        return estargz_tar(layer)
    return subprocess.run(["zstd", "-dqc"], input=layer.content, capture_output=True, check=True).stdout


def described(layer: Tabled) -> Descriptor:
    """A layer's descriptor."""
    digest = Digest.parse(digest_of(layer.content))
    return Descriptor("application/x", digest, len(layer.content), annotations=dict(layer.annotations))


def plan(layer: Tabled, known: list[Path], *, split: bool = True, gap: int = 0, **options: Any) -> _core.LayerPlan:
    """What has to be fetched of a layer."""
    table, content = find_table(described(layer)), layer.content
    assert table is not None
    if table.kind == "estargz":
        start = _core.estargz_table_offset(content[-_core.ESTARGZ_FOOTER_BYTES :])
        member = content[start : -_core.ESTARGZ_FOOTER_BYTES]
        return _core.LayerPlan.estargz(member, digest=table.digest, start=start, layers=known, gap=gap, **options)
    assert table.place is not None
    assert table.end is not None
    return _core.LayerPlan.zstd_chunked(
        content[slice(*table.place)],
        content[slice(*table.split)] if table.split is not None and split else None,
        **{"digest": table.digest, "end": table.end, "layers": known, "gap": gap, **options},
    )


class Store:
    """A root that layers are brought into."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self._root = root
        self._count = 0

    def unpack(self, layer: Tabled, *, form: str = "objects", file_digests: bool = True) -> Path:
        """Bring one in whole; returns where it is."""
        diff_id = digest_of(tar_of(layer))
        ingest = self._ingest(digest_of(layer.content), diff_id, form, file_digests=file_digests)
        ingest.write(layer.content)
        ingest.finish()
        _core.publish(self._root, [ingest])
        return self._root / "layers/sha256" / diff_id.removeprefix("sha256:")

    def rebuild(self, made: _core.LayerPlan, content: bytes, diff_id: str, *, form: str = "objects") -> None:
        """Make a layer from the parts of its blob that a plan names, and nothing else of it."""
        ingest = self._ingest(diff_id, diff_id, form)
        parts = os.open(self._root, os.O_TMPFILE | os.O_RDWR)
        try:
            for start, end in made.ranges:
                os.pwrite(parts, content[start:end], start)
            made.rebuild(ingest, parts, size=len(content))
            ingest.finish()
        finally:
            ingest.abort()
            os.close(parts)

    def _ingest(self, digest: str, diff_id: str, form: str, *, file_digests: bool = False) -> _core.Ingest:
        self._count += 1
        return _core.Ingest(
            self._root,
            f"ingest-{self._count}",
            digest=digest,
            diff_id=diff_id,
            unpack=True,
            keep_blob=False,
            file_digests=file_digests,
            form=form,
        )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty one."""
    return Store(tmp_path / "store")


# what other programs write


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["zstd-chunked", "estargz"])
def test_a_layer_of_other_programs_is_made_again(store: Store, name: str, form: str) -> None:
    first, second = vector(f"first.{name}"), vector(f"second.{name}")
    known = store.unpack(first, form=form)
    made = plan(second, [known])
    assert made.fetched_bytes < len(second.content) / 3
    assert made.known_bytes > 80_000
    store.rebuild(made, second.content, digest_of(tar_of(second)), form=form)


def test_only_the_file_that_differs_is_fetched(store: Store) -> None:
    made = plan(vector("second.zstd-chunked"), [store.unpack(vector("first.zstd-chunked"))])
    (only,) = made.ranges
    assert 3003 <= only[1] - only[0] < 3100
    assert made.range_count == 1


def test_without_a_tar_split_what_stands_between_the_files_is_fetched(store: Store) -> None:
    second = vector("second.zstd-chunked")
    made = plan(second, [store.unpack(vector("first.zstd-chunked"))], split=False)
    assert made.range_count > 5
    store.rebuild(made, second.content, digest_of(tar_of(second)))
    whole = plan(second, [store.unpack(vector("first.zstd-chunked"))], split=False, gap=1 << 20)
    assert (whole.range_count, whole.known_bytes) == (1, 0)
    store.rebuild(whole, second.content, digest_of(tar_of(second)))


@pytest.mark.parametrize("name", ["zstd-chunked", "estargz"])
def test_where_nothing_is_known_all_files_are_fetched(store: Store, name: str) -> None:
    second = vector(f"second.{name}")
    made = plan(second, [])
    assert made.known_bytes == 0
    store.rebuild(made, second.content, digest_of(tar_of(second)))


def test_a_format_finds_what_came_in_another(store: Store) -> None:
    made = plan(vector("second.estargz"), [store.unpack(vector("first.zstd-chunked"))])
    assert made.known_bytes > 80_000
    made = plan(vector("second.zstd-chunked"), [store.unpack(vector("first.estargz"))])
    assert made.known_bytes > 80_000


def test_a_layer_that_was_unpacked_without_a_list_is_not_known(store: Store) -> None:
    known = store.unpack(vector("first.zstd-chunked"), file_digests=False)
    assert plan(vector("second.zstd-chunked"), [known]).known_bytes == 0


# where a table is


def test_a_descriptor_says_where_its_table_is() -> None:
    layer = zstd_chunked(FIRST)
    table = find_table(described(layer))
    assert table is not None
    assert table.place is not None
    assert digest_of(layer.content[slice(*table.place)]) == table.digest
    assert table.end == table.place[0] - 8
    assert find_table(Descriptor("application/x", Digest.parse(digest_of(b"")), 9)) is None
    old = {
        name.replace("io.github.", "io."): value for name, value in layer.annotations.items() if "tarsplit" not in name
    }
    found = find_table(described(Tabled("", layer.content, old)))
    assert found is not None
    assert (found.place, found.split) == (table.place, None)


@pytest.mark.parametrize(
    "position",
    [
        *("", "8", "8:1:1", "8:1:1:2", "8:1:1:1:1", "7:1:1:1", "8:0:1:1", "8:-1:1:1", "8:1e3:1:1", "8:\u0661:1:1"),
        *("8:99999999999:1:1", "999999999999999:1:1:1", f"8:{TABLE_MAX_BYTES + 1}:1:1", "9" * 5000 + ":1:1:1"),
    ],
)
def test_a_place_that_is_none_is_no_table(position: str) -> None:
    layer = zstd_chunked(FIRST)
    notes = {**layer.annotations, ZSTD_POSITION: position}
    assert find_table(described(Tabled("", layer.content, notes))) is None


@pytest.mark.parametrize("position", ["", "8:1", "8:1:1:1", "7:1:1", "8:0:1", "8:x:1", "8:99999999999:1"])
def test_a_place_that_is_none_is_no_tar_split(position: str) -> None:
    layer = zstd_chunked(FIRST)
    notes = {**layer.annotations, ZSTD_SPLIT_POSITION: position}
    assert find_table(described(Tabled("", layer.content, notes))) is None


# what is made of a wrong one


def refused(store: Store, layer: Tabled, tar: bytes, known: list[Path]) -> PyctrdError:
    """The error that ends the making of a layer; nothing of it is there then."""
    with pytest.raises(PyctrdError) as error:
        store.rebuild(plan(layer, known), layer.content, digest_of(tar))
    return error.value


@pytest.mark.parametrize("make", [zstd_chunked, estargz])
def test_a_table_that_is_not_the_one_meant_is_refused(make: Callable[[bytes], Tabled]) -> None:
    layer = make(FIRST)
    key = ESTARGZ_DIGEST if make is estargz else ZSTD_CHUNKED_DIGEST
    with pytest.raises(DigestMismatchError, match="table of contents"):
        plan(Tabled("", layer.content, {**layer.annotations, key: digest_of(b"")}), [])
    with pytest.raises(InvalidError):
        plan(Tabled("", layer.content, {**layer.annotations, key: "sha256:../../x"}), [])


def test_a_tar_split_that_is_not_the_one_meant_is_refused() -> None:
    def lie(table: dict[str, Any]) -> None:
        table["tarSplitDigest"] = digest_of(b"")

    with pytest.raises(DigestMismatchError, match="tar-split"):
        plan(zstd_chunked(FIRST, change=lie), [])


def _entry(number: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda table: table["entries"][number].update(fields)


def _swap(table: dict[str, Any]) -> None:
    entries = table["entries"]
    entries[2], entries[3] = entries[3], entries[2]


def _overlap(table: dict[str, Any]) -> None:
    table["entries"][3]["offset"] = table["entries"][2]["offset"]


def _overlap_by_one(table: dict[str, Any]) -> None:
    table["entries"][3]["offset"] = table["entries"][2]["endOffset"] - 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_swap, id="files out of order"),
        pytest.param(_overlap, id="two files at one place"),
        pytest.param(_overlap_by_one, id="overlapping chunks"),
        pytest.param(_entry(3, offset=1 << 40), id="begins beyond the blob"),
        pytest.param(_entry(3, endOffset=1 << 40), id="ends beyond the blob"),
        pytest.param(_entry(3, endOffset=(1 << 63) - 1), id="ends beyond numbers"),
        pytest.param(_entry(3, endOffset=1 << 63), id="is no number of the format"),
        pytest.param(_entry(3, endOffset=0), id="ends before it begins"),
        pytest.param(_entry(3, offset=-1), id="begins before the blob"),
        pytest.param(_entry(3, offset=1.5), id="begins in a byte"),
        pytest.param(_entry(3, size="1"), id="size is a text"),
        pytest.param(_entry(3, digest="sha256:" + "A" * 64), id="digest in capitals"),
        pytest.param(_entry(3, digest="sha512:" + "a" * 128), id="digest of another algorithm"),
        pytest.param(_entry(3, digest=""), id="no digest"),
        pytest.param(lambda table: table.update(version=2), id="version to come"),
        pytest.param(lambda table: table.pop("version"), id="no version"),
        pytest.param(lambda table: table.update(entries={}), id="entries are no array"),
        pytest.param(lambda table: table["entries"].append([]), id="an entry is no object"),
        pytest.param(lambda table: table.update(deep=json.loads("[" * 40 + "]" * 40)), id="nested deeply"),
        pytest.param(
            lambda table: [table["entries"][n].update(size=(1 << 63) - 1) for n in (1, 2, 3)], id="sizes beyond sums"
        ),
    ],
)
def test_a_table_that_cannot_be_gone_by_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(InvalidError):
        plan(zstd_chunked(FIRST, change=change), [])


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_entry(3, size=20_001), id="is longer than it says"),
        pytest.param(_entry(3, size=20_003), id="is shorter than it says"),
        pytest.param(_entry(3, size=1 << 50), id="says that it is huge"),
        pytest.param(_entry(3, digest=digest_of(b"another")), id="has another content"),
        pytest.param(_entry(3, digest=digest_of(FILES["d/4"])), id="has the content of another file"),
        pytest.param(_entry(0, type="reg", size=5, offset=1, endOffset=2, digest=digest_of(b"")), id="a file too many"),
    ],
)
def test_what_a_table_lies_about_ends_in_another_diff_id(
    store: Store, change: Callable[[dict[str, Any]], None], *, split: bool
) -> None:
    layer = zstd_chunked(FIRST, split=split, change=change)
    refused(store, layer, FIRST, [])
    known = store.unpack(zstd_chunked(go_tar({"x": FILES["d/4"], "y": FILES["d/5"]})))
    refused(store, layer, FIRST, [known])


@pytest.mark.parametrize(
    "change", [lambda table: table["entries"].pop(3), _entry(3, type="dir")], ids=["is left out", "is a directory"]
)
def test_a_file_that_a_table_hides_is_missed_or_fetched_with_what_is_around_it(
    store: Store, change: Callable[[dict[str, Any]], None]
) -> None:
    refused(store, zstd_chunked(FIRST, change=change), FIRST, [])
    layer = zstd_chunked(FIRST, split=False, change=change)
    store.rebuild(plan(layer, []), layer.content, digest_of(FIRST))


@pytest.mark.parametrize("make", [zstd_chunked, estargz])
def test_names_of_a_table_make_nothing(store: Store, make: Callable[..., Tabled]) -> None:
    def lie(table: dict[str, Any]) -> None:
        for number, entry in enumerate(table["entries"]):
            entry |= {"name": "../" * 9 + "etc/passwd" if number % 2 else "same", "mode": 0o4777, "uid": -1}
        table["entries"] += [
            {"type": "hardlink", "name": "a", "linkName": "b"},
            {"type": "hardlink", "name": "b", "linkName": "a"},
            {"type": "symlink", "name": "same", "linkName": "/etc"},
        ]

    layer = make(FIRST, change=lie)
    tar = estargz_tar(layer) if make is estargz else FIRST
    store.rebuild(plan(layer, []), layer.content, digest_of(tar))  # names come from the tar, which is the right one


def test_a_table_may_be_no_longer_than_its_place_and_have_no_more_entries_than_a_layer() -> None:
    layer = zstd_chunked(FIRST)
    with pytest.raises(InvalidError, match="more than 5 entries"):
        plan(layer, [], limits=Limits(entries=5))
    bomb = b"\x28\xb5\x2f\xfd\x00\x58" + (1 << 17 << 3 | 2).to_bytes(3, "little") + b" "
    bomb += ((1 << 17 << 3 | 2).to_bytes(3, "little") + b" ") * 999 + b"\x01\0\0"
    with pytest.raises(InvalidError, match="comes to more than"):
        _core.LayerPlan.zstd_chunked(bomb, None, digest=digest_of(bomb), end=9, layers=[], gap=0)


def test_what_is_made_is_held_against_what_the_blob_has(store: Store) -> None:
    """A known file that is named over and over is a bomb as any other."""
    known = store.unpack(zstd_chunked(go_tar({"big": bytes(range(256)) * (1 << 14)})))
    content = bytes(range(256)) * (1 << 14)
    entries = [
        {
            "type": "reg",
            "name": "x",
            "size": len(content),
            "digest": digest_of(content),
            "offset": n,
            "endOffset": n + 1,
        }
        for n in range(50)
    ]
    split = zstd_frame(b"".join(b'{"type":1,"size":%d}\n' % len(content) for _ in entries))
    table = zstd_frame(json.dumps({"version": 1, "entries": entries}).encode())
    made = _core.LayerPlan.zstd_chunked(
        table, split, digest=digest_of(table), end=100, layers=[known], gap=0, limits=Limits(ratio=2000)
    )
    assert made.ranges == []
    with pytest.raises(PyctrdError, match="ratio"):
        store.rebuild(made, bytes(1000), digest_of(b""))


@pytest.mark.parametrize(
    "lines",
    [
        [{"type": 2, "payload": "!!!!"}],
        [{"type": 9}],
        [{"type": 1, "size": 1}],
        [{"type": 1, "size": 20_000}] * 99,
        [],
        [{"type": 2, "payload": base64.b64encode(bytes(512)).decode()}],
    ],
)
def test_a_wrong_tar_split_makes_nothing(store: Store, lines: list[dict[str, Any]]) -> None:
    packed = zstd_frame(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    whole = zstd_chunked(FIRST, split=False)
    content = whole.content + zstd_skippable(packed)
    place = f"{len(whole.content) + 8}:{len(packed)}:1"
    layer = Tabled("", content, {**whole.annotations, ZSTD_SPLIT_POSITION: place})
    refused(store, layer, FIRST, [])


@pytest.mark.parametrize("split", [True, False])
def test_wrong_bytes_in_a_range_make_nothing(store: Store, *, split: bool) -> None:
    layer = zstd_chunked(SECOND, split=split)
    known = store.unpack(zstd_chunked(FIRST))
    made = plan(layer, [known])
    for start, end in made.ranges:
        for at in {start, (start + end) // 2, end - 1}:
            damaged = bytearray(layer.content)
            damaged[at] ^= 1
            with pytest.raises(PyctrdError):
                store.rebuild(made, bytes(damaged), digest_of(SECOND))
    store.rebuild(made, layer.content, digest_of(SECOND))


def test_ranges_that_were_not_fetched_make_nothing(store: Store) -> None:
    layer = zstd_chunked(SECOND)
    made = plan(layer, [])
    with pytest.raises((PyctrdError, OSError)):
        store.rebuild(made, b"", digest_of(SECOND))


# eStargz


def test_headers_that_another_program_wrote_are_noticed_before_anything_is_made(store: Store) -> None:
    known = store.unpack(estargz(FIRST))
    other = bytearray(SECOND)
    other[0:512] = other[0:512].replace(b"ustar\x0000", b"ustar  \0")
    other[148:156] = b" " * 8
    other[148:156] = b"%06o\0 " % sum(other[:512])
    layer = estargz(bytes(other))
    error = refused(store, layer, estargz_tar(layer), [known])
    assert "archive/tar" in str(error)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_entry(3, offset=1 << 40), id="begins beyond the blob"),
        pytest.param(_entry(3, offset=0), id="begins before the one before"),
        pytest.param(_entry(3, digest="sha256:x"), id="no digest"),
        pytest.param(_entry(3, innerOffset=5), id="several files in one member"),
    ],
)
def test_a_table_of_estargz_that_cannot_be_gone_by_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(InvalidError):
        plan(estargz(FIRST, change=change), [])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_entry(3, size=20_001), id="is longer than it says"),
        pytest.param(_entry(3, digest=digest_of(b"another")), id="has another content"),
        pytest.param(_entry(5, uid=7), id="has another owner"),
        pytest.param(_entry(5, name="d/other"), id="has another name"),
        pytest.param(_entry(5, modtime="2024-01-01T00:00:00Z"), id="has another time"),
    ],
)
def test_what_a_table_of_estargz_lies_about_ends_in_another_diff_id(
    store: Store, change: Callable[[dict[str, Any]], None]
) -> None:
    known = store.unpack(estargz(FIRST))
    right, layer = estargz(SECOND), estargz(SECOND, change=change)
    refused(store, layer, estargz_tar(right), [known])


def test_an_end_that_is_no_footer_is_refused() -> None:
    with pytest.raises(InvalidError, match="does not end as eStargz does"):
        _core.estargz_table_offset(zlib.compress(b"")[:51].ljust(51))
