"""From a registry to a running container, each step with its times: ``make demo``, ``make demo IMAGE=reference``.

Everything is made below one temporary directory, and removed at the end, also after Ctrl-C.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

import pyctrd  # noqa: E402 - the project's root is on the path now
from demo.debian import make_image  # noqa: E402 - as above
from pyctrd.cli.progress import show_progress  # noqa: E402 - as above
from tests.registries import Registry  # noqa: E402 - as above

MIB = 1 << 20
CGROUPS = Path("/sys/fs/cgroup")
# What is up, in a container that may have no more than a shell: the flags' lowest bit.
SHOW_INTERFACES = (
    "for i in /sys/class/net/*; do read -r f < $i/flags; "
    'if [ $((f & 1)) = 1 ]; then echo "${i##*/} up"; else echo "${i##*/} down"; fi; done'
)


def main() -> int:
    """The whole walk; the exit status."""
    if os.geteuid() != 0:
        print("demo: needs root: it unpacks, mounts and runs an image (sudo make demo)", file=sys.stderr)
        return 1
    reference = sys.argv[1] if len(sys.argv) > 1 else ""
    if not reference and not Registry.is_installed():
        print("demo: docker-registry is not installed: make deps, or make demo IMAGE=reference", file=sys.stderr)
        return 1
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # it is a text file here
    signal.signal(signal.SIGTERM, _interrupt)
    began = time.perf_counter()
    try:
        with ExitStack() as stack:
            stack.callback(_remove_cgroups, _cgroups())
            directory = Path(tempfile.mkdtemp(prefix="pyctrd-demo-"))
            stack.callback(_remove, directory)
            try:
                _walk(directory, reference, stack)
            finally:
                # A second Ctrl-C must not stop what the first one has begun.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything is removed", file=sys.stderr)
        return 130
    except (pyctrd.PyctrdError, OSError) as error:
        hint = getattr(error, "hint", "")
        print(f"demo: {error}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr)
        return 1
    print(f"removed everything; {time.perf_counter() - began:.1f} s in all")
    return 0


def _walk(directory: Path, reference: str, stack: ExitStack) -> None:
    engine = stack.enter_context(pyctrd.Engine(root=directory / "root", state=directory / "state"))
    stack.callback(_delete_containers, engine)
    facts = engine.info()
    print(f"pyctrd {facts['version']} on Linux {facts['kernel']} {platform.machine()}, {os.cpu_count()} CPUs")
    print(f"snapshotter {facts['snapshotter']}, runtime {facts['runtime']}, durability {facts['durability']}\n")
    if not reference:
        reference = _serve(directory, stack)
    image = _pull(engine, reference)
    blobs = _verify(engine, image, directory)
    _unpack(image, blobs, directory)
    _run(engine, image)


def _serve(directory: Path, stack: ExitStack) -> str:
    with _step("image") as say:
        made = make_image()
        size = sum(len(tar) for tar in made.image.tars)
        say(f"{made.name}: {len(made.image.layers)} layers, {size / MIB:.1f} MiB unpacked")
        registry = stack.enter_context(Registry(directory / "registry"))
        reference = made.image.push(registry, "demo/image", tag="latest")
        say(f"served by docker-registry as {reference}")
    return reference


def _pull(engine: pyctrd.Engine, reference: str) -> pyctrd.Image:
    with _step("pull") as say:
        before = time.perf_counter()
        with show_progress(quiet=False) as progress:
            image = engine.images.pull(reference, progress=progress)
        seconds = time.perf_counter() - before
        stages = engine.stages()
        received, unpacked = stages["receive"]["bytes"], stages["apply"]["bytes"]
        say(f"{image.name} {image.platform}")
        say(f"{image.digest}")
        say(
            f"{len(image.manifest.layers)} layers: {received / MIB:.1f} MiB in, {unpacked / MIB:.1f} MiB of tar "
            f"digested twice, stored and unpacked in {seconds:.2f} s: {_rate(unpacked, seconds)}"
        )
        _print_stages(stages)
        before = time.perf_counter()
        engine.images.pull(reference)
        fresh = engine.stages()["receive"]["bytes"] - received
        say(f"again: {fresh} bytes fetched, {time.perf_counter() - before:.3f} s")
    return image


def _print_stages(stages: dict[str, dict[str, int]]) -> None:
    print("    stage      busy s  starved s  blocked s  waiting s     MiB in   (summed over layers, which overlap)")
    for name, figures in stages.items():
        times = "".join(f"{figures[f'{kind}_ns'] / 1e9:>11.3f}" for kind in ("starved", "blocked", "waiting"))
        print(f"    {name:<8}{figures['busy_ns'] / 1e9:>9.3f}{times}{figures['bytes'] / MIB:>11.1f}")


def _verify(engine: pyctrd.Engine, image: pyctrd.Image, directory: Path) -> list[Path]:
    with _step("verify") as say:
        before = time.perf_counter()
        findings = engine.check(digests=True)
        seconds = time.perf_counter() - before
        size = sum(record.size for record in engine.content.list())
        say(f"every blob hashed, every layer compared with its index: {findings or 'clean'}, {_rate(size, seconds)}")
        blobs = []
        for layer in image.manifest.layers:
            path = directory / f"root/content/blobs/{layer.digest.algorithm}/{layer.digest.hex}"
            pyctrd.verify(path, str(layer.digest))
            blobs.append(path)
        damaged = directory / "damaged"
        content = bytearray(blobs[-1].read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        try:
            pyctrd.verify(damaged, str(image.manifest.layers[-1].digest))
        except pyctrd.errors.DigestMismatchError as error:
            say(f"a copy with one bit flipped: refused: got {error.actual}")
    return blobs


def _unpack(image: pyctrd.Image, blobs: list[Path], directory: Path) -> None:
    with _step("unpack") as say:
        rootfs = directory / "rootfs"
        before = time.perf_counter()
        done = [
            pyctrd.unpack(blob, rootfs, diff_id=str(diff_id))
            for blob, diff_id in zip(blobs, image.config.rootfs.diff_ids, strict=True)
        ]
        seconds = time.perf_counter() - before
        size, entries = sum(one.layer_bytes for one in done), sum(one.layer_entries for one in done)
        say(f"the layers, one over the other, into a directory: {entries} entries, {_rate(size, seconds)}")
        mounted = directory / "mounted"
        mounted.mkdir()
        before = time.perf_counter()
        with image.mounted(mounted):
            seconds = time.perf_counter() - before
            shown = _names(mounted)
        say(f"the image mounted in {seconds * 1000:.1f} ms: {len(shown)} names")
        if (others := _names(rootfs) ^ shown) != set():
            raise OSError(f"the directory and the mounted image differ: {sorted(others)[:5]}")
        say("the directory has the same names")


def _names(root: Path) -> set[str]:
    return {
        f"{where}/{name}".removeprefix(str(root)) for where, *both in os.walk(root) for names in both for name in names
    }


def _run(engine: pyctrd.Engine, image: pyctrd.Image) -> None:
    with _step("run") as say:
        try:
            _run_one(say, engine, image, 'echo "${PRETTY_NAME:-$NAME}"; cat /etc/motd 2>/dev/null', what="in the image")
        except pyctrd.errors.CommandNotFoundError:
            say("the image has no shell: nothing is run")
            return
        _run_one(say, engine, image, SHOW_INTERFACES, what="its own network, loopback up")
        _run_one(say, engine, image, SHOW_INTERFACES, what="the host's network", network="host")
        _run_one(say, engine, image, "exit 7", what="exit 7")


def _run_one(
    say: _Say, engine: pyctrd.Engine, image: pyctrd.Image, script: str, *, what: str, network: str = "none"
) -> None:
    before = time.perf_counter()
    command = ["sh", "-c", f"test -r /etc/os-release && . /etc/os-release; {script}"]
    container = engine.containers.run(image, command, entrypoint=[], network=network)
    status = container.wait()
    seconds = time.perf_counter() - before
    output = container.logs().splitlines()
    container.delete()
    say(f"{what}: {seconds * 1000:.0f} ms, exit status {status.exit_code}")
    for line in output:
        print(f"      | {line}")


@contextmanager
def _step(name: str) -> Iterator[_Say]:
    say = _Say(name)
    print(f"{name}:")
    yield say
    print(f"    {time.perf_counter() - say.began:.2f} s\n")


class _Say:
    """Prints what happened in a step."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = time.perf_counter()

    def __call__(self, text: str) -> None:
        print(f"    {text}", flush=True)


def _rate(size: int, seconds: float) -> str:
    return f"{size / MIB / seconds:.0f} MiB/s"


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _delete_containers(engine: pyctrd.Engine) -> None:
    for container in engine.containers.list():
        container.delete(force=True)


def _remove(directory: Path) -> None:
    """Remove a directory, first whatever an interrupted step left mounted below it."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    for target in reversed([line.split()[1] for line in mounts]):
        if target.startswith(f"{directory}/"):
            subprocess.run(["umount", "-l", target], check=True)
    shutil.rmtree(directory)


def _cgroups() -> set[Path]:
    """The groups above the containers' own."""
    return {path for path in (*CGROUPS.glob("*/pyctrd"), CGROUPS / "pyctrd") if path.is_dir()}


def _remove_cgroups(before: set[Path]) -> None:
    """Take away those that were not there; one that another engine uses by now stays."""
    for path in _cgroups() - before:
        with suppress(OSError):
            path.rmdir()


if __name__ == "__main__":
    sys.exit(main())
