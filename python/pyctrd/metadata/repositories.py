"""Repositories: what was sent to the store as a registry, and where it can be seen."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple

_MANIFEST = "namespace, repository, digest, media_type, size, subject, artifact_type, annotations, created_ns"
_REF = "namespace, repository, manifest, name, kind, media_type, size, required"
# Of an image's full name, what stands behind its repository: a tag, or a digest alone.
_OF_REPOSITORY = "i.namespace = ?1 AND i.name > ?2 || ':' AND i.name < ?2 || ';'"
_OR_BY_DIGEST = f"(({_OF_REPOSITORY}) OR (i.namespace = ?1 AND i.name > ?2 || '@' AND i.name < ?2 || 'A'))"


class ManifestRow(NamedTuple):
    """A manifest or index of a repository.

    Attributes:
        namespace: Whose.
        repository: ``registry/path``, as images are called.
        digest: Of its bytes.
        media_type: What it was sent as.
        size: Bytes.
        subject: The digest that it says something of, "" for none.
        artifact_type: What it is, for those who look for referrers; "" where it does not say.
        annotations: Its own, as JSON.
        created_ns: When it came, in nanoseconds since 1970.
    """

    namespace: str
    repository: str
    digest: str
    media_type: str
    size: int
    subject: str
    artifact_type: str
    annotations: str
    created_ns: int


class Ref(NamedTuple):
    """What a manifest names.

    Attributes:
        name: A digest.
        kind: "blob" or "manifest".
        media_type: As the manifest says.
        size: Likewise, in bytes.
        required: Whether it must be there.
    """

    name: str
    kind: str
    media_type: str
    size: int
    required: bool


class TagRow(NamedTuple):
    """A tag of a repository.

    Attributes:
        digest: What it names.
        updated_ns: Since when, or when that was last seen to be so, in nanoseconds since 1970.
    """

    digest: str
    updated_ns: int


class Repositories(Table):
    """The repositories of all namespaces. Images that were not sent are seen in them by their names."""

    def put_manifest(self, row: ManifestRow, refs: Iterable[Ref]) -> None:
        """Record one, with what it names; one that is there stays as it is."""
        if self.find_manifest(row.namespace, row.repository, row.digest) is not None:
            return
        self._run(f"INSERT INTO repository_manifests({_MANIFEST}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        for ref in refs:
            values = (row.namespace, row.repository, row.digest, *ref)
            self._run(f"INSERT OR IGNORE INTO repository_refs({_REF}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def find_manifest(self, namespace: str, repository: str, digest: str) -> ManifestRow | None:
        """The record, None where the repository has no such manifest."""
        sql = f"SELECT {_MANIFEST} FROM repository_manifests WHERE namespace = ? AND repository = ? AND digest = ?"
        row = self._first(sql, (namespace, repository, digest))
        return None if row is None else ManifestRow(*row)

    def delete_manifest(self, namespace: str, repository: str, digest: str) -> bool:
        """Take one away with its tags; whether there was one."""
        sql = """DELETE FROM repository_manifests WHERE namespace = ? AND repository = ? AND digest = ?
            RETURNING digest"""
        return bool(self._run(sql, (namespace, repository, digest)))

    def tags_of(self, namespace: str, repository: str, digest: str) -> list[str]:
        """The tags that name a manifest."""
        sql = "SELECT tag FROM repository_tags WHERE namespace = ? AND repository = ? AND digest = ? ORDER BY tag"
        return [row[0] for row in self._run(sql, (namespace, repository, digest))]

    def walk(self) -> list[ManifestRow]:
        """The manifests of all repositories of all namespaces."""
        sql = f"SELECT {_MANIFEST} FROM repository_manifests ORDER BY namespace, repository, digest"
        return [ManifestRow(*row) for row in self._run(sql)]

    def refs(self, namespace: str, repository: str, digest: str) -> list[Ref]:
        """What a manifest names."""
        sql = """SELECT name, kind, media_type, size, required FROM repository_refs
            WHERE namespace = ? AND repository = ? AND manifest = ? ORDER BY name"""
        return [_ref(row) for row in self._run(sql, (namespace, repository, digest))]

    def find_ref(self, namespace: str, repository: str, name: str) -> Ref | None:
        """What some manifest of a repository says of something that it names; None where none names it."""
        sql = """SELECT name, kind, media_type, size, required FROM repository_refs
            WHERE namespace = ? AND name = ? AND repository = ? LIMIT 1"""
        row = self._first(sql, (namespace, name, repository))
        return None if row is None else _ref(row)

    def put_tag(self, namespace: str, repository: str, tag: str, digest: str) -> None:
        """Let a tag name a manifest of its repository from now on."""
        sql = (
            "INSERT OR REPLACE INTO repository_tags(namespace, repository, tag, digest, updated_ns) VALUES (?,?,?,?,?)"
        )
        self._run(sql, (namespace, repository, tag, digest, time.time_ns()))

    def find_tag(self, namespace: str, repository: str, tag: str) -> TagRow | None:
        """What a tag names; None where nothing was sent by it."""
        sql = "SELECT digest, updated_ns FROM repository_tags WHERE namespace = ? AND repository = ? AND tag = ?"
        row = self._first(sql, (namespace, repository, tag))
        return None if row is None else TagRow(*row)

    def delete_tag(self, namespace: str, repository: str, tag: str) -> bool:
        """Take a tag away; whether there was one. What it named stays."""
        sql = "DELETE FROM repository_tags WHERE namespace = ? AND repository = ? AND tag = ? RETURNING tag"
        return bool(self._run(sql, (namespace, repository, tag)))

    def forget_tag(self, namespace: str, repository: str, tag: str) -> None:
        """Take a tag away, and what nothing else of its repository names: for who removes an image by its name."""
        found = self.find_tag(namespace, repository, tag)
        if found is None:
            return
        self.delete_tag(namespace, repository, tag)
        pending = [found.digest]
        while pending:
            digest = pending.pop()
            if self._is_named(namespace, repository, digest):
                continue
            pending += [ref.name for ref in self.refs(namespace, repository, digest) if ref.kind == "manifest"]
            pending += [row.digest for row in self.referrers(namespace, repository, digest)]
            self.delete_manifest(namespace, repository, digest)

    def _is_named(self, namespace: str, repository: str, digest: str) -> bool:
        if self.tags_of(namespace, repository, digest):
            return True
        sql = "SELECT 1 FROM repository_refs WHERE namespace = ? AND name = ? AND repository = ? LIMIT 1"
        return self._first(sql, (namespace, digest, repository)) is not None

    def tags(self, namespace: str, repository: str, limit: int, *, after: str = "") -> list[str]:
        """Some of the tags of a repository, those of images among them, in the order of their bytes."""
        sql = f"""SELECT tag FROM (
                SELECT tag FROM repository_tags WHERE namespace = ?1 AND repository = ?2
                UNION SELECT substr(i.name, length(?2) + 2) FROM images i
                    WHERE {_OF_REPOSITORY} AND instr(i.name, '@') = 0)
            WHERE tag > ?3 ORDER BY tag LIMIT ?4"""
        return [row[0] for row in self._run(sql, (namespace, repository, after, limit))]

    def exists(self, namespace: str, repository: str) -> bool:
        """Whether anything was sent to a repository, or an image is called so."""
        sql = f"""SELECT 1 WHERE EXISTS (SELECT 1 FROM repository_manifests WHERE namespace = ?1 AND repository = ?2)
            OR EXISTS (SELECT 1 FROM repository_blobs WHERE namespace = ?1 AND repository = ?2)
            OR EXISTS (SELECT 1 FROM images i WHERE {_OR_BY_DIGEST})"""
        return self._first(sql, (namespace, repository)) is not None

    def names(self, namespace: str) -> list[str]:
        """The repositories to which manifests were sent."""
        sql = "SELECT DISTINCT repository FROM repository_manifests WHERE namespace = ?"
        return [row[0] for row in self._run(sql, (namespace,))]

    def referrers(
        self,
        namespace: str,
        repository: str,
        subject: str,
        *,
        artifact_type: str = "",
        after: str = "",
        limit: int = -1,
    ) -> list[ManifestRow]:
        """What of a repository says something of a digest, by its own; "" for every type, -1 for all."""
        sql = f"""SELECT {_MANIFEST} FROM repository_manifests
            WHERE namespace = ?1 AND repository = ?2 AND subject = ?3 AND subject <> '' AND ?4 IN ('', artifact_type)
            AND digest > ?5 ORDER BY digest LIMIT ?6"""
        rows = self._run(sql, (namespace, repository, subject, artifact_type, after, limit))
        return [ManifestRow(*row) for row in rows]

    def add_blob(self, namespace: str, repository: str, digest: str) -> None:
        """Let a blob of the namespace be seen in a repository, and keep it for a day from now."""
        sql = "INSERT OR REPLACE INTO repository_blobs(namespace, digest, repository, created_ns) VALUES (?, ?, ?, ?)"
        self._run(sql, (namespace, digest, repository, time.time_ns()))

    def delete_blob(self, namespace: str, repository: str, digest: str) -> bool:
        """Let it not be seen there any more; whether it was. The namespace has it still."""
        sql = """DELETE FROM repository_blobs WHERE namespace = ? AND digest = ? AND repository = ?
            RETURNING digest"""
        return bool(self._run(sql, (namespace, digest, repository)))

    def forget_blob(self, namespace: str, digest: str) -> None:
        """Forget where a blob was to be seen that the namespace has no more."""
        self._run("DELETE FROM repository_blobs WHERE namespace = ? AND digest = ?", (namespace, digest))

    def shows(self, namespace: str, repository: str, digest: str) -> bool:
        """Whether a blob can be seen in a repository: it was sent there, or an image that is called so needs it."""
        sql = "SELECT 1 FROM repository_blobs WHERE namespace = ? AND digest = ? AND repository = ?"
        if self._first(sql, (namespace, digest, repository)) is not None:
            return True
        return self.is_of_image(namespace, repository, digest)

    def is_of_image(self, namespace: str, repository: str, digest: str) -> bool:
        """Whether an image that is called by a repository's name needs a blob, as far as that was written down."""
        sql = f"""SELECT 1 FROM reachable r JOIN images i ON i.root = r.root
            WHERE r.name = ?3 AND r.kind = 'blob' AND {_OR_BY_DIGEST} LIMIT 1"""
        return self._first(sql, (namespace, repository, digest)) is not None

    def holders(self, namespace: str, digest: str) -> list[str]:
        """The repositories in which a blob can be seen because it was sent there."""
        sql = "SELECT repository FROM repository_blobs WHERE namespace = ? AND digest = ? ORDER BY repository"
        return [row[0] for row in self._run(sql, (namespace, digest))]


def manifest_row(
    namespace: str,
    repository: str,
    *,
    digest: str,
    media_type: str,
    size: int,
    subject: str,
    artifact_type: str,
    annotations: Mapping[str, str],
) -> ManifestRow:
    """A record that is made now."""
    import orjson

    text = orjson.dumps(dict(annotations), option=orjson.OPT_SORT_KEYS).decode() if annotations else "{}"
    return ManifestRow(namespace, repository, digest, media_type, size, subject, artifact_type, text, time.time_ns())


def _ref(row: Sequence[Any]) -> Ref:
    name, kind, media_type, size, required = row
    return Ref(name, kind, media_type, size, bool(required))  # SQLite has no booleans
