"""The demo: that it walks to its end, and that it leaves nothing, also when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.archives import Tar
from tests.images import Images, build_image, busybox_tar
from tests.registries import Registry

PROJECT = Path(__file__).parents[1]
DEADLINE_SECONDS = 300.0

pytestmark = [pytest.mark.root, pytest.mark.slow]


def start(temporary: Path, *words: str) -> subprocess.Popen[str]:
    """Start it with a temporary directory of its own, so that what is left over can be seen."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(PROJECT / "demo/demo.py"), *words],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def nothing_is_left(temporary: Path) -> bool:
    mounts = Path("/proc/self/mounts").read_text()
    return list(temporary.iterdir()) == [] and f" {temporary}/" not in mounts


@pytest.mark.skipif(not Registry.is_installed(), reason="docker-registry is not installed")
def test_the_demo_serves_pulls_verifies_unpacks_and_runs(tmp_path: Path) -> None:
    with start(tmp_path) as demo:
        out, _ = demo.communicate(timeout=DEADLINE_SECONDS)
    assert demo.returncode == 0, out
    for text in (
        "served by docker-registry",
        "clean",
        "refused: got sha256:",
        "the same names",
        "lo up",
        "exit status 7",
    ):
        assert text in out
    assert [line for line in out.splitlines() if line.startswith("    apply")]
    assert nothing_is_left(tmp_path)


def test_the_demo_takes_any_reference(images: Images, tmp_path: Path) -> None:
    with start(tmp_path, images.app.reference) as demo:
        out, _ = demo.communicate(timeout=DEADLINE_SECONDS)
    assert demo.returncode == 0, out
    assert f"    {images.app.reference} linux/" in out
    assert "| busybox" in out
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("step", ["pull:", "run:"])
def test_an_interrupted_demo_leaves_nothing(images: Images, tmp_path: Path, step: str) -> None:
    # 120 layers take a while to pull; a shell that never ends is run for ever.
    hanging = Tar().file("bin/sh", b"#!/bin/busybox sh\nexec /bin/busybox sleep 600\n", mode=0o755)
    image = images.many_layers if step == "pull:" else images.push(build_image([busybox_tar(), hanging.build()]))
    with start(tmp_path, image.reference) as demo:
        assert demo.stdout is not None
        seen = []
        for line in demo.stdout:
            seen.append(line)
            if line.strip() == step:
                demo.send_signal(signal.SIGINT)
        demo.wait(DEADLINE_SECONDS)
    assert (demo.returncode, seen[-1]) == (130, "demo: interrupted; everything is removed\n"), seen
    assert nothing_is_left(tmp_path)


def test_without_root_the_demo_says_so_in_one_line() -> None:
    # Not another user: this one's interpreter may stand where nobody else may look.
    script = (
        "import os, runpy; os.geteuid = lambda: 1000; "
        f"runpy.run_path({str(PROJECT / 'demo/demo.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("demo: needs root")
    assert done.stderr.count("\n") == 1
