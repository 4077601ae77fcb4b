"""The works that are compared, each a run or more of every tool, on a new file system for each image and round."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from benches.peers import corpus, floor
from benches.peers.accounting import Cost, Group
from benches.peers.corpus import NEXT_VERSIONS, REBUILT, Image
from benches.peers.disk import drop_caches, fresh_disk, unmount_beneath, written_bytes
from benches.peers.many import NO_SUCH_CALL
from benches.peers.results import Results, Run
from benches.peers.tools import LEAN, LIBRARY, Tool
from tests.registries import Registry

AGAIN_RUNS = 3
MANY_COUNTS = (1, 20, 50, 100, 200)
_GIB = 1 << 30
_SPARE_GIB = 3
# Of a store: the blobs twice (skopeo's and umoci's), the tree and what comes with every file: a block, an inode.
_BLOBS, _TREES, _ENTRY_BYTES = 2.2, 1.6, 6144
# The floor writes its forms of the layers as four tools would; and each tool has a store of the smallest image.
_FLOOR_STORES = 4
_ENTRY_INODES = 2.2
_SPARE_INODES = 100_000
_MANY_BYTES = 12 << 20
_ERROR_CHARACTERS = 300
# Of manifests and configs.
_DOCUMENT_BYTES = 64 << 10
# Where there is nothing to do it takes as long for each form and size.
_AGAIN_IMAGES = ("tiny", "debian", "pyapp")


@dataclass
class Bench:
    """What every work needs.

    Attributes:
        tools: How each is made, by name.
        images: What the registry serves, by name.
        registry: It.
        scratch: A directory that goes at the end.
        results: Where everything goes that is found.
        works: Which are wanted.
        subjects: The expanded layers, for floors; by diff_id.
    """

    tools: Mapping[str, Callable[[Path, Group], Tool]]
    images: Mapping[str, Image]
    registry: Registry
    scratch: Path
    results: Results
    works: Sequence[str]
    subjects: dict[str, floor.Subject] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def pulls(self, image: Image, turn: int) -> None:
        """Pull an image into an empty store with each tool, and what follows from there; then the floor."""
        with self._disk(image, len(self.tools) + _FLOOR_STORES) as disk:
            for name in self._turned(turn):
                if self.results.failed("pull", image.name, name):
                    continue  # it cannot, and would not the next time
                with self._kept_on("pull", image.name, name, turn):
                    self._warm(name, disk, image)
                    with self._running(name, disk) as tool:
                        self._run("pull", image.name, tool, turn, tool.pull(image.reference), disk)
                        if not self.results.failed("pull", image.name, name):
                            self._follow(image, tool, turn, disk)
            if "floor" in self.works:
                self._tell(f"{image.name} {turn}: floor")
                drop_caches()
                self._read_blobs(image)
                self.results.floors.append((image.name, floor.measure(image, self.subjects, disk)))

    def load(self, image: Image, turn: int) -> None:
        """Bring an image of an archive into an empty store with each tool."""
        archive, name = self._archive(image)
        with self._disk(image, len(self.tools)) as disk:
            for tool_name in self._turned(turn):
                if self.results.failed("load", image.name, tool_name):
                    continue
                with self._kept_on("load", image.name, tool_name, turn):
                    self._warm(tool_name, disk, image)
                    _read(archive)
                    with self._running(tool_name, disk) as tool:
                        if (words := tool.load(archive, name)) is not None:
                            self._run("load", image.name, tool, turn, words, disk)

    def many(self, references: Sequence[str], turn: int) -> None:
        """Pull 1 to 200 images with one call of the library."""
        with fresh_disk(self.scratch, size_gib=(sum(MANY_COUNTS) * _MANY_BYTES // _GIB) + _SPARE_GIB) as disk:
            for number in MANY_COUNTS:
                drop_caches()
                self._read_blobs(up_to_bytes=_MANY_BYTES)
                store = disk / f"many-{number}"
                store.mkdir()
                argv = [sys.executable, "-m", "benches.peers.many", str(store), *references[:number]]
                with self._group("many") as group:
                    before = written_bytes(disk)
                    cost = group.run(argv, log=store / "log")
                if cost.status == NO_SUCH_CALL:
                    self.note("many images: left out: this engine has no `pull_many`")
                    return
                self._keep("many", str(number), LIBRARY, turn, cost, written_bytes(disk) - before)

    def starts(self, image: Image, runs: int) -> None:
        """Start to exit of `true`, the tools in turn; and of bare runc on an unpacked bundle."""
        with self._disk(image, len(self.tools) + 1) as disk, contextlib.ExitStack() as stack:
            running = []
            for name in self.tools:
                tool = stack.enter_context(self._running(name, disk))
                if tool.run_true(image.reference, "x") is not None:
                    done = tool.group.run(
                        tool.pull(image.reference), log=tool.store / "log", environment=tool.environment
                    )
                    if done.status:
                        raise RuntimeError(f"{name}: {done.output}")
                    running.append(tool)
            bundle = _bundle(image.reference, disk)
            runc = stack.enter_context(self._group("runc"))
            for turn in range(runs):
                argv = ["runc", "--root", f"{disk}/runc", "run", "--bundle", str(bundle), f"bare-{turn}"]
                self._keep("start", image.name, "runc", turn, runc.run(argv, log=disk / "start.log"), 0)
                for tool in running:
                    words = tool.run_true(image.reference, f"bench-{turn}")
                    assert words is not None
                    cost = tool.group.run(words, log=disk / "start.log", environment=tool.environment)
                    self._keep("start", image.name, tool.name, turn, cost, 0)

    def push_many(self) -> list[str]:
        """Images that share a base, in the registry."""
        built = corpus.many_images(max(MANY_COUNTS))
        return [image.push(self.registry, f"many/{number:03}", tag="1") for number, image in enumerate(built)]

    def note(self, text: str) -> None:
        """Something that was left out, and why."""
        if text not in self.results.notes:
            self.results.notes.append(text)
            self._tell(text)

    def _follow(self, image: Image, tool: Tool, turn: int, disk: Path) -> None:
        """What comes after a pull, in its store: nothing to do, a new version, the same built again."""
        if "again" in self.works and image.name in _AGAIN_IMAGES:
            for _ in range(AGAIN_RUNS):
                self._run("again", image.name, tool, turn, tool.pull_again(image.reference), disk)
        for work, name in (("update", NEXT_VERSIONS.get(image.name, "")), ("rebuilt", f"{image.name}{REBUILT}")):
            if work in self.works and name in self.images:
                self._run(work, name, tool, turn, tool.pull(self.images[name].reference), disk)

    def _run(self, work: str, image: str, tool: Tool, turn: int, words: list[str], disk: Path) -> None:
        before = written_bytes(disk)
        cost = tool.group.run(words, log=tool.store / "log", environment=tool.environment)
        if work == "again" and tool.name in {LIBRARY, LEAN} and cost.status == 0:
            # What the call itself took: the shell and the pipes that ask for it are not the library's.
            cost = Cost(cost.status, float(cost.output), cost.cpu_seconds, cost.peak_bytes, cost.output)
        self._keep(work, image, tool.name, turn, cost, written_bytes(disk) - before)

    def _keep(self, work: str, image: str, tool: str, turn: int, cost: Cost, written: int) -> None:
        error = ""
        if cost.status:
            # Neither names of this machine's directories nor ports belong into a table.
            said = " ".join(cost.output.split()).replace(str(self.scratch), "…").replace(self.registry.host, "registry")
            error = said[-_ERROR_CHARACTERS:]
        self.results.runs.append(
            Run(
                work,
                image,
                tool,
                turn,
                cost.status,
                round(cost.wall_seconds, 5),
                round(cost.cpu_seconds, 5),
                cost.peak_bytes,
                written,
                error,
            )
        )
        outcome = f"{cost.wall_seconds:.3f} s, {cost.cpu_seconds:.3f} CPU s" if not cost.status else f"failed: {error}"
        self._tell(f"{image} {turn}: {work} by {tool}: {outcome}")

    def _warm(self, name: str, disk: Path, image: Image) -> None:
        """Let each begin with the same free memory, the registry's files and its own program in it."""
        drop_caches()
        self._read_blobs(image, *(self.images[name] for name in _followers(image.name) if name in self.images))
        smallest = min(self.images.values(), key=lambda image: image.compressed_bytes)
        with self._running(name, disk) as tool:
            words = tool.pull(smallest.reference)
            tool.group.run(words, log=tool.store / "log", environment=tool.environment)

    @contextlib.contextmanager
    def _running(self, name: str, disk: Path) -> Iterator[Tool]:
        """A tool with a store of its own, which stays when the tool ends."""
        with self._group(name) as group:
            # Short: podman refuses a path of over 50 bytes for its runroot.
            tool = self.tools[name](disk / str(next(self._numbers)), group)
            try:
                tool.start()
                yield tool
            finally:
                tool.stop()
                unmount_beneath(tool.store)

    @contextlib.contextmanager
    def _kept_on(self, work: str, image: str, tool: str, turn: int) -> Iterator[None]:
        """A tool that cannot be started costs its own row, not the hours of all others."""
        try:
            yield
        except (RuntimeError, TimeoutError, subprocess.SubprocessError) as error:
            self._keep(work, image, tool, turn, Cost(-1, 0.0, 0.0, 0, str(error)), 0)

    @contextlib.contextmanager
    def _group(self, name: str) -> Iterator[Group]:
        group = Group(f"{self.scratch.name}-{name}-{next(self._numbers)}")
        try:
            yield group
        finally:
            group.close()

    @contextlib.contextmanager
    def _disk(self, image: Image, stores: int) -> Iterator[Path]:
        others = [self.images[name] for name in _followers(image.name) if name in self.images]
        size = inodes = 0.0
        for each in (image, *others):
            facts = self.results.images[each.name]
            size += facts["compressed_bytes"] * _BLOBS + facts["tar_bytes"] * _TREES + facts["entries"] * _ENTRY_BYTES
            inodes += facts["entries"] * _ENTRY_INODES
        gib = int(size * stores / _GIB) + _SPARE_GIB
        with fresh_disk(self.scratch, size_gib=gib, inodes=int(inodes * stores) + _SPARE_INODES) as disk:
            yield disk

    def _turned(self, turn: int) -> list[str]:
        """All tools, beginning with another one each round: none has the new file system to itself always."""
        names = list(self.tools)
        first = turn % len(names)
        return names[first:] + names[:first]

    def _archive(self, image: Image) -> tuple[Path, str]:
        """The image as ``docker save`` would write it, which all of them read; and its name in there."""
        path, name = self.scratch / f"{image.name}.tar", f"bench.example/{image.name}:latest"
        if not path.exists():
            copy = ["skopeo", "copy", "-q", f"oci:{image.layout}:latest", f"docker-archive:{path}:{name}"]
            subprocess.run(copy, check=True)
        return path, name

    def _read_blobs(self, *images: Image, up_to_bytes: int = _DOCUMENT_BYTES) -> None:
        """What the registry is going to send, into memory: images' layers, and whatever is small."""
        wanted = {layer.digest.partition(":")[2] for image in images for layer in image.layers}
        for path in (self.scratch / "registry").rglob("data"):
            if path.parent.name in wanted or path.stat().st_size <= up_to_bytes:
                _read(path)

    def _tell(self, text: str) -> None:
        print(f"benches.peers: {text}", file=sys.stderr, flush=True)


def describe(images: Sequence[Image], subjects: Mapping[str, floor.Subject]) -> dict[str, dict[str, int]]:
    """Sizes of images, by name."""
    found = {}
    for image in images:
        own = [subjects[layer.diff_id] for layer in image.layers]
        found[image.name] = {
            "layers": len(image.layers),
            "compressed_bytes": image.compressed_bytes,
            "tar_bytes": sum(subject.tar.stat().st_size for subject in own),
            "entries": sum(len(subject.nodes) for subject in own),
        }
    return found


def _followers(name: str) -> list[str]:
    return [f"{name}{REBUILT}", *filter(None, [NEXT_VERSIONS.get(name)])]


def _bundle(reference: str, disk: Path) -> Path:
    bundle = disk / "bundle"
    layout = f"oci:{disk}/bundle-oci:x"
    copy = ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{reference}", layout]
    subprocess.run(copy, check=True)
    subprocess.run(["umoci", "unpack", "--image", f"{disk}/bundle-oci:x", bundle], check=True, capture_output=True)
    spec = bundle / "config.json"
    document = json.loads(spec.read_text())
    document["process"] |= {"terminal": False, "args": ["/bin/true"], "rlimits": []}
    spec.write_text(json.dumps(document))
    return bundle


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
