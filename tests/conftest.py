"""What every test may use: a registry, images, and a root directory of its own."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import Images
from tests.registries import Registry

CLONE_NEWNS = 0x00020000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
# A test that hangs fails, with what each thread was at, and lets the others run. The longest takes 40 s on two cores.
TIMEOUT_S = 600
_HERE = Path(__file__).parent
_WHY_NO_ROOT = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The long forms are asked for: ``make soak``."""
    parser.addoption("--soak", action="store_true", help="run only the long forms, which are left out else")
    parser.addoption("--soak-seconds", type=float, default=float("inf"), help="how long each of them may go on")
    parser.addoption("--soak-rounds", type=int, default=5000, help="how often workers are killed at random")
    parser.addoption("--soak-seed", type=int, help="of what is at random; the time by default")


def pytest_configure(config: pytest.Config) -> None:
    """Leave the host's mount namespace before any thread exists: what a test forgets goes with the process."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell that puts a job behind lets it ignore interrupts, and children would inherit that: they are sent some.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_WHY_NO_ROOT] = enter_mount_namespace()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose between short and long forms; skip root tests where the probe says that they cannot work."""
    wanted = config.getoption("--soak", default=False)  # benches have no such option, and these hooks
    left_out = [item for item in items if (item.get_closest_marker("soak") is not None) != wanted]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if (item.get_closest_marker("soak") is not None) == wanted]
    for item in items:
        if item.path.is_relative_to(_HERE) and not wanted:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))
    reason = config.stash[_WHY_NO_ROOT]
    if reason:
        for item in items:
            if item.get_closest_marker("root") is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


# Which snapshotter the engines of all tests have that ask for none: to play a suite once more with another one.
SNAPSHOTTER = os.environ.get("PYCTRD_TESTS_SNAPSHOTTER", "")


@pytest.fixture
def as_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are unpacked as directories, by engines that ask for nothing else: the test looks into these."""
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", "overlayfs")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A docker-registry on loopback."""
    if not Registry.is_installed():
        pytest.skip("docker-registry is not installed")
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def images(registry: Registry) -> Images:
    """The session's images, in its registry."""
    return Images(registry)


@pytest.fixture
def state() -> Iterator[Path]:
    """A state directory with a short path: a socket's may have 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="pyctrd-"))
    yield directory
    _unmount_beneath(directory)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """No test sees the machine's store, credentials, mirrors or proxies."""
    monkeypatch.setenv("PYCTRD_ROOT", str(tmp_path / "root"))
    if "state" in request.fixturenames:
        monkeypatch.setenv("PYCTRD_STATE", str(request.getfixturevalue("state")))
    else:
        monkeypatch.setenv("PYCTRD_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or (
            name.startswith("PYCTRD_") and name not in ("PYCTRD_ROOT", "PYCTRD_STATE")
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYCTRD_HOSTS", "")
    if SNAPSHOTTER:
        monkeypatch.setenv("PYCTRD_SNAPSHOTTER", SNAPSHOTTER)
    yield
    _unmount_beneath(tmp_path)


def enter_mount_namespace() -> str:
    """Enter a new one whose mounts stay in it; returns why not, "" if done."""
    if os.geteuid() != 0:
        return "needs root"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0 or libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return f"needs a mount namespace: {os.strerror(ctypes.get_errno())}"
    return ""


def _unmount_beneath(directory: Path) -> None:
    """Detach what a failed test left mounted, the last mounted first."""
    with Path("/proc/self/mounts").open() as file:
        targets = [line.split()[1] for line in file]
    libc = ctypes.CDLL(None, use_errno=True)
    for target in reversed(targets):
        if target.startswith(f"{directory}/"):
            libc.umount2(os.fsencode(target), 2)  # MNT_DETACH
