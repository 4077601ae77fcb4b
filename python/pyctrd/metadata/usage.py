"""What each namespace is charged for, and whether more may come in.

The rule: a namespace is charged for every blob that it has a record of, whoever has it too, as if it were alone in the
store. One whose bytes are not kept is charged as well: it stands for its layer, and no tenant may get round a quota by
a setting of his own. One of which no byte came is charged as what it was taken for, whatever a manifest says that it
has. Layers' trees, containers' own files and what is only on its way in are charged to nobody; what is
on its way is held against a quota for as long as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pyctrd.errors import NotFoundError, QuotaError
from pyctrd.metadata.table import Table
from pyctrd.oci.value import NamedTuple


class ContentUsage(NamedTuple):
    """What a namespace may know of its own use; it says nothing of others.

    Attributes:
        charged_bytes: All blobs that it has, also those whose bytes are not kept.
        reserved_bytes: Blobs that are on their way into it, or of which a part is kept to go on from.
        quota_bytes: What both together may come to, None for any amount.
    """

    charged_bytes: int
    reserved_bytes: int
    quota_bytes: int | None


class NamespaceUsage(NamedTuple):
    """What a namespace costs the store; for whoever keeps the store, since it tells of other tenants.

    Attributes:
        charged_bytes: All blobs that it has, as if it were alone.
        exclusive_bytes: Those that no other namespace has: what its removal would free.
    """

    charged_bytes: int
    exclusive_bytes: int


class Usage(Table):
    """Sums over the content of namespaces; nothing is kept, so nothing can be wrong."""

    def charged(self, namespace: str) -> int:
        """Bytes of all blobs that it has a record of."""
        return int(self._first("SELECT coalesce(sum(size), 0) FROM content WHERE namespace = ?", (namespace,))[0])

    def exclusive(self, namespace: str) -> int:
        """Bytes of those that are kept for no other namespace. It tells of others: not for a tenant's eyes."""
        row = self._first(
            "SELECT coalesce(sum(size), 0) FROM content AS own WHERE namespace = ? AND is_stored AND NOT EXISTS "
            "(SELECT 1 FROM content AS other WHERE other.digest = own.digest AND other.namespace <> own.namespace "
            "AND other.is_stored)",
            (namespace,),
        )
        return int(row[0])

    def charged_as(self, namespace: str, diff_id: str) -> int:
        """Bytes of the largest blob that a namespace has of a layer, 0 for none."""
        row = self._first(
            "SELECT coalesce(max(size), 0) FROM content WHERE namespace = ?1 AND (claimed = ?2 OR claimed = '' "
            "AND digest IN (SELECT digest FROM layer_blobs WHERE diff_id = ?2))",
            (namespace, diff_id),
        )
        return int(row[0])

    def stored(self) -> tuple[int, int, int, int]:
        """Of the whole store: how many blobs, their bytes, how many layers, their bytes."""
        blobs = self._first(
            "SELECT count(*), coalesce(sum(size), 0) FROM (SELECT DISTINCT digest, size FROM content WHERE is_stored)"
        )
        layers = self._first("SELECT count(*), coalesce(sum(bytes), 0) FROM layers")
        return (*blobs, *layers)

    def reserved(self, namespace: str, *, beside: Collection[str] = ()) -> int:
        """Bytes of the blobs on their way into it that it does not have yet, but for some digests; and of uploads."""
        rows = self._run(
            "SELECT digest, max(size) FROM ingests WHERE namespace = ? AND digest NOT IN "
            "(SELECT digest FROM content WHERE namespace = ?) GROUP BY digest",
            (namespace, namespace),
        )
        uploads = self._first("SELECT coalesce(sum(reserved_bytes), 0) FROM uploads WHERE namespace = ?", (namespace,))
        return int(uploads[0]) + sum(int(size) for digest, size in rows if digest not in beside)

    def quota(self, namespace: str) -> int | None:
        """What it may be charged for, None for any amount.

        Raises:
            NotFoundError: There is no such namespace.
        """
        row = self._first("SELECT quota FROM namespaces WHERE name = ?", (namespace,))
        if row is None:
            raise NotFoundError(
                f"namespace not found: {namespace}: it was removed meanwhile", kind="namespace", name=namespace
            )
        quota: int | None = row[0]
        return quota

    def admit(self, namespace: str, blobs: Mapping[str, int]) -> None:
        """Refuse blobs that do not fit beside what a namespace has and what else is on its way into it.

        In the transaction that reserves or records them it holds for all processes together.

        Args:
            namespace: Whose quota.
            blobs: Bytes by digest; those that it has already need nothing.

        Raises:
            QuotaError: They do not fit.
            NotFoundError: There is no such namespace.
        """
        limit = self.quota(namespace)
        if limit is None:
            return
        need = sum(size for digest, size in blobs.items() if not self._has(namespace, digest))
        use = self.charged(namespace) + self.reserved(namespace, beside=blobs)
        if need and use + need > limit:
            raise QuotaError(
                f"quota exceeded: {namespace}: {need} bytes more than the {use} in use: expected at most {limit}",
                namespace=namespace,
                limit_bytes=limit,
                use_bytes=use,
                need_bytes=need,
                hint=f"remove images, or raise it: pyctrd namespace set {namespace} --quota SIZE",
            )

    def admit_upload(self, namespace: str, more_bytes: int) -> None:
        """Refuse an upload's next bytes where they do not fit; else as ``admit``.

        Raises:
            QuotaError: They do not fit.
            NotFoundError: There is no such namespace.
        """
        self.admit(namespace, {"": more_bytes})

    def _has(self, namespace: str, digest: str) -> bool:
        sql = "SELECT 1 FROM content WHERE namespace = ? AND digest = ?"
        return self._first(sql, (namespace, digest)) is not None
