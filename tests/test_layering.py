"""Dependencies point one way, in Python and in Rust: every import is walked, those inside functions too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "python" / "pyctrd"
CRATE = PROJECT / "rust" / "src"

ROOMS = {"content", "metadata", "network", "registry", "runtime", "snapshots"}
ENGINE = {
    "container",
    "container_files",
    "container_health",
    "container_options",
    "containers",
    "contents",
    "engine",
    "image",
    "images",
    "leases",
    "namespaces",
    "policies",
    "process",
    "pulls",
    "registries",
    "transfers",
    "volumes",
}
# Room → what it may import of ours, beside itself. "pyctrd" is the package's own list of names.
PYTHON: Mapping[str, set[str]] = {
    "errors": set(),
    "oci": {"errors"},
    "content": {"errors", "oci", "_core"},
    "metadata": {"errors", "oci"},
    "network": {"errors"},
    "registry": {"errors", "oci", "_core", "__version__"},
    "runtime": {"errors", "oci", "_core"},
    "snapshots": {"errors", "oci", "_core"},
    # They drive the pipeline, which joins what two rooms store: nobody else may hold an ingest.
    "flows": {"errors", "oci", "_core", *ROOMS},
    # Of two rooms they take values: records that they wrap, and the options that a container is made from.
    **{part: {"errors", "oci", "_core", "flows", "metadata", "pyctrd", "runtime", *ENGINE} for part in ENGINE},
    "cli": {"errors", "oci", "pyctrd", "__version__", *ENGINE},
    "aio": {"errors", "oci", "pyctrd", *ENGINE},
    "pyctrd": {"errors", "oci", "_core", "flows", "aio", *ROOMS, *ENGINE},
    "__main__": {"cli"},
}

RUST: Mapping[str, set[str]] = {
    "error": {"digest"},
    "digest": {"error"},
    "root": {"error"},
    "mount": {"error"},
    "send": {"error"},
    "spawn": {"error"},
    "compression": {"error"},
    "flush": {"error", "root"},
    "cas": {"error", "digest", "root", "flush"},
    "erofs": {"error"},
    "tar": {"error", "digest", "root", "flush", "cas", "erofs"},
    "toc": {"error", "digest", "compression", "tar"},
    "pipeline": {"error", "digest", "root", "compression", "cas", "tar", "erofs"},
    "bindings": {
        "error",
        "digest",
        "root",
        "flush",
        "mount",
        "send",
        "spawn",
        "compression",
        "cas",
        "tar",
        "erofs",
        "toc",
        "pipeline",
    },
    "lib": {
        "bindings",
        "cas",
        "compression",
        "digest",
        "erofs",
        "error",
        "flush",
        "mount",
        "pipeline",
        "root",
        "send",
        "spawn",
        "tar",
        "toc",
    },
}


def room_of(module: str) -> str:
    """``pyctrd.oci.digest`` → ``oci``; the package itself, and what it exports, is ``pyctrd``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in {*PYTHON, "_core", "__version__"} else parts[0]


def imports(source: str) -> Iterator[str]:
    """The full names of all that a module of ours imports of us, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"import_module", "__import__"}:
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def python_faults(sources: Mapping[str, str]) -> list[str]:
    """The edges between rooms that are not listed, as ``module: from → to``."""
    found = []
    for module, source in sources.items():
        origin = room_of(module)
        for name in imports(source):
            target = room_of(name)
            if name.split(".")[0] != "pyctrd" or target == origin or target in PYTHON[origin]:
                continue
            found.append(f"{module}: {origin} → {target}")
    return found


def read_python() -> dict[str, str]:
    """Every module's source by its name."""
    return {
        ".".join(("pyctrd", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): (
            path.read_text()
        )
        for path in PACKAGE.rglob("*.py")
    }


def uses(source: str) -> Iterator[str]:
    """The crate's modules that a Rust file names: ``crate::x``, also in ``use crate::{x, y::z}``."""
    code = re.sub(r"//.*", "", source)
    yield from re.findall(r"\bcrate::(\w+)", code)
    for group in re.findall(r"\bcrate::\{([^;]*?)\};", code, re.DOTALL):
        # Of `a, b::{c, d}` only what stands outside inner braces is a module.
        while "{" in (flat := re.sub(r"\{[^{}]*\}", "", group)) and flat != group:
            group = flat  # noqa: PLW2901 - braces are peeled off from the inside
        yield from re.findall(r"(?:^|,)\s*(\w+)", re.sub(r"\{[^{}]*\}", "", group))


def rust_faults(sources: Iterable[tuple[str, str]]) -> list[str]:
    """The edges between the crate's modules that are not listed."""
    return [
        f"{module} → {name}"
        for module, source in sources
        for name in uses(source)
        if name != module and name[0].islower() and name not in RUST[module]
    ]


def read_rust() -> list[tuple[str, str]]:
    """Every file of the library with the module that it belongs to; the shim is a program of its own."""
    files = [path for path in sorted(CRATE.rglob("*.rs")) if path.relative_to(CRATE).parts[0] != "shim"]
    return [(path.relative_to(CRATE).parts[0].removesuffix(".rs"), path.read_text()) for path in files]


def test_no_python_import_goes_against_the_layers() -> None:
    assert python_faults(read_python()) == []


def test_no_rust_use_goes_against_the_layers() -> None:
    assert rust_faults(read_rust()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pyctrd.oci.digest", "import pyctrd.registry.client"),
        ("pyctrd.registry.client", "def f():\n    from pyctrd.metadata.database import Database"),
        ("pyctrd.metadata.images", "if TYPE_CHECKING:\n    from pyctrd.flows.rooms import Rooms"),
        ("pyctrd.cli.images", "from pyctrd import _core"),
        ("pyctrd.cli.images", "from pyctrd.flows.pull import bring"),
        ("pyctrd.flows.pull", "from pyctrd.engine import Engine"),
        ("pyctrd.errors", "from pyctrd.oci import digest"),
        ("pyctrd.network.link", "from pyctrd.oci import digest"),
        ("pyctrd.content.blobs", 'importlib.import_module("pyctrd.flows.pull")\nimport_module("pyctrd.cli.main")'),
    ],
)
def test_the_walk_sees_a_forbidden_python_import(module: str, source: str) -> None:
    assert len(python_faults({module: source})) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("digest", "use crate::cas::publish;"),
        ("tar", "fn f() { crate::pipeline::Ingest::start() }"),
        ("cas", "use crate::{\n    error::{Error, Result},\n    tar::LayerWriter,\n};"),
        ("pipeline", "use crate::bindings;"),
    ],
)
def test_the_scan_sees_a_forbidden_rust_use(module: str, source: str) -> None:
    assert len(rust_faults([(module, source)])) == 1


def test_every_room_is_listed_and_exists() -> None:
    here = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert here - {"__init__"} == set(PYTHON) - {"pyctrd"}
    assert {module for module, _ in read_rust()} == set(RUST)


def test_what_serves_knows_no_client_and_no_store() -> None:
    served = {module: source for module, source in read_python().items() if module.startswith("pyctrd.registry.server")}
    assert served
    known = ("pyctrd.registry.server", "pyctrd.errors", "pyctrd.oci", "pyctrd._core")
    named = {name for source in served.values() for name in imports(source) if name.startswith("pyctrd")}
    assert {name for name in named if not name.startswith(known)} == set()


def test_nobody_else_loads_the_http_server() -> None:
    loads = re.compile(r"^\s*(?:from|import) aiohttp", re.MULTILINE)
    users = {module for module, source in read_python().items() if loads.search(source)}
    assert {module for module in users if not module.startswith("pyctrd.registry.server.")} == set()


def test_only_the_bindings_name_pyo3() -> None:
    files = [path for path in CRATE.rglob("*.rs") if re.search(r"\bpyo3::", path.read_text())]
    naming = {path.relative_to(CRATE).parts[0] for path in files}
    assert naming == {"bindings"}


def test_the_shim_uses_nothing_of_the_engine() -> None:
    own = {path.stem for path in (CRATE / "shim").iterdir()} | {
        "listen",
        "remove",
        "take_directory",
    }  # functions of main.rs
    named = {name for path in (CRATE / "shim").iterdir() for name in uses(path.read_text())}
    assert {name for name in named if name[0].islower()} <= own
