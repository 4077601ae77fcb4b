"""A Python program that uses the library: reads requests from a pipe, answers on another. Its modules are loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pyctrd
import pyctrd.containers
import pyctrd.flows.pull
import pyctrd.flows.run
import pyctrd.registry.client  # what a program that has pulled and run before has in memory


def main(store: Path) -> None:
    """Serve until the process is ended."""
    with pyctrd.Engine(root=store / "root", state=store / "state") as engine:
        (store / "answers").write_text("ready")
        while True:
            word, reference, *rest = (store / "requests").read_text().split()
            if word == "pull":
                answer = engine.images.pull(reference).digest
            else:
                container = engine.containers.run(reference, ["/bin/true"], name=rest[0], network="none")
                answer = str(container.wait().exit_code)
                container.delete()
            (store / "answers").write_text(answer)


main(Path(sys.argv[1]))
