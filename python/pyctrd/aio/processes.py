"""A process in a container, awaitable: its outputs are asynchronous iterators over what comes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from pyctrd import process
from pyctrd.aio.face import Face, calls, waits

if TYPE_CHECKING:
    from pyctrd.aio.threads import Threads

CHUNK_BYTES = 64 << 10


class ProcessOutput(AsyncIterator[bytes]):
    """One output of a process, for one task: what comes, as it comes.

    Where a task is cancelled that waits for the next chunk, nothing is lost; ``read`` and ``readline`` lose what they
    have taken by then.
    """

    def __init__(self, of: BinaryIO, threads: Threads) -> None:
        self._of = of
        self._threads = threads

    async def read(self, size: int = -1) -> bytes:
        """As that of the file object: so many bytes, or all until its end; fewer at the end."""
        return await self._threads.wait(lambda: self._of.read(size))

    async def readline(self) -> bytes:
        """A line with its newline; b"" at the end."""
        return await self._threads.wait(self._of.readline)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """What has come, at most 64 KiB."""
        data = await self._threads.wait(self._read_some)
        if not data:
            raise StopAsyncIteration
        return data

    def _read_some(self) -> bytes:
        return self._of.read1(CHUNK_BYTES)  # type: ignore[attr-defined, no-any-return] # a buffered reader's


class ProcessInput:
    """The input of a process."""

    def __init__(self, of: BinaryIO, threads: Threads) -> None:
        self._of = of
        self._threads = threads

    async def write(self, data: bytes) -> int:
        """Send all of it, waiting for the process to read."""
        return await self._threads.wait(lambda: self._of.write(data))

    async def close(self) -> None:
        """The process reads the end of its input."""
        await self._threads.wait(self._of.close)


class Process(Face[process.Process]):
    """As ``pyctrd.Process``; who is cancelled waits no longer, and the process goes on.

    An ``async with`` block that is left by an error, as by a cancelled task, kills it.
    """

    wait = waits(process.Process.wait)
    poll = calls(process.Process.poll)
    communicate = waits(process.Process.communicate)
    kill = calls(process.Process.kill)
    resize = calls(process.Process.resize)
    attach = waits(process.Process.attach)
    close = calls(process.Process.close)

    def __init__(self, of: process.Process, threads: Threads) -> None:
        super().__init__(of, threads)
        self._stdin = None if of.stdin is None else ProcessInput(of.stdin, threads)
        self._stdout = None if of.stdout is None else ProcessOutput(of.stdout, threads)
        self._stderr = None if of.stderr is None else ProcessOutput(of.stderr, threads)

    @property
    def id(self) -> str:
        """As ``pyctrd.Process.id``."""
        return self._of.id

    @property
    def pid(self) -> int:
        """As ``pyctrd.Process.pid``."""
        return self._of.pid

    @property
    def stdin(self) -> ProcessInput | None:
        """To be written to; None where no input was asked for."""
        return self._stdin

    @property
    def stdout(self) -> ProcessOutput | None:
        """To be read; with a terminal everything comes here. None where it was started detached."""
        return self._stdout

    @property
    def stderr(self) -> ProcessOutput | None:
        """To be read; None with a terminal, and where it was started detached."""
        return self._stderr

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of its streams and wait for its end; where the block is left by an error, it is killed."""
        await self._threads.wait(lambda: self._of.__exit__(kind, error, trace))


def discard_process(of: process.Process) -> None:
    """Undo an ``exec`` whose task was cancelled."""
    of.kill()
    of.close()
