"""Works of an engine that are stopped, refused or cut off half-way; and how one tells that nothing is wrong after it.

Each begins with the same store, runs in a process of its own, says ``begin`` when it begins and a line more for each
thing that it was told is done.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import NotFoundError
from pyctrd.metadata.database import Database
from tests.archives import Tar
from tests.faults import forking, saving, sending, several, updating
from tests.images import BuiltImage, build_image
from tests.registry_faults import FaultyRegistry
from tests.tocs import go_tar, tabled_image, zstd_chunked

PRELUDE = """
import os, sys, traceback
import pyctrd
from pyctrd.errors import NotFoundError

def say(text):
    os.write(1, text.encode() + b"\\n")

def held():
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink("/proc/self/fd/" + name))
        except OSError:
            pass
    return sorted(link for link in links if os.environ["PYCTRD_ROOT"] in link)

words = sys.argv[1:]
status = 0
try:
    with pyctrd.Engine() as engine:
        work(engine, words, say)
except (pyctrd.PyctrdError, OSError, MemoryError) as error:
    say(f"refused {type(error).__name__} {getattr(error, 'filename', None)}: {error}")
    status = 3
except KeyboardInterrupt:
    say("interrupted")
    status = 5
except BaseException:
    say("untyped " + traceback.format_exc())
    status = 4
# Not before: what an error's frames hold, as a lock that was just taken, goes with the error.
for link in held() if status else ():
    say(f"leaked {link}")
sys.exit(status)
"""

_SHARED = Tar().directory("d", mode=0o750).file("d/f", b"first").symlink("l", "d/f").build()
_OWN = Tar().file("d/g", b"second" * 300, xattrs={"user.note": b"x"}).hardlink("d/h", "d/f").build()
_TOP = Tar().whiteout("d/g").file("late", b"third").build()
KEPT = build_image([_SHARED, Tar().file("kept", b"stays").build()])
FIRST = build_image([_SHARED, _OWN])
SECOND = build_image([_SHARED, _OWN, _TOP])
# The first in another compression: its layers need not come where their blobs are not wanted.
AGAIN = build_image([_SHARED, _OWN], compression="zstd")
# The same twice, but for one file, with tables of contents.
_TABLED = {"d/": b"", "d/same": b"same" * 900, "d/changes": b"first"}
TABLED_TARS = [go_tar(_TABLED), go_tar(_TABLED | {"d/changes": b"second" * 300})]
TABLED = [tabled_image([zstd_chunked(tar)], [tar]) for tar in TABLED_TARS]
# What a pull that was killed before it recorded anything has published.
LEFT = build_image([Tar().file("left", b"of a killed process").build()])


@dataclass(frozen=True)
class Shop:
    """Where a work is done.

    Attributes:
        root: The store.
        registry: Serves ``kept``, ``first`` and ``second``.
        layouts: A directory with each of them as an OCI layout.
    """

    root: Path
    registry: FaultyRegistry
    layouts: Path

    def reference(self, name: str) -> str:
        """One of the images in the registry."""
        return f"{self.registry.host}/{name}:latest"

    def layout(self, name: str) -> str:
        """One of the images as files."""
        return str(self.layouts / name)

    @property
    def template(self) -> Path:
        """The store as it is before the work."""
        return self.root.with_name("template")

    def keep(self) -> None:
        """Keep the store, which nobody has open, as the one that each try begins with."""
        self._unmount()
        copy(self.root, self.template)

    def restore(self) -> None:
        """Begin again."""
        self._unmount()
        copy(self.template, self.root)

    def _unmount(self) -> None:
        below = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for target in reversed([target for target in below if target.startswith(f"{self.root}/")]):
            subprocess.run(["umount", "-l", target], check=True)


def copy(source: Path, target: Path) -> None:
    """A whole tree, with whatever it has, in the place of another."""
    if target.exists():
        subprocess.run(["rm", "-rf", str(target)], check=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


@dataclass(frozen=True)
class Work:
    """One flow.

    Attributes:
        name: For people.
        code: The body of ``work(engine, words, say)``.
        words: Its words.
        prepare: Makes the store that it begins with.
        judge: With the next engine: what was told is there, the rest is whole or not; then the work is done to its end,
            and judged as one that nothing stopped.
        clean: Whether ``check`` finds nothing whatever the work was stopped in.
    """

    name: str
    code: str
    words: Callable[[Shop], Sequence[str]]
    prepare: Callable[[pyctrd.Engine, Shop], None]
    judge: Callable[[pyctrd.Engine, Shop, list[str]], None]
    clean: bool = True

    @property
    def program(self) -> str:
        """For a process of its own."""
        return f"def work(engine, words, say):\n{self.code}\n{PRELUDE}"


OPENED = """
    engine.images.list()
    say("begin")
"""


def open_shop(root: Path, directory: Path, registry: FaultyRegistry) -> Shop:
    """With all that works need."""
    for name, image in {"kept": KEPT, "first": FIRST, "second": SECOND, "again": AGAIN, "left": LEFT}.items():
        registry.add(image, name)
        image.write_layout(directory / "layouts" / name)
    several.serve_platforms(registry, "platforms")
    for number, image in enumerate(TABLED):
        registry.add(image, f"tabled-{number}")
    return Shop(root, registry, directory / "layouts")


def set_up(work: Work, shop: Shop, *, keep: bool = True) -> None:
    """Make the store that each try begins with, and keep it beside."""
    with pyctrd.Engine() as engine:
        engine.images.pull(shop.reference("kept"))
        work.prepare(engine, shop)
    if keep:
        shop.keep()


def judge(work: Work, shop: Shop, said: list[str]) -> None:
    """Open the store again after a try: see ``Work.judge``."""
    with pyctrd.Engine() as engine:
        if work.clean:
            assert engine.check(digests=True) == []
        assert engine.images.get(shop.reference("kept")).read_file("/kept") == b"stays"
        work.judge(engine, shop, said)
        assert engine.check(digests=True) == []
        assert engine.images.get(shop.reference("kept")).read_file("/kept") == b"stays"
        assert leftovers(shop.root) == []


def judge_whole(shop: Shop, name: str, built: BuiltImage, *, told: bool) -> None:
    """As ``judge``, of one image that was pulled, or was not."""
    with pyctrd.Engine() as engine:
        assert engine.check(digests=True) == []
        assert leftovers(shop.root) == []
        image = engine.images.find(shop.reference(name))
        assert image is not None or not told
        _reads(engine.images.pull(shop.reference(name)), built)
        assert engine.check(digests=True) == []


def leftovers(root: Path) -> list[str]:
    """What only a work under way may have there."""
    found = [path for name in ("content/ingest", "trash") for path in sorted((root / name).glob("*"))]
    found += sorted((root / "snapshots").glob("trial-*"))
    return [str(path.relative_to(root)) for path in found]


def snapshots_in(shop: Shop) -> list[str]:
    """Those of containers and views; what is made for a stack of layers stays with these."""
    names = sorted(path.name for path in (shop.root / "snapshots").iterdir())
    return [name for name in names if not name.startswith(("fixup-", "stack-"))]


def _nothing(engine: pyctrd.Engine, shop: Shop) -> None:
    del engine, shop


def _reads(image: pyctrd.Image, built: BuiltImage) -> None:
    assert image.manifest_digest == built.digest
    assert image.read_file("/d/h") == b"first"
    if built is FIRST:
        assert image.read_file("/d/g") == b"second" * 300
    else:
        assert image.read_file("/late") == b"third"


def _judge_brought(name_of: Callable[[Shop, str], str]) -> Callable[[pyctrd.Engine, Shop, list[str]], None]:
    def judge_brought(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
        for name, built in (("first", FIRST), ("second", SECOND)):
            image = engine.images.find(name_of(shop, name))
            assert image is not None or name not in said, f"{name} was brought in and is gone"
            if image is not None:
                _reads(image, built)
        for name, built in (("first", FIRST), ("second", SECOND)):
            if name_of(shop, name) == shop.reference(name):
                _reads(engine.images.pull(shop.reference(name)), built)
            else:
                _reads(engine.images.load(shop.layout(name), name=name_of(shop, name))[0], built)

    return judge_brought


def _has_tabled(engine: pyctrd.Engine, shop: Shop) -> None:
    engine.images.pull(shop.reference("tabled-0"), keep_blobs=False)


def _judge_parts(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    name = shop.reference("tabled-1")
    image = engine.images.find(name)
    assert image is not None or "second" not in said, "it was brought in and is gone"
    for found in (image, engine.images.pull(name, keep_blobs=False)):
        if found is not None:
            assert found.read_file("/d/changes") == b"second" * 300
            assert found.read_file("/d/same") == b"same" * 900


def _loaded(shop: Shop, name: str) -> str:
    del shop
    return f"example.com/{name}:1"


def _has_both(engine: pyctrd.Engine, shop: Shop) -> None:
    engine.images.pull(shop.reference("first"))
    engine.images.pull(shop.reference("second"))


def _has_first_without_blobs(engine: pyctrd.Engine, shop: Shop) -> None:
    engine.images.pull(shop.reference("first"), keep_blobs=False)


def _judge_taken(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    image, first = engine.images.find(shop.reference("again")), engine.images.find(shop.reference("first"))
    assert image is not None or "again" not in said, "again was brought in and is gone"
    assert first is None or "removed" not in said, "first was removed and is there"
    image = image or engine.images.pull(shop.reference("again"), keep_blobs=False)
    if first is not None:
        engine.images.remove(first.name)
    assert image.manifest_digest == AGAIN.digest
    assert (image.read_file("/d/h"), image.read_file("/d/g")) == (b"first", b"second" * 300)


def _has_both_unnamed(engine: pyctrd.Engine, shop: Shop) -> None:
    _has_both(engine, shop)
    for name in ("first", "second"):
        engine.images.remove(shop.reference(name), collect=False)


def _judge_collected(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    if "collected" not in said:
        engine.gc()
    _assert_only_kept(shop)


def _judge_removed(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    for name, built in (("first", FIRST), ("second", SECOND)):
        image = engine.images.find(shop.reference(name))
        assert image is None or name not in said, f"{name} was removed and is there"
        if image is not None:
            _reads(image, built)
            engine.images.remove(image.name)
    engine.gc()
    _assert_only_kept(shop)


def _assert_only_kept(shop: Shop) -> None:
    assert list((shop.root / "objects").glob("*/*")) == []
    kept = {blob.digest.partition(":")[2] for blob in (KEPT.manifest, *KEPT.blobs)}
    assert {path.name for path in (shop.root / "content/blobs/sha256").iterdir()} == kept
    assert len(list((shop.root / "layers/sha256").iterdir())) == len(KEPT.tars)


def _has_container(engine: pyctrd.Engine, shop: Shop) -> None:
    container = engine.containers.create(engine.images.pull(shop.reference("first")), ["true"], name="made")
    rootfs = shop.root / "containers/default" / container.id / "rootfs"
    if not rootfs.is_mount():  # a copied tree needs no mount
        rootfs = shop.root / "snapshots" / f"container-{container.id}" / "rootfs"
    (rootfs / "d/changed").write_bytes(b"in the container")
    (rootfs / "d/g").unlink()


def _judge_committed(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    image = engine.images.find("example.com/committed:1")
    assert image is not None or "committed" not in said
    container = engine.containers.get("made")
    image = image or container.commit("example.com/committed:1")
    assert image.read_file("/d/changed") == b"in the container"
    assert image.read_file("/d/h") == b"first"
    with pytest.raises(NotFoundError):
        image.stat("/d/g")
    assert container.status.state == "created"


def _judge_saved(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    saving.judge_saved(engine, shop.reference("first"), shop.layout, said)


def _judge_converted(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    image = engine.images.find("example.com/converted:1")
    assert image is not None or "converted" not in said
    before = engine.images.get(shop.reference("first"))
    image = image or engine.images.convert(before.name, "example.com/converted:1", compression="zstd:chunked")
    assert image.config == before.config
    assert all("annotations" in layer.raw for layer in image.manifest.layers)
    assert image.read_file("/d/g") == b"second" * 300


def _has_old(engine: pyctrd.Engine, shop: Shop) -> None:
    engine.containers.create(shop.reference("kept"), ["true"], name="old")


def _judge_created(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    names = {container.name for container in engine.containers.list()}
    assert "new" in names or "created" not in said, "new was made and is gone"
    assert "old" not in names or "deleted" not in said, "old was deleted and is there"
    for container in engine.containers.list():
        bundle = shop.root / "containers/default" / container.id
        assert json.loads((bundle / "config.json").read_bytes())["process"]["args"] == ["true"]
        container.delete()
    assert list((shop.root / "containers").glob("*/*")) == []
    assert snapshots_in(shop) == []


def _has_tenant(engine: pyctrd.Engine, shop: Shop) -> None:
    del engine
    with pyctrd.Engine(namespace="tenant") as tenant:
        image = tenant.images.pull(shop.reference("first"))
        tenant.containers.create(image, ["true"], name="made")


def _judge_namespace(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    names = [namespace.name for namespace in engine.namespaces.list()]
    assert "tenant" not in names or "removed" not in said
    if "tenant" in names:
        engine.namespaces.remove("tenant", force=True)
    engine.gc()
    _assert_only_kept(shop)
    assert list((shop.root / "containers").glob("*/*")) == []


def _damage(engine: pyctrd.Engine, shop: Shop) -> None:
    image = engine.images.pull(shop.reference("first"))
    blobs, layers = shop.root / "content/blobs/sha256", shop.root / "layers/sha256"
    layer = layers / image.config.rootfs.diff_ids[1].hex
    file = next((path for path in (layer / "tree/d/g", layer / "blocks") if path.exists()), None)
    if file is None:
        key = str(image.stat("/d/g").content_digest).removeprefix("blake3:")
        file = shop.root / "objects" / key[:2] / key[2:]
    file.write_bytes(b"shorter")
    (blobs / image.manifest.layers[1].digest.hex).unlink()
    (blobs / image.manifest.config.digest.hex).write_bytes(b"no config")
    (blobs / ("0" * 64)).write_bytes(b"nobody's")


def _judge_repaired(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    found = engine.check(digests=True)
    assert found == [] or "repaired" not in said
    done = engine.check(digests=True, repair=True)
    assert all(finding.repaired for finding in done), done
    _reads(engine.images.get(shop.reference("first")), FIRST)


def _leave(engine: pyctrd.Engine, shop: Shop) -> None:
    """What processes leave that are killed at several places, all at once."""
    root = shop.root
    image = engine.images.load(shop.layout("left"), name="example.com/left:1")[0]
    diff_id, layer = str(image.config.rootfs.diff_ids[0]), image.manifest.layers[0]
    shutil.copytree(root / "layers/sha256" / diff_id[7:], root / "copied", symlinks=True)
    shutil.copy2(root / "content/blobs/sha256" / layer.digest.hex, root / "copied-blob")
    engine.images.remove(image.name)
    container = engine.containers.create(shop.reference("kept"), ["true"], name="half")
    rootfs = root / "containers/default" / container.id / "rootfs"
    if rootfs.is_mount():
        subprocess.run(["umount", str(rootfs)], check=True)
    (root / "containers/default" / container.id / "config.json").unlink()
    (root / "copied").rename(root / "layers/sha256" / diff_id[7:])
    (root / "copied-blob").rename(root / "content/blobs/sha256" / layer.digest.hex)
    database = Database(root / "pyctrd.db")
    with database.write() as tx:
        tx.ingests.add("left", namespace="default", digest=str(layer.digest), diff_id=diff_id, size=layer.size)
    database.close()
    for name in ("content/ingest/left/layer/tree", "content/ingest/other", "trash/old/tree", "snapshots/trial-0/upper"):
        (root / name).mkdir(parents=True)
    (root / "content/ingest/left/data").write_bytes(b"half")
    (root / "trash/old/tree/file").write_bytes(b"x")


def _judge_recovered(engine: pyctrd.Engine, shop: Shop, said: list[str]) -> None:
    del said
    assert engine.containers.list() == []
    _assert_only_kept(shop)
    assert snapshots_in(shop) == []


WORKS = [
    Work(
        "pull",
        OPENED
        + "    for name, reference in zip(('first', 'second'), words):\n"
        + "        engine.images.pull(reference)\n        say(name)",
        lambda shop: [shop.reference("first"), shop.reference("second")],
        _nothing,
        _judge_brought(Shop.reference),
    ),
    Work(
        "pull many",
        OPENED
        + "    names = dict(zip(words, ('first', 'second')))\n"
        + "    with engine.images.pull_many(words, concurrency=1) as results:\n"
        + "        for result in results:\n            result.get()\n            say(names[result.reference])",
        lambda shop: [shop.reference("first"), shop.reference("second")],
        _nothing,
        _judge_brought(Shop.reference),
    ),
    Work(
        "pull all platforms",
        OPENED + "    engine.images.pull(words[0], all_platforms=True)\n    say('all')",
        lambda shop: [shop.reference("platforms")],
        _nothing,
        lambda engine, shop, said: several.judge_platforms(engine, shop.reference("platforms"), said),
    ),
    Work(
        "pull without blobs",
        OPENED
        + "    for name, reference in zip(('first', 'second'), words):\n"
        + "        engine.images.pull(reference, keep_blobs=False)\n        say(name)",
        lambda shop: [shop.reference("first"), shop.reference("second")],
        _nothing,
        _judge_brought(Shop.reference),
    ),
    Work(
        "pull known layers",
        OPENED
        + "    engine.images.pull(words[0], keep_blobs=False)\n    say('again')\n"
        + "    engine.images.remove(words[1])\n    say('removed')",
        lambda shop: [shop.reference("again"), shop.reference("first")],
        _has_first_without_blobs,
        _judge_taken,
    ),
    Work(
        "pull in parts",
        # As if the layers were large.
        "    from pyctrd.flows import parts\n    parts.LAYER_MIN_BYTES = parts.REQUEST_BYTES = 0\n"
        + OPENED
        + "    engine.images.pull(words[0], keep_blobs=False)\n    say('second')",
        lambda shop: [shop.reference("tabled-1")],
        _has_tabled,
        _judge_parts,
    ),
    Work(
        "load",
        OPENED
        + "    for name, layout in zip(('first', 'second'), words):\n"
        + "        engine.images.load(layout, name=f'example.com/{name}:1')\n        say(name)",
        lambda shop: [shop.layout("first"), shop.layout("second")],
        _nothing,
        _judge_brought(_loaded),
    ),
    Work(
        "send",
        sending.code() + OPENED + "    send(engine, words[0], say)",
        lambda shop: [shop.layout("first")],
        _nothing,
        lambda engine, shop, said: _reads(sending.judge_sent(engine, shop.layout("first"), said), FIRST),
    ),
    Work(
        "rmi",
        OPENED
        + "    for name, reference in zip(('first', 'second'), words):\n"
        + "        engine.images.remove(reference)\n        say(name)",
        lambda shop: [shop.reference("first"), shop.reference("second")],
        _has_both,
        _judge_removed,
    ),
    Work(
        "rmi in the background",
        OPENED
        + "    from pyctrd.flows import removal\n    removal.FIRST_SECONDS = 0.0\n"
        + "    for name, reference in zip(('first', 'second'), words):\n"
        + "        engine.images.remove(reference)\n        say(name)",
        lambda shop: [shop.reference("first"), shop.reference("second")],
        _has_both,
        _judge_removed,
    ),
    Work(
        "commit",
        OPENED + "    engine.containers.get('made').commit('example.com/committed:1')\n    say('committed')",
        lambda shop: [],
        _has_container,
        _judge_committed,
    ),
    Work("fork", OPENED + forking.FORK, lambda _: [], _has_container, forking.judge_forked),
    Work("volume", OPENED + forking.VOLUME, lambda shop: [shop.reference("kept")], _nothing, forking.judge_volumes),
    Work("update", OPENED + updating.UPDATE, lambda _: [], updating.has_made, updating.judge_updated),
    Work(
        "convert",
        OPENED
        + "    engine.images.convert(words[0], 'example.com/converted:1', compression='zstd:chunked')\n"
        + "    say('converted')",
        lambda shop: [shop.reference("first")],
        _has_both,
        _judge_converted,
    ),
    Work(
        "save",
        "    import pathlib, shutil\n    for name in words[1:]:\n        shutil.rmtree(name, ignore_errors=True)\n"
        "        pathlib.Path(name).unlink(missing_ok=True)\n"
        + OPENED
        + "    for name, form in zip(words[1:], ('docker-archive', 'oci-archive', 'oci')):\n"
        + "        engine.images.save(words[0], name, format=form)\n        say(form)",
        lambda shop: [shop.reference("first"), *map(shop.layout, saving.SAVED.values())],
        _has_both,
        _judge_saved,
    ),
    Work(
        "create",
        OPENED
        + "    engine.containers.create(words[0], ['true'], name='new')\n    say('created')\n"
        + "    engine.containers.get('old').delete()\n    say('deleted')",
        lambda shop: [shop.reference("kept")],
        _has_old,
        _judge_created,
    ),
    Work(
        "namespace rm",
        OPENED + "    engine.namespaces.remove('tenant', force=True)\n    say('removed')",
        lambda shop: [],
        _has_tenant,
        _judge_namespace,
    ),
    Work(
        "repair",
        OPENED
        + "    left = [found for found in engine.check(digests=True, repair=True) if not found.repaired]\n"
        + "    say(f'left {left}' if left else 'repaired')",
        lambda shop: [],
        _damage,
        _judge_repaired,
        clean=False,
    ),
    Work(
        "recover",
        "    say('begin')\n    engine.images.list()",
        lambda shop: [],
        _leave,
        _judge_recovered,
    ),
    Work(
        "gc",
        OPENED + "    engine.gc()\n    say('collected')",
        lambda shop: [],
        _has_both_unnamed,
        _judge_collected,
    ),
]
