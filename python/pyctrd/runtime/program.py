"""Runtimes by name, as a file or the caller has them, and what is wrong with one that does not work."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyctrd.errors import InvalidError, NotFoundError, UnsupportedError
from pyctrd.runtime.runc import Program

# A runtime answers within milliseconds; a shell that reads its input would never.
VERSION_SECONDS = 20.0
# The oldest that start containers as they are asked to: before these `run --detach` with a pid file, or the answers to
# `kill` and `delete`, were others.
OLDEST = {"runc": (1, 0, 0), "crun": (1, 0, 0), "youki": (0, 3, 0)}
# Whose `exec` leaves what it starts outside the container's user namespace, as root of the host's; youki 0.7's does.
EXEC_OUTSIDE = ("youki",)
FILE_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
# "runc version 1.1.5+ds1", "crun version 1.8.1", "youki version: 0.7.0", "runsc version release-20240102.0".
_VERSION = re.compile(r"(?P<name>[\w.+-]+) version:? v?(?P<version>\S+)")
_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(-rc)?")
_LINE_CHARS = 80


def read_runtimes(path: Path) -> dict[str, Program]:
    """The runtimes that a file names, in the form of ``runtimes`` in Docker's ``daemon.json``.

    That is ``{"NAME": {"path": "/path", "runtimeArgs": ["--word"]}}``, or ``{"runtimes": {…}}`` around it.

    Raises:
        NotFoundError: There is no such file.
        InvalidError: It does not have this form.
    """
    import orjson

    try:
        with path.open("rb") as file:
            document = orjson.loads(file.read(FILE_MAX_BYTES))
    except OSError as error:
        raise NotFoundError(f"runtimes: {path}: {error.strerror}", kind="file", name=str(path)) from error
    except orjson.JSONDecodeError as error:
        raise InvalidError(f"runtimes: {path}: no JSON: {error}", field="runtimes", value=str(path)) from error
    if isinstance(document, dict) and isinstance(document.get("runtimes"), dict):
        document = document["runtimes"]
    if not isinstance(document, dict):
        raise InvalidError(f"runtimes: {path}: expected an object", field="runtimes", value=str(path))
    try:
        return named_programs(document)
    except InvalidError as error:
        raise InvalidError(f"{error}, in {path}", field="runtimes", value=str(path)) from error


def named_programs(given: Mapping[str, Any]) -> dict[str, Program]:
    """Runtimes by their names.

    Args:
        given: For each a path, or an object with ``path`` and perhaps ``args``, which Docker calls ``runtimeArgs``.

    Raises:
        InvalidError: It does not have this form.
    """
    return {name: _program(name, value) for name, value in given.items()}


def _program(name: str, value: Any) -> Program:
    def wrong(why: str) -> InvalidError:
        return InvalidError(f"runtimes: {name}: {why}", field="runtimes", value=name)

    if not _NAME.fullmatch(name):
        raise wrong("expected a name of letters, digits, dots and dashes")
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, Mapping) or set(value) - {"path", "args", "runtimeArgs"}:
        raise wrong("expected a path, or an object with path and args")
    path, args = value.get("path"), value.get("args", value.get("runtimeArgs", ()))
    if not isinstance(path, str) or not path:
        raise wrong(f"path: expected a path or a program's name, got {path!r}")
    if isinstance(args, str) or not all(isinstance(word, str) and "\0" not in word for word in args):
        raise wrong("args: expected a list of texts")
    return Program(str(Path(path).absolute()) if "/" in path else path, tuple(args))


def read_version(path: str) -> tuple[str, str]:
    """What a runtime calls itself, and its version, as it says.

    Args:
        path: Absolute.

    Raises:
        UnsupportedError: It cannot be executed here, or answers as no OCI runtime does, or is too old.
    """
    answer = _ask(path)
    found = _VERSION.match(answer)
    if found is None:
        told = answer.partition("\n")[0].strip()[:_LINE_CHARS]
        raise _unusable(path, f"it is no OCI runtime: it answers --version with {told!r}", "an OCI runtime")
    name, version = found["name"], found["version"]
    oldest, numbers = OLDEST.get(name), _NUMBERS.match(version)
    if oldest is not None and numbers is not None:
        release = tuple(int(number or 0) for number in numbers.group(1, 2, 3))
        # A candidate of the oldest release is older than that.
        if (release, not numbers[4]) < (oldest, True):
            needs = f"{name} {'.'.join(map(str, oldest))} or later"
            raise _unusable(path, f"{name} {version} is too old: expected {needs}", needs)
    return name, version


def refuse_exec_outside(name: str) -> None:
    """Refuse a process beside the own one of a container with a user namespace, where it would not be in that.

    Args:
        name: What the runtime calls itself.

    Raises:
        UnsupportedError: It would be root of the host.
    """
    if name in EXEC_OUTSIDE:
        raise UnsupportedError(
            f"unsupported: exec and health checks with a user namespace: {name} starts them outside of it",
            feature="exec and health checks with a user namespace",
            needs="a runtime whose exec enters it: runc, crun",
            hint="choose another runtime, or leave out --userns, or the health check: --no-healthcheck",
        )


def _ask(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=VERSION_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        why = f"it does not answer --version within {VERSION_SECONDS:.0f} seconds"
        raise _unusable(path, why, "an OCI runtime") from error
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            machine = os.uname().machine
            why = f"it is no program for this machine, which is {machine}"
            raise _unusable(path, why, f"a program for {machine}") from error
        if error.errno == errno.ENOENT:  # the file is there: what it names as its loader or interpreter is not
            raise _unusable(path, "its loader or interpreter is missing", "what it is linked with") from error
        raise _unusable(path, str(error.strerror), "a program that can be executed") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().partition("\n")[0][:_LINE_CHARS]
        return f"status {done.returncode}: {said}" if said else f"status {done.returncode}"
    return done.stdout.decode("utf-8", "replace")


def _unusable(path: str, why: str, needs: str) -> UnsupportedError:
    return UnsupportedError(
        f"runtime not usable: {path}: {why}",
        feature=f"the runtime {path}",
        needs=needs,
        hint="install another one, or choose it: --runtime, PYCTRD_RUNTIME",
    )
