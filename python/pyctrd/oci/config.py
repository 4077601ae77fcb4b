"""Image configs: what to run, and which tars the layers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Self

from pyctrd.oci.digest import Digest
from pyctrd.oci.document import Fields, invalid
from pyctrd.oci.platform import Platform
from pyctrd.oci.value import dataclass

DIFF_IDS_MAX = 1000


@dataclass(frozen=True, slots=True)
class RootFS:
    """The layers of an image, by the digests of their tars, lowest first."""

    diff_ids: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says of itself.

    Attributes:
        platform: Whom it is for.
        created: RFC 3339, as written; "" where not said.
        author: Free text.
        env: ``NAME=value``, in order.
        entrypoint: First words of the command.
        cmd: The words after them, replaced by the user's.
        user: ``user[:group]``, names or numbers; "" is root.
        working_dir: Absolute; "" is "/".
        exposed_ports: ``port[/protocol]``.
        volumes: Paths.
        labels: Free text by key.
        stop_signal: Name or number; "" is SIGTERM.
        rootfs: The layers.
        raw: The whole document.

    Spec:
        image-spec v1.1 config.md.
    """

    platform: Platform
    rootfs: RootFS
    created: str = ""
    author: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode and check.

        Raises:
            InvalidError: A field is missing or wrong.
        """
        fields = Fields.parse(body, kind="config")
        run = fields.object("config") if fields.has("config") else Fields({}, "config")
        return cls(
            platform=Platform.read(fields),
            rootfs=_read_rootfs(fields),
            created=fields.text("created", ""),
            author=fields.text("author", ""),
            env=run.texts("Env"),
            entrypoint=run.texts("Entrypoint"),
            cmd=run.texts("Cmd"),
            user=run.text("User", ""),
            working_dir=run.text("WorkingDir", ""),
            exposed_ports=run.names("ExposedPorts"),
            volumes=run.names("Volumes"),
            labels=run.table("Labels"),
            stop_signal=run.text("StopSignal", ""),
            raw=fields.values,
        )


def _read_rootfs(fields: Fields) -> RootFS:
    rootfs = fields.object("rootfs")
    if rootfs.text("type") != "layers":
        raise invalid("rootfs.type", rootfs.values["type"], '"layers"')
    diff_ids = rootfs.texts("diff_ids")
    if len(diff_ids) > DIFF_IDS_MAX:
        raise invalid("rootfs.diff_ids", len(diff_ids), f"at most {DIFF_IDS_MAX} entries")
    return RootFS(
        tuple(Digest.parse(text, field=f"rootfs.diff_ids[{position}]") for position, text in enumerate(diff_ids))
    )
