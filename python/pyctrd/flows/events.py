"""Events: what happened in a store, read from a cursor on, and followed."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pyctrd.errors import InvalidError
from pyctrd.flows.runs import notice_all, notice_ends
from pyctrd.oci.hold import pause
from pyctrd.oci.value import NamedTuple

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.events import EventRow

EventType = Literal["image", "container", "namespace", "gc", "store"]
EVENT_TYPES: tuple[EventType, ...] = ("image", "container", "namespace", "gc", "store")
# A look costs a few statements that read the cache, and an event comes about so late.
POLL_SECONDS = 0.1
# A container whose shim was killed leaves no exit record: its process is looked at, less often.
LONG_LOOK_SECONDS = 5.0
BATCH_EVENTS = 500
START = "0"
_OF_ALL = "all-"
_WITH_REASON = ("exited", "health_status")


class Event(NamedTuple):
    """Something that happened, durable from the moment on in which it can be read.

    Attributes:
        cursor: Where it stands: ``events(since=…)`` goes on behind it, in any process, after any restart. One from
            ``all_namespaces`` begins with "all-", and is good for that alone.
        time_ns: When it happened, in nanoseconds since 1970; that is before it was told, for a container that ended
            while nobody looked.
        namespace: Whose; "" for the store's own.
        type: "image", "container", "namespace", "gc" or "store".
        action: "created", "updated", "removed" (images, containers, namespaces), "started", "exited", "paused",
            "resumed", "renamed", "updated", "health_status" (containers), "freed" (gc), "rebuilt", "repaired" (store).
        name: The image's reference, the container's or namespace's name; "" otherwise.
        attributes: More, by type and action: digests and what brought an image in (``by``); a container's ``id``,
            ``image``, and at its end ``exit_code``, ``signal``, ``oom`` and ``reason`` ("exit", "signal" or "oom");
            what its health became as ``reason`` ("healthy" or "unhealthy"); its ``old_name`` before it
            was renamed; how much was freed; of a directory that others could enter, what it was.
    """

    cursor: str
    time_ns: int
    namespace: str
    type: EventType
    action: str
    name: str
    attributes: Mapping[str, Any]


class Filter(NamedTuple):
    """Which events are wanted: those whose type, action, name and reason are among these; empty is any.

    Attributes:
        types: See ``Event.type``.
        actions: See ``Event.action``.
        names: See ``Event.name``.
        containers: Names, ids, or beginnings of ids; events of anything else are not wanted then.
        reasons: Why a container ended, or what its health became; other events are not wanted then.
    """

    types: Collection[str] = ()
    actions: Collection[str] = ()
    names: Collection[str] = ()
    containers: Collection[str] = ()
    reasons: Collection[str] = ()

    def takes(self, event: Event) -> bool:
        """Whether it is wanted."""
        reason = event.attributes.get("reason")
        pairs = (
            *((self.types, event.type), (self.actions, event.action), (self.names, event.name)),
            (self.reasons, reason if event.action in _WITH_REASON else None),
        )
        return all(not wanted or value in wanted for wanted, value in pairs) and self._is_of_container(event)

    def _is_of_container(self, event: Event) -> bool:
        if not self.containers:
            return True
        container_id = str(event.attributes.get("id", ""))
        return event.type == "container" and any(
            wanted == event.name or (wanted and container_id.startswith(wanted)) for wanted in self.containers
        )


def read_events(
    rooms: Rooms,
    *,
    since: str | None,
    follow: bool,
    timeout: float | None,
    all_namespaces: bool,
    wanted: Filter,
) -> Iterator[Event]:
    """See ``Engine.events``. What is wrong with the arguments is told now, not at the first event."""
    if unknown := [name for name in wanted.types if name not in EVENT_TYPES]:
        raise InvalidError(
            f"invalid event type: {unknown[0]!r}: expected one of {', '.join(EVENT_TYPES)}",
            field="types",
            value=unknown[0],
        )
    namespace = None if all_namespaces else rooms.namespace
    if wanted.containers:
        # Of one that was renamed, what happened under its other names is wanted too.
        found = (rooms.database.containers.find(rooms.namespace, name) for name in wanted.containers)
        wanted = wanted._replace(containers=[*wanted.containers, *(record.id for record in found if record)])
    notice_all(rooms, namespace)
    last_gone, newest = _bounds(rooms, namespace)
    if since is None:
        position = newest if follow else last_gone
    else:
        position = _position(since, namespace)
        if position == 0:
            position = last_gone
        elif position > newest:
            raise _unknown(since, "this store has given out none like it")
        elif position < last_gone:
            raise _expired(since)
    return _walk(rooms, namespace, position, follow=follow, timeout=timeout, wanted=wanted)


def _walk(
    rooms: Rooms, namespace: str | None, position: int, *, follow: bool, timeout: float | None, wanted: Filter
) -> Iterator[Event]:
    deadline = None if timeout is None else time.monotonic() + timeout
    long_look = time.monotonic() + LONG_LOOK_SECONDS
    seen: dict[str, int] = {}
    while True:
        rows = _rows(rooms, namespace, position)
        if _bounds(rooms, namespace)[0] > position:  # after the rows: those that are missing went before
            raise _expired(_cursor_text(namespace, position))
        for row in rows:
            position = row[0] if namespace is not None else row[1]
            if wanted.takes(event := _event(row, namespace)):
                yield event
        if len(rows) == BATCH_EVENTS:
            continue
        now = time.monotonic()
        if not follow or (deadline is not None and now >= deadline):
            return
        pause(POLL_SECONDS if deadline is None else min(POLL_SECONDS, deadline - now))
        if now >= long_look:
            notice_all(rooms, namespace)
            long_look = now + LONG_LOOK_SECONDS
        else:
            notice_ends(rooms, namespace, seen)


def _rows(rooms: Rooms, namespace: str | None, position: int) -> list[EventRow]:
    if namespace is None:
        return rooms.database.events.after_of_all(position, limit=BATCH_EVENTS)
    return rooms.database.events.after(namespace, position, limit=BATCH_EVENTS)


def _bounds(rooms: Rooms, namespace: str | None) -> tuple[int, int]:
    if namespace is None:
        return rooms.database.events.bounds_of_all()
    return rooms.database.events.bounds(namespace)


def _event(row: EventRow, namespace: str | None) -> Event:
    import orjson

    number, among_all, time_ns, whose, kind, action, name, attributes = row
    return Event(
        cursor=_cursor_text(namespace, among_all if namespace is None else number),
        time_ns=time_ns,
        namespace=whose,
        type=next(known for known in EVENT_TYPES if known == kind),
        action=action,
        name=name,
        attributes=orjson.loads(attributes),
    )


def _cursor_text(namespace: str | None, position: int) -> str:
    return f"{_OF_ALL if namespace is None else ''}{position}"


def _position(cursor: str, namespace: str | None) -> int:
    if cursor == START:
        return 0
    of_all = cursor.startswith(_OF_ALL)
    digits = cursor.removeprefix(_OF_ALL)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(2**62))):
        raise _unknown(cursor, "expected one that an event had")
    if of_all != (namespace is None):
        raise _unknown(cursor, "it is " + ("of all namespaces" if of_all else "of one namespace"))
    return int(digits)


def _unknown(cursor: str, why: str) -> InvalidError:
    return InvalidError(
        f"invalid cursor: {cursor[:80]!r}: {why}",
        field="since",
        value=cursor,
        hint=f'"{START}" gives all events that are kept',
    )


def _expired(cursor: str) -> InvalidError:
    return InvalidError(
        f"expired cursor: {cursor}: events after it are not kept any more",
        field="since",
        value=cursor,
        hint=f'look at the store itself, then go on from "{START}", the oldest that is kept',
    )
