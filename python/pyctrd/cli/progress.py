"""Progress of a pull: bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyctrd.cli.output import size_text

if TYPE_CHECKING:
    from pyctrd import ProgressCallback, PullProgress

SHORT_DIGITS = 12


@contextmanager
def show_progress(*, quiet: bool) -> Iterator[ProgressCallback | None]:
    """Give a callback that draws on standard error, or None where nothing is to be drawn."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bars() as callback:
            yield callback
    else:
        yield _Lines().update


class _Lines:
    """A line when a layer starts and one when it is done."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def update(self, progress: PullProgress) -> None:
        for layer in progress.layers:
            if layer.state != "waiting" and self._seen.get(layer.digest) != layer.state:
                self._seen[layer.digest] = layer.state
                name = layer.digest.partition(":")[2][:SHORT_DIGITS]
                sys.stderr.write(f"{name}: {layer.state} {size_text(layer.size_bytes)}\n")


@contextmanager
def _bars() -> Iterator[ProgressCallback]:
    # rich costs some 50 ms to import: only a terminal pays for it.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    tasks: dict[str, TaskID] = {}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
    ) as bars:

        def update(progress: PullProgress) -> None:
            for layer in progress.layers:
                if layer.digest not in tasks:
                    name = layer.digest.partition(":")[2][:SHORT_DIGITS]
                    tasks[layer.digest] = bars.add_task(name, total=layer.size_bytes)
                bars.update(tasks[layer.digest], completed=layer.received_bytes)

        yield update
