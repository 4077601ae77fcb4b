"""The engine: one root, one namespace, and everything that can be done with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, Self

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them
from pyctrd.flows.rooms import Rooms
from pyctrd.flows.settings import DEFAULT_CONCURRENCY as DEFAULT_CONCURRENCY  # noqa: PLC0414 - a face has it too
from pyctrd.flows.settings import VERIFY_KEY_VARIABLE, read_settings
from pyctrd.images import Images
from pyctrd.leases import Leases


class Engine:
    """Opens a root and joins the rooms.

    Any number of engines, in any number of processes, may have one root open; containers outlive them all.
    Thread-safe; not usable after a fork.

    Args:
        root: What survives a reboot; ``$PYCTRD_ROOT``, else ``/var/lib/pyctrd``.
        state: What a reboot ends; ``$PYCTRD_STATE``, else ``/run/pyctrd``.
        namespace: The tenant; ``$PYCTRD_NAMESPACE``, else ``default``.
        runtime: The OCI runtime's name or path; ``$PYCTRD_RUNTIME``, else ``runc``. Containers that are there keep the
            one that they were made for.
        runtimes: Runtimes by names of your own: a path, or an object with ``path`` and ``args``, words that it is given
            before all others. Beside those of the file ``$PYCTRD_RUNTIMES``, else ``/etc/pyctrd/runtimes.json``, which
            has the form of ``runtimes`` in Docker's ``daemon.json``.
        cgroup_manager: Who makes control groups: the runtime by itself ("cgroupfs"), or "systemd", which has to be
            process 1; ``$PYCTRD_CGROUP_MANAGER``, else "cgroupfs".
        snapshotter: "overlayfs", "native", "composefs" or "erofs"; ``$PYCTRD_SNAPSHOTTER``, else the best that the host
            can do.
        durability: "full", "batch" (default) or "none": what a returned pull survives.
        concurrency: Layers in flight at once in one pull.
        ca: A file of PEM certificates that registries are checked against, beside the system's.
        plain_http: Hosts to talk to without TLS; loopback needs no mention.
        insecure: Registries, or networks of them (``10.0.0.0/8``), whose certificates are not looked at, and that are
            talked to without TLS where they speak none, as Docker's ``insecure-registries``;
            ``$PYCTRD_INSECURE_REGISTRIES``, with spaces between them, else none.
        credentials: User and password by registry host, or what gives them for one (None where it has none), before
            any configuration file.
        hosts: A directory that says where registries' content is to be had, as containerd's ``hosts.toml`` says it, or
            with certificates as Docker has them; ``$PYCTRD_HOSTS``, else ``certs.d`` of pyctrd, of containerd and of
            Docker in ``/etc``; "" for none.
        policy: Asked of every image that is pulled, before its layers come: what may come in (see
            ``pyctrd.policies``). By default a signature is wanted by the public key in the file ``$PYCTRD_VERIFY_KEY``;
            without that, all may.
        limits: What a layer of a pulled image may have; ``Limits()`` by default.
        content_digests: Record the BLAKE3 of each file's content when a layer is unpacked, for
            ``FileEntry.content_digest``; ``$PYCTRD_CONTENT_DIGESTS``, else not: it costs time. A layer that is there is
            not unpacked again: one without digests stays without until nothing needs it and it is removed.
        keep_blobs: Store the blob of a layer beside what it is unpacked to; ``$PYCTRD_KEEP_BLOBS``, else so. Without,
            it is verified and never written: less disk, but nothing is there to unpack it from once more. What is not
            unpacked is always stored.
        layer_connections: Connections that one large layer may come over at once, 1 to 6, where its registry gives one
            connection less than the machine can take and the total grows with more; ``$PYCTRD_LAYER_CONNECTIONS``, else
            6. Never more than ``concurrency`` together with those of other layers. 1: each layer over one.

    Raises:
        InvalidError: An option has a value that is not allowed.
        OSError: A directory cannot be made or entered.
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
        namespace: str | None = None,
        runtime: str | None = None,
        runtimes: Mapping[str, Any] | None = None,
        cgroup_manager: str | None = None,
        snapshotter: str | None = None,
        durability: str | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        ca: str | os.PathLike[str] | None = None,
        plain_http: Collection[str] = (),
        insecure: Collection[str] | None = None,
        credentials: Mapping[str, tuple[str, str]] | Callable[[str], tuple[str, str] | None] | None = None,
        hosts: str | os.PathLike[str] | None = None,
        policy: pyctrd.Policy | None = None,
        limits: pyctrd.Limits | None = None,
        content_digests: bool | None = None,
        keep_blobs: bool | None = None,
        layer_connections: int | None = None,
    ) -> None:
        self._rooms = Rooms(
            read_settings(
                root=root,
                state=state,
                namespace=namespace,
                runtime=runtime,
                runtimes=runtimes,
                cgroup_manager=cgroup_manager,
                snapshotter=snapshotter,
                durability=durability,
                concurrency=concurrency,
                ca=ca,
                plain_http=plain_http,
                insecure=insecure,
                credentials=credentials,
                hosts=hosts,
                limits=limits,
                content_digests=content_digests,
                keep_blobs=keep_blobs,
                layer_connections=layer_connections,
            )
        )
        self.images = Images(self._rooms, policy or _policy())
        self.leases = Leases(self._rooms)
        self._servers: list[pyctrd.RegistryServer] = []

    @cached_property
    def containers(self) -> pyctrd.Containers:
        """The namespace's containers."""
        from pyctrd.containers import Containers

        return Containers(self._rooms)

    @cached_property
    def content(self) -> pyctrd.Content:
        """The namespace's blobs."""
        from pyctrd.contents import Content

        return Content(self._rooms)

    @cached_property
    def registry(self) -> pyctrd.Registries:
        """Registries: what they have, how that is changed, and who we are to them."""
        from pyctrd.registries import Registries

        return Registries(self._rooms)

    @cached_property
    def volumes(self) -> pyctrd.Volumes:
        """The namespace's volumes."""
        from pyctrd.volumes import Volumes

        return Volumes(self._rooms)

    @cached_property
    def namespaces(self) -> pyctrd.Namespaces:
        """The store's tenants."""
        from pyctrd.namespaces import Namespaces

        return Namespaces(self._rooms)

    @property
    def namespace(self) -> str:
        """The namespace that every operation is scoped by."""
        return self._rooms.namespace

    def info(self) -> dict[str, Any]:
        """What this engine is and what the host can do: paths, versions, the snapshotter and why."""
        from pyctrd.flows.info import gather

        return gather(self._rooms)

    def check(self, *, digests: bool = False, repair: bool = False) -> list[pyctrd.Finding]:
        """Compare what is recorded with what is on disk, of all namespaces; reads only, unless it is to repair.

        Repair waits for those who use the store, and keeps others waiting. What it takes away goes to ``quarantine/``
        in the root, where somebody may look at it and remove it; nothing that is reachable and good is touched.
        Blobs are fetched again from where they came, with this engine's credentials; layers are unpacked again. A
        database that is lost or damaged is built anew from what can be read of it and from what is on disk: images
        whose names are lost are called ``localhost/recovered:…``, in their namespace where that is known, else in this
        engine's.

        Args:
            digests: Hash every blob too, not only look at its size, and prove every layer: its tar, made again from
                its tree, must hash to its diff_id. All processors are at work.
            repair: Mend what is found.

        Returns:
            What is wrong, each with its repair; empty for a clean store.

        Raises:
            IntegrityError: The database is lost or damaged, and ``repair`` is not set.
            ConflictError: The database is to be built anew, and another process has it open.
            DeadlineError: Others did not let go of the store.
        """
        if repair:
            from pyctrd.flows.repair import repair as repair_store

            return repair_store(self._rooms, digests=digests)
        from pyctrd.flows.check import check

        return check(self._rooms, digests=digests)

    def events(
        self,
        *,
        since: str | None = None,
        follow: bool = False,
        timeout: float | None = None,
        all_namespaces: bool = False,
        types: Collection[str] = (),
        actions: Collection[str] = (),
        names: Collection[str] = (),
        containers: Collection[str] = (),
        reasons: Collection[str] = (),
    ) -> Iterator[pyctrd.Event]:
        """What happened to images, containers and the namespace, by whichever process, oldest first.

        An event is recorded with the change that it tells of: there is none for what did not happen, and none is
        missing, but that a power cut may take those of containers' starts, ends and pauses, and that a process which
        is killed between a pause and its event tells nothing. How a container ended is told once, by whichever
        process notices first; this call looks. The last 10,000 of each namespace are kept.

        Args:
            since: The cursor of the last event that is known already; "0" for all that are kept. None is all that
                are kept as well, but with ``follow`` only what comes from now on.
            follow: Go on, waiting for more; looking ten times a second.
            timeout: Seconds after which following ends; None for never.
            all_namespaces: Those of every namespace, and of the store itself: for the store's owner.
            types: Only these: "image", "container", "namespace", "gc", "store".
            actions: Only these.
            names: Only of these images, containers or namespaces.
            containers: Only of these containers, by name, id, or the beginning of an id.
            reasons: Only ends of containers for these: "exit", "signal", "oom"; or what their health became: "healthy",
                "unhealthy".

        Raises:
            InvalidError: A cursor that this store has not given out, or so old that events after it are not kept any
                more; the latter may come while following, too.
        """
        from pyctrd.flows.events import Filter, read_events

        return read_events(
            self._rooms,
            since=since,
            follow=follow,
            timeout=timeout,
            all_namespaces=all_namespaces,
            wanted=Filter(types, actions, names, containers, reasons),
        )

    def metrics(self, *, all_namespaces: bool = False) -> str:
        """What the containers are and use, as Prometheus reads it; docs/metrics.md lists the names.

        Args:
            all_namespaces: Containers of every namespace: for the store's owner.

        Spec:
            Prometheus' text exposition format 0.0.4.
        """
        from pyctrd.flows.metrics import metrics_text

        return metrics_text(self._rooms, all_namespaces=all_namespaces)

    def gc(self, *, dry_run: bool = False, all_namespaces: bool = False) -> pyctrd.Collection:
        """Free what nothing needs, and what killed processes left.

        That is: blobs, layers and fix-up layers that no image, lease or container of any namespace reaches. Every
        namespace is collected, beside pulls, runs and other collections in any process; when it returns, what it
        freed is gone from disk. It ends early, and
        says so, where somebody keeps on reading layers (a check does), and frees nothing of a namespace that has a
        damaged image: nobody knows what that needs.

        Args:
            dry_run: Remove nothing; tell of each thing why it would stay or go.
            all_namespaces: Tell of all namespaces' things, and of those that belong to none. By default the result is
                what this namespace would see if it were alone.

        Returns:
            What was freed; of a dry run, all that was looked at.

        Raises:
            OSError: The disk.
        """
        from pyctrd.flows.survey import gc, survey

        return (survey if dry_run else gc)(self._rooms, all_namespaces=all_namespaces)

    def df(self, *, all_namespaces: bool = False) -> pyctrd.Space:
        """What takes the disk.

        Blobs are counted as they are stored, by the database, each once for every namespace that has it. Unpacked
        layers belong to the store, not to a namespace, so they are told of only to its keeper.

        Args:
            all_namespaces: Of each namespace of the store as well, with what only it has: that tells of other tenants.

        Raises:
            OSError: The disk.
        """
        from pyctrd.flows.space import survey_space

        return survey_space(self._rooms, all_namespaces=all_namespaces)

    def serve_registry(
        self,
        *,
        listen: str = "127.0.0.1:5000",
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        anonymous: Literal["none", "pull", "push"] = "pull",
        htpasswd: str | os.PathLike[str] | None = None,
        tokens: Mapping[str, str] | None = None,
        namespaces: Mapping[str, str] | None = None,
        readers: Collection[str] = (),
        challenge: Literal["token", "basic"] = "token",
        upstreams: Collection[str] = (),
        public_url: str = "",
    ) -> pyctrd.RegistryServer:
        """Serve the store as a registry, in threads of this process, until the result is closed.

        What is sent as ``HOST/team/app:1`` is the image ``localhost/team/app:1``, unpacked when it is first used. An
        image that was pulled is seen by its full name: ``HOST/docker.io/library/alpine:3.20``.

        Args:
            listen: ``ADDRESS:PORT``; port 0 for any that is free, ``:PORT`` for every address.
            tls_cert: Certificate chain, PEM; with ``tls_key`` for HTTPS.
            tls_key: Its key.
            anonymous: What anybody may do, with the repositories of this engine's namespace.
            htpasswd: A file of users and bcrypt hashes (``htpasswd -B``), who may pull, push and delete; read again
                when it changes.
            tokens: Users by a token that they send as ``Bearer``.
            namespaces: Namespaces of users; those who are not named see this engine's.
            readers: Users who may only pull.
            challenge: How a client is asked who it is: by the registry's token endpoint, or "basic".
            upstreams: Registries, as ``docker.io``, from which what is not here is fetched when it is asked for, with
                this engine's credentials; for repositories called after them, and for those without a host's name.
            public_url: How clients reach it, as ``https://registry.example``, behind a proxy.

        Raises:
            InvalidError: An option has a value that is not allowed.
            UnsupportedError: The extra ``pyctrd[serve]`` is not installed.
            OSError: The address is taken, or a file cannot be read.
        """
        from pyctrd.flows.serve import RegistryServer, read_options

        options = read_options(
            listen=listen,
            tls_cert=tls_cert,
            tls_key=tls_key,
            anonymous=anonymous,
            htpasswd=htpasswd,
            tokens=tokens,
            namespaces=namespaces,
            readers=readers,
            challenge=challenge,
            upstreams=upstreams,
            public_url=public_url,
        )
        server = RegistryServer(self._rooms, options)
        self._servers.append(server)
        return server

    def stages(self) -> dict[str, dict[str, int]]:
        """Where the time of this engine's pulls went, by stage of the pipeline.

        Returns:
            For "receive", "store", "inflate", "diff" and "apply": ``busy_ns`` at work, ``starved_ns`` without
            bytes to work on, ``blocked_ns`` waiting for a free block, ``waiting_ns`` waiting for a worker, and
            ``bytes`` taken in; summed over layers, which overlap in time.
        """
        return self._rooms.stages.read()

    def close(self) -> None:
        """Stop pulls of many, close connections and the database, end leases that do not expire; idempotent.

        A registry that this engine serves ends first. Containers go on. What this engine has removed, and is on disk
        still, goes now, for two seconds at most; the rest is left to the next engines and to ``gc``.
        """
        self._close(ending=False)

    def leave(self) -> None:
        """As ``close``, for a process that ends right after it: the database's log is left to the next one.

        That spares a few flushes, by which a short command would be noticeably longer.
        """
        self._close(ending=True)

    def _close(self, *, ending: bool) -> None:
        try:
            for server in self._servers:
                server.close()
            self.images.close()
            self.leases.close()
        finally:
            self._rooms.close(ending=ending)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _policy() -> pyctrd.Policy | None:
    """What ``PYCTRD_VERIFY_KEY`` asks for."""
    key = os.environ.get(VERIFY_KEY_VARIABLE)
    if not key:
        return None
    path = key

    def policy(candidate: pyctrd.Candidate) -> None:
        from pyctrd.policies import CosignKey  # read when something is pulled: most commands do not

        CosignKey(path)(candidate)

    return policy


def unpack(
    layer: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    diff_id: str | None = None,
    digest: str | None = None,
    limits: pyctrd.Limits | None = None,
    ownership: Literal["keep", "mapped", "recorded"] = "keep",
) -> pyctrd.Ingested:
    """Apply one layer file to a directory, with no engine: the hot path alone.

    The directory may hold the layers below it: whiteouts remove what they name. Not atomic: after an error
    the content of ``dest`` is undefined.

    Everything of an entry is made: type, bytes and holes, mode, owner by number, modification time (which the access
    time becomes as well), device numbers, extended attributes, ACLs and file capabilities among them. What cannot be
    made is an error with the entry's name, never left out: an owner, device or ``trusted.`` or ``security.``
    attribute without the right to it, a capability or ACL on a file system that has none. Left out by rule, and counted
    in the result's ``skipped_xattrs``, are ``user.`` attributes of what is neither file nor directory, which no kernel
    keeps, marks that would act on whoever stacks or reads the tree (overlayfs', fuse-overlayfs', records of ownership),
    and other attributes on a file system without any; left out as well names of owners, global PAX headers, PAX keys
    that no one here knows, and whatever of a time the file system is too coarse for.

    Whose the files become is ``ownership``:

    - "keep": the archive's owners. Without root that is for archives whose entries are all the caller's own.
    - "mapped": the archive's owners in a user namespace, where 0 is the caller and 1 and those after it are the
      caller's ranges of /etc/subuid and /etc/subgid, also for root; so files get subordinate ids on disk, and what runs
      in such a namespace sees the archive's. It takes newuidmap and newgidmap (Debian: uidmap). An owner that the
      ranges do not reach, a device, and a ``trusted.`` or ``security.`` attribute but a capability are errors. What is
      set-uid and root's in the archive is set-uid and the caller's on disk: keep the tree where nobody else can enter.
    - "recorded": everything is the caller's, mode 0700 or 0600, and owner, mode and type of the archive stand in
      the attribute ``user.containers.override_stat``, as Podman and fuse-overlayfs read them. Devices and pipes become
      empty files that say so. ``trusted.``, ``security.`` and ``system.`` attributes, capabilities and ACLs among them,
      have no effect, and stand as ``user.containers.override_NAME``. A symbolic link can hold neither: its attributes
      are counted in ``skipped_xattrs``, and in ``unrecorded_owners`` its owner, if that is another than 0:0, which it
      is read as. A file system without ``user.`` attributes is an error before anything is made. ``diff`` reads the
      records.

    Args:
        layer: A tar, plain or compressed by gzip or zstd.
        dest: Becomes the layer's "/"; made if missing.
        diff_id: Digest that the uncompressed tar must have.
        digest: Digest that the file itself must have.
        limits: What the layer may have; ``Limits()`` by default.
        ownership: "keep", "mapped" or "recorded".

    Returns:
        Digests, bytes and entries of what was unpacked.

    Raises:
        InvalidError: ``ownership`` is none of these, or a range of ids cannot be read.
        UnsupportedError: The caller has no right to an owner, device or attribute, or no ids or namespace for "mapped",
            or the file system cannot hold what "recorded" records.
        UnsafeArchiveError: An entry was refused, or a limit exceeded; ``.limit`` names it. Parts of backups (GNU types
            M, V, D) and unknown types are refused.
        DigestMismatchError, DiffIDMismatchError: The bytes are others.
        OSError: The kernel refused.

    Spec:
        image-spec v1.1 layer.md, "Applying Changesets".
    """
    from pyctrd.flows.unpack import unpack_file

    return unpack_file(layer, dest, diff_id=diff_id, digest=digest, limits=limits, ownership=ownership)


def diff(
    upper: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    lower: str | os.PathLike[str] | None = None,
    compression: Literal["gzip", "zstd", "none"] = "gzip",
    clamp_mtime: int | None = None,
    ownership: Literal["keep", "recorded"] = "keep",
) -> pyctrd.Diffed:
    """Make a layer file of a directory, with no engine: the hot path alone.

    With ``lower`` the layer says how ``upper`` differs from it: ``unpack`` of the layer onto a copy of ``lower``
    gives ``upper``. Without, ``upper`` is taken for overlayfs' upper directory, whose devices 0:0 and opaque marks
    become whiteouts; a plain directory has neither, and the layer holds all of it.

    The same tree gives the same bytes, whenever and wherever. Sockets are left out, as the spec has it. Overlayfs'
    own xattrs, records of ownership and labels of the host's policy (``security.*`` but capabilities) never get into
    the layer.

    With ``ownership="recorded"`` ``upper`` and ``lower`` are what their records say, as ``unpack`` wrote them: owner,
    mode, type and attributes. What has no record, as symbolic links and what was made there later, is 0:0 with its own
    mode.

    Args:
        upper: The layer's "/".
        dest: The file; it appears, or takes the place of one, when it is whole.
        lower: What to compare with.
        compression: "gzip" (level 6), "zstd" (level 3) or "none".
        clamp_mtime: Seconds since 1970 that no file's time is after: ``SOURCE_DATE_EPOCH``.
        ownership: "keep": owners as they are on disk; "recorded": as they are recorded.

    Returns:
        Digests, sizes and entries of what was written.

    Raises:
        UnsupportedError: Something that no layer can say: a name that begins with ``.wh.``, a redirected directory
            or a file without its data of an overlay mounted to make such.
        ConflictError: Somebody changes ``upper`` meanwhile.
        InvalidError: An option has a value that is not allowed, or a record says what its file cannot stand for.
        OSError: The kernel refused; nothing is left then.

    Spec:
        image-spec v1.1 layer.md, "Creating Changesets", "Representing Changes", "Whiteouts", "File Types".
    """
    from pyctrd import _core

    return _core.diff(upper, dest, lower=lower, compression=compression, clamp_mtime=clamp_mtime, ownership=ownership)


def verify(path: str | os.PathLike[str], digest: str) -> None:
    """Check a file's bytes against a digest, with no engine.

    Raises:
        DigestMismatchError: They hash to something else.
        InvalidError: ``digest`` is none.
        OSError: The file cannot be read.
    """
    from pyctrd import _core

    _core.verify_file(path, digest)


def enter_user_namespace() -> bool:
    """Make this process root of its user's own user namespace, where a store is used and containers run without root.

    The namespace has the user as 0, and from 1 on the user's ranges of /etc/subuid and /etc/subgid. It is made at the
    first call, with a mount namespace, held by a small process that stays, and entered by later ones. Root is left as
    it is. The default root and state directories stay the user's. Commands of ``pyctrd`` do this by themselves, and
    ``pyctrd unshare`` for any program.

    Call it before anything starts a thread, and before an engine is opened: the process's ids change.

    Returns:
        Whether the process is in that namespace now; False for root, of whatever namespace.

    Raises:
        ConflictError: This process has threads.
        UnsupportedError: The kernel lets this user make no namespaces, newuidmap or newgidmap is missing, or the user
            has no ranges.
    """
    from pyctrd.flows.rootless import enter_own_namespace

    return enter_own_namespace()


def core_version() -> str:
    """The native module's version; another than ``pyctrd.__version__`` means a broken installation."""
    from pyctrd import _core

    return _core.__version__
