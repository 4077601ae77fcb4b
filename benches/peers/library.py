"""A Python program that uses the library: reads requests from a pipe, answers on another. Its modules are loaded."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyctrd
import pyctrd.containers
import pyctrd.flows.pull
import pyctrd.flows.run
import pyctrd.registry.client  # what a program that has pulled and run before has in memory


def main(store: Path, engine_options: dict[str, Any], options: dict[str, Any]) -> None:
    """Serve until the process is ended; every pull has the options."""
    with pyctrd.Engine(root=store / "root", state=store / "state", **engine_options) as engine:
        (store / "answers").write_text("ready")
        while True:
            word, reference, *rest = (store / "requests").read_text().split()
            if word == "pull":
                answer = engine.images.pull(reference, **options).digest
            elif word == "again":
                start = time.perf_counter()
                engine.images.pull(reference, **options)
                answer = str(time.perf_counter() - start)
            else:
                container = engine.containers.run(reference, ["/bin/true"], name=rest[0], network="none")
                answer = str(container.wait().exit_code)
                container.delete()
            (store / "answers").write_text(answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
