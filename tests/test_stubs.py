"""``_core.pyi`` against the built module: names, arguments, defaults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]
DEADLINE_SECONDS = 300.0


def stubtest(directory: Path, module: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run mypy's stubtest with stubs and sources from a directory; its cache goes elsewhere."""
    return subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", module, *options],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def test_the_stub_says_what_the_module_has(tmp_path: Path) -> None:
    config = tmp_path / "mypy.ini"
    config.write_text(f"[mypy]\nmypy_path = {PROJECT / 'python'}\ncache_dir = {tmp_path / 'cache'}\n")
    done = stubtest(tmp_path, "pyctrd._core", "--mypy-config-file", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no issues found in 1 module" in done.stdout


def test_a_wrong_stub_is_seen(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text("def there(a, *, b=1): ...\n")
    (tmp_path / "made.pyi").write_text("def there(a: int, b: int = ...) -> None: ...\ndef missing() -> None: ...\n")
    done = stubtest(tmp_path, "made")
    assert done.returncode == 1
    assert "made.missing is not present at runtime" in done.stdout
    assert "made.there is inconsistent" in done.stdout
