"""Through: what a repository lacks is fetched from the registry that it is called after, verified, and kept.

Only registries that whoever serves has named are asked. A manifest is fetched when it is asked for; its blobs, when
they are. However many clients wait for one thing, it is fetched once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from pyctrd.errors import CancelledError, NotFoundError, RegistryError
from pyctrd.flows.fetch import Fetch
from pyctrd.flows.lease import kept, resources_of
from pyctrd.flows.pull import is_present, record_content
from pyctrd.flows.repositories import find_manifest, put_manifest
from pyctrd.flows.resolve import RegistryOrigin
from pyctrd.flows.sent import SENT_LOCALLY
from pyctrd.flows.share import share
from pyctrd.flows.wants import Want
from pyctrd.oci.descriptor import Descriptor
from pyctrd.oci.digest import Digest
from pyctrd.oci.reference import Reference
from pyctrd.registry.server.store import StoredManifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.database import Tables
    from pyctrd.metadata.repositories import Ref

# For so long a tag is what it was when it was last asked for: a hundred machines that pull one ask once.
FRESH_SECONDS = 60.0


class Through:
    """Fetches what one namespace's repositories lack. Thread-safe.

    Args:
        rooms: The rooms of an engine of that namespace.
        upstreams: Registries that may be asked, by their names in references.
        ending: Set when what is on its way is to be given up; it is gone on with another time.
    """

    def __init__(self, rooms: Rooms, upstreams: Sequence[str], *, ending: threading.Event) -> None:
        self._rooms = rooms
        self._upstreams = tuple(upstreams)
        self._ending = ending
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str], tuple[threading.Lock, int]] = {}

    def is_stale(self, repository: str, target: str) -> bool:
        """Whether a tag was fetched so long ago that it is to be looked at again."""
        if ":" in target or not self._upstreams or repository.partition("/")[0] not in self._upstreams:
            return False
        database, namespace = self._rooms.database, self._rooms.namespace
        tag = database.repositories.find_tag(namespace, repository, target)
        image = database.images.find(namespace, f"{repository}:{target}")
        seen = max((found.updated_ns for found in (tag, image) if found is not None), default=None)
        return seen is not None and abs(time.time_ns() - seen) > FRESH_SECONDS * 1e9

    def get_manifest(self, repository: str, target: str) -> StoredManifest | None:
        """A manifest that is fetched; None where nobody has it.

        Raises:
            RegistryError: Who may have it cannot be asked, and it is not here from before.
        """
        for name in self.places(repository):
            with self._alone(name, target):
                found = find_manifest(self._rooms, name, target)
                if found is not None and not self.is_stale(name, target):
                    return found  # somebody fetched it while this one waited
                fetched = self._fetch_manifest(name, target, found)
            if fetched is not None:
                return fetched
        return None

    def _fetch_manifest(self, repository: str, target: str, found: StoredManifest | None) -> StoredManifest | None:
        reference = Reference.parse(f"{repository}{'@' if ':' in target else ':'}{target}")
        try:
            fetched = self._rooms.registry.manifest(reference)
        except NotFoundError:
            return None
        except RegistryError:
            if found is None:
                raise
            return found  # better what it was than nothing
        self._look()
        put_manifest(self._rooms, repository, target, fetched.descriptor.media_type, fetched.body, complete=False)
        return find_manifest(self._rooms, repository, target)

    def get_blob(self, repository: str, digest: str) -> bool:
        """Fetch a blob that a manifest of the repository names, of one that an upstream has; whether it did.

        Raises:
            RegistryError: Who has it cannot be asked.
        """
        for name in self.places(repository):
            named = self._rooms.database.repositories.find_ref(self._rooms.namespace, name, digest)
            if named is None or named.kind != "blob":
                continue
            with self._alone(name, digest):
                try:
                    self._fetch_blob(name, named)
                except NotFoundError:
                    continue
            return True
        return False

    def _fetch_blob(self, repository: str, named: Ref) -> None:
        rooms = self._rooms
        reference = Reference.parse(f"{repository}@{named.name}")
        blob = Descriptor(named.media_type, Digest.parse(named.name), named.size)
        origin = RegistryOrigin(rooms, reference)
        want = Want(descriptor=blob, opens=partial(origin.open_blob, blob), shareable=True, resumable=True)

        def record(tx: Tables, wants: Sequence[Want]) -> None:
            record_content(rooms, reference.repository_name, tx, wants)
            for done in wants:
                tx.repositories.add_blob(rooms.namespace, repository, str(done.descriptor.digest))

        with kept(rooms, "serve", resources_of([want])):
            Fetch(
                rooms,
                is_present=partial(is_present, rooms),
                record=record,
                share=partial(share, rooms, reference),
                watch=self._look,
            ).run([want])
            if want.state == "present":  # it was here, and nobody had sent it to this repository
                with rooms.database.write() as tx:
                    tx.repositories.add_blob(rooms.namespace, repository, named.name)

    def places(self, repository: str) -> list[str]:
        """By which full names something may be had elsewhere, in the order in which they are asked."""
        registry, _, path = repository.partition("/")
        if registry in self._upstreams:
            return [repository]
        if registry != SENT_LOCALLY:
            return []
        return [Reference.parse(f"{upstream}/{path}").repository_name for upstream in self._upstreams]

    def _look(self) -> None:
        if self._ending.is_set():
            raise CancelledError("cancelled: the registry ends")

    @contextmanager
    def _alone(self, repository: str, name: str) -> Iterator[None]:
        """One at a time, of those who want the same."""
        key = repository, name
        with self._lock:
            lock, waiting = self._waiting.get(key, (threading.Lock(), 0))
            self._waiting[key] = lock, waiting + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, waiting = self._waiting[key]
                if waiting == 1:
                    del self._waiting[key]
                else:
                    self._waiting[key] = lock, waiting - 1
