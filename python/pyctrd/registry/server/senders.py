"""Threads that send files to clients who take them without a pause.

On loopback, and on fast lines, what the kernel does to send fills a processor: in the loop, all clients share that one.
Who is slower is left to the loop, which waits for any number of clients at once.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import BinaryIO

# As many as send at once; more have no processor, and are sent to by the loop.
THREADS_MAX = min(os.cpu_count() or 1, 8)
# A client who takes nothing for so long is slower than its line.
PAUSE_MS = 20
# A thread is let go after so long, whatever the client takes: another one may wait for it.
TURN_CALLS = 64

_free = threading.Semaphore(THREADS_MAX)


async def send_without_pause(transport: asyncio.BaseTransport, file: BinaryIO, start: int, count: int) -> int:
    """Send a part of a file for as long as its client takes it; how many bytes that were, perhaps none.

    The thread has descriptors of its own: where this task is cancelled, the numbers of the caller's may be given to
    another client's meanwhile.

    Raises:
        OSError: As ``sendfile`` (2).
    """
    connected = transport.get_extra_info("socket")
    queued = isinstance(transport, asyncio.WriteTransport) and transport.get_write_buffer_size()
    if connected is None or queued or not _free.acquire(blocking=False):
        return 0
    descriptors: list[int] = []

    def let_go(_: Future[int] | None) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        _free.release()

    try:
        descriptors.append(target := os.dup(connected.fileno()))
        descriptors.append(source := os.dup(file.fileno()))
        sending = _threads().submit(_send, target, source, start, count)
    except BaseException:
        let_go(None)
        raise
    sending.add_done_callback(let_go)
    return await asyncio.wrap_future(sending)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS_MAX, "pyctrd-sender")


def _send(target: int, source: int, start: int, count: int) -> int:
    poll = select.poll()
    poll.register(target, select.POLLOUT)
    sent = 0
    for _ in range(TURN_CALLS):
        try:
            went = os.sendfile(target, source, start + sent, count - sent)
        except BlockingIOError:
            went = 0
            if not poll.poll(PAUSE_MS):
                break
        else:
            sent += went
            if went == 0 or sent == count:  # the file is shorter, or all of it has gone
                break
    return sent
