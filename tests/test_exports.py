"""The public names: that they are there, that their types can be looked up, and that importing them is cheap."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import pyctrd
from pyctrd import _core, errors

# DESIGN.md, "Public API", as far as it is delivered.
PROMISED = {
    "Engine": (
        "images containers content registry namespaces leases volumes namespace info check events metrics gc df stages "
        "serve_registry close leave"
    ),
    "Images": "pull follow_pull pull_many load save push copy tag convert get find list remove unmount close",
    "PullMany": "progress close",
    "Transfer": "result close is_over",
    "PullResult": "reference image error get",
    "Image": (
        "name digest manifest_digest platform platforms created_ns manifest config size_bytes read_file open stat "
        "lstat walk diff mount mounted"
    ),
    "Containers": "create run get find list stats restore_policies",
    "Container": (
        "id name image_name command labels created_ns restart_policy status start start_attached attach wait logs "
        "log_lines kill stop restart rename checkpoint restore "
        "pause resume update stats stats_stream top inspect diff commit delete "
        "exec exec_output get_exec execs copy_to copy_from copy_file_to copy_file_from export "
        "fork snapshot snapshots rollback delete_snapshot health wait_healthy run_health_check"
    ),
    "Process": "id pid stdin stdout stderr wait poll communicate kill resize attach close",
    "Content": "info open list usage check rebuild",
    "Registries": "repository login logout",
    "Repository": "name tags find manifest put_manifest referrers attach delete has_blob read_blob",
    "Volumes": "create get find list remove prune",
    "Volume": "name labels is_anonymous created_ns path users remove",
    "Namespaces": "create get list set usage remove",
    "Leases": "create get list delete close",
    "RegistryServer": "address wait close",
    "Lease": "id labels created_ns expires_ns add resources delete",
}
CLASSES = sorted(name for name in pyctrd.__all__ if inspect.isclass(getattr(pyctrd, name)))
# Users get these from an engine and never make one: their constructors are not part of the promise.
GIVEN = {"Image", "Images", "PullMany", "Container", "Containers", "Content", "Namespaces", "Lease", "Leases"}
GIVEN |= {"Volume", "Volumes"} | {"Process", "Registries", "Repository", "RegistryServer", "Transfer"}


def functions(owner: type) -> Iterator[tuple[str, Any]]:
    """The public functions of a class, a property's getter among them."""
    for name, value in vars(owner).items():
        if name.startswith("_") and not (name == "__init__" and owner.__name__ not in GIVEN):
            continue
        target = value.fget if isinstance(value, property) else inspect.unwrap(getattr(value, "__func__", value))
        if isinstance(target, types.FunctionType):
            yield name, target


def named_types(hint: Any) -> Iterator[type]:
    """The classes in a type hint."""
    if inspect.isclass(hint) and not typing.get_args(hint):
        yield hint
    for argument in typing.get_args(hint):
        if isinstance(argument, list):  # the arguments of a Callable
            for inner in argument:
                yield from named_types(inner)
        else:
            yield from named_types(argument)


def test_every_public_name_is_there_and_listed() -> None:
    assert sorted(set(pyctrd.__all__)) == sorted(pyctrd.__all__)
    for name in pyctrd.__all__:
        assert getattr(pyctrd, name) is not None
        assert name in dir(pyctrd)
    with pytest.raises(AttributeError, match="nothing"):
        _ = pyctrd.nothing


@pytest.mark.parametrize("owner", PROMISED)
def test_the_names_that_the_design_promises_are_there(owner: str) -> None:
    kind = getattr(pyctrd, owner)
    attributes = (
        {"images", "containers", "content", "namespaces", "leases"} if owner == "Engine" else set()
    )  # set in the constructor
    assert [name for name in PROMISED[owner].split() if name not in attributes and not hasattr(kind, name)] == []
    parts = [part for part in kind.__mro__ if part.__module__.startswith("pyctrd.")]
    public = {name for part in parts for name in vars(part) if not name.startswith("_")}
    assert public | attributes == set(PROMISED[owner].split()), "list what is new here, in the README and CHANGELOG"


def test_an_engine_has_its_parts() -> None:
    with pyctrd.Engine() as engine:
        assert isinstance(engine.images, pyctrd.Images)
        assert isinstance(engine.containers, pyctrd.Containers)
        assert isinstance(engine.content, pyctrd.Content)
        assert isinstance(engine.namespaces, pyctrd.Namespaces)


@pytest.mark.parametrize("name", CLASSES)
def test_the_types_of_a_public_class_can_be_looked_up(name: str) -> None:
    kind = getattr(pyctrd, name)
    if vars(kind).get("__annotations__"):  # of a dataclass, a NamedTuple or a TypedDict
        assert typing.get_type_hints(kind)
    for _, function in functions(kind):
        typing.get_type_hints(function)


@pytest.mark.parametrize("name", ["unpack", "verify"])
def test_the_types_of_a_public_function_can_be_looked_up(name: str) -> None:
    assert typing.get_type_hints(getattr(pyctrd, name))


@pytest.mark.parametrize("name", sorted(GIVEN | {"Engine"}))
def test_every_class_in_a_public_signature_is_public_itself(name: str) -> None:
    exported = [*(getattr(pyctrd, name) for name in pyctrd.__all__), *vars(errors).values()]
    public = {id(kind) for kind in exported}
    unknown = {
        f"{name}.{method}: {found.__module__}.{found.__qualname__}"
        for method, function in functions(getattr(pyctrd, name))
        for hint in typing.get_type_hints(function).values()
        for found in named_types(hint)
        if found.__module__.startswith("pyctrd") and id(found) not in public
    }
    assert unknown == set()


def test_every_public_function_and_class_has_a_docstring() -> None:
    missing = [name for name in CLASSES if not inspect.getdoc(getattr(pyctrd, name))]
    missing += [
        f"{name}.{method}"
        for name in CLASSES
        for method, function in functions(getattr(pyctrd, name))
        if not method.startswith("_") and not inspect.getdoc(function)
    ]
    assert missing == []


def test_native_classes_say_that_they_are_public_only_where_they_are() -> None:
    for name, kind in vars(_core).items():
        if not inspect.isclass(kind):
            continue
        if name in pyctrd.__all__:
            assert kind.__module__ == "pyctrd"
            assert getattr(pyctrd, name) is kind
        else:
            assert kind.__module__ == "pyctrd._core"


def test_every_error_is_public_and_one_of_ours() -> None:
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, Exception)]
    assert all(issubclass(kind, pyctrd.PyctrdError) and kind.__module__ == "pyctrd.errors" for kind in kinds)
    assert pyctrd.errors is errors


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has after some code."""
    script = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_no_room_and_no_dependency() -> None:
    loaded = loaded_by("import pyctrd")
    assert {name for name in loaded if name.startswith("pyctrd")} == {"pyctrd", "pyctrd.errors"}
    assert loaded.isdisjoint({"click", "orjson", "rich", "sqlite3", "ssl", "urllib3"})


def test_an_engine_is_loaded_without_what_it_may_not_need() -> None:
    loaded = loaded_by("import pyctrd; pyctrd.Engine")
    assert loaded.isdisjoint({"asyncio", "click", "http.client", "rich", "ssl", "urllib3", "pyctrd.runtime.runtime"})
