"""Containers: what was asked for. What they are doing now, the runtime tells."""

from __future__ import annotations

import builtins
import sqlite3
from typing import Any, NamedTuple

from pyctrd.errors import AlreadyExistsError, InvalidError
from pyctrd.metadata.table import Table

_COLUMNS = (
    "namespace, id, name, image_name, image_digest, snapshot_key, command, labels, auto_remove, stop_signal, runtime, "
    "created_ns"
)


class ContainerRecord(NamedTuple):
    """One container.

    Attributes:
        namespace: Whose.
        id: 64 hex digits.
        name: Unique in the namespace.
        image_name: The reference that it was made from.
        image_digest: The manifest that this was then.
        snapshot_key: Its root file system.
        command: What runs in it, for listings.
        labels: The caller's own.
        auto_remove: Whether it is deleted when it ends.
        stop_signal: What ``stop`` sends first.
        runtime: The OCI runtime's name or path; another one knows nothing of it.
        created_ns: When, in nanoseconds since 1970.
    """

    namespace: str
    id: str
    name: str
    image_name: str
    image_digest: str
    snapshot_key: str
    command: tuple[str, ...]
    labels: dict[str, str]
    auto_remove: bool = False
    stop_signal: str = "SIGTERM"
    runtime: str = "runc"
    created_ns: int = 0


class Containers(Table):
    """The containers of all namespaces."""

    def add(self, record: ContainerRecord) -> None:
        """Record one, before anything of it is made.

        Raises:
            AlreadyExistsError: The name or the id is taken.
            InvalidError: The command or a label is not UTF-8.
        """
        try:
            self._run(
                f"INSERT INTO containers({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.namespace,
                    record.id,
                    record.name,
                    record.image_name,
                    record.image_digest,
                    record.snapshot_key,
                    _json(record.command, field="command"),
                    _json(record.labels, field="labels"),
                    int(record.auto_remove),
                    record.stop_signal,
                    record.runtime,
                    record.created_ns,
                ),
            )
        except sqlite3.IntegrityError as error:
            raise AlreadyExistsError(
                f"container name taken: {record.name}",
                kind="container",
                name=record.name,
                hint=f"choose another --name, or delete it: pyctrd rm {record.name}",
            ) from error

    def find(self, namespace: str, name: str) -> ContainerRecord | None:
        """By name, by id, or by the beginning of an id that only one has; None where there is none."""
        row = self._first(
            f"SELECT {_COLUMNS} FROM containers WHERE namespace = ? AND (name = ? OR id = ?)",
            (namespace, name, name),
        )
        if row is None and name and set(name) <= set("0123456789abcdef"):
            rows = self._run(
                f"SELECT {_COLUMNS} FROM containers WHERE namespace = ? AND id >= ? AND id < ? LIMIT 2",
                (namespace, name, name + "g"),
            )
            row = rows[0] if len(rows) == 1 else None
        return None if row is None else _record(row)

    def delete(self, namespace: str, container_id: str) -> None:
        """Forget one, after everything of it is gone."""
        self._run("DELETE FROM containers WHERE namespace = ? AND id = ?", (namespace, container_id))

    def list(self, namespace: str) -> builtins.list[ContainerRecord]:
        """Newest first."""
        sql = f"SELECT {_COLUMNS} FROM containers WHERE namespace = ? ORDER BY created_ns DESC, id"
        return [_record(row) for row in self._run(sql, (namespace,))]


def _json(value: Any, *, field: str) -> str:
    import orjson

    try:
        return orjson.dumps(value).decode()
    except TypeError as error:
        raise InvalidError(f"invalid {field}: {value!r}: expected UTF-8", field=field, value=value) from error


def _record(row: tuple[Any, ...]) -> ContainerRecord:
    import orjson

    return ContainerRecord(
        namespace=row[0],
        id=row[1],
        name=row[2],
        image_name=row[3],
        image_digest=row[4],
        snapshot_key=row[5],
        command=tuple(orjson.loads(row[6])),
        labels=orjson.loads(row[7]),
        auto_remove=bool(row[8]),
        stop_signal=row[9],
        runtime=row[10],
        created_ns=row[11],
    )
