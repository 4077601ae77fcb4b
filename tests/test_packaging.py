"""What a user gets by pip: the files beside the package, and the dependencies that are really used."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path

import pytest

import pyctrd
from pyctrd import _core

# Chosen with the architecture, for rooms that are being built: a name leaves when its room imports it.
ROOMS_TO_COME = {"blake3", "cffi", "pyroute2"}
PROJECT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
CARGO = tomllib.loads((PROJECT / "Cargo.toml").read_text())


def test_the_shim_is_beside_the_package_and_can_be_executed() -> None:
    shim = files("pyctrd") / "pyctrd-shim"
    assert os.access(str(shim), os.X_OK)
    done = subprocess.run([str(shim)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("pyctrd-shim: ")


@pytest.mark.parametrize("name", ["py.typed", "_core.pyi"])
def test_type_checkers_find_the_types(name: str) -> None:
    assert (files("pyctrd") / name).is_file()


def test_the_native_module_serves_every_python_from_3_11() -> None:
    assert _core.__file__.endswith(".abi3.so")
    assert CARGO["dependencies"]["pyo3"]["features"] == ["abi3-py311"]
    assert PYPROJECT["project"]["requires-python"] == ">=3.11"


def test_the_versions_agree() -> None:
    assert pyctrd.__version__ == _core.__version__ == CARGO["package"]["version"] == PYPROJECT["project"]["version"]
    assert distribution("pyctrd").version == pyctrd.__version__


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    project = PYPROJECT["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    declared = {requirement.partition(">")[0] for requirement in (*project["dependencies"], *extras)}
    assert set(extras) <= set(PYPROJECT["dependency-groups"]["dev"])  # or their tests would not run
    imported = set()
    for path in (PROJECT / "python").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) - {"pyctrd"} == declared - ROOMS_TO_COME


def test_the_rust_version_is_the_same_wherever_it_stands() -> None:
    wanted = CARGO["package"]["rust-version"]
    assert f"RUST_MINOR_MIN={wanted.partition('.')[2]} " in (PROJECT / ".ci/deps").read_text()
    assert f"({wanted} or later)" in (PROJECT / "README.md").read_text()
