"""The options before the command, whoever read them."""

from __future__ import annotations

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
    def engine(self, **options: Any) -> Iterator[Engine]:
        """An engine with the global options, to which the command adds its own; the process ends with it."""
        from pyctrd.engine import Engine

        engine = Engine(root=self.root, state=self.state, namespace=self.namespace, **options)
        try:
            yield engine
        finally:
            engine.leave()
