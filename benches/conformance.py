"""The OCI distribution-spec conformance suite against ``pyctrd serve registry``: ``make conformance``.

    python -m benches.conformance PROGRAM [--results DIR]

Every category and every optional part of distribution-spec v1.1 is asked for. Its report goes to ``benches/results/``:
the suite's own summary, and a line for each of its tests. It fails where one of them does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
DEADLINE_SECONDS = 600
# In the place of an address that nobody will have again.
REGISTRY = "registry.example"
# What is optional in v1.1 and switched off where nothing is said.
OPTIONS = {
    "OCI_VERSION": "1.1",
    "OCI_TLS": "disabled",
    "OCI_API_BLOBS_UPLOAD_CANCEL": "true",
    "OCI_API_BLOBS_DIGEST_HEADER": "true",
    "OCI_API_MANIFESTS_DIGEST_HEADER": "true",
}


@dataclass(frozen=True)
class Report:
    """What the suite found.

    Attributes:
        summary: Its own, without what is of this machine.
        counted: Checks by outcome, as it counts them: "tests" is all of them.
        tests: The name and the outcome of each test; one may be several checks.
    """

    summary: str
    counted: dict[str, int]
    tests: list[tuple[str, str]]

    @property
    def is_good(self) -> bool:
        """Whether all that was asked passed."""
        bad = self.counted["failures"] + self.counted["errors"]
        return bad == 0 and bool(self.tests) and {outcome for _, outcome in self.tests} <= {"passed", "skipped"}

    def text(self) -> str:
        """A line for each test, behind one with the numbers."""
        counted = ", ".join(f"{count} {name}" for name, count in self.counted.items() if name != "tests")
        lines = [f"{outcome:8} {name}" for name, outcome in self.tests]
        return "\n".join([f"{self.counted['tests']} checks: {counted}", "", *lines]) + "\n"


def run_suite(program: str, directory: Path) -> Report:
    """Run it against a new store."""
    words = [
        "--json",
        "--root",
        str(directory / "root"),
        "--state",
        str(directory / "state"),
        "serve",
        "registry",
        "-q",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "pyctrd", *words, "--listen", "127.0.0.1:0", "--anonymous", "push"],
        stdout=subprocess.PIPE,
        text=True,
    ) as served:
        assert served.stdout is not None
        address = json.loads(served.stdout.readline())["address"]
        settings = {"OCI_REGISTRY": address, "OCI_RESULTS_DIR": str(directory / "results"), **OPTIONS}
        try:
            subprocess.run(
                [program],
                cwd=directory,
                env=os.environ | settings,
                timeout=DEADLINE_SECONDS,
                check=False,
                capture_output=True,
            )
        finally:
            served.terminate()
    summary = (directory / "results" / "results.yaml").read_text()
    kept = [line for line in summary.splitlines() if not line.strip().startswith(("resultsDir:", "commit:"))]
    return _read("\n".join(kept).replace(address, REGISTRY) + "\n", directory / "results" / "junit.xml")


def _read(summary: str, path: Path) -> Report:
    suite = ET.parse(path).getroot().find("testsuite")  # noqa: S314 - of a program that was run on purpose
    assert suite is not None
    names = ("tests", "failures", "errors", "skipped", "disabled")
    counted = {name: int(suite.get(name, "0")) for name in names}
    return Report(summary, counted, [(case.get("name", ""), case.get("status", "")) for case in suite.iter("testcase")])


def main() -> int:
    """Run it, and write its report down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the suite, built from github.com/opencontainers/distribution-spec/conformance")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the report goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pyctrd-conformance-") as directory:
        report = run_suite(str(Path(options.program).absolute()), Path(directory))
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "conformance.yaml").write_text(report.summary)
    (options.results / "conformance.txt").write_text(report.text())
    print(report.text().partition("\n")[0])
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
