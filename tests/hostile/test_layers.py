"""Every hostile layer, through every way in: unpacked into a directory, pulled for overlayfs and for native, loaded."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.hostile import (
    cases_framing,
    cases_hardlinks,
    cases_names,
    cases_numbers,
    cases_sparse,
    cases_symlinks,
    cases_types,
    cases_whiteouts,
)
from tests.hostile.stage import IN_STORE, WAYS, Stage
from tests.hostile.table import CLASS_OF, LIMITS, Case, differences_from

pytestmark = pytest.mark.root

BLOCKS = (
    cases_names,
    cases_symlinks,
    cases_hardlinks,
    cases_whiteouts,
    cases_types,
    cases_numbers,
    cases_sparse,
    cases_framing,
)
CASES = [case for module in BLOCKS for case in module.BLOCK.cases]
# Devices, which no user namespace allows (tests/layers/test_mapped.py).
NOT_MAPPED = {"L115"}
MESSAGE_MAX_CHARACTERS = 9000


def played() -> list[object]:
    return [
        pytest.param(case, way, id=f"{case.id}-{way}", marks=[pytest.mark.slow] if case.slow else [])
        for case in CASES
        for way in WAYS
        if way != "mapped" or case.id not in NOT_MAPPED
    ]


@pytest.mark.parametrize(("case", "way"), played())
def test_a_hostile_layer_does_no_harm(
    case: Case, way: str, stage: Stage, record_property: Callable[[str, object], None]
) -> None:
    record_property("row", case.id[:4])
    with stage.outside.watched():
        if case.refused is None:
            accept(case, way, stage)
        else:
            refuse(case, way, stage)


def accept(case: Case, way: str, stage: Stage) -> None:
    layers = case.make(stage.outside)
    with stage.unpacked(way, layers) as seen:
        if case.holds is not None:
            assert differences_from(case.holds(stage.outside), seen.tree) == []
        if case.check is not None:
            case.check(seen)
        if way == "native":
            assert stage.differences_between_ways(layers) == []
        if way == "composefs":
            assert stage.differences_of_directory(layers) == []
    if way in IN_STORE:
        stage.layers_are_plain()
        with stage.engine(way) as engine:
            assert engine.check() == []


def refuse(case: Case, way: str, stage: Stage) -> None:
    with pytest.raises(case.error) as caught, stage.unpacked(way, case.make(stage.outside)):
        pass
    judge(case, caught.value)
    if way in IN_STORE:
        with stage.engine(way) as engine:
            stage.nothing_is_left(engine)
            stage.bring_good(engine, way)


def judge(case: Case, error: Exception) -> None:
    """Fail where an error does not say what was wrong with what, in one line that any terminal can show."""
    assert case.refused is not None
    message = str(error)
    assert re.search(case.refused, message), message
    assert message.isprintable(), message
    assert len(message) < MESSAGE_MAX_CHARACTERS
    if case.entry is not None:
        assert getattr(error, "entry", None) == case.entry
        assert repr(case.entry)[2:-1][:100] in message


def test_every_row_of_the_table_is_played(request: pytest.FixtureRequest) -> None:
    from tests.hostile import test_apart

    rows = {case.id[:4] for case in CASES} | set(test_apart.ROWS)
    assert sorted(CLASS_OF.keys() - rows - LIMITS) == []
    assert sorted(rows - CLASS_OF.keys()) == []
    names = [case.id for case in CASES]
    assert len(names) == len(set(names))
    assert len(CLASS_OF) == 177


def test_a_case_ends_as_its_class_says() -> None:
    rows = [case for case in CASES if case.id in CLASS_OF]  # a letter behind the number: a variant of the suite's own
    assert [case.id for case in rows if case.letter == "R" and case.refused is None] == []
    assert [case.id for case in rows if case.letter == "A" and case.refused is not None] == []
