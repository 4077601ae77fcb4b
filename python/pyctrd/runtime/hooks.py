"""Hooks that a host has for its containers: directories of JSON files, as Podman and CRI-O read them.

Spec:
    oci-hooks(5) of containers/common, "1.0.0 Hook Schema"; runtime-spec v1.1 config.md, "POSIX-platform Hooks".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from pyctrd.errors import InvalidError, NotFoundError, UnsupportedError
from pyctrd.oci.value import NamedTuple

VERSION = "1.0.0"
STAGES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
# Podman runs these itself, to change the spec: no runtime knows of them.
_OTHER_STAGES = ("precreate",)
FILE_MAX_BYTES = 1 << 20
_KEYS = {
    "": ("version", "hook", "when", "stages"),
    "hook": ("path", "args", "env", "timeout"),
    "when": ("always", "annotations", "commands", "hasBindMounts"),
}


class _When(NamedTuple):
    """For which containers: all that is said must be so.

    Attributes:
        always: For all, or none; None says nothing.
        annotations: Expressions for a key and its value; each pair must be found.
        commands: Expressions, one of which must be found in the program's name.
        has_bind_mounts: With a part of the host, or a volume; None says nothing.
    """

    always: bool | None
    annotations: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]
    commands: tuple[re.Pattern[str], ...]
    has_bind_mounts: bool | None

    def fits(self, program: str, annotations: Mapping[str, str], *, has_bind_mounts: bool) -> bool:
        """Whether a container is one of them."""
        if self.always is False:
            return False
        # As Podman's own reader has it, also where it says false: then for no container.
        if self.has_bind_mounts is not None and not (self.has_bind_mounts and has_bind_mounts):
            return False
        for key, value in self.annotations:
            if not any(key.search(name) and value.search(text) for name, text in annotations.items()):
                return False
        return not self.commands or any(command.search(program) for command in self.commands)


class HostHook(NamedTuple):
    """One file.

    Attributes:
        entry: As in the spec's ``hooks``.
        when: For which containers.
        stages: Under which names of the spec.
    """

    entry: Mapping[str, Any]
    when: _When
    stages: tuple[str, ...]


def read_hooks(directories: Iterable[str]) -> list[HostHook]:
    """All hooks of some directories, by the names of their files; a later directory's file replaces one of its name.

    Raises:
        NotFoundError: A directory is missing, or a hook's program.
        InvalidError: A file is no hook.
        UnsupportedError: It is one of another version, or for a stage that no runtime has.
    """
    files: dict[str, Path] = {}
    for directory in map(Path, directories):
        if not directory.is_dir():
            raise NotFoundError(
                f"hooks directory not found: {directory}", kind="directory", name=str(directory), hint="leave it out"
            )
        files |= {path.name: path for path in directory.iterdir() if path.suffix == ".json"}
    return [_read(files[name]) for name in sorted(files)]


def choose_hooks(
    hooks: Iterable[HostHook], *, program: str, annotations: Mapping[str, str], has_bind_mounts: bool
) -> dict[str, list[Mapping[str, Any]]]:
    """The spec's ``hooks`` for one container.

    Args:
        hooks: Of the host.
        program: The first word of its command.
        annotations: Its own.
        has_bind_mounts: Whether a part of the host, or a volume, is mounted in it.
    """
    chosen: dict[str, list[Mapping[str, Any]]] = {}
    for hook in hooks:
        if hook.when.fits(program, annotations, has_bind_mounts=has_bind_mounts):
            for stage in hook.stages:
                chosen.setdefault(stage, []).append(hook.entry)
    return chosen


def _read(path: Path) -> HostHook:
    try:
        with path.open("rb") as file:
            document = orjson.loads(file.read(FILE_MAX_BYTES))
    except orjson.JSONDecodeError as error:
        raise _wrong(path, f"no JSON: {error}") from error
    except OSError as error:
        raise NotFoundError(f"hook: {path}: {error.strerror}", kind="file", name=str(path)) from error
    _check_keys(path, document, "")
    if document.get("version") != VERSION:
        raise UnsupportedError(
            f"unsupported: hook: {path}: version {document.get('version')!r}",
            feature=f"hooks of version {document.get('version')!r}",
            needs=f"version {VERSION}",
        )
    stages = document.get("stages")
    if not isinstance(stages, list) or not stages:
        raise _wrong(path, f"stages: expected some of {', '.join(STAGES)}")
    for stage in stages:
        if stage in _OTHER_STAGES:
            raise UnsupportedError(
                f"unsupported: hook: {path}: stage {stage}", feature=f"hooks at {stage}", needs=" or ".join(STAGES)
            )
        if stage not in STAGES:
            raise _wrong(path, f"stages: {stage!r}: expected some of {', '.join(STAGES)}")
    return HostHook(_entry(path, document.get("hook")), _when(path, document.get("when")), tuple(dict.fromkeys(stages)))


def _entry(path: Path, hook: Any) -> Mapping[str, Any]:
    _check_keys(path, hook, "hook")
    program = hook.get("path")
    if not isinstance(program, str) or not program.startswith("/"):
        raise _wrong(path, f"hook.path: expected an absolute path, got {program!r}")
    for name in ("args", "env"):
        words = hook.get(name, [])
        if not isinstance(words, list) or not all(isinstance(word, str) and "\0" not in word for word in words):
            raise _wrong(path, f"hook.{name}: expected a list of texts")
    timeout = hook.get("timeout", 1)
    if not isinstance(timeout, int) or isinstance(timeout, bool) or timeout < 1:
        raise _wrong(path, f"hook.timeout: expected whole seconds above 0, got {timeout!r}")
    if not Path(program).is_file():
        raise NotFoundError(f"hook: {path}: hook.path: no such program: {program}", kind="file", name=program)
    return dict(hook)


def _when(path: Path, when: Any) -> _When:
    _check_keys(path, when, "when")
    if not when:
        raise _wrong(path, f"when: expected some of {', '.join(_KEYS['when'])}")
    for name in ("always", "hasBindMounts"):
        if not isinstance(when.get(name, True), bool):
            raise _wrong(path, f"when.{name}: expected true or false")
    annotations, commands = when.get("annotations", {}), when.get("commands", [])
    if not isinstance(annotations, dict):
        raise _wrong(path, "when.annotations: expected an object of expressions")
    if not isinstance(commands, list):
        raise _wrong(path, "when.commands: expected a list of expressions")
    return _When(
        when.get("always"),
        tuple(
            (_expression(path, "annotations", key), _expression(path, "annotations", value))
            for key, value in annotations.items()
        ),
        tuple(_expression(path, "commands", text) for text in commands),
        when.get("hasBindMounts"),
    )


def _expression(path: Path, name: str, text: Any) -> re.Pattern[str]:
    if not isinstance(text, str):
        raise _wrong(path, f"when.{name}: {text!r}: expected a text")
    try:
        return re.compile(text)
    except re.error as error:
        raise _wrong(path, f"when.{name}: {text!r}: no expression: {error}") from error


def _check_keys(path: Path, value: Any, where: str) -> None:
    """Refuse what is no object, and what would be passed over: a wrong key may mean "for all containers"."""
    known: Sequence[str] = _KEYS[where]
    if not isinstance(value, dict):
        raise _wrong(path, f"{where or 'the file'}: expected an object")
    for key in value:
        if key not in known:
            raise _wrong(path, f"{where}{'.' if where else ''}{key}: unknown, expected {', '.join(known)}")


def _wrong(path: Path, why: str) -> InvalidError:
    return InvalidError(f"invalid hook: {path}: {why}", field="hooks_dirs", value=str(path))
