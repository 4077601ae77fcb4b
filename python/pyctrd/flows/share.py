"""Sharing: what the store has for others, given to a namespace that could have had it anyway.

A namespace is given a blob, with no transfer, in two ways:

- With proof, under any policy: the repository from which the store itself once got the blob's bytes has just served to
  this namespace, by its own credentials, the manifest that names the blob, and now answers HEAD for it. Another
  repository proves nothing, be it on the same host: a tenant may own it, or what it passes requests on to.
- For the naming, between two namespaces of the policy "shared".

Only what a namespace has a record of is given: never what is on its way in, nor what is on disk for no one.

Whatever fails here fails in silence, and the source is asked for the bytes as if the store had nothing: so every error
is the source's own, and says the same whoever has the blob. A quota is charged before it is looked here. What a tenant
can notice, by time, traffic or counters of work done, is that bytes did not come which its registry offers it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyctrd.errors import NotFoundError

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.flows.wants import Given, Want
    from pyctrd.metadata.database import Tables
    from pyctrd.oci.descriptor import Descriptor
    from pyctrd.oci.reference import Reference


def share(rooms: Rooms, reference: Reference | None, want: Want) -> Given:
    """What of a want the store may give to this namespace.

    Args:
        rooms: The engine's rooms.
        reference: What is pulled, its manifest served a moment ago; None where no registry is the source.
        want: A blob that this namespace does not have. Its ``source`` becomes what progress says of it: with proof,
            what it would say if the bytes had come, since that others have them must not show.

    Returns:
        "nothing"; "blob" where its bytes may be read from the store, to unpack it or to see that it is the layer that
        the config says; "all" where nothing is left to be done.
    """
    blob = want.descriptor
    is_done = has_layer(rooms, want)
    # Of a layer whose blob is not to be kept, the layer is enough.
    if not (_is_whole(rooms, blob) or (is_done and not want.keep)) or not (source := _giver_of(rooms, reference, blob)):
        return "nothing"
    want.source = source
    return "all" if is_done else "blob"


def knows_layer(rooms: Rooms, want: Want) -> bool:
    """Whether this namespace itself has the layer, as it is wanted, that its config says a blob is."""
    if want.diff_id is None or not want.unpack:
        return False
    return rooms.database.layers.belongs_to(rooms.namespace, want.diff_id) and _is_unpacked(rooms, want)


def has_layer(rooms: Rooms, want: Want, blob: str = "") -> bool:
    """Whether all that is wanted of a blob beside its bytes is there.

    That the store has a layer of the wanted diff_id is not enough: this very blob must have been seen to be that layer,
    or a config could show a namespace another one's.

    Args:
        rooms: The engine's rooms.
        want: The layer.
        blob: Another blob that the namespace has, and that may be the layer as well.
    """
    if want.diff_id is None:
        return True
    if not rooms.database.layers.is_layer_of(blob or str(want.descriptor.digest), want.diff_id):
        return False
    return not want.unpack or _is_unpacked(rooms, want)


def _is_unpacked(rooms: Rooms, want: Want) -> bool:
    if want.diff_id is None or rooms.database.layers.find(want.diff_id) is None:
        return False
    return rooms.layers.has_form(want.diff_id, want.form or rooms.snapshotter.form)


def has_content(tables: Tables, namespace: str, digest: str, diff_id: str | None) -> bool:
    """Whether a namespace has a blob, or the tar that it comes to: all there is of a layer that was made from parts."""
    if tables.content.find(namespace, digest) is not None:
        return True
    if diff_id is None or tables.content.find(namespace, diff_id) is None:
        return False
    return tables.layers.is_layer_of(diff_id, diff_id)


def _giver_of(rooms: Rooms, reference: Reference | None, blob: Descriptor) -> str:
    """Who lets this namespace have a blob: the store itself, or a registry, by the host that would have sent it."""
    content, digest = rooms.database.content, str(blob.digest)
    if content.is_common(rooms.namespace, digest):
        return "store"
    if reference is None or not content.came_from(digest, reference.repository_name):
        return ""
    return rooms.registry.access.first_host(reference.registry) if rooms.registry.has_blob(reference, blob) else ""


def _is_whole(rooms: Rooms, blob: Descriptor) -> bool:
    if not rooms.database.content.is_stored(str(blob.digest)):
        return False
    try:
        return rooms.blobs.stat(blob.digest).size == blob.size
    except NotFoundError:
        return False
