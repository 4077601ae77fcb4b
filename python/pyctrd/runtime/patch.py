"""What the caller changes of a ``config.json`` himself, last of all.

Spec:
    RFC 7396, JSON Merge Patch; runtime-spec v1.1 config.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyctrd.errors import InvalidError

# What the engine needs to know, and what a runtime would refuse in words of Go's JSON decoder.
_FORMS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "ociVersion": ("a version", lambda value: isinstance(value, str) and value[:1].isdigit()),
    "process": ("an object", lambda value: isinstance(value, dict)),
    "process.args": ("words", lambda value: _texts(value) and bool(value)),
    "process.env": ("NAME=value entries", lambda value: value is None or _texts(value)),
    "process.cwd": ("an absolute path", lambda value: isinstance(value, str) and value.startswith("/")),
    "process.user": ("an object", lambda value: value is None or isinstance(value, dict)),
    "process.capabilities": ("lists of names", lambda value: value is None or _lists(value)),
    "root": ("an object", lambda value: isinstance(value, dict)),
    "mounts": ("objects with a destination", lambda value: value is None or _objects(value, "destination")),
    "hooks": ("lists of objects", lambda value: value is None or _hooks(value)),
    "annotations": ("an object of texts", lambda value: value is None or _text_object(value)),
    "linux": ("an object", lambda value: isinstance(value, dict)),
    "linux.namespaces": ("objects with a type", lambda value: value is None or _objects(value, "type")),
    "linux.devices": ("objects with a path", lambda value: value is None or _objects(value, "path")),
    "linux.resources": ("an object", lambda value: value is None or isinstance(value, dict)),
    "linux.sysctl": ("an object of texts", lambda value: value is None or _text_object(value)),
}
# What the shim and the engine rely on.
_KEPT = ("root.path", "process.terminal", "linux.cgroupsPath")


def patch_spec(spec: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A spec, changed by a merge patch, or replaced by a whole spec: one with ``ociVersion``, ``process`` and ``root``.

    The root's path, the terminal and the control group stay what they are: give them as they are, or not at all.

    Raises:
        InvalidError: What comes out is no spec; ``field`` says where.
    """
    if not isinstance(patch, Mapping):
        raise InvalidError("spec_patch: expected an object", field="spec_patch", value=type(patch).__name__)
    whole = {"ociVersion", "process", "root"} <= patch.keys()
    made: dict[str, Any] = merge_patch({} if whole else spec, patch)
    for path, (expected, is_right) in _FORMS.items():
        if not is_right(_at(made, path)):
            raise InvalidError(f"spec_patch: {path}: expected {expected}", field=path, value=_at(made, path))
    for path in _KEPT:
        before, now = _at(spec, path), _at(made, path)
        if whole and (now is None or (path == "root.path" and now == "rootfs")):
            parent, _, key = path.partition(".")
            made[parent][key] = before
        elif now != before:
            raise InvalidError(f"spec_patch: {path}: has to stay {before!r}, got {now!r}", field=path, value=now)
    return made


def check_hooks(hooks: Mapping[str, Any]) -> dict[str, Any]:
    """The spec's ``hooks``.

    Raises:
        InvalidError: There is no such hook, or one has no absolute path.
    """
    made = {name: [dict(hook) for hook in entries] for name, entries in hooks.items()}
    if not _hooks(made):
        raise InvalidError(
            f"hooks: expected lists of objects with an absolute path, of {', '.join(_HOOKS)}",
            field="hooks",
            value=", ".join(map(str, hooks)),
        )
    return made


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: objects are merged, null takes away, all else replaces. Neither argument is changed."""
    if not isinstance(patch, Mapping):
        return patch
    made = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merge_patch(made.get(key), value)
    return made


_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


def _at(document: Any, path: str) -> Any:
    for key in path.split("."):
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and "\0" not in text for text in value)


def _lists(value: Any) -> bool:
    return isinstance(value, dict) and all(_texts(names) for names in value.values())


def _objects(value: Any, key: str) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict) and isinstance(entry.get(key), str) for entry in value
    )


def _text_object(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _hooks(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name in _HOOKS and _objects(entries, "path") and all(entry["path"].startswith("/") for entry in entries)
        for name, entries in value.items()
    )
