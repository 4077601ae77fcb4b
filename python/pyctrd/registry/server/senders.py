"""Threads that send files to clients who take them without a pause.

On loopback, and on fast lines, what the kernel does to send fills a processor: in the loop, all clients share that one.
Who is slower is left to the loop, which waits for any number of clients at once.

By reads and writes, natively: on fast lines that is quicker than ``sendfile``, and costs less (``rust/src/send.rs``).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import BinaryIO

from pyctrd import _core

# As many as send at once; more have no processor, and are sent to by the loop.
THREADS_MAX = min(os.cpu_count() or 1, 8)
# A client who takes nothing for so long is slower than its line.
PAUSE_MS = 20
# A thread is let go after so long, whatever the client takes: another one may wait for it.
TURN_MS = 250

_free = threading.Semaphore(THREADS_MAX)


async def send_without_pause(transport: asyncio.BaseTransport, file: BinaryIO, start: int, count: int) -> int:
    """Send a part of a file for as long as its client takes it; how many bytes that were, perhaps none.

    The thread has descriptors of its own: where this task is cancelled, the numbers of the caller's may be given to
    another client's meanwhile.

    Raises:
        OSError: The file cannot be read, or the client is gone.
    """
    connected = transport.get_extra_info("socket")
    queued = isinstance(transport, asyncio.WriteTransport) and transport.get_write_buffer_size()
    if connected is None or queued or not _free.acquire(blocking=False):
        return 0
    descriptors: list[int] = []
    sending: Future[int] = Future()
    sending.set_running_or_notify_cancel()  # the thread ends by itself, soon
    try:
        descriptors.append(os.dup(connected.fileno()))
        descriptors.append(os.dup(file.fileno()))
        # Of its own for each slice: a pool's would stay, and what takes milliseconds to send bears one's start.
        threading.Thread(target=_work, args=(sending, descriptors, start, count), name="pyctrd-sender").start()
    except BaseException:
        _let_go(descriptors)
        raise
    return await asyncio.wrap_future(sending)


def _work(sending: Future[int], descriptors: Sequence[int], start: int, count: int) -> None:
    target, source = descriptors
    try:
        sent = _core.send_part(target, source, start=start, count=count, pause_ms=PAUSE_MS, turn_ms=TURN_MS)
    except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
        _let_go(descriptors)
        sending.set_exception(error)
    else:
        _let_go(descriptors)
        sending.set_result(sent)


def _let_go(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    _free.release()
