"""Namespaces: the tenants of a store."""

from __future__ import annotations

import builtins
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pyctrd.errors import AlreadyExistsError, InvalidError, NotFoundError
from pyctrd.metadata.events import STORE, Events
from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple

Policy = Literal["isolated", "shared"]
POLICIES: tuple[Policy, ...] = ("isolated", "shared")

# containerd's identifiers: they name directories and cgroups too.
_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
NAME_MAX_CHARS = 76
# A label is a word about a tenant, no document; key and value together, as containerd has it.
LABEL_MAX_BYTES = 4096
QUOTA_MAX_BYTES = 2**63 - 1  # SQLite's largest integer
_SHOWN_CHARS = 80  # of a wrong value, in a message

_COLUMNS = "name, created_ns, labels, policy, quota"


class Namespace(NamedTuple):
    """One tenant.

    Attributes:
        name: Its name.
        created_ns: When it was made, in nanoseconds since 1970.
        labels: Whoever made it may write here what it likes.
        policy: "isolated": what the store has for others is given to it only with proof that it could have had it
            anyway. "shared": it and other namespaces of that policy also have what one of them has, for the naming.
        quota_bytes: What it may be charged for, None for any amount.
    """

    name: str
    created_ns: int
    labels: dict[str, str]
    policy: Policy
    quota_bytes: int | None


def check_namespace(name: str) -> str:
    """The name, if it is one.

    Raises:
        InvalidError: It has other characters than letters, digits and single ``._-`` between them, or is longer
            than 76.
    """
    if len(name) > NAME_MAX_CHARS or _NAME.fullmatch(name) is None:
        raise InvalidError(
            f"invalid namespace: {name[:_SHOWN_CHARS]!r}: expected letters and digits with single . _ - between them, "
            f"at most {NAME_MAX_CHARS}",
            field="namespace",
            value=name[:_SHOWN_CHARS],
        )
    return name


def check_policy(policy: str) -> Policy:
    """The policy, if it is one.

    Raises:
        InvalidError: It is neither "isolated" nor "shared".
    """
    for known in POLICIES:
        if policy == known:
            return known
    raise InvalidError(
        f"invalid policy: {policy[:_SHOWN_CHARS]!r}: expected isolated or shared",
        field="policy",
        value=policy[:_SHOWN_CHARS],
    )


def check_quota(quota_bytes: int) -> int:
    """The quota, if it is one.

    Raises:
        InvalidError: It is negative, or more than any disk has.
    """
    if not 0 <= quota_bytes <= QUOTA_MAX_BYTES:
        raise InvalidError(
            f"invalid quota: {quota_bytes}: expected 0 to {QUOTA_MAX_BYTES} bytes", field="quota", value=quota_bytes
        )
    return quota_bytes


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels, if all of them are some.

    Raises:
        InvalidError: A key is empty, one has control characters or is no UTF-8, or key and value have more than
            4096 bytes.
    """
    for key, value in labels.items():
        if (wrong := _wrong_with(key, value)) is not None:
            shown = key[:_SHOWN_CHARS]
            raise InvalidError(f"invalid label: {shown!r}: {wrong}", field="labels", value=shown)
    return dict(labels)


def _wrong_with(key: str, value: str) -> str | None:
    if not key:
        return "expected a key"
    if not (key + value).isprintable():
        return "it has control characters, or is not UTF-8"
    if (size := len((key + value).encode())) > LABEL_MAX_BYTES:
        return f"{size} bytes: expected at most {LABEL_MAX_BYTES}"
    return None


class Namespaces(Table):
    """All of them. What changes is told as an event."""

    def __init__(self, run: Callable[[str, Sequence[Any]], list[Any]], events: Events) -> None:
        super().__init__(run)
        self._events = events

    def ensure(self, name: str) -> None:
        """Make it where it is missing: isolated, with no quota."""
        sql = "INSERT OR IGNORE INTO namespaces(name, created_ns) VALUES (?, ?) RETURNING name"
        for (made,) in self._run(sql, (name, time.time_ns())):
            self._tell(made, "created")

    def add(self, record: Namespace) -> None:
        """Make one.

        Raises:
            AlreadyExistsError: The name is taken.
        """
        if self.find(record.name) is not None:
            raise AlreadyExistsError(
                f"namespace already exists: {record.name}",
                kind="namespace",
                name=record.name,
                hint=f"change it: pyctrd namespace set {record.name}",
            )
        self._run(f"INSERT INTO namespaces({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", _row(record))
        self._tell(record.name, "created")

    def put(self, record: Namespace) -> None:
        """Store what is known of one in place of what was."""
        self._run(
            "UPDATE namespaces SET labels = ?, policy = ?, quota = ? WHERE name = ?",
            (*_row(record)[2:], record.name),
        )
        self._tell(record.name, "updated")

    def find(self, name: str) -> Namespace | None:
        """The record, None where there is none."""
        row = self._first(f"SELECT {_COLUMNS} FROM namespaces WHERE name = ?", (name,))
        return None if row is None else _record(row)

    def get(self, name: str) -> Namespace:
        """The record.

        Raises:
            NotFoundError: There is none.
        """
        record = self.find(name)
        if record is None:
            shown = name[:_SHOWN_CHARS]
            raise NotFoundError(
                f"namespace not found: {shown!r}", kind="namespace", name=shown, hint="list them: pyctrd namespace ls"
            )
        return record

    def delete(self, name: str) -> None:
        """Forget one, after all that is recorded of it; whoever has the name next must not read its events."""
        self._run("DELETE FROM namespaces WHERE name = ?", (name,))
        self._events.add(STORE, "namespace", "removed", name, {})
        self._events.forget(name)

    def list(self) -> builtins.list[Namespace]:
        """By name."""
        return [_record(row) for row in self._run(f"SELECT {_COLUMNS} FROM namespaces ORDER BY name")]

    def _tell(self, name: str, action: str) -> None:
        self._events.add(name, "namespace", action, name, {})


def _row(record: Namespace) -> tuple[Any, ...]:
    import orjson

    labels = orjson.dumps(record.labels, option=orjson.OPT_SORT_KEYS).decode()
    return (record.name, record.created_ns, labels, record.policy, record.quota_bytes)


def _record(row: tuple[Any, ...]) -> Namespace:
    name, created_ns, labels, policy, quota_bytes = row
    return Namespace(name, created_ns, _labels(labels), policy, quota_bytes)


def _labels(text: str) -> dict[str, str]:
    if text == "{}":  # nearly always, and then no JSON need be loaded
        return {}
    import orjson

    found: dict[str, str] = orjson.loads(text)
    return found
