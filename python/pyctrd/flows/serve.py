"""Serve: the store as a registry, a namespace for each tenant."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

import orjson

from pyctrd.errors import InvalidError, NotFoundError, PyctrdError, UnsupportedError
from pyctrd.flows import repositories
from pyctrd.flows.dropped import may_be_made, open_dropped
from pyctrd.flows.reach import learn_needs
from pyctrd.flows.repositories import repository_of, shown_name, unknown_blob, unknown_manifest
from pyctrd.flows.sent import SENT_LOCALLY
from pyctrd.flows.through import Through
from pyctrd.flows.uploads import UploadSessions
from pyctrd.metadata.namespaces import check_namespace
from pyctrd.oci.reference import Reference
from pyctrd.oci.value import dataclass
from pyctrd.registry.server.store import (
    Referrer,
    SentManifest,
    Store,
    StoredBlob,
    StoredManifest,
    Upload,
)

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.registry.server.access import Access
    from pyctrd.registry.server.server import Server

# What was let go of goes from disk a while after, since deletions come in numbers; and uploads nobody goes on with.
SWEEP_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How a registry is served.

    Attributes:
        listen: ``ADDRESS:PORT``.
        tls: Certificate and key, as files of PEM; None for plain HTTP.
        anonymous: What anybody may do: "none", "pull" or "push".
        htpasswd: A file of users and their bcrypt hashes.
        tokens: Users by a token that was given out to them.
        namespaces: The namespaces of users that have another one than the engine's.
        readers: Users who may only pull.
        challenge: How users are asked who they are: "token" or "basic".
        upstreams: Registries that are asked for what is not here.
        public_url: How clients reach it, "" for as they ask for it.
    """

    listen: str
    tls: tuple[Path, Path] | None = None
    anonymous: str = "pull"
    htpasswd: Path | None = None
    tokens: Mapping[str, str]
    namespaces: Mapping[str, str]
    readers: Collection[str] = ()
    challenge: str = "token"
    upstreams: Sequence[str] = ()
    public_url: str = ""


def read_options(
    *,
    listen: str,
    tls_cert: str | os.PathLike[str] | None,
    tls_key: str | os.PathLike[str] | None,
    anonymous: str,
    htpasswd: str | os.PathLike[str] | None,
    tokens: Mapping[str, str] | None,
    namespaces: Mapping[str, str] | None,
    readers: Collection[str],
    challenge: str,
    upstreams: Collection[str],
    public_url: str,
) -> ServeOptions:
    """See ``Engine.serve_registry``.

    Raises:
        InvalidError: A value is none of those allowed.
    """
    if (tls_cert is None) != (tls_key is None):
        raise InvalidError("invalid tls: expected a certificate with its key", field="tls")
    if public_url and not public_url.startswith(("https://", "http://")):
        raise InvalidError(
            f"invalid public URL: {public_url[:80]!r}: expected https://…", field="public_url", value=public_url[:80]
        )
    for upstream in upstreams:
        Reference.parse(f"{upstream}/any")
        if upstream == SENT_LOCALLY or "/" in upstream:
            raise InvalidError(
                f"invalid upstream: {upstream[:80]!r}: expected a registry's host", field="upstreams", value=upstream
            )
    return ServeOptions(
        listen=listen,
        tls=None if tls_cert is None or tls_key is None else (Path(tls_cert), Path(tls_key)),
        anonymous=anonymous,
        htpasswd=None if htpasswd is None else Path(htpasswd),
        tokens=dict(tokens or {}),
        namespaces={user: check_namespace(name) for user, name in (namespaces or {}).items()},
        readers=frozenset(readers),
        challenge=challenge,
        upstreams=tuple(upstreams),
        public_url=public_url,
    )


class Tenant:
    """One namespace's repositories; see ``Store``.

    Args:
        rooms: The rooms of an engine of that namespace.
        through: What fetches what is not here.
    """

    def __init__(self, rooms: Rooms, through: Through, *, freed: threading.Event) -> None:
        self._rooms = rooms
        self._through = through
        self._freed = freed
        self.uploads = UploadSessions(rooms)

    def _names(self, name: str) -> list[str]:
        """The full names by which something may be here: what was sent, then what was fetched."""
        repository = repository_of(name)
        return [repository, *(place for place in self._through.places(repository) if place != repository)]

    def find_manifest(self, name: str, target: str) -> StoredManifest | None:
        """See ``Store``."""
        for repository in self._names(name):
            found = repositories.find_manifest(self._rooms, repository, target)
            if found is not None:
                return None if self._through.is_stale(repository, target) else found
        return None

    def get_manifest(self, name: str, target: str) -> StoredManifest:
        """See ``Store``."""
        repository = repository_of(name)
        self._learn()
        if (found := self.find_manifest(name, target)) is not None:
            return found
        if (found := self._through.get_manifest(repository, target)) is not None:
            return found
        raise unknown_manifest(repository, target)

    def read_manifest(self, digest: str) -> bytes:
        """See ``Store``."""
        return self._rooms.blobs.read(digest)

    def find_blob(self, name: str, digest: str) -> StoredBlob | None:
        """See ``Store``."""
        for repository in self._names(name):
            if (found := repositories.find_blob(self._rooms, repository, digest)) is not None:
                return found
        return None

    def open_blob(self, digest: str) -> BinaryIO:
        """See ``Store``."""
        return self._rooms.blobs.open(digest)

    def fetch_blob(self, name: str, digest: str) -> None:
        """See ``Store``."""
        repository = repository_of(name)
        self._learn()
        if repositories.find_content(self._rooms, repository, digest) is None or not may_be_made(self._rooms, digest):
            self._through.get_blob(repository, digest)

    def get_blob(self, name: str, digest: str) -> BinaryIO:
        """See ``Store``."""
        if self.find_blob(name, digest) is not None:
            return self.open_blob(digest)
        record = repositories.find_content(self._rooms, repository_of(name), digest)
        if record is not None and (made := open_dropped(self._rooms, digest)) is not None:
            return made
        raise unknown_blob(digest)

    def _learn(self) -> None:
        """Let the database know what images need that got their names since it was last asked."""
        if self._rooms.database.reachability.unknown_images():
            learn_needs(self._rooms)

    def put_manifest(self, name: str, target: str, media_type: str, body: bytes) -> SentManifest:
        """See ``Store``."""
        return repositories.put_manifest(self._rooms, repository_of(name), target, media_type, body)

    def delete_manifest(self, name: str, target: str) -> None:
        """See ``Store``."""
        repositories.delete_manifest(self._rooms, repository_of(name), target)
        self._freed.set()

    def delete_blob(self, name: str, digest: str) -> None:
        """See ``Store``."""
        repositories.delete_blob(self._rooms, repository_of(name), digest)
        self._freed.set()

    def list_tags(self, name: str, limit: int, after: str) -> Sequence[str]:
        """See ``Store``."""
        repository = repository_of(name)
        tables = self._rooms.database.repositories
        tags = tables.tags(self._rooms.namespace, repository, limit, after=after)
        if not tags and not tables.exists(self._rooms.namespace, repository):
            raise NotFoundError(f"repository not found: {name}", kind="repository", name=name)
        return tags

    def list_repositories(self, limit: int, after: str) -> Sequence[str]:
        """See ``Store``."""
        found = self._rooms.database.repositories.names(self._rooms.namespace)
        return [name for name in sorted(map(shown_name, found)) if name > after][:limit]

    def list_referrers(self, name: str, digest: str, artifact_type: str, limit: int, after: str) -> Sequence[Referrer]:
        """See ``Store``."""
        rows = self._rooms.database.repositories.referrers(
            self._rooms.namespace, repository_of(name), digest, artifact_type=artifact_type, limit=limit, after=after
        )
        return [
            Referrer(row.digest, row.media_type, row.size, row.artifact_type, orjson.loads(row.annotations))
            for row in rows
        ]

    def begin_upload(self, name: str, algorithm: str) -> str:
        """See ``Store``."""
        return self.uploads.begin(repository_of(name), algorithm)

    def open_upload(self, name: str, upload_id: str) -> Upload:
        """See ``Store``."""
        return self.uploads.open(repository_of(name), upload_id)

    def mount_blob(self, name: str, digest: str, source: str | None) -> bool:
        """See ``Store``."""
        try:
            known = None if source is None else repository_of(source)
        except InvalidError:
            return False  # it is uploaded then
        return repositories.mount_blob(self._rooms, repository_of(name), digest, known)


class TenantRooms:
    """The stores of all namespaces that users have; each is opened when it is first asked for. Thread-safe.

    Args:
        rooms: The rooms of the engine that serves.
        upstreams: Registries that are asked for what is not here.
    """

    def __init__(self, rooms: Rooms, upstreams: Sequence[str]) -> None:
        self._rooms = rooms
        self._upstreams = tuple(upstreams)
        self._lock = threading.Lock()
        self._tenants: dict[str, Tenant] = {}
        self._opened: list[Rooms] = []
        self.freed = threading.Event()
        self.ending = threading.Event()

    def store(self, namespace: str) -> Store:
        """A tenant's."""
        with self._lock:
            if (known := self._tenants.get(namespace)) is None:
                known = self._tenants[namespace] = self._open(namespace)
            return known

    def _open(self, namespace: str) -> Tenant:
        rooms = self._rooms
        if namespace != rooms.namespace:
            from pyctrd.flows.rooms import Rooms

            rooms = Rooms(replace(rooms.settings, namespace=namespace))
            self._opened.append(rooms)
        return Tenant(rooms, Through(rooms, self._upstreams, ending=self.ending), freed=self.freed)

    def is_upstream(self, registry: str) -> bool:
        """See ``Tenants``."""
        return registry in self._upstreams

    def leave_idle(self) -> None:
        """Let go of uploads to which nothing came for a while."""
        with self._lock:
            tenants = list(self._tenants.values())
        for tenant in tenants:
            tenant.uploads.leave_idle()

    def close(self) -> None:
        """Leave uploads to whoever goes on, and close what was opened for others than the engine."""
        with self._lock:
            tenants, self._tenants = list(self._tenants.values()), {}
            opened, self._opened = self._opened, []
        for tenant in tenants:
            tenant.uploads.close()
        for rooms in opened:
            rooms.close()


class RegistryServer:
    """The store as a registry that others pull from and push to, until it is closed."""

    def __init__(self, rooms: Rooms, options: ServeOptions) -> None:
        self._rooms = rooms
        self._tenants = TenantRooms(rooms, options.upstreams)
        self._sweeper = threading.Thread(target=self._sweep, name="pyctrd-registry-sweep", daemon=True)
        self._server = _make_server(rooms, options, self._tenants)
        self._server.start()
        self._sweeper.start()

    @property
    def address(self) -> str:
        """``ADDRESS:PORT`` that it listens on."""
        return self._server.address

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is closed, or has ended; whether it has."""
        return self._server.wait(timeout)

    def close(self) -> None:
        """End it: what is being answered may go on for half a minute, and no new request is taken. Again is a no-op."""
        self._tenants.ending.set()
        self._server.stop()
        if self._sweeper.is_alive():
            self._sweeper.join()
        self._tenants.close()

    def _sweep(self) -> None:
        """Now and then, free what was let go of, and end uploads that nobody goes on with."""
        from pyctrd.flows.collect import collect
        from pyctrd.flows.recover import end_old_uploads, recover

        while not self._tenants.ending.wait(SWEEP_SECONDS):
            with suppress(PyctrdError, OSError):  # another time
                self._tenants.leave_idle()
                if end_old_uploads(self._rooms.database):
                    recover(self._rooms)
                if self._tenants.freed.is_set():
                    self._tenants.freed.clear()
                    collect(self._rooms)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _make_server(rooms: Rooms, options: ServeOptions, tenants: TenantRooms) -> Server:
    try:
        from pyctrd.registry.server.server import Server, listen_on, load_tls

        if options.htpasswd is not None:
            from pyctrd.registry.server.passwords import Passwords
    except ImportError as error:
        raise UnsupportedError(
            f"unsupported: serve registry: needs {error.name}",
            feature="serve registry",
            needs=str(error.name),
            hint="install it: pip install 'pyctrd[serve]'",
        ) from error
    from pyctrd.registry.server.access import ANONYMOUS, CHALLENGES, Access
    from pyctrd.registry.server.tokens import StaticTokens, TokenSigner

    anonymous = next((known for known in ANONYMOUS if known == options.anonymous), None)
    challenge = next((known for known in CHALLENGES if known == options.challenge), None)
    if anonymous is None:
        raise _invalid("anonymous", options.anonymous, ANONYMOUS)
    if challenge is None:
        raise _invalid("challenge", options.challenge, CHALLENGES)
    static = StaticTokens(options.tokens)

    def make_access(beside: object) -> Access:
        path = options.htpasswd
        return Access(
            namespace=rooms.namespace,
            anonymous=anonymous,
            passwords=None if path is None else Passwords(path, beside),  # type: ignore[arg-type] # as Server says
            static=static,
            signer=TokenSigner(),
            namespaces=options.namespaces,
            readers=options.readers,
            challenge=challenge,
        )

    tls = None if options.tls is None else load_tls(*options.tls)
    return Server(
        listen_on(options.listen), tls=tls, tenants=tenants, make_access=make_access, public_url=options.public_url
    )


def _invalid(field: str, value: str, known: Sequence[str]) -> InvalidError:
    return InvalidError(
        f"invalid {field}: {value[:80]!r}: expected one of {', '.join(known)}", field=field, value=value[:80]
    )
