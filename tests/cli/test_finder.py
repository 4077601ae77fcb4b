"""Modules found by their place: the same as Python finds, and nothing that it would not load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Loads each module as a command does, or as Python does, and prints what the import system says of it.
LOAD = """
import importlib, sys
if sys.argv[1] == "quickly":
    from pyctrd.cli.finder import find_quickly
    find_quickly()
for name in sys.argv[2:]:
    module = importlib.import_module(name)
    spec = module.__spec__
    print(name, module.__file__, module.__package__, spec.origin, spec.has_location, spec.cached)
    print(getattr(module, "__path__", None), getattr(module, "__cached__", None), sorted(vars(module)))
"""
NAMES = ("pyctrd.engine", "pyctrd.oci", "pyctrd.oci.reference", "pyctrd._core", "pyctrd.registry.server.server")


def loaded(how: str, *names: str, directory: Path | None = None, **variables: str) -> str:
    """What a process says that loaded modules."""
    environment = os.environ | variables | ({"PYTHONPATH": str(directory)} if directory is not None else {})
    done = subprocess.run(
        [sys.executable, "-c", LOAD, how, *names],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a package of the name, which has a finder and a module that says a word."""
    import pyctrd.cli.finder

    package = tmp_path / "pyctrd"
    (package / "cli").mkdir(parents=True)
    for name in ("__init__.py", "cli/__init__.py"):
        (package / name).touch()
    (package / "cli/finder.py").write_bytes(Path(pyctrd.cli.finder.__file__).read_bytes())
    (package / "word.py").write_text("first = 1\n")
    loaded("quickly", "pyctrd.word", directory=tmp_path, PYTHONDONTWRITEBYTECODE="")
    assert list((package / "__pycache__").glob("word.*.pyc"))
    return tmp_path


def test_what_is_found_is_what_python_finds() -> None:
    assert loaded("quickly", *NAMES) == loaded("as ever", *NAMES)


def test_a_source_that_was_changed_is_compiled_again(place: Path) -> None:
    assert "'first'" in loaded("quickly", "pyctrd.word", directory=place)
    (place / "pyctrd/word.py").write_text("other = 1\nmore = 2\n")
    assert "'more', 'other'" in loaded("quickly", "pyctrd.word", directory=place)
    os.utime(place / "pyctrd/word.py", (7, 7))
    assert "'more', 'other'" in loaded("quickly", "pyctrd.word", directory=place)


@pytest.mark.parametrize("content", [b"", b"\0" * 16, b"no code at all, but longer than a head"])
def test_what_is_not_of_this_source_is_not_loaded(place: Path, content: bytes) -> None:
    for compiled in (place / "pyctrd/__pycache__").glob("word.*.pyc"):
        compiled.write_bytes(content)
    assert "'first'" in loaded("quickly", "pyctrd.word", directory=place)


def test_one_that_goes_by_its_sources_hash_is_left_to_python(place: Path) -> None:
    source = place / "pyctrd/word.py"
    make = [sys.executable, "-m", "compileall", "-q", "-f", "--invalidation-mode", "checked-hash", str(source)]
    subprocess.run(make, check=True, timeout=60)
    numbers = source.stat()
    source.write_text("thing = 1\n")
    os.utime(source, ns=(numbers.st_atime_ns, numbers.st_mtime_ns))
    assert "'thing'" in loaded("quickly", "pyctrd.word", directory=place)


def test_where_python_keeps_its_code_elsewhere_nothing_is_changed(place: Path, tmp_path: Path) -> None:
    (place / "pyctrd/word.py").write_text("apart = 1\n")
    variables = {"PYTHONPYCACHEPREFIX": str(tmp_path / "elsewhere"), "PYTHONDONTWRITEBYTECODE": ""}
    assert "'apart'" in loaded("quickly", "pyctrd.word", directory=place, **variables)
    assert list((tmp_path / "elsewhere").rglob("word.*.pyc"))


def test_a_module_that_is_not_there_is_pythons_own_error(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, "quickly", "pyctrd.none"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(place)},
        timeout=60,
    )
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'pyctrd.none'" in done.stderr
