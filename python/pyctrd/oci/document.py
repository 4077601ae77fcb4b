"""JSON documents read field by field: every error names the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from pyctrd.errors import InvalidError

# Registries refuse larger ones (distribution-spec v1.1, "Pushing Manifests"); an attacker would not.
DOCUMENT_MAX_BYTES = 4 * 1024 * 1024
_VALUE_MAX_CHARS = 80
_SIZE_MAX = 2**63 - 1
# What nobody needs; Python's json can say of it which name stands twice, however deep it is called itself.
_NESTING_MAX = 100
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')


def invalid(field: str, value: object, expected: str) -> InvalidError:
    """The error for a field: where, what stood there, what should."""
    shown = repr(value)
    if len(shown) > _VALUE_MAX_CHARS:
        shown = shown[: _VALUE_MAX_CHARS - 1] + "…"
    return InvalidError(f"invalid document: {field}: {shown}: expected {expected}", field=field, value=shown)


def _refuse_repeated(body: bytes, values: Any, kind: str) -> None:
    """Refuse a document in one of whose objects a name stands twice.

    orjson takes the last of two, other parsers the first: one of us would see another document. Outside of strings
    there is a colon for each name; as many names are in the values, unless some were repeated.
    """
    if _STRING.sub(b"", body).count(b":") != _count_names(values, kind):
        import json  # to say which; loading it takes longer than to read a document

        json.loads(body, object_pairs_hook=_refuse_pairs)


def _count_names(values: Any, kind: str) -> int:
    count = 0
    level = [values]
    for _ in range(_NESTING_MAX):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                count += len(value)
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        if not inner:
            return count
        level = inner
    raise InvalidError(f"invalid {kind}: no JSON: nested too deep: expected at most {_NESTING_MAX}", field=kind)


def _refuse_pairs(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > 1:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise invalid(name[:_VALUE_MAX_CHARS], name, "each name once")
            seen.add(name)


def _decode(body: bytes, kind: str) -> Any:
    if len(body) > DOCUMENT_MAX_BYTES:
        raise InvalidError(
            f"invalid {kind}: {len(body)} bytes: expected at most {DOCUMENT_MAX_BYTES}",
            field=kind,
            value=len(body),
        )
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidError(f"invalid {kind}: no JSON: {error}", field=kind) from error
    _refuse_repeated(body, values, kind)
    return values


class Fields:
    """One JSON object under inspection.

    Args:
        values: The decoded object.
        path: Where it stands in its document; "" for the top.
    """

    __slots__ = ("path", "values")

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self.values = values
        self.path = path

    @classmethod
    def parse(cls, body: bytes, *, kind: str) -> Fields:
        """Decode a document whose top is an object and in which no name stands twice.

        Raises:
            InvalidError: Too large, no JSON, another type at the top, or a name stands twice in one object.
        """
        values = _decode(body, kind)
        if not isinstance(values, dict):
            raise invalid(kind, values, "an object")
        return cls(values)

    @classmethod
    def parse_list(cls, body: bytes, *, kind: str) -> list[Fields]:
        """Decode a document whose top is a list of objects.

        Raises:
            InvalidError: As ``parse``.
        """
        values = _decode(body, kind)
        if not isinstance(values, list):
            raise invalid(kind, values, "a list")
        return [cls.of(value, f"{kind}[{position}]") for position, value in enumerate(values)]

    @classmethod
    def of(cls, value: Any, path: str) -> Fields:
        """An object that stands at a path.

        Raises:
            InvalidError: It is no object.
        """
        if not isinstance(value, dict):
            raise invalid(path, value, "an object")
        return cls(value, path)

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        """Whether the field is there and not null: Go's encoders write null for what is empty."""
        return self.values.get(name) is not None

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise invalid(self.at(name), value, "a string")
        if "\0" in value:
            raise invalid(self.at(name), value, "a string without NUL")
        return value

    def size(self, name: str) -> int:
        """A number of bytes: 0 to 2^63-1."""
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _SIZE_MAX:
            raise invalid(self.at(name), value, "a number of bytes")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise invalid(self.at(name), value, "a whole number")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; nothing is an empty one."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise invalid(self.at(name), value, "a list of strings")
        for position, item in enumerate(value):
            if not isinstance(item, str) or "\0" in item:
                raise invalid(f"{self.at(name)}[{position}]", item, "a string without NUL")
        return tuple(value)

    def table(self, name: str) -> dict[str, str]:
        """An object of strings; nothing is an empty one."""
        value = self.values.get(name)
        if value is None:
            return {}
        for key, item in self.of(value, self.at(name)).values.items():
            if not isinstance(item, str):
                raise invalid(f"{self.at(name)}.{key}", item, "a string")
        return dict(value)

    def names(self, name: str) -> tuple[str, ...]:
        """The keys of an object used as a set, as Docker writes ports and volumes."""
        value = self.values.get(name)
        return () if value is None else tuple(self.of(value, self.at(name)).values)

    def object(self, name: str) -> Fields:
        """An object that must be there."""
        return self.of(self.values.get(name), self.at(name))

    def objects(self, name: str, *, most: int) -> list[Fields]:
        """A list of objects that must be there."""
        value = self.values.get(name)
        if not isinstance(value, list):
            raise invalid(self.at(name), value, "a list")
        if len(value) > most:
            raise invalid(self.at(name), len(value), f"at most {most} entries")
        return [self.of(item, f"{self.at(name)}[{position}]") for position, item in enumerate(value)]
