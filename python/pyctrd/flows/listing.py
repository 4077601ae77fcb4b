"""Which containers somebody wants to see: filters, as Docker's ``ps`` has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyctrd.errors import InvalidError
from pyctrd.flows.health import container_health
from pyctrd.flows.load import find_image
from pyctrd.flows.run import get_container
from pyctrd.flows.runs import notice
from pyctrd.oci.reference import Reference

if TYPE_CHECKING:
    from pyctrd.flows.rooms import Rooms
    from pyctrd.metadata.containers import ContainerRecord

KEYS = ("name", "id", "label", "status", "health", "exited", "ancestor", "image", "since", "before")
ALIVE = ("running", "paused", "restarting")
STATES = ("created", "running", "paused", "restarting", "stopped", "exited")
# Who asks for these wants containers that do not run as well.
_OF_ALL = ("status", "exited")
HEALTH = ("starting", "healthy", "unhealthy", "none")

SHORT_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{12,64}")

Takes = Callable[["ContainerRecord"], bool]


def list_containers(
    rooms: Rooms, *, everything: bool, filters: Mapping[str, str | Sequence[str]] | None
) -> list[ContainerRecord]:
    """See ``Containers.list``."""
    wanted = {key: [value] if isinstance(value, str) else list(value) for key, value in (filters or {}).items()}
    takers = [_taker(rooms, key, values) for key, values in sorted(wanted.items(), key=_cheapest) if values]
    if not everything and not any(wanted.get(key) for key in _OF_ALL):
        takers.append(lambda record: notice(rooms, record).state in ALIVE)
    found = rooms.database.containers.list(rooms.namespace)
    return [record for record in found if all(takes(record) for takes in takers)]


def _cheapest(item: tuple[str, Any]) -> bool:
    """Those that look at files come last."""
    return item[0] in (*_OF_ALL, "health")


def _taker(rooms: Rooms, key: str, values: Sequence[str]) -> Takes:
    """What takes the containers that fit one of a key's values; of labels all."""
    if key not in KEYS:
        raise InvalidError(f"invalid filter: {key!r}: expected one of {', '.join(KEYS)}", field="filters", value=key)
    takers = [_taker_of_one(rooms, key, value) for value in values]
    if key == "label":
        return lambda record: all(takes(record) for takes in takers)
    return lambda record: any(takes(record) for takes in takers)


def _taker_of_one(rooms: Rooms, key: str, value: str) -> Takes:
    if key in ("since", "before"):
        mark = get_container(rooms, value).created_ns
        return lambda record: record.created_ns > mark if key == "since" else record.created_ns < mark
    if key in ("ancestor", "image"):
        return _image(rooms, value)
    if key == "label":
        return lambda record: _has_label(record.labels, value)
    if key == "status":
        state = _state(value)
        return lambda record: notice(rooms, record).state == state
    if key in ("health", "exited"):
        return _health(rooms, value) if key == "health" else _exited(rooms, value)
    pattern = _pattern(key, value)
    return lambda record: pattern.search(record.name if key == "name" else record.id) is not None


def _pattern(key: str, value: str) -> re.Pattern[str]:
    try:
        return re.compile(value)
    except re.error as error:
        raise InvalidError(
            f"invalid filter: {key}={value!r}: no regular expression: {error}", field="filters", value=value
        ) from error


def _has_label(labels: Mapping[str, str], wanted: str) -> bool:
    key, sign, value = wanted.partition("=")
    return key in labels and (not sign or labels[key] == value)


def _state(value: str) -> str:
    if value not in STATES:
        raise InvalidError(
            f"invalid filter: status={value!r}: expected one of {', '.join(STATES)}", field="filters", value=value
        )
    return "stopped" if value == "exited" else value


def _health(rooms: Rooms, value: str) -> Takes:
    """Those that run and are of this health, or that have no check."""
    if value not in HEALTH:
        raise InvalidError(
            f"invalid filter: health={value!r}: expected one of {', '.join(HEALTH)}", field="filters", value=value
        )

    def takes(record: ContainerRecord) -> bool:
        health = container_health(rooms, record)
        if health is None or value == "none":
            return health is None and value == "none"
        return health.status == value and notice(rooms, record).state == "running"

    return takes


def _exited(rooms: Rooms, value: str) -> Takes:
    code = _code(value)
    return lambda record: (ended := notice(rooms, record).exit) is not None and ended.exit_code == code


def _code(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 3):
        raise InvalidError(f"invalid filter: exited={value!r}: expected an exit code", field="filters", value=value)
    return int(value)


def _image(rooms: Rooms, value: str) -> Takes:
    """Containers made from an image: by its name, then or now, or by its digest or the beginning of that."""
    names = {value, _full_name(value)}
    found = find_image(rooms, value)
    digest = "" if found is None else found.manifest_digest
    short = f"sha256:{value.removeprefix('sha256:')}" if SHORT_DIGEST.fullmatch(value) else ""

    def takes(record: ContainerRecord) -> bool:
        of_digest = record.image_digest == digest or bool(short and record.image_digest.startswith(short))
        return of_digest or record.image_name in names

    return takes


def _full_name(value: str) -> str:
    try:
        return str(Reference.parse(value))
    except InvalidError:
        return value
