"""Images: names that point at manifests."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any

from pyctrd.metadata.events import Events
from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple

_COLUMNS = (
    "namespace, name, target_digest, target_media_type, target_size, manifest_digest, config_digest, platform, "
    "created_ns, updated_ns"
)


class ImageRecord(NamedTuple):
    """One name in one namespace.

    Attributes:
        namespace: Whose.
        name: The full reference.
        target_digest: What the reference named in the registry: an index's digest, or a manifest's.
        target_media_type: The same's media type.
        target_size: The same's bytes.
        manifest_digest: The manifest of the chosen platform.
        config_digest: Its config.
        platform: ``os/architecture[/variant]``.
        created_ns: When the name was first pulled, in nanoseconds since 1970.
        updated_ns: When it was last pulled.
    """

    namespace: str
    name: str
    target_digest: str
    target_media_type: str
    target_size: int
    manifest_digest: str
    config_digest: str
    platform: str
    created_ns: int
    updated_ns: int


class Images(Table):
    """The names of all namespaces. What changes is told as an event."""

    def __init__(self, run: Callable[[str, Sequence[Any]], builtins.list[Any]], events: Events) -> None:
        super().__init__(run)
        self._events = events

    def put(self, record: ImageRecord, *, by: str = "") -> ImageRecord:
        """Set the name; a name that exists keeps its first time.

        Args:
            record: What it means from now on.
            by: What brought the image in ("pull", "load", "commit", "convert", "tag", "push"), for the event.

        Returns:
            What is stored now.
        """
        before = self.find(record.namespace, record.name)
        if before is not None:
            record = record._replace(created_ns=before.created_ns)
        self._run(
            f"INSERT OR REPLACE INTO images({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            record,
        )
        if before is None or before._replace(updated_ns=record.updated_ns) != record:
            told = {"digest": record.target_digest, "manifest": record.manifest_digest, "by": by}
            if before is not None:
                told |= {"previous_digest": before.target_digest, "previous_manifest": before.manifest_digest}
            self._events.add(record.namespace, "image", "created" if before is None else "updated", record.name, told)
        return record

    def find(self, namespace: str, name: str) -> ImageRecord | None:
        """The record, None where there is none."""
        row = self._first(
            f"SELECT {_COLUMNS} FROM images WHERE namespace = ? AND name = ?",
            (namespace, name),
        )
        return None if row is None else _record(row)

    def delete(self, namespace: str, name: str) -> None:
        """Take a name away."""
        sql = "DELETE FROM images WHERE namespace = ? AND name = ? RETURNING target_digest, manifest_digest"
        for digest, manifest in self._run(sql, (namespace, name)):
            self._events.add(namespace, "image", "removed", name, {"digest": digest, "manifest": manifest})

    def list(self, namespace: str) -> builtins.list[ImageRecord]:
        """By name."""
        sql = f"SELECT {_COLUMNS} FROM images WHERE namespace = ? ORDER BY name"
        return [_record(row) for row in self._run(sql, (namespace,))]


def _record(row: tuple[str, str, str, str, int, str, str, str, int, int]) -> ImageRecord:
    return ImageRecord(
        namespace=row[0],
        name=row[1],
        target_digest=row[2],
        target_media_type=row[3],
        target_size=row[4],
        manifest_digest=row[5],
        config_digest=row[6],
        platform=row[7],
        created_ns=row[8],
        updated_ns=row[9],
    )
