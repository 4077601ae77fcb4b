"""The OCI distribution-spec conformance suite, where it was built: ``make conformance``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benches.conformance import RESULTS, run_suite

PROGRAM = "target/conformance/conformance"


def find_program() -> str | None:
    """The suite as `make conformance` builds it, or one on the path."""
    built = Path(__file__).parents[2] / PROGRAM
    return str(built) if built.exists() else shutil.which("oci-conformance")


@pytest.mark.slow
@pytest.mark.skipif(find_program() is None, reason="the conformance suite is not built: make conformance")
def test_every_check_of_the_suite_passes(tmp_path: Path, state: Path) -> None:
    del state
    report = run_suite(str(find_program()), tmp_path)
    assert len(report.tests) > 600
    assert [name for name, outcome in report.tests if outcome not in ("passed", "skipped")] == []
    assert report.is_good


def test_the_report_that_is_kept_tells_of_no_failure_and_no_machine() -> None:
    report = (RESULTS / "conformance.txt").read_text()
    first, _, *lines = report.splitlines()
    assert "checks: 0 failures, 0 errors" in first
    assert {line.split()[0] for line in lines} <= {"passed", "skipped"}
    text = report + (RESULTS / "conformance.yaml").read_text()
    assert not any(word in text for word in ("127.0.0.1", "/tmp", "/var", "/work", "/home"))
