"""One program that pulls many images with one call; exits 3 where the library has no such call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyctrd

NO_SUCH_CALL = 3


def main(store: Path, references: list[str]) -> int:
    """Pull all of them; 1 if an image is not there at the end."""
    with pyctrd.Engine(root=store / "root", state=store / "state") as engine:
        pull_many: Callable[[list[str]], Any] | None = getattr(engine.images, "pull_many", None)
        if pull_many is None:
            return NO_SUCH_CALL
        answer = pull_many(references)
        if isinstance(answer, Iterable):  # a stream is to be read to its end
            for _ in answer:
                pass
        missing = [reference for reference in references if engine.images.find(reference) is None]
        print(*missing)
        return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
