"""Changes to an image's config: what ``commit`` is told to make otherwise than the image has it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, Self

import orjson

from pyctrd.errors import InvalidError
from pyctrd.oci.value import dataclass

_SHELL = ("/bin/sh", "-c")


@dataclass(frozen=True, slots=True)
class ConfigChanges:
    """What of a config is to be otherwise; what is left out stays.

    Attributes:
        cmd: Replaces the words after the entrypoint; () takes them away.
        entrypoint: Replaces the first words; () takes them away.
        env: Set or added, by name.
        user: ``user[:group]``.
        working_dir: Absolute.
        labels: Set or added, by key.
        exposed_ports: Added: ``port[/protocol]``.
        volumes: Added: paths.
        stop_signal: Name or number.

    Spec:
        image-spec v1.1 config.md.
    """

    cmd: Sequence[str] | None = None
    entrypoint: Sequence[str] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    working_dir: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    exposed_ports: Sequence[str] = ()
    volumes: Sequence[str] = ()
    stop_signal: str | None = None

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Self:
        """Read instructions as a Dockerfile has them: ``CMD ["a", "b"]``, ``ENV NAME=value``, ``USER app``.

        Known are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR.

        Raises:
            InvalidError: An instruction is none of these, or cannot be read.
        """
        found: dict[str, Any] = {"env": {}, "labels": {}, "exposed_ports": (), "volumes": ()}
        for line in lines:
            name, _, rest = line.strip().partition(" ")
            key, read = _INSTRUCTIONS.get(name.upper(), ("", None))
            value = rest.strip()
            if read is None or not value:
                raise _invalid(line, f"expected one of {', '.join(_INSTRUCTIONS)}, and a value")
            said: Any = read(value, line)
            if key in ("env", "labels"):
                found[key] |= said
            else:
                found[key] = (*found[key], *said) if key in ("exposed_ports", "volumes") else said
        return cls(**found)

    def apply(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """The ``config`` object of an image's config, with the changes."""
        changed = dict(run)
        values = {"User": self.user, "WorkingDir": self.working_dir, "StopSignal": self.stop_signal}
        changed |= {key: value for key, value in values.items() if value is not None}
        for key, words in (("Entrypoint", self.entrypoint), ("Cmd", self.cmd)):
            if words is not None:
                changed[key] = list(words)
        if self.env:
            env = dict(item.partition("=")[::2] for item in changed.get("Env") or ())
            changed["Env"] = [f"{name}={value}" for name, value in (env | dict(self.env)).items()]
        if self.labels:
            changed["Labels"] = {**(changed.get("Labels") or {}), **self.labels}
        for key, names in (("ExposedPorts", self.exposed_ports), ("Volumes", self.volumes)):
            if names:
                changed[key] = {**(changed.get(key) or {}), **{name: {} for name in names}}
        return changed


def _text(value: str, _line: str) -> str:
    return value


def _words(value: str, line: str) -> tuple[str, ...]:
    """A JSON list is the words themselves; anything else is the shell's."""
    return _listed(value, line) if value.startswith("[") else (*_SHELL, value)


def _names(value: str, line: str) -> tuple[str, ...]:
    return _listed(value, line) if value.startswith("[") else tuple(value.split())


def _listed(value: str, line: str) -> tuple[str, ...]:
    try:
        words = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _invalid(line, f"no JSON: {error}") from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _invalid(line, "expected a list of strings")
    return tuple(words)


def _pairs(value: str, line: str) -> dict[str, str]:
    """``NAME=value`` pairs with a shell's quotes, or one ``NAME value``."""
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise _invalid(line, str(error)) from error
    if "=" not in words[0]:
        name, _, rest = value.partition(" ")
        words = [f"{name}={rest.strip()}"] if rest else words
    if not all(word.partition("=")[0] and "=" in word for word in words):
        raise _invalid(line, "expected NAME=value")
    return {name: text for name, _, text in (word.partition("=") for word in words)}


_INSTRUCTIONS = {
    "CMD": ("cmd", _words),
    "ENTRYPOINT": ("entrypoint", _words),
    "ENV": ("env", _pairs),
    "EXPOSE": ("exposed_ports", _names),
    "LABEL": ("labels", _pairs),
    "STOPSIGNAL": ("stop_signal", _text),
    "USER": ("user", _text),
    "VOLUME": ("volumes", _names),
    "WORKDIR": ("working_dir", _text),
}


def _invalid(line: str, reason: str) -> InvalidError:
    return InvalidError(f"invalid change: {line[:200]!r}: {reason}", field="changes", value=line[:200])
