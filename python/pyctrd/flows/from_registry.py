"""A pull from a registry: the store is opened, and what is needed is loaded, while the registry answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyctrd.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyctrd.flows.platforms import Others
    from pyctrd.flows.progress import Telling
    from pyctrd.flows.resolve import Resolved
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.images import ImageRecord
    from pyctrd.oci.platform import Platform
    from pyctrd.oci.reference import Reference


def pull_from_registry(
    rooms: Rooms,
    reference: Reference,
    platform: Platform,
    others: Others,
    told: Telling,
    *,
    check: Callable[[Resolved], None],
    unpack: bool,
    keep_blobs: bool,
) -> ImageRecord:
    """Resolve a reference, and bring in what it names.

    Args:
        rooms: The engine's rooms.
        reference: What to pull.
        platform: Whose manifest the image is.
        others: What else of its index is wanted.
        told: Told a few times a second, in the calling thread.
        check: The engine's policy, asked of each manifest before its first layer.
        unpack: As for ``bring``.
        keep_blobs: As for ``bring``.

    Returns:
        The image's record, durable.

    Raises:
        Exception: As ``resolve``, ``bring`` and the policy.
    """
    origin = None
    try:
        with rooms.opening(snapshotter=unpack) as is_new:
            # Loaded while the store is opened, which takes as long.
            from pyctrd.flows.pull import ask_ahead, bring
            from pyctrd.flows.resolve import RegistryOrigin, resolve

            origin = RegistryOrigin(rooms, reference)
            resolved = resolve(rooms, reference, platform=platform, origin=origin)
            check(resolved)
            if is_new:  # and has nothing that could make the request vain
                ask_ahead(origin, resolved, unpack=unpack, keep_blobs=keep_blobs)
        if others:
            from pyctrd.flows.platforms import with_others

            resolved = with_others(rooms, origin, resolved, others, at_once=rooms.settings.concurrency)
            for other in resolved.others:
                check(other)
        return bring(rooms, resolved, origin=origin, unpack=unpack, keep_blobs=keep_blobs, told=told)
    finally:
        if origin is not None:
            origin.close()


def read_platforms(platform: str | Sequence[str] | None, *, all_platforms: bool) -> tuple[Platform, Others]:
    """Whose manifest is run, and whose are wanted beside it.

    Raises:
        InvalidError: A platform is none, or several are named beside all.
    """
    from pyctrd.oci.platform import Platform

    named = Platform.parse_all(platform)
    if all_platforms and len(named) > 1:
        raise InvalidError(
            "invalid platform: with all platforms, one says which is unpacked", field="platform", value=platform
        )
    first, *others = named or [Platform.host()]
    return first, "all" if all_platforms else others
