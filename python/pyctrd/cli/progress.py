"""Progress of a transfer, as ``--progress`` wants it: bars, JSON or nothing; bars on a terminal if it says nothing.

``--progress json`` writes a line to standard error for each event of ``pyctrd.PullProgress``, an object with its names:

- ``reference``, ``digest`` ("" until it is known), ``phase``: "resolving", "transferring", and last of all "done";
- ``received_bytes`` and ``size_bytes`` of all layers; ``bytes_per_second`` and ``eta_seconds``, null where unknown;
- ``layers``: of each ``digest``, ``state``, ``source``, ``received_bytes``, ``size_bytes``, ``resumed_bytes``,
  ``unpacked_bytes`` and ``unpacked_entries``, as ``pyctrd.LayerProgress`` has them.

A transfer that fails has its error in place of "done"; of several references each line names its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pyctrd import ProgressCallback, PullProgress

Mode = Literal["auto", "bars", "json", "none"]
SHORT_DIGITS = 12


@contextmanager
def show_progress(mode: Mode | None = None, *, quiet: bool) -> Iterator[ProgressCallback | None]:
    """Give a callback that tells on standard error, or None where nothing is to be told.

    On a pipe there is no more than the result, a line for each image, unless more is asked for.

    Args:
        mode: What ``--progress`` says; None and "auto" are bars on a terminal, and nothing elsewhere.
        quiet: Whether nothing is to be drawn that was not asked for.
    """
    if mode == "json":
        yield _write_line
    elif mode == "bars" or (mode in (None, "auto") and not quiet and sys.stderr.isatty()):
        with _bars(forced=mode == "bars") as callback:
            yield callback
    else:
        yield None


def _write_line(progress: PullProgress) -> None:
    import orjson

    document = {
        "reference": progress.reference,
        "digest": progress.digest,
        "phase": progress.phase,
        "received_bytes": progress.received_bytes,
        "size_bytes": progress.size_bytes,
        "bytes_per_second": progress.bytes_per_second,
        "eta_seconds": progress.eta_seconds,
        "layers": [layer._asdict() for layer in progress.layers],
    }
    sys.stderr.buffer.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
    sys.stderr.buffer.flush()


@contextmanager
def _bars(*, forced: bool) -> Iterator[ProgressCallback]:
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
        # Asked for, they are drawn on a pipe too: somebody else may show them.
        console=Console(stderr=True, force_terminal=True if forced else None),
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
                bars.update(total[0], total=progress.size_bytes, completed=progress.received_bytes)

        yield update
