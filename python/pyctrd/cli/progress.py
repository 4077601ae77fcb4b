"""Progress of a pull or push: bars on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyctrd import ProgressCallback, PullProgress

SHORT_DIGITS = 12


@contextmanager
def show_progress(*, quiet: bool) -> Iterator[ProgressCallback | None]:
    """Give a callback that draws on standard error, or None where nothing is to be drawn.

    On a pipe there is no more than the result, a line for each image.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    with _bars() as callback:
        yield callback


@contextmanager
def _bars() -> Iterator[ProgressCallback]:
    # rich costs some 50 ms to import: only a terminal pays for it.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    tasks: dict[str, TaskID] = {}
    total: list[TaskID] = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bars:

        def update(progress: PullProgress) -> None:
            for layer in progress.layers:
                if layer.digest not in tasks:
                    name = layer.digest.partition(":")[2][:SHORT_DIGITS]
                    tasks[layer.digest] = bars.add_task(name, total=layer.size_bytes)
                bars.update(tasks[layer.digest], completed=layer.received_bytes)
            if len(progress.layers) > 1:
                if not total:
                    total.append(bars.add_task("all"))
                size = sum(layer.size_bytes for layer in progress.layers)
                bars.update(total[0], total=size, completed=sum(layer.received_bytes for layer in progress.layers))

        yield update
