"""Other readers of tar on the same archives: all that they read otherwise than we do is explained by a rule."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from io import BytesIO
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyctrd
from pyctrd.errors import UnsafeArchiveError
from tests.archives import header
from tests.layers.features import FEATURES
from tests.layers.forms import ENDS
from tests.layers.model import SECOND_NS, Entry, RefusedError, Tree
from tests.layers.oracles import EXTRACT, EXTRACT_BSD
from tests.trees import Facts, read_tree

pytestmark = pytest.mark.root

MEMBERS_MAX = 1000
EXAMPLES = int(os.environ.get("PYCTRD_TEST_EXAMPLES", "60"))
BEFORE, AFTER, END = header(b"before"), header(b"after"), bytes(1024)
# None: refused.
Reading = dict[bytes, Facts] | None


def ours(tar: bytes, directory: Path) -> Reading:
    (directory / "layer.tar").write_bytes(tar)
    try:
        pyctrd.unpack(directory / "layer.tar", directory / "ours")
    except UnsafeArchiveError:
        return None
    return read_tree(directory / "ours")


def by_tarfile(tar: bytes, directory: Path) -> Reading:
    """What Python's module says, applied by the model of the image spec."""
    try:
        with tarfile.open(fileobj=BytesIO(tar), errorlevel=2, encoding="utf-8", errors="surrogateescape") as opened:
            members = list(islice(opened, MEMBERS_MAX + 1))
            # Before it was mended (CVE-2025-8194) a negative size led it back to the same header for ever.
            if len(members) > MEMBERS_MAX:
                return None
            return Tree.of([[_entry(opened, member) for member in members]]).facts()
    except (tarfile.TarError, RefusedError):
        return None
    except (IndexError, ValueError, OverflowError):
        return None  # where it reads on without a look at what is there: of a sparse map that was cut off, say


_TYPES = {
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "character",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


def _entry(opened: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    content = opened.extractfile(member) if member.isreg() else None
    xattr = "SCHILY.xattr."
    return Entry(
        os.fsencode(member.name),
        type=_TYPES.get(member.type, "file"),
        content=content.read() if content else b"",
        link=os.fsencode(member.linkname),
        mode=member.mode & 0o7777,
        uid=member.uid,
        gid=member.gid,
        mtime_ns=_time(member),
        device=(member.devmajor, member.devminor),
        xattrs={
            key.removeprefix(xattr): value.encode("utf-8", "surrogateescape")
            for key, value in member.pax_headers.items()
            if key.startswith(xattr)
        },
    )


def _time(member: tarfile.TarInfo) -> int:
    """To the nanosecond, which its own float does not reach."""
    try:
        return int(Decimal(member.pax_headers["mtime"]) * SECOND_NS)
    except (KeyError, InvalidOperation):
        return int(member.mtime) * SECOND_NS


def by_program(*words: str) -> Callable[[bytes, Path], Reading]:
    def read(tar: bytes, directory: Path) -> Reading:
        target = directory / words[0]
        target.mkdir()
        done = subprocess.run([*words, "-C", str(target), "-f", "-"], input=tar, capture_output=True, check=False)
        return read_tree(target) if done.returncode == 0 else None

    return read


ORACLES: dict[str, Callable[[bytes, Path], Reading]] = {
    "tarfile": by_tarfile,
    "tar": by_program(*EXTRACT),
    "bsdtar": by_program(*EXTRACT_BSD),
}
ABSENT = {name for name in ("tar", "bsdtar") if shutil.which(name) is None}
SAME, REFUSED, ACCEPTED, OTHERWISE = "the same", "only theirs refuses", "only ours refuses", "both read it, otherwise"
ALL, STRICT, LAX = ("tarfile", "tar", "bsdtar"), ("tar", "bsdtar"), ("tarfile", "bsdtar")


class Difference(NamedTuple):
    """What is read otherwise by others, and the rule that we go by."""

    features: str
    oracles: tuple[str, ...]
    outcome: str
    rule: str
    # Not so in every version of the oracle.
    depends: bool = False


DIFFERENCES = (
    Difference(
        "unknown-type volume-header dump-of-a-directory",
        ALL,
        ACCEPTED,
        "R5: unknown types are refused, and parts of a backup are none that a layer has; they make files, or nothing",
    ),
    Difference("part-of-a-volume", LAX, ACCEPTED, "R5: as unknown types; GNU tar wants the volume before it as well"),
    Difference(
        "sum-that-is-wrong size-that-is-no-number mode-that-is-no-number",
        ("tarfile",),
        ACCEPTED,
        "R5: sums must match and numbers parse; tarfile takes a damaged header for the end",
    ),
    Difference(
        "size-that-is-negative",
        ("tarfile",),
        ACCEPTED,
        "R5: as other numbers; tarfile goes round in circles before it was mended, and takes it for the end since",
        depends=True,
    ),
    Difference("sum-that-is-wrong", ("bsdtar",), ACCEPTED, "R5: sums must match; bsdtar looks for the next header"),
    Difference("mode-that-is-no-number", ("bsdtar",), ACCEPTED, "R5: numbers must parse; bsdtar takes what it can"),
    Difference("size-that-is-no-number", ("bsdtar",), ACCEPTED, "R5: numbers must parse; bsdtar takes what it can"),
    Difference(
        "data-of-what-its-name-makes-a-directory",
        ALL,
        ACCEPTED,
        "R5: a header that contradicts itself is refused: they pass the data over, or read entries in it",
    ),
    *(
        Difference(
            "hard-link-with-a-size",
            ("bsdtar",),
            outcome,
            "R5: a link has no data whatever its size says; bsdtar guesses by what came before, and skips what follows",
            depends=True,
        )
        for outcome in (OTHERWISE, REFUSED)
    ),
    Difference("numbers-that-are-empty", ("tar",), REFUSED, "R5: an empty field is 0, as v7 and libarchive have it"),
    Difference(
        "one-empty-block-in-the-middle",
        ALL,
        ACCEPTED,
        "R5: the end is two empty blocks or the end of the bytes; they go on after one, or end quietly there",
    ),
    Difference("owner-out-of-range", ALL, ACCEPTED, "R9: an owner that chown(2) cannot set is refused"),
    Difference("pax-bad-length", ("tarfile",), ACCEPTED, "R6: a record that is no record is refused"),
    Difference("pax-bad-number", LAX, ACCEPTED, "R6: as records; they take 0, or the header's"),
    Difference("pax-bad-time", LAX, ACCEPTED, "R6: as records; they take 0, or the header's"),
    Difference("pax-nul-in-a-name", ALL, ACCEPTED, "R6: a NUL in a path is refused; they cut the name, or end there"),
    Difference("pax-empty-value", ("tar", "tarfile"), REFUSED, "R6: an empty value means the header's, as POSIX says"),
    Difference("pax-empty-value", ("bsdtar",), OTHERWISE, "R6: an empty value means the header's, not 0"),
    Difference("pax-global-values", ("tar", "tarfile"), OTHERWISE, "R7: global headers change nothing"),
    Difference(
        "pax-global-comment pax-global-values",
        ALL,
        REFUSED,
        "R7: as nothing else needs one, an archive may end after one, where it was cut off",
        depends=True,
    ),
    Difference("libarchive-xattr", ("tar", "tarfile"), OTHERWISE, "R10: kept; they know SCHILY.xattr alone"),
    Difference(
        "gnu-fields-where-the-prefix-is",
        ("tarfile",),
        OTHERWISE,
        "R5: GNU's header has times there; tarfile takes them for a prefix",
    ),
    Difference(
        "sparse-of-old-gnu sparse-0-0 sparse-0-1 sparse-1-0",
        ("tar",),
        OTHERWISE,
        "R5: the size that is told counts; GNU tar ends the file with the last piece where none, empty, ends the map",
    ),
    Difference("sparse-pieces-that-overlap", ALL, ACCEPTED, "R5: pieces come in order and do not overlap"),
    Difference("sparse-piece-past-the-end", ("tarfile",), ACCEPTED, "R5: no piece ends after the file"),
    Difference("a-name-that-leads-up", STRICT, REFUSED, "R1: .. stops at the root"),
    Difference("a-file-through-a-link", ("bsdtar",), REFUSED, "R1: a link that stays inside is followed"),
    Difference(
        "a-file-instead-of-a-directory",
        STRICT,
        REFUSED,
        "R2: an entry replaces what is there; they remove no directory that is not empty",
    ),
    Difference("whiteout", STRICT, OTHERWISE, "R4: a marker is no file"),
)
# What is left of an archive that was cut off is not read; the others take what is whole.
CUT = {ACCEPTED}


def explained(name: str, oracle: str, *, surely: bool = False) -> set[str]:
    """How else than alike a thing may be read, or surely is."""
    return {
        found.outcome
        for found in DIFFERENCES
        if name in found.features.split() and oracle in found.oracles and not (surely and found.depends)
    }


def verdicts(tar: bytes) -> dict[str, str]:
    """How every reader that is there reads an archive, beside ours."""
    directory = Path(tempfile.mkdtemp(prefix="pyctrd-oracle-"))
    try:
        mine = ours(tar, directory)
        return {name: verdict(mine, read(tar, directory)) for name, read in ORACLES.items() if name not in ABSENT}
    finally:
        shutil.rmtree(directory)


def verdict(mine: Reading, theirs: Reading) -> str:
    if mine is None or theirs is None:
        return SAME if mine is theirs else REFUSED if theirs is None else ACCEPTED
    of_entries = [{name: facts for name, facts in reading.items() if name != b"."} for reading in (mine, theirs)]
    return SAME if of_entries[0] == of_entries[1] else OTHERWISE


@pytest.mark.parametrize("name", FEATURES)
def test_each_thing_is_read_as_others_read_it_or_a_rule_says_why_not(name: str) -> None:
    seen: dict[str, set[str]] = {oracle: set() for oracle in ORACLES if oracle not in ABSENT}
    for seed in range(6):
        for oracle, found in verdicts(BEFORE + FEATURES[name](b"name", Random(seed)) + AFTER + END).items():
            seen[oracle].add(found)
    for oracle, outcomes in seen.items():
        assert outcomes - {SAME} <= explained(name, oracle), oracle
        # A rule that explains nothing is wrong, too.
        assert outcomes >= explained(name, oracle, surely=True), oracle


def test_every_difference_names_a_rule_and_things_that_there_are() -> None:
    for difference in DIFFERENCES:
        assert set(difference.features.split()) <= FEATURES.keys()
        assert set(difference.oracles) <= ORACLES.keys()
        assert difference.rule.partition(":")[0] in {f"R{number}" for number in range(1, 21)}


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    names=st.lists(st.sampled_from(sorted(FEATURES)), min_size=1, max_size=6),
    random=st.randoms(use_true_random=False),
    end=st.sampled_from(sorted(ENDS)),
    cut=st.one_of(st.none(), st.integers(1, 20_000)),
)
def test_any_archive_is_read_as_others_read_it_or_rules_say_why_not(
    names: list[str], random: Random, end: str, cut: int | None
) -> None:
    parts = (FEATURES[name](b"%c-" % (97 + at), random) for at, name in enumerate(names))
    tar = b"".join(parts) + ENDS[end]
    for oracle, found in verdicts(tar[:cut]).items():
        allowed = {SAME}.union(*(explained(name, oracle) for name in names), CUT if cut else set())
        assert found in allowed, (oracle, found, names, end, cut)
