"""Values beside the dataclasses that they stand for: nobody who uses them sees a difference."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import typing
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, asdict, field, fields, is_dataclass, replace
from typing import Any

import pytest

from pyctrd.oci import value


@value.dataclass(frozen=True, slots=True)
class Ours:
    """Text."""

    name: str
    size: int = 3
    labels: Mapping[str, str] = field(default_factory=dict)
    secret: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(self.size)


@dataclasses.dataclass(frozen=True, slots=True)
class Theirs:
    """Text."""

    name: str
    size: int = 3
    labels: Mapping[str, str] = field(default_factory=dict)
    secret: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(self.size)


@value.dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """Text."""

    size: int = 1


@value.dataclass(slots=True, eq=False)
class Mutable:
    """Text."""

    size: int
    name: str = ""


BOTH: Any = [Ours, Theirs]


@pytest.mark.parametrize("kind", BOTH)
def test_a_value_is_made_as_a_dataclass_is(kind: Any) -> None:
    made = kind("a", 4, secret="s")
    assert (made.name, made.size, made.labels, made.secret) == ("a", 4, {}, "s")
    assert kind("a").labels is not kind("a").labels
    assert repr(made) == f"{kind.__name__}(name='a', size=4, labels={{}})"
    assert asdict(made) == {"name": "a", "size": 4, "labels": {}, "secret": "s"}
    assert replace(made, size=5) == kind(name="a", size=5, labels={})
    with pytest.raises(ValueError, match="-1"):
        replace(made, size=-1)


@pytest.mark.parametrize("kind", BOTH)
def test_values_are_compared_by_what_counts(kind: Any) -> None:
    assert kind("a", secret="x") == kind("a", secret="y")
    assert kind("a") != kind("b")
    assert kind("a") != "a"
    assert kind("a").__eq__("a") is NotImplemented
    with pytest.raises(TypeError, match="unhashable"):
        hash(kind("a"))
    assert hash(kind("a", labels=())) == hash(kind("a", labels=(), secret="y")) == hash(("a", 3, ()))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "call",
    [
        lambda kind: kind(),
        lambda kind: kind(size=1),
        lambda kind: kind("a", 1, {}, "s", "more"),
        lambda kind: kind("a", name="a"),
        lambda kind: kind("a", other=1),
    ],
)
def test_wrong_arguments_are_refused(kind: Any, call: Any) -> None:
    with pytest.raises(TypeError):
        call(kind)


@pytest.mark.parametrize("kind", BOTH)
def test_a_value_cannot_be_changed(kind: Any) -> None:
    made = kind("a")
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'name'"):
        made.name = "b"
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'name'"):
        del made.name
    with pytest.raises((FrozenInstanceError, TypeError)):
        made.other = 1
    assert not hasattr(made, "__dict__")


@pytest.mark.parametrize("kind", BOTH)
def test_a_value_is_copied_and_pickled(kind: Any) -> None:
    made = kind("a", 7, {"k": "v"}, "s")
    for same in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):  # noqa: S301 - made here
        assert asdict(same) == asdict(made)


def test_what_can_be_asked_of_the_class_is_the_same() -> None:
    assert is_dataclass(Ours)
    assert [(f.name, f.type, f.default) for f in fields(Ours)] == [(f.name, f.type, f.default) for f in fields(Theirs)]
    assert (Ours.__match_args__, Ours.__slots__, Ours.__doc__) == (
        Theirs.__match_args__,
        Theirs.__slots__,
        Theirs.__doc__,
    )
    assert repr(Ours.__dataclass_params__) == repr(Theirs.__dataclass_params__)  # type: ignore[attr-defined] # as above
    assert typing.get_type_hints(Ours) == typing.get_type_hints(Theirs)
    ours, theirs = inspect.signature(Ours), inspect.signature(Theirs)
    told = [[(p.name, p.kind, p.annotation) for p in one.parameters.values()] for one in (ours, theirs)]
    assert told[0] == told[1]
    assert (ours.parameters["size"].default, ours.parameters["name"].default) == (3, inspect.Parameter.empty)


def test_fields_may_be_by_name_only() -> None:
    assert Named(size=2).size == 2
    with pytest.raises(TypeError):
        Named(2)  # type: ignore[call-arg] # what is refused
    assert str(inspect.signature(Named)).startswith("(*, size")


def test_a_value_that_is_not_frozen_is_one_of_its_own() -> None:
    made = Mutable(1)
    made.size = 2
    assert (made.size, made) == (2, made)
    assert made != Mutable(2)
    assert len({made, Mutable(2)}) == 2


class OurTuple(value.NamedTuple):
    """Text."""

    name: str
    size: int = 3

    @property
    def shouted(self) -> str:
        return self.name.upper()


class TheirTuple(typing.NamedTuple):
    """Text."""

    name: str
    size: int = 3

    @property
    def shouted(self) -> str:
        return self.name.upper()


def test_a_named_tuple_is_as_pythons() -> None:
    ours: Any = OurTuple("a", size=4)
    theirs: Any = TheirTuple("a", size=4)
    assert ours == theirs == ("a", 4)
    assert repr(ours).replace("Our", "Their") == repr(theirs)
    assert tuple(OurTuple("a")) == tuple(TheirTuple("a")) == ("a", 3)
    assert ours.shouted == theirs.shouted == "A"
    assert ours._replace(name="b") == theirs._replace(name="b")
    assert ours._asdict() == theirs._asdict()
    assert (OurTuple._fields, OurTuple._field_defaults) == (TheirTuple._fields, TheirTuple._field_defaults)
    assert typing.get_type_hints(OurTuple) == typing.get_type_hints(TheirTuple) == {"name": str, "size": int}
    assert inspect.signature(OurTuple).replace(return_annotation=None).parameters.keys() == {"name", "size"}
    assert (OurTuple.__doc__, OurTuple.__module__, OurTuple.__qualname__) == ("Text.", __name__, "OurTuple")
    assert pickle.loads(pickle.dumps(ours)) == ours  # noqa: S301 - its own
    assert type(copy.deepcopy(ours)) is OurTuple
    with pytest.raises(AttributeError):
        ours.name = "b"
    with pytest.raises(TypeError):
        OurTuple()  # type: ignore[call-arg] # refused
