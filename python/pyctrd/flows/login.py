"""Log in and out: credentials into the files in which all tools look for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyctrd.errors import InvalidError
from pyctrd.oci.reference import Reference
from pyctrd.registry.credentials import Credentials, default_file, erase, store

if TYPE_CHECKING:
    from pathlib import Path

    from pyctrd.flows.rooms import Rooms


def login(rooms: Rooms, registry: str, user: str, password: str, *, file: Path | None) -> Path:
    """Try credentials at a registry, and write them; see ``Registries.login``."""
    registry = check_registry(registry)
    credentials = Credentials(user, password)
    rooms.registry.access.check(registry, credentials)
    path = file or default_file()
    store(path, registry, credentials)
    return path


def logout(registry: str, *, file: Path | None) -> bool:
    """Take credentials away; see ``Registries.logout``."""
    return erase(file or default_file(), check_registry(registry))


def check_registry(registry: str) -> str:
    """The name of a registry as references have it.

    Raises:
        InvalidError: It is no host.
    """
    try:
        parsed = Reference.parse(f"{registry}/name")
    except InvalidError:
        parsed = None
    # Without a dot or a port the first part of a reference is no host.
    if parsed is None or not str(parsed).endswith("/name:latest") or parsed.repository != "name":
        raise InvalidError(
            f"invalid registry: {registry[:80]!r}", field="registry", value=registry[:80], hint="expected HOST[:PORT]"
        )
    return parsed.registry
