"""What a small pull loads: nearly all of its time is Python's imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pyctrd
from tests import syscalls
from tests.images import Images
from tests.integration.conftest import command
from tests.syscalls import Watched

WHY_UNWATCHED = syscalls.why_not()
pytestmark = pytest.mark.root

# As many as there are, and one more; who needs more says here what for. The last was `oci.hold`, by which waits end.
# From Python 3.13 on `pathlib` is a package, and loads five more of Python's own.
MODULES_MAX = 160 if sys.version_info < (3, 13) else 165
PULL = """
import sys
from pyctrd.cli.main import main
sys.argv = ["pyctrd", "pull", *sys.argv[1:]]
main()
"""
FIRST_FLUSHES_MAX = 21
FLUSHES_MAX = 15
LAYERS = ("layers", "sha256")
STACKS = ("stack-", "fixup-")
# What TLS, failures, challenges, help, annotations and other commands need.
UNWANTED = {
    "_typing",
    "array",
    "binascii",
    "click",
    "copy",
    "difflib",
    "email",
    "gettext",
    "hashlib",
    "http.client",
    "inspect",
    "ipaddress",
    "json",
    "json.decoder",
    "logging",
    "platform",
    "pyctrd.containers",
    "pyctrd.flows.collect",
    "pyctrd.runtime.state",
    "random",
    "rich",
    "selectors",
    "socket",
    "ssl",
    "subprocess",
    "typing",
    "urllib.request",
}


@pytest.fixture(params=["composefs", "erofs", "overlayfs"])
def snapshotter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that engines of the test have."""
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", request.param)


def test_a_pull_loads_what_it_needs_and_no_more(images: Images) -> None:
    words = command("pull", images.busybox.reference)
    for _ in range(2):  # the second has nothing to do
        done = subprocess.run(
            [words[0], "-X", "importtime", *words[1:]], capture_output=True, text=True, check=True, timeout=120
        )
        assert done.stdout.strip() == images.busybox.built.digest
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
        assert "pyctrd.registry.connection" in loaded  # it lists what was loaded
        assert loaded & UNWANTED == set()
        assert len(loaded) <= MODULES_MAX


@pytest.mark.skipif(bool(WHY_UNWATCHED), reason=WHY_UNWATCHED)
@pytest.mark.usefixtures("snapshotter")
def test_a_pull_flushes_what_it_must_and_no_more(images: Images) -> None:
    assert 0 < count_flushes(images.busybox.reference) <= FIRST_FLUSHES_MAX
    assert 0 < count_flushes(images.tree.reference) <= FLUSHES_MAX
    with pyctrd.Engine() as engine:
        assert engine.check(digests=True) == []


@pytest.mark.skipif(bool(WHY_UNWATCHED), reason=WHY_UNWATCHED)
@pytest.mark.usefixtures("snapshotter")
def test_what_a_stack_needs_is_begun_before_its_layers_have_names_and_named_after_them(images: Images) -> None:
    with pyctrd.Engine() as engine:
        engine.images.pull(images.busybox.reference)  # what a host can do was tried by then
    with Watched(PULL, images.tree.reference, calls=("mkdir", "rename", "renameat2")) as watched:
        named = []
        for call in watched:
            named.append((call.name, Path(call.path)))
            call.allow()
        assert watched.finish()[0] == 0
    begun = [at for at, (name, path) in enumerate(named) if name == "mkdir" and path.name.startswith("trial-")]
    layers = [at for at, (name, path) in enumerate(named) if name == "renameat2" and path.parts[-3:-1] == LAYERS]
    stacks = [at for at, (name, path) in enumerate(named) if name == "rename" and path.name.startswith(STACKS)]
    assert len(stacks) == 1
    assert begun[0] < layers[0] < layers[-1] < stacks[0]


def count_flushes(reference: str) -> int:
    """How often a pull by command flushes; behind the commit of a journal, most have nothing to do."""
    count = 0
    with Watched(PULL, reference, calls=("fsync", "fdatasync", "syncfs")) as watched:
        for call in watched:
            count += 1
            call.allow()
        assert watched.finish()[0] == 0
    return count


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import inspect; print(inspect.cleandoc('  a\\tb'))", "a b"),
        ("import inspect; print(inspect.cleandoc('a\\n  b\\n    c').split())", "['a', 'b', 'c']"),
        ("from inspect import signature; print(signature(lambda a: 0))", "(a)"),
        ("import gettext; print(gettext.gettext('x'), gettext.find('x'))", "x None"),
        ("import gettext; print(gettext.ngettext('one', 'many', 1), gettext.ngettext('one', 'many', 0))", "one many"),
        ("import ipaddress; print(ipaddress.ip_address('::1').is_loopback)", "True"),
        ("import platform, uuid; print(platform.system(), bool(platform.machine()))", "Linux True"),
        ("import uuid; print(uuid.UUID(int=1), uuid.uuid4().version)", "00000000-0000-0000-0000-000000000001 4"),
        (
            "from difflib import get_close_matches as g; print(g('--quit', ['--quiet', '--x']), g('-q', ['--quiet']))",
            "['--quiet'] []",
        ),
        ("import difflib; print(difflib.SequenceMatcher(None, 'ab', 'ab').ratio())", "1.0"),
        ("import ntpath; print(ntpath.join('a', 'b'))", "a\\b"),
        (
            "import datetime; print(datetime.date(2020, 1, 2), datetime.UTC, datetime.datetime.min.year)",
            "2020-01-02 UTC 1",
        ),
        (
            "import array, copy, selectors as s; print(array.array('b', [1])[0], copy.copy([2]), s.EVENT_READ)",
            "1 [2] 1",
        ),
        ("from datetime import date; import datetime; datetime.UTC; print(date is datetime.date)", "True"),
        ("import urllib.parse; print(urllib.parse.urlsplit('http://[::1]:5/x').hostname)", "::1"),
        ("import inspect; print(hasattr(inspect, '__path__'), hasattr(inspect, 'nothing'))", "False False"),
        ("import json, orjson; print(json.dumps([1]), issubclass(orjson.JSONDecodeError, ValueError))", "[1] True"),
        # Others get the real `typing`, also where ours hold something else, and through what they imported before.
        (
            "import typing as t; import pyctrd.engine, sys; print(t.Any, sys.modules['typing'].Any)",
            "typing.Any typing.Any",
        ),
        (
            "import pyctrd.engine, typing; print(typing.Literal[1], typing.Protocol)",
            "typing.Literal[1] <class 'typing.Protocol'>",
        ),
        ("import pyctrd.engine; from typing import *; print(Optional[int])", "typing.Optional[int]"),
        (
            "import pyctrd.engine, sys; print(hasattr(sys.modules['typing'], 'Union_'), 'typing' in sys.modules)",
            "False True",
        ),
        ("import pyctrd.flows.many, typing; print(typing.get_origin(pyctrd.flows.many.Turns[int]).__name__)", "Turns"),
        ("import pyctrd.engine, click, rich.progress; print(click.Choice('ab').choices)", "('a', 'b')"),
    ],
)
def test_a_module_that_waits_is_there_when_it_is_asked(code: str, told: str) -> None:
    script = f"from pyctrd.cli.deferred import defer_modules\ndefer_modules()\n{code}"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert " ".join(done.stdout.split()) == told
