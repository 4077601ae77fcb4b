"""Reachability: which blobs and layers something needs, asked of the database alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pyctrd.metadata.layers import OF_NAMESPACE
from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.metadata.images import ImageRecord

# What was sent to a repository and is not needed yet stays for so long: its manifest comes last.
SENT_SECONDS = 24 * 3600
# Of a namespace's blob: an image of the same namespace that needs it, else a manifest of a repository that it is or
# that names it, and a lease. A tar that is recorded because its layer was made from parts is kept by who needs the
# layer.
_BLOB_KEEPERS = f"""
    coalesce((SELECT i.name FROM reachable r JOIN images i ON i.root = r.root
        WHERE r.name = c.digest AND (r.kind = 'blob' OR NOT c.is_stored) AND i.namespace = c.namespace LIMIT 1),
    (SELECT m.repository || '@' || m.digest FROM repository_manifests m
        WHERE m.namespace = c.namespace AND m.digest = c.digest LIMIT 1),
    (SELECT f.repository || '@' || f.manifest FROM repository_refs f
        WHERE f.namespace = c.namespace AND f.name = c.digest LIMIT 1),
    (SELECT s.repository || ', sent today' FROM repository_blobs s
        WHERE s.namespace = c.namespace AND s.digest = c.digest
        AND abs(CAST(strftime('%s', 'now') AS INTEGER) - s.created_ns / 1000000000) < {SENT_SECONDS} LIMIT 1)),
    (SELECT trim(l.purpose || ' ' || l.id) FROM lease_resources r JOIN leases l ON l.id = r.lease
        WHERE r.name = c.digest AND (r.kind = 'blob' OR NOT c.is_stored) AND l.namespace = c.namespace LIMIT 1)
"""
# Of a layer: an image and a lease of any namespace, or where one is given (second parameter) of that.
_LAYER_KEEPERS = """
    (SELECT i.name FROM reachable r JOIN images i ON i.root = r.root
        WHERE r.name = y.diff_id AND r.kind = 'layer' AND ?1 IN ('', i.namespace) LIMIT 1),
    (SELECT trim(l.purpose || ' ' || l.id) FROM lease_resources r JOIN leases l ON l.id = r.lease
        WHERE r.name = y.diff_id AND r.kind = 'layer' AND ?1 IN ('', l.namespace) LIMIT 1)
"""


class KeptBlob(NamedTuple):
    """A namespace's blob, and what keeps it.

    Attributes:
        namespace: Whose.
        digest: Of the blob.
        size: Bytes that are kept; 0 where none are.
        image: Name of an image that needs it, or of what of a repository does, or of a repository that it was just sent
            to; None for none.
        lease: A lease's id, behind its purpose if it has one; None for none.
    """

    namespace: str
    digest: str
    size: int
    image: str | None
    lease: str | None


class KeptLayer(NamedTuple):
    """An unpacked layer, and what keeps it but snapshots.

    Attributes:
        diff_id: Of the layer.
        bytes: Content bytes of its files.
        image: As of a blob.
        lease: As of a blob.
    """

    diff_id: str
    bytes: int
    image: str | None
    lease: str | None


class ImageSize(NamedTuple):
    """The blobs that an image needs and its namespace has.

    Attributes:
        image: Its name.
        bytes: Of all of them.
        unique_bytes: Of those that no other image of the namespace needs.
    """

    image: str
    bytes: int
    unique_bytes: int


class Reachability(Table):
    """What images need, once for all that need the same, and who keeps what."""

    def add(self, image: ImageRecord, manifests: str, *, blobs: Iterable[str], layers: Iterable[str]) -> None:
        """Write down what an image needs, unless it changed since it was looked at.

        Args:
            image: As it was then.
            manifests: Which manifests of its target that is: images of the same target and manifests need the same.
            blobs: Digests.
            layers: diff_ids.
        """
        root = self._root(image.target_digest, manifests)
        if root is None:
            sql = "INSERT INTO image_roots(target_digest, manifests) VALUES (?, ?) RETURNING id"
            root = self._first(sql, (image.target_digest, manifests))[0]
            for kind, names in (("blob", blobs), ("layer", layers)):
                for name in names:
                    self._run("INSERT OR IGNORE INTO reachable(name, kind, root) VALUES (?, ?, ?)", (name, kind, root))
        sql = """UPDATE images SET root = ? WHERE namespace = ? AND name = ?
            AND target_digest = ? AND manifest_digest = ? AND updated_ns = ?"""
        known = image.target_digest, image.manifest_digest, image.updated_ns
        self._run(sql, (root, image.namespace, image.name, *known))

    def _root(self, target: str, manifests: str) -> int | None:
        row = self._first("SELECT id FROM image_roots WHERE target_digest = ? AND manifests = ?", (target, manifests))
        return None if row is None else int(row[0])

    def unknown_images(self) -> list[tuple[str, str]]:
        """Namespace and name of the images for which nothing was written down since they got their names."""
        return [(row[0], row[1]) for row in self._run("SELECT namespace, name FROM images WHERE root IS NULL")]

    def forget_removed(self, limit: int) -> int:
        """Strike out up to ``limit`` entries that no image has any more; how many there were."""
        sql = """DELETE FROM image_roots WHERE id IN (SELECT t.id FROM image_roots t WHERE NOT EXISTS (
            SELECT 1 FROM images i WHERE i.root = t.id) LIMIT ?) RETURNING id"""
        return len(self._run(sql, (limit,)))

    def blobs(self, limit: int, *, after: tuple[str, str] = ("", "")) -> list[KeptBlob]:
        """Some of the blobs of all namespaces, by namespace and digest.

        Args:
            limit: At most so many.
            after: Those behind this namespace and digest.
        """
        sql = f"""SELECT c.namespace, c.digest, c.size * c.is_stored, {_BLOB_KEEPERS} FROM content c
            WHERE (c.namespace, c.digest) > (?, ?) ORDER BY c.namespace, c.digest LIMIT ?"""
        return [KeptBlob(*row) for row in self._run(sql, (*after, limit))]

    def find_blob(self, namespace: str, digest: str) -> KeptBlob | None:
        """A namespace's blob and what keeps it; None where it is not recorded."""
        sql = f"""SELECT c.namespace, c.digest, c.size * c.is_stored, {_BLOB_KEEPERS} FROM content c
            WHERE c.namespace = ? AND c.digest = ?"""
        row = self._first(sql, (namespace, digest))
        return None if row is None else KeptBlob(*row)

    def layers(self, namespace: str = "") -> list[KeptLayer]:
        """The layers that a namespace has and what of it keeps them; "" for all layers, and all namespaces."""
        sql = f"""SELECT y.diff_id, y.bytes, {_LAYER_KEEPERS} FROM layers y
            WHERE {OF_NAMESPACE} ORDER BY y.diff_id"""
        return [KeptLayer(*row) for row in self._run(sql, (namespace,))]

    def newest_layers(self, namespace: str, limit: int) -> list[str]:
        """diff_ids of the layers that a namespace has and that came last, at most ``limit``."""
        sql = f"""SELECT y.diff_id FROM layers y WHERE {OF_NAMESPACE}
            ORDER BY y.created_ns DESC, y.diff_id LIMIT ?2"""
        return [row[0] for row in self._run(sql, (namespace, limit))]

    def find_layer(self, diff_id: str) -> KeptLayer | None:
        """A layer and what of any namespace keeps it; None where it is not recorded."""
        sql = f"SELECT y.diff_id, y.bytes, {_LAYER_KEEPERS} FROM layers y WHERE y.diff_id = ?2"
        row = self._first(sql, ("", diff_id))
        return None if row is None else KeptLayer(*row)

    def image_sizes(self, namespace: str) -> list[ImageSize]:
        """The images of a namespace of which it is known what they need, by name."""
        sql = """WITH needs AS (
                SELECT DISTINCT i.name AS image, r.name AS digest, c.size AS size FROM images i
                JOIN reachable r ON r.root = i.root
                JOIN content c ON c.namespace = i.namespace AND c.digest = r.name
                    AND (r.kind = 'blob' OR NOT c.is_stored)
                WHERE i.namespace = ?),
            users AS (SELECT digest, count(*) AS count FROM needs GROUP BY digest)
            SELECT image, sum(size), sum(CASE count WHEN 1 THEN size ELSE 0 END)
            FROM needs JOIN users USING (digest) GROUP BY image ORDER BY image"""
        return [ImageSize(*row) for row in self._run(sql, (namespace,))]

    def unrecorded(self, table: str, names: Sequence[str]) -> set[str]:
        """Those among some names that no record says are on disk: of "content" digests, of "layers" diff_ids."""
        column, condition = {"content": ("digest", "is_stored"), "layers": ("diff_id", "TRUE")}[table]
        marks = ", ".join("?" * len(names))
        found = self._run(f"SELECT {column} FROM {table} WHERE {column} IN ({marks}) AND {condition}", names)
        return set(names) - {row[0] for row in found}
