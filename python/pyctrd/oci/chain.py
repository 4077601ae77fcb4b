"""Chain ids: one digest for a stack of layers."""

from __future__ import annotations

from collections.abc import Sequence

from pyctrd.oci.digest import Digest


def chain_id(diff_ids: Sequence[str]) -> Digest:
    """The chain id of a stack, lowest layer first; that of no layers is the digest of nothing.

    Spec:
        image-spec v1.1 config.md, "Layer ChainID".
    """
    if not diff_ids:
        return Digest.of(b"")
    chain = Digest(diff_ids[0])
    for diff_id in diff_ids[1:]:
        chain = Digest.of(f"{chain} {diff_id}".encode())
    return chain
