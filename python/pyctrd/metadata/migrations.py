"""The schema, as the steps that made it. A step that was released never changes."""

from __future__ import annotations

_FIRST = (
    """CREATE TABLE namespaces (
        name TEXT PRIMARY KEY,
        created_ns INTEGER NOT NULL,
        labels TEXT NOT NULL DEFAULT '{}'
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE content (
        namespace TEXT NOT NULL REFERENCES namespaces(name),
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        media_type TEXT NOT NULL,
        source TEXT NOT NULL,
        created_ns INTEGER NOT NULL,
        PRIMARY KEY (namespace, digest)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX content_by_digest ON content(digest)",
    """CREATE TABLE layers (
        diff_id TEXT PRIMARY KEY,
        bytes INTEGER NOT NULL,
        entries INTEGER NOT NULL,
        implied INTEGER NOT NULL,
        foreign_links INTEGER NOT NULL,
        blob TEXT NOT NULL,
        created_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE images (
        namespace TEXT NOT NULL REFERENCES namespaces(name),
        name TEXT NOT NULL,
        target_digest TEXT NOT NULL,
        target_media_type TEXT NOT NULL,
        target_size INTEGER NOT NULL,
        manifest_digest TEXT NOT NULL,
        config_digest TEXT NOT NULL,
        platform TEXT NOT NULL,
        created_ns INTEGER NOT NULL,
        updated_ns INTEGER NOT NULL,
        PRIMARY KEY (namespace, name)
    ) STRICT, WITHOUT ROWID""",
    # A blob is reserved here before its first byte is written; a row whose digest lock is free was left by
    # a process that died (durability: write order, step 1).
    """CREATE TABLE ingests (
        id TEXT PRIMARY KEY,
        namespace TEXT NOT NULL,
        digest TEXT NOT NULL,
        diff_id TEXT,
        size INTEGER NOT NULL,
        started_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE snapshots (
        key TEXT PRIMARY KEY,
        namespace TEXT NOT NULL,
        snapshotter TEXT NOT NULL,
        kind TEXT NOT NULL,
        diff_ids TEXT NOT NULL,
        target TEXT NOT NULL,
        created_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE containers (
        namespace TEXT NOT NULL REFERENCES namespaces(name),
        id TEXT NOT NULL,
        name TEXT NOT NULL,
        image_name TEXT NOT NULL,
        image_digest TEXT NOT NULL,
        snapshot_key TEXT NOT NULL,
        command TEXT NOT NULL,
        labels TEXT NOT NULL,
        auto_remove INTEGER NOT NULL,
        stop_signal TEXT NOT NULL,
        runtime TEXT NOT NULL,
        created_ns INTEGER NOT NULL,
        PRIMARY KEY (namespace, id)
    ) STRICT, WITHOUT ROWID""",
    "CREATE UNIQUE INDEX containers_by_name ON containers(namespace, name)",
)

_SECOND = (
    # That a blob's tar hashes to a diff_id is known only where it was seen: a config may claim anything.
    """CREATE TABLE layer_blobs (
        digest TEXT NOT NULL,
        diff_id TEXT NOT NULL,
        PRIMARY KEY (digest, diff_id)
    ) STRICT, WITHOUT ROWID""",
)

_TENANTS = (
    "ALTER TABLE namespaces ADD COLUMN policy TEXT NOT NULL DEFAULT 'isolated'",
    "ALTER TABLE namespaces ADD COLUMN quota INTEGER",
    # Where the store itself got a blob's bytes from. A namespace's own record does not tell: it may have been given the
    # blob for naming it, and what it pulled then was never asked for the bytes.
    """CREATE TABLE blob_sources (
        digest TEXT NOT NULL,
        source TEXT NOT NULL,
        PRIMARY KEY (digest, source)
    ) STRICT, WITHOUT ROWID""",
    "INSERT INTO blob_sources(digest, source) SELECT DISTINCT digest, source FROM content WHERE source <> ''",
)

_EVENTS = (
    # Numbers count up in each namespace and in the whole store; both are never given out again.
    """CREATE TABLE events (
        seq INTEGER PRIMARY KEY,
        namespace TEXT NOT NULL,
        id INTEGER NOT NULL,
        time_ns INTEGER NOT NULL,
        type TEXT NOT NULL,
        action TEXT NOT NULL,
        name TEXT NOT NULL,
        attributes TEXT NOT NULL
    ) STRICT""",
    "CREATE UNIQUE INDEX events_by_namespace ON events(namespace, id)",
    """CREATE TABLE events_trimmed (
        namespace TEXT PRIMARY KEY,
        seq INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    # Which run of a container was told to have started, and which to have ended: the time at which it started.
    "ALTER TABLE containers ADD COLUMN told_start_ns INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE containers ADD COLUMN told_end_ns INTEGER NOT NULL DEFAULT 0",
)

_LEASES = (
    # Alive while somebody holds its lock file, or until it expires.
    """CREATE TABLE leases (
        id TEXT PRIMARY KEY,
        namespace TEXT NOT NULL REFERENCES namespaces(name),
        purpose TEXT NOT NULL,
        labels TEXT NOT NULL,
        created_ns INTEGER NOT NULL,
        expires_ns INTEGER
    ) STRICT, WITHOUT ROWID""",
    # By name first: collection asks who keeps a thing.
    """CREATE TABLE lease_resources (
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        lease TEXT NOT NULL REFERENCES leases(id) ON DELETE CASCADE,
        PRIMARY KEY (name, kind, lease)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX lease_resources_by_lease ON lease_resources(lease)",
    # What an image needs follows from these two digests, and never changes: its documents are read once.
    """CREATE TABLE image_roots (
        id INTEGER PRIMARY KEY,
        target_digest TEXT NOT NULL,
        manifest_digest TEXT NOT NULL,
        UNIQUE (target_digest, manifest_digest)
    ) STRICT""",
    """CREATE TABLE reachable (
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        root INTEGER NOT NULL REFERENCES image_roots(id) ON DELETE CASCADE,
        PRIMARY KEY (name, kind, root)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX reachable_by_root ON reachable(root)",
    "CREATE INDEX images_by_root ON images(target_digest, manifest_digest)",
    "CREATE INDEX layer_blobs_by_layer ON layer_blobs(diff_id)",
    # What no record names any more and may still be on disk.
    """CREATE TABLE doomed (
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        PRIMARY KEY (name, kind)
    ) STRICT, WITHOUT ROWID""",
)

_RESUME = (
    # What is loaded from files here is there still after a failure: keeping a copy of it would gain nothing.
    "ALTER TABLE ingests ADD COLUMN resumable INTEGER NOT NULL DEFAULT 0",
)

_UNPACKED = (
    # For which namespaces a layer was unpacked: to the others it is as if nobody had.
    """CREATE TABLE unpacked (
        namespace TEXT NOT NULL REFERENCES namespaces(name) ON DELETE CASCADE,
        diff_id TEXT NOT NULL,
        PRIMARY KEY (namespace, diff_id)
    ) STRICT, WITHOUT ROWID""",
    """INSERT INTO unpacked SELECT DISTINCT c.namespace, b.diff_id FROM content c
        JOIN layer_blobs b ON b.digest = c.digest JOIN layers y ON y.diff_id = b.diff_id""",
)

_NOT_KEPT = (
    # Whether a namespace has the blob's bytes on disk. If not, it has the layer that the blob is, and pulled it so.
    "ALTER TABLE content ADD COLUMN is_stored INTEGER NOT NULL DEFAULT 1",
)

_CLAIMED = (
    # The diff_id of a layer that the namespace had, for which it took the blob on its config's word: none of its bytes
    # came, so it proves nothing to anybody. "" where they were seen.
    "ALTER TABLE content ADD COLUMN claimed TEXT NOT NULL DEFAULT ''",
    "CREATE INDEX content_by_claim ON content(claimed, namespace) WHERE claimed <> ''",
)

_REPOSITORIES = (
    # What was sent to the store as a registry. "repository" is the full name that images have in front of their tag.
    """CREATE TABLE repository_manifests (
        namespace TEXT NOT NULL REFERENCES namespaces(name) ON DELETE CASCADE,
        repository TEXT NOT NULL,
        digest TEXT NOT NULL,
        media_type TEXT NOT NULL,
        size INTEGER NOT NULL,
        subject TEXT NOT NULL,
        artifact_type TEXT NOT NULL,
        annotations TEXT NOT NULL,
        created_ns INTEGER NOT NULL,
        PRIMARY KEY (namespace, repository, digest)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX repository_manifests_by_digest ON repository_manifests(namespace, digest)",
    """CREATE INDEX repository_manifests_by_subject ON repository_manifests(namespace, repository, subject)
        WHERE subject <> ''""",
    # What each of them names: nothing of it is collected. What it may be without is not required.
    """CREATE TABLE repository_refs (
        namespace TEXT NOT NULL,
        repository TEXT NOT NULL,
        manifest TEXT NOT NULL,
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        media_type TEXT NOT NULL,
        size INTEGER NOT NULL,
        required INTEGER NOT NULL,
        PRIMARY KEY (namespace, repository, manifest, name),
        FOREIGN KEY (namespace, repository, manifest)
            REFERENCES repository_manifests(namespace, repository, digest) ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX repository_refs_by_name ON repository_refs(namespace, name)",
    """CREATE TABLE repository_tags (
        namespace TEXT NOT NULL,
        repository TEXT NOT NULL,
        tag TEXT NOT NULL,
        digest TEXT NOT NULL,
        updated_ns INTEGER NOT NULL,
        PRIMARY KEY (namespace, repository, tag),
        FOREIGN KEY (namespace, repository, digest)
            REFERENCES repository_manifests(namespace, repository, digest) ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX repository_tags_by_digest ON repository_tags(namespace, repository, digest)",
    # In which repositories a blob can be seen. Where nothing needs it, it stays for a day after it came.
    """CREATE TABLE repository_blobs (
        namespace TEXT NOT NULL REFERENCES namespaces(name) ON DELETE CASCADE,
        digest TEXT NOT NULL,
        repository TEXT NOT NULL,
        created_ns INTEGER NOT NULL,
        PRIMARY KEY (namespace, digest, repository)
    ) STRICT, WITHOUT ROWID""",
    # Blobs that come in parts and whose digest is not known yet; the bytes are in content/ingest/<id>/.
    """CREATE TABLE uploads (
        id TEXT PRIMARY KEY,
        namespace TEXT NOT NULL REFERENCES namespaces(name) ON DELETE CASCADE,
        repository TEXT NOT NULL,
        algorithm TEXT NOT NULL,
        reserved_bytes INTEGER NOT NULL,
        updated_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
)

_PLATFORMS = (
    # What an image needs depends on which of its index's manifests its own namespace has: each image says which of
    # these it is. NULL where it got its name since they were last read.
    "ALTER TABLE images ADD COLUMN root INTEGER REFERENCES image_roots(id) ON DELETE SET NULL",
    "DROP INDEX images_by_root",
    "CREATE INDEX images_by_root ON images(root)",
    # A manifest's digest, or of several the digest of their list.
    "ALTER TABLE image_roots RENAME COLUMN manifest_digest TO manifests",
)

_FROZEN = (
    # What stands between a snapshot's layers and what can be written to, lowest first: snapshots/frozen-<id>/.
    "ALTER TABLE snapshots ADD COLUMN frozen TEXT NOT NULL DEFAULT ''",
    # What a container can be set back to.
    """CREATE TABLE container_snapshots (
        namespace TEXT NOT NULL,
        container TEXT NOT NULL,
        name TEXT NOT NULL,
        frozen TEXT NOT NULL,
        created_ns INTEGER NOT NULL,
        PRIMARY KEY (namespace, container, name),
        FOREIGN KEY (namespace, container) REFERENCES containers(namespace, id) ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID""",
)

_VOLUMES = (
    # Recorded before its directory is made, and until that is gone.
    """CREATE TABLE volumes (
        namespace TEXT NOT NULL REFERENCES namespaces(name),
        name TEXT NOT NULL,
        labels TEXT NOT NULL,
        anonymous INTEGER NOT NULL,
        created_ns INTEGER NOT NULL,
        PRIMARY KEY (namespace, name)
    ) STRICT, WITHOUT ROWID""",
    # Whose they are, for as long as the container is recorded.
    """CREATE TABLE container_volumes (
        namespace TEXT NOT NULL,
        container TEXT NOT NULL,
        volume TEXT NOT NULL,
        PRIMARY KEY (namespace, container, volume),
        FOREIGN KEY (namespace, container) REFERENCES containers(namespace, id) ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX container_volumes_by_volume ON container_volumes(namespace, volume)",
)

_HEALTH = (
    # Up to which change of its health events have told.
    "ALTER TABLE containers ADD COLUMN told_health_ns INTEGER NOT NULL DEFAULT 0",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    _FIRST,
    _SECOND,
    _TENANTS,
    _EVENTS,
    _LEASES,
    _RESUME,
    _UNPACKED,
    _NOT_KEPT,
    _CLAIMED,
    _REPOSITORIES,
    _PLATFORMS,
    _FROZEN,
    _VOLUMES,
    _HEALTH,
)
