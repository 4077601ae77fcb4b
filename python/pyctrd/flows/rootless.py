"""Containers of an ordinary user: the store and they are in a user namespace of that user's, in which he is root."""

from __future__ import annotations

import os

from pyctrd.errors import UnsupportedError
from pyctrd.flows.settings import ROOT_VARIABLE, STATE_VARIABLE, default_root, default_state
from pyctrd.runtime.rootless import FEATURE, enter


def enter_own_namespace() -> bool:
    """See ``pyctrd.enter_user_namespace``."""
    if os.geteuid() == 0:
        return False
    root, state = default_root(), default_state()
    enter(state)
    # There the user is 0: the defaults, of this process and of those that it starts, stay the user's.
    os.environ[ROOT_VARIABLE], os.environ[STATE_VARIABLE] = str(root), str(state)
    return True


def refuse_without_namespace() -> None:
    """Tell an ordinary user what running containers takes.

    Raises:
        UnsupportedError: In any case: something is missing, or only the call that enters the namespace.
    """
    from pyctrd.runtime.idmaps import find_id_maps

    find_id_maps(feature=FEATURE)
    needs = "a user namespace, which this process has not entered"
    raise UnsupportedError(
        f"unsupported: {FEATURE}: needs {needs}",
        feature=FEATURE,
        needs=needs,
        hint="call pyctrd.enter_user_namespace() first, or start the program by pyctrd unshare",
    )
