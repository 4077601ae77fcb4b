"""The table of cases: what each is made of, and what must come of it.

R is refused with a typed error, S is safe (either, so long as nothing outside is touched; which of the two happens is
said here too), A is accepted with exactly the stated result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pyctrd.errors import UnsafeArchiveError
from tests.archives import Tar
from tests.hostile.canary import Outside
from tests.trees import Facts

PLAIN = "application/vnd.oci.image.layer.v1.tar"
GZIP = f"{PLAIN}+gzip"
ZSTD = f"{PLAIN}+zstd"
IDS: Mapping[str, Sequence[str]] = {
    letter: ids.split()
    for letter, ids in {
        "R": """
            L007 L008 L009 L010 L013 L017 L020 L038 L039 L044 L045 L060 L061 L063 L065 L066 L067 L068 L072 L080
            L081 L082 L083 L084 L116 L117 L118 L121 L140 L141 L142 L143 L144 L145 L149 L150 L151 L152 L153 L154
            L155 L161 L166 L167 L169 L182 L183 L184 L185 L186 L206 L207 L208 L209 L210 L211 L214 L215 L218 L219
            L220 L221 L222 L223 L224 L225 L226 L227 L228
        """,
        "S": """
            L001 L002 L003 L004 L018 L021 L025 L031 L032 L033 L035 L040 L043 L049 L088 L093 L094 L097 L123 L124
            L127 L159 L160 L165 L205 L216
        """,
        "A": """
            L005 L006 L011 L012 L014 L015 L016 L019 L022 L023 L024 L026 L030 L034 L036 L037 L041 L042 L046 L047
            L048 L050 L051 L052 L053 L062 L064 L069 L070 L071 L073 L074 L075 L085 L086 L087 L089 L090 L091 L092
            L095 L096 L098 L099 L100 L101 L102 L110 L111 L112 L113 L114 L115 L119 L120 L122 L125 L126 L128 L129
            L146 L147 L148 L156 L157 L158 L162 L163 L164 L168 L180 L181 L187 L200 L201 L202 L203 L204 L212 L213
            L217 L229
        """,
    }.items()
}
CLASS_OF: Mapping[str, str] = {name: letter for letter, names in IDS.items() for name in names}
# Limits that can be set, which have tests of their own.
LIMITS = frozenset({"L161", "L221", "L222", "L223", "L224"})


@dataclass(frozen=True)
class Packed:
    """A layer whose blob is not simply its tar.

    Attributes:
        blob: As a registry has it.
        tar: What it unpacks to, where that is something else.
        media_type: As the manifest names it.
        diff_id: What the config claims, where that is a lie.
        sent: What the registry sends instead.
        extra: More fields of its descriptor.
    """

    blob: bytes
    tar: bytes | None = None
    media_type: str = PLAIN
    diff_id: str | None = None
    sent: bytes | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def claimed(self) -> str:
        """The diff_id that the config has."""
        return self.diff_id or f"sha256:{hashlib.sha256(self.blob if self.tar is None else self.tar).hexdigest()}"


Made = Sequence[Tar | bytes | Packed]


@dataclass(frozen=True)
class Is:
    """What must be at a name: a type, and those of its facts that the case is about."""

    type: str
    facts: Mapping[str, object] = field(default_factory=dict)


DIR = Is("directory")
FIFO = Is("fifo")
# A name is text or bytes; what is there, a file's content or more.
Holds = Mapping[Any, Is | bytes]


def link(target: str) -> Is:
    """A symbolic link."""
    return Is("symlink", {"link": target})


def directory(**facts: object) -> Is:
    """A directory with some attributes."""
    return Is("directory", facts)


def a_file(content: bytes | None = None, **facts: object) -> Is:
    """A regular file with some attributes."""
    known = {} if content is None else {"content": hashlib.sha256(content).hexdigest(), "size": len(content)}
    return Is("file", known | facts)


@dataclass(frozen=True)
class Seen:
    """A tree that layers made, where it can be looked at."""

    root: Path
    tree: Mapping[bytes, Facts]
    outside: Outside


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        id: Its number, with a letter where a row says several things.
        make: The layers, lowest first; the last is the hostile one, those below are harmless.
        refused: What the error must say, a regular expression; None for a case that is accepted.
        entry: The name that the error must give.
        error: The error's class.
        holds: All that must be there, parents included; an entry that is not listed fails the case.
        check: What a list of names cannot say.
        slow: Many entries.
    """

    id: str
    make: Callable[[Outside], Made]
    refused: str | None = None
    entry: bytes | None = None
    error: type[Exception] | tuple[type[Exception], ...] = UnsafeArchiveError
    holds: Callable[[Outside], Holds] | None = None
    check: Callable[[Seen], None] | None = None
    slow: bool = False

    @property
    def letter(self) -> Literal["R", "S", "A"]:
        """Its class, from the table of ids."""
        return CLASS_OF[self.id[:4]]  # type: ignore[return-value] # the table has these three alone


class Block:
    """A part of the table under construction."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def refused(
        self,
        name: str,
        make: Callable[[Outside], Made],
        says: str,
        *,
        entry: bytes | None = None,
        error: type[Exception] | tuple[type[Exception], ...] = UnsafeArchiveError,
        slow: bool = False,
    ) -> None:
        """Add a case that is refused."""
        self.cases.append(Case(name, make, refused=says, entry=entry, error=error, slow=slow))

    def accepted(
        self,
        name: str,
        make: Callable[[Outside], Made],
        holds: Holds | Callable[[Outside], Holds] | None = None,
        *,
        check: Callable[[Seen], None] | None = None,
        slow: bool = False,
    ) -> None:
        """Add a case that is accepted."""
        found = holds if holds is None or callable(holds) else (lambda _: holds)
        self.cases.append(Case(name, make, holds=found, check=check, slow=slow))


def differences_from(holds: Holds, tree: Mapping[bytes, Facts]) -> list[str]:
    """What of a tree is not as it should be; parents of what is listed are directories."""
    wanted: dict[bytes, Is] = {}
    for name, what in holds.items():
        path = name.encode() if isinstance(name, str) else name
        parts = path.split(b"/")
        for length in range(1, len(parts)):
            wanted.setdefault(b"/".join(parts[:length]), DIR)
        wanted[path] = a_file(what) if isinstance(what, bytes) else what
    wanted.setdefault(b".", DIR)
    found = [f"{name!r}: should not be there" for name in sorted(tree.keys() - wanted.keys())]
    for name, what in wanted.items():
        if (facts := tree.get(name)) is None:
            found.append(f"{name!r}: is missing")
            continue
        expected = {"type": what.type, **what.facts}
        found += [
            f"{name!r}: {key}: expected {value!r}, got {getattr(facts, key)!r}"
            for key, value in expected.items()
            if getattr(facts, key) != value
        ]
    return found
