"""What makes an awaitable class of one of the engine's: its methods, by a line each, with their own signatures.

A method's name, parameters and types are those of the method that it calls, which ``ParamSpec`` takes over: there is
nothing to be kept alike by hand, and a type checker sees them. Results that are objects of the engine's become those of
this package.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from pyctrd.aio.streams import Stream
from pyctrd.aio.threads import Threads, in_loop

P = ParamSpec("P")
Of = TypeVar("Of")
R = TypeVar("R")
A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)

Way = Callable[[Threads, Callable[[], Any], Callable[[Any], object] | None], Coroutine[Any, Any, Any]]


class Face(Generic[Of]):
    """An object of the engine's whose calls are awaited.

    Args:
        of: That object.
        threads: Where its calls run.
    """

    def __init__(self, of: Of, threads: Threads) -> None:
        self._of = of
        self._threads = threads

    def __repr__(self) -> str:
        return repr(self._of)


class Method(Protocol[P, A_co]):
    """A method, as a type checker sees it."""

    @overload
    def __get__(self, face: None, owner: type, /) -> Callable[Concatenate[Any, P], A_co]: ...
    @overload
    def __get__(self, face: object, owner: type, /) -> Callable[P, A_co]: ...


Awaited = Coroutine[Any, Any, A]


def calls(method: Callable[Concatenate[Of, P], R]) -> Method[P, Awaited[R]]:
    """The same method, awaited: it needs the store alone."""
    return _make(method, Threads.call, _same)


def asks(method: Callable[Concatenate[Of, P], R]) -> Method[P, Awaited[R]]:
    """The same method, awaited: somebody else answers, in a while."""
    return _make(method, Threads.ask, _same)


def waits(method: Callable[Concatenate[Of, P], R]) -> Method[P, Awaited[R]]:
    """The same method, awaited: it waits for somebody else, and who is cancelled ends that."""
    return _make(method, Threads.wait, _same)


def gives(
    method: Callable[Concatenate[Of, P], R],
    kind: Callable[[R, Threads], A],
    *,
    discard: Callable[[R], object] | None = None,
) -> Method[P, Awaited[A]]:
    """The same method, awaited, whose result becomes another class.

    Args:
        method: Of the engine's class.
        kind: Of this package.
        discard: Undoes a result that nobody gets, since the task was cancelled.
    """
    return _make(method, Threads.call, kind, discard)


def lists(
    method: Callable[Concatenate[Of, P], list[R]], kind: Callable[[R, Threads], A]
) -> Method[P, Awaited[list[A]]]:
    """The same method, awaited, which lists objects of another class."""
    return _make(method, Threads.call, functools.partial(_each, kind))


def finds(
    method: Callable[Concatenate[Of, P], R | None], kind: Callable[[R, Threads], A]
) -> Method[P, Awaited[A | None]]:
    """The same method, awaited, which finds an object of another class, or None."""
    return _make(method, Threads.call, lambda found, threads: None if found is None else kind(found, threads))


def iterates(method: Callable[Concatenate[Of, P], Iterator[R]]) -> Method[P, Stream[R]]:
    """The same iterator, asynchronous; what its method would raise at once its first item does."""

    def call(face: Face[Any], *arguments: Any, **named: Any) -> Any:
        return Stream(face._threads, functools.partial(method, face._of, *arguments, **named))  # noqa: SLF001 - its own

    return cast("Method[P, Stream[R]]", functools.update_wrapper(call, method))


def transfers(method: Callable[Concatenate[Of, P], R], kind: Callable[[R, Threads], A]) -> Method[P, Awaited[A]]:
    """The same transfer, awaited, when it is its turn; ``progress`` is called by the event loop.

    Where its task is cancelled it is given up, and has ended when that is told.
    """
    return _make(method, Threads.transfer, kind, has_progress=True)


def copies(method: Callable[Concatenate[Of, P], R], kind: Callable[[R, Threads], A]) -> Method[P, Awaited[A]]:
    """As ``transfers``, and at once: such ones may wait for each other, at both ends of a pipe."""
    return _make(method, Threads.wait, kind, has_progress=True)


def _make(
    method: Callable[Concatenate[Of, P], R],
    way: Way,
    make: Callable[[R, Threads], A],
    discard: Callable[[R], object] | None = None,
    *,
    has_progress: bool = False,
) -> Method[P, Awaited[A]]:
    async def call(face: Face[Any], /, *arguments: Any, **named: Any) -> Any:
        threads = face._threads  # noqa: SLF001 - its own
        if has_progress:
            named["progress"] = in_loop(named.get("progress"))
        function = functools.partial(method, face._of, *arguments, **named)  # noqa: SLF001 - its own
        return make(await way(threads, function, discard), threads)

    return cast("Method[P, Awaited[A]]", functools.update_wrapper(call, method))


def _same(result: R, _: Threads) -> R:
    return result


def _each(kind: Callable[[R, Threads], A], found: list[R], threads: Threads) -> list[A]:
    return [kind(one, threads) for one in found]
