"""Nothing that the engine has is missing here: each public class, name and parameter."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import pyctrd
from pyctrd import aio
from tests.test_exports import GIVEN, PROMISED, loaded_by

# The classes whose objects an engine hands out and whose calls may wait; all else are values.
FACES = sorted(GIVEN | {"Engine", "PullResult"})
# Public names of the engine's that are not here, by class, each with its reason beside it.
LEFT_OUT: dict[str, set[str]] = {}
# What is here alone: an asynchronous iterator's own name for its end.
OWN = {"aclose"}
# Methods that wait for nothing, or return what is awaited or iterated over.
PLAIN = {
    *(
        "Container.log_lines",
        "Container.stats_stream",
        "Container.copy_from",
        "Engine.events",
        "Image.diff",
        "Image.mounted",
        "Image.walk",
        "Repository.tags",
    ),
    *("Images.follow_pull", "Images.pull_many", "PullMany.progress", "PullResult.get", "Registries.repository"),
}


def names(kind: type) -> set[str]:
    """Its public names; those that a constructor sets included."""
    found = {name for name in dir(kind) if not name.startswith("_")}
    return found | ({"images", "leases"} if kind is pyctrd.Engine else set())


def methods(name: str) -> Iterator[tuple[str, Any, Any]]:
    """The public methods of a class, here and there."""
    ours, theirs = getattr(aio, name), getattr(pyctrd, name)
    for method in sorted(names(theirs) - LEFT_OUT.get(name, set())):
        found = inspect.getattr_static(theirs, method, None)
        if inspect.isfunction(found):
            yield method, getattr(ours, method), getattr(theirs, method)


def parameters(function: Any) -> list[tuple[str, Any, Any, str]]:
    """Name, kind, default and type of each; types of the engine's are called alike."""
    return [
        (name, one.kind, one.default, str(one.annotation).replace("pyctrd.", ""))
        for name, one in inspect.signature(function).parameters.items()
    ]


def test_every_class_that_an_engine_gives_is_here() -> None:
    assert [name for name in FACES if name not in aio.__all__] == []
    assert set(PROMISED) <= set(FACES)
    assert set(aio.__all__) - set(FACES) == {"Stream", "diff", "unpack", "verify"}


@pytest.mark.parametrize("name", FACES)
def test_every_name_of_a_class_is_here(name: str) -> None:
    theirs = names(getattr(pyctrd, name))
    assert theirs - names(getattr(aio, name)) == LEFT_OUT.get(name, set())
    assert names(getattr(aio, name)) - theirs - OWN == set()


@pytest.mark.parametrize("name", FACES)
def test_every_method_has_the_same_parameters_and_is_awaited(name: str) -> None:
    for method, ours, theirs in methods(name):
        assert parameters(ours) == parameters(theirs), f"{name}.{method}"
        assert inspect.iscoroutinefunction(ours) != (f"{name}.{method}" in PLAIN), f"{name}.{method}"
        assert inspect.getdoc(ours), f"{name}.{method}"


def test_an_engine_is_made_with_the_same_arguments() -> None:
    assert parameters(aio.Engine.__init__) == parameters(pyctrd.Engine.__init__)


@pytest.mark.parametrize("name", FACES)
def test_what_is_read_there_is_read_here(name: str) -> None:
    ours, theirs = getattr(aio, name), getattr(pyctrd, name)
    for found in sorted(names(theirs)):
        if isinstance(inspect.getattr_static(theirs, found, None), property):
            assert isinstance(inspect.getattr_static(ours, found), property), f"{name}.{found}"


@pytest.mark.parametrize("name", FACES)
def test_context_managers_are_asynchronous_ones(name: str) -> None:
    ours, theirs = getattr(aio, name), getattr(pyctrd, name)
    assert hasattr(theirs, "__enter__") <= hasattr(ours, "__aenter__")
    assert hasattr(theirs, "__next__") <= hasattr(ours, "__anext__")
    assert not hasattr(ours, "__enter__")


@pytest.mark.parametrize("name", ["diff", "unpack", "verify"])
def test_functions_have_the_same_parameters(name: str) -> None:
    assert parameters(getattr(aio, name)) == parameters(getattr(pyctrd, name))
    assert inspect.iscoroutinefunction(getattr(aio, name))


def test_the_package_alone_loads_no_event_loop() -> None:
    assert loaded_by("import pyctrd; pyctrd.Engine").isdisjoint({"asyncio", "pyctrd.aio"})
    assert {"asyncio", "pyctrd.aio"} <= loaded_by("import pyctrd; pyctrd.aio.Engine")
    # What containers, servers and the command line need is loaded when it is used.
    assert loaded_by("from pyctrd import aio").isdisjoint({"aiohttp", "click", "rich", "sqlite3", "pyctrd.runtime"})
