"""Containers: what was asked for. What they are doing now, the runtime tells."""

from __future__ import annotations

import builtins
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyctrd.errors import AlreadyExistsError, InvalidError
from pyctrd.metadata.events import Events
from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple

_COLUMNS = (
    "namespace, id, name, image_name, image_digest, snapshot_key, command, labels, auto_remove, stop_signal, runtime, "
    "created_ns"
)
# Of a run whose end nobody saw: as runtimes say it.
UNKNOWN_EXIT_CODE = 255


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
    """The containers of all namespaces. What changes is told as an event."""

    def __init__(self, run: Callable[[str, Sequence[Any]], builtins.list[Any]], events: Events) -> None:
        super().__init__(run)
        self._events = events

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
        self.tell(record.namespace, record.id, "created")

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
        if (told := self.told(namespace, container_id)) is not None:
            self._tell_lost(namespace, container_id, told)
            self.tell(namespace, container_id, "removed")
        self._run("DELETE FROM containers WHERE namespace = ? AND id = ?", (namespace, container_id))

    def rename(self, namespace: str, container_id: str, name: str) -> ContainerRecord | None:
        """Give it another name; None where it is gone.

        Raises:
            AlreadyExistsError: Another one of the namespace has it.
        """
        found = self.find(namespace, container_id)
        if found is None or found.name == name:
            return found
        try:
            sql = "UPDATE containers SET name = ? WHERE namespace = ? AND id = ?"
            self._run(sql, (name, namespace, container_id))
        except sqlite3.IntegrityError as error:
            raise AlreadyExistsError(
                f"container name taken: {name}",
                kind="container",
                name=name,
                hint=f"choose another one, or delete it: pyctrd rm {name}",
            ) from error
        self.tell(namespace, container_id, "renamed", {"old_name": found.name})
        return found._replace(name=name)

    def told(self, namespace: str, container_id: str) -> tuple[int, int] | None:
        """Which run events have told to have started, and which to have ended.

        Returns:
            The times at which those runs started, 0 for none; None where there is no such container.
        """
        row: tuple[int, int] | None = self._first(
            "SELECT told_start_ns, told_end_ns FROM containers WHERE namespace = ? AND id = ?",
            (namespace, container_id),
        )
        return row

    def tell_start(self, namespace: str, container_id: str, started_ns: int) -> None:
        """Tell that a run has started, if that was not told yet; before it, that the one before has ended."""
        told = self.told(namespace, container_id)
        if told is None or told[0] == started_ns:
            return
        self._tell_lost(namespace, container_id, told)
        self._mark("told_start_ns", namespace, container_id, started_ns)
        self.tell(namespace, container_id, "started", time_ns=started_ns)

    def tell_end(
        self,
        namespace: str,
        container_id: str,
        started_ns: int,
        *,
        exit_code: int,
        signal: int,
        exited_ns: int,
        oom: bool = False,
        reason: str = "exit",
    ) -> None:
        """Tell how a run has ended, if that was not told yet; before it, that it had started."""
        self.tell_start(namespace, container_id, started_ns)
        told = self.told(namespace, container_id)
        if told is None or told[1] == started_ns:
            return
        self._mark("told_end_ns", namespace, container_id, started_ns)
        status = {
            "exit_code": exit_code,
            "signal": signal,
            "oom": oom,
            "reason": reason,
            "started_ns": started_ns,
            "exited_ns": exited_ns,
        }
        self.tell(namespace, container_id, "exited", status, time_ns=exited_ns)

    def told_health(self, namespace: str, container_id: str) -> int:
        """The time of the last change of its health that was told; 0 for none."""
        row = self._first(
            "SELECT told_health_ns FROM containers WHERE namespace = ? AND id = ?", (namespace, container_id)
        )
        return 0 if row is None else int(row[0])

    def tell_health(self, namespace: str, container_id: str, status: str, time_ns: int) -> None:
        """Tell that its health has become another one, if that was not told yet."""
        if self.told_health(namespace, container_id) < time_ns:
            self._mark("told_health_ns", namespace, container_id, time_ns)
            self.tell(namespace, container_id, "health_status", {"reason": status}, time_ns=time_ns)

    def tell(
        self,
        namespace: str,
        container_id: str,
        action: str,
        more: Mapping[str, Any] | None = None,
        *,
        time_ns: int = 0,
    ) -> None:
        """Tell what was done with it, as "paused", at a time (0: now); nothing where it is gone."""
        sql = "SELECT name, image_name, image_digest FROM containers WHERE namespace = ? AND id = ?"
        for name, image, digest in self._run(sql, (namespace, container_id)):
            attributes = {"id": container_id, "image": image, "image_digest": digest, **(more or {})}
            self._events.add(namespace, "container", action, name, attributes, time_ns=time_ns)

    def list_untold(self) -> builtins.list[ContainerRecord]:
        """Those of all namespaces that were told to have started, and not to have ended."""
        sql = f"SELECT {_COLUMNS} FROM containers WHERE told_start_ns <> told_end_ns"
        return [_record(row) for row in self._run(sql)]

    def _mark(self, column: str, namespace: str, container_id: str, value: int) -> None:
        sql = f"UPDATE containers SET {column} = ? WHERE namespace = ? AND id = ?"
        self._run(sql, (value, namespace, container_id))

    def _tell_lost(self, namespace: str, container_id: str, told: tuple[int, int]) -> None:
        """Of a run whose end nobody saw, as at a power cut, no more is told than that it is over."""
        started_ns, ended = told
        if started_ns != ended:
            self._mark("told_end_ns", namespace, container_id, started_ns)
            status = {
                "exit_code": UNKNOWN_EXIT_CODE,
                "signal": 0,
                "oom": False,
                "reason": "exit",
                "started_ns": started_ns,
                "exited_ns": 0,
            }
            self.tell(namespace, container_id, "exited", status)

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
