"""The options before the command, whoever read them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyctrd.oci.value import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyctrd.engine import Engine


@dataclass(frozen=True, slots=True)
class Globals:
    """The options before the command, and the engine that they make."""

    root: str | None = None
    state: str | None = None
    namespace: str | None = None
    json: bool = False
    debug: bool = False

    @contextmanager
    def engine(self, *, runs: bool = False, **options: Any) -> Iterator[Engine]:
        """An engine with the global options, to which the command adds its own; the process ends with it.

        Args:
            runs: Containers are run, which a user needs a namespace for: what is missing for one is told.
            options: Of ``Engine``.
        """
        from pyctrd.engine import Engine

        if os.geteuid() != 0:
            _enter(needed=runs)
        engine = Engine(root=self.root, state=self.state, namespace=self.namespace, **options)
        try:
            yield engine
        finally:
            engine.leave()


def _enter(*, needed: bool) -> None:
    """Be root of the user's own namespace; where there can be none, much does not need it."""
    from pyctrd.engine import enter_user_namespace
    from pyctrd.errors import UnsupportedError

    try:
        enter_user_namespace()
    except UnsupportedError:
        if needed:
            raise
