"""What the host forbids is clamped, as containerd's ``restrict_oom_score_adj`` does, and said in the log.

A host may be root without CAP_SYS_RESOURCE: a container inside another one, say. The runtime would fail
there on a limit that only makes the container's life easier.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Self

from pyctrd.errors import InvalidError
from pyctrd.oci.value import NamedTuple

CAP_SYS_RESOURCE = 24
OOM_SCORE_ADJ_MIN = -1000
OOM_SCORE_ADJ_MAX = 1000
INFINITY = 2**64 - 1
ID_MAP = Path("/proc/self/uid_map")
_ALL_IDS = ["0", "0", "4294967295"]


class Rlimit(NamedTuple):
    """A resource limit of the container's processes.

    Attributes:
        name: "nofile", or "RLIMIT_NOFILE".
        soft: The limit in force; -1 is no limit.
        hard: What it may be raised to; -1 is no limit.
    """

    name: str
    soft: int
    hard: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``NAME=SOFT[:HARD]``; "unlimited" or -1 is no limit.

        Raises:
            InvalidError: It does not have this form.
        """
        name, _, values = text.partition("=")
        soft, _, hard = values.partition(":")
        numbers = [-1 if value in ("unlimited", "-1") else value for value in (soft, hard or soft)]
        if not name.isalpha() or not all(value == -1 or str(value).isdigit() for value in numbers):
            raise InvalidError(
                f"invalid rlimit: {text!r}: expected NAME=SOFT[:HARD] with numbers", field="rlimit", value=text
            )
        return cls(name, int(numbers[0]), int(numbers[1]))

    @property
    def kind(self) -> str:
        """The spec's name: ``RLIMIT_NOFILE``."""
        upper = self.name.upper()
        return upper if upper.startswith("RLIMIT_") else f"RLIMIT_{upper}"


def can_raise_limits() -> bool:
    """Whether this process has CAP_SYS_RESOURCE on the host: in a user namespace it raises nothing."""
    if is_in_user_namespace():
        return False
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1)
    return False


def is_in_user_namespace() -> bool:
    """Whether this process's user namespace is not the host's (user_namespaces(7))."""
    return ID_MAP.read_text().split() != _ALL_IDS


def clamp_oom_score_adj(asked: int, *, current: int | None = None, may_raise: bool | None = None) -> int:
    """The score that may be set: without CAP_SYS_RESOURCE, none below this process's own.

    Args:
        asked: -1000 to 1000.
        current: This process's; None reads it.
        may_raise: Whether the host allows it; None looks.

    Raises:
        InvalidError: It is out of range.
    """
    if not OOM_SCORE_ADJ_MIN <= asked <= OOM_SCORE_ADJ_MAX:
        raise InvalidError(
            f"oom_score_adj: expected {OOM_SCORE_ADJ_MIN} to {OOM_SCORE_ADJ_MAX}, got {asked}",
            field="oom_score_adj",
            value=asked,
        )
    if can_raise_limits() if may_raise is None else may_raise:
        return asked
    least = int(Path("/proc/self/oom_score_adj").read_text()) if current is None else current
    if asked < least:
        _say_clamped("oom_score_adj", asked, least)
        return least
    return asked


def clamp_rlimit(asked: Rlimit, *, host_hard: int | None = None, may_raise: bool | None = None) -> dict[str, object]:
    """The spec's entry for a limit: without CAP_SYS_RESOURCE, none above this process's hard one.

    Args:
        asked: What the user wants.
        host_hard: This process's hard limit, -1 for none; None reads it.
        may_raise: Whether the host allows it; None looks.

    Raises:
        InvalidError: There is no such limit, or soft is above hard.
    """
    number = getattr(resource, asked.kind, None)
    if not isinstance(number, int):
        raise InvalidError(f"rlimit: {asked.name}: no such limit", field="rlimit", value=asked.name)
    soft, hard = (INFINITY if value < 0 else value for value in (asked.soft, asked.hard))
    if soft > hard:
        raise InvalidError(
            f"rlimit: {asked.name}: soft {asked.soft} is above hard {asked.hard}", field="rlimit", value=asked.name
        )
    most = resource.getrlimit(number)[1] if host_hard is None else host_hard
    most = INFINITY if most < 0 else most
    if hard > most and not (can_raise_limits() if may_raise is None else may_raise):
        _say_clamped(asked.kind, hard, most)
        hard = most
    return {"type": asked.kind, "soft": min(soft, hard), "hard": hard}


def _say_clamped(what: str, asked: int, allowed: int) -> None:
    import logging

    logging.getLogger("pyctrd.runtime").debug("%s clamped: asked %d, the host allows %d", what, asked, allowed)
