"""``engine.namespaces``: the tenants of a store, seen by whoever keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import pyctrd  # annotations name its exports, which are loaded when somebody evaluates them

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms


class Namespaces:
    """All namespaces of the store, not the engine's own alone: hand it to nobody who is but a tenant.

    The namespace that an engine was opened with is made at its first use, isolated and with no quota.
    """

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def create(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        policy: Literal["isolated", "shared"] = "isolated",
        quota: int | None = None,
    ) -> pyctrd.Namespace:
        """Make one.

        Args:
            name: Letters and digits with single ``._-`` between them, at most 76; upper and lower case are different.
            labels: Words about it, for whoever made it; 4096 bytes at most for a key with its value.
            policy: See ``Namespace.policy``.
            quota: Bytes that it may be charged for, None for any amount.

        Raises:
            AlreadyExistsError: The name is taken.
            InvalidError: The name, a label, the policy or the quota is none.
        """
        from pyctrd.flows.namespaces import create_namespace

        return create_namespace(self._rooms, name, labels=labels or {}, policy=policy, quota=quota)

    def get(self, name: str) -> pyctrd.Namespace:
        """What is known of one.

        Raises:
            NotFoundError: There is none.
        """
        return self._rooms.database.namespaces.get(name)

    def list(self) -> list[pyctrd.Namespace]:
        """All, by name."""
        return self._rooms.database.namespaces.list()

    def set(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        policy: Literal["isolated", "shared"] | None = None,
        quota: int | Literal["unlimited"] | None = None,
    ) -> pyctrd.Namespace:
        """Change what is given, from the next operation on.

        Args:
            name: Which.
            labels: All that it has from now on; those that it had go.
            policy: What it was given before stays its own, whatever the policy becomes.
            quota: Bytes, or "unlimited". Below what it is charged for now nothing is taken away, and nothing more gets
                in.

        Raises:
            NotFoundError: There is none.
            InvalidError: A label, the policy or the quota is none; nothing is changed then.
        """
        from pyctrd.flows.namespaces import change_namespace

        return change_namespace(self._rooms, name, labels=labels, policy=policy, quota=quota)

    def usage(self, name: str) -> pyctrd.NamespaceUsage:
        """What one costs: the blobs that it is charged for, and those of them that its removal would free.

        The second figure tells what other tenants have: ``engine.content.usage`` is what a tenant may see.

        Raises:
            NotFoundError: There is none.
        """
        self.get(name)
        usage = self._rooms.database.usage
        return pyctrd.NamespaceUsage(usage.charged(name), usage.exclusive(name))

    def remove(self, name: str, *, force: bool = False) -> None:
        """Take one away, and what nothing else needs from the disk.

        Args:
            name: Which; an engine that has it open finds it gone.
            force: With its images, its content, and its containers that do not run.

        Raises:
            NotFoundError: There is none.
            ConflictError: It has something and ``force`` is not set. Also with ``force``: a container of it runs or is
                paused, an image of it is mounted, or content is on its way into it.
        """
        from pyctrd.flows.namespaces import remove_namespace

        remove_namespace(self._rooms, name, force=force)
