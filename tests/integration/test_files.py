"""An image's files, read with no mount: what a container would see, whole and entry by entry."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import blake3
import pytest

import pyctrd
from pyctrd import _core
from pyctrd.errors import InvalidError, NotFoundError
from pyctrd.flows.files import OPEN_IMAGES_MAX
from tests.archives import Tar
from tests.content.stores import sha256
from tests.contracts.stacks import STACKS, base
from tests.images import Images, build_image
from tests.integration.conftest import Cli
from tests.layers.forms import FORMS
from tests.layers.model import Layer
from tests.trees import Facts, differences, read_tree

pytestmark = pytest.mark.root

OWN = ("busybox", "app", "tree", "tree_zstd", "tree_plain", "many_layers", "multi_platform")


def built(*layers: Tar) -> Callable[[Images], str]:
    return lambda images: images.push(build_image([layer.build() for layer in layers])).reference


def named(name: str) -> Callable[[Images], str]:
    return lambda images: str(getattr(images, name).reference)


IMAGES: dict[str, Callable[[Images], str]] = {
    **{name: named(name) for name in OWN},
    **{name: built(*make()) for name, make in STACKS.items()},
    **{name: built(make()) for name, make in FORMS.items()},
}


def pull(engine: pyctrd.Engine, images: Images, *layers: Tar) -> pyctrd.Image:
    """An image of a test's own layers."""
    return engine.images.pull(built(*layers)(images))


def paths(entries: Iterable[pyctrd.FileEntry]) -> list[str]:
    return [entry.path for entry in entries]


def tree_of(image: pyctrd.Image) -> dict[bytes, Facts]:
    """A walk in the words of ``read_tree``."""
    found: dict[bytes, Facts] = {}
    names: dict[int, list[bytes]] = {}
    for entry in image.walk():
        name = os.fsencode(entry.path)[1:] or b"."
        if entry.kind != "directory":
            names.setdefault(entry.inode, []).append(name)
        found[name] = Facts(
            type=entry.kind,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime_ns=entry.mtime_ns,
            size=entry.size_bytes,
            content=hashlib.sha256(image.read_file(entry.path)).hexdigest() if entry.kind == "file" else "",
            link=entry.link or "",
            device=os.makedev(*entry.device) if entry.device else 0,
            xattrs=tuple(sorted(entry.xattrs.items())),
            same_as=b"",
        )
    for group in names.values():
        if len(group) > 1:
            found |= {name: replace(found[name], same_as=min(group)) for name in group}
    return found


@pytest.mark.parametrize("name", IMAGES)
def test_a_walk_gives_what_a_mount_shows(name: str, engine: pyctrd.Engine, images: Images, tmp_path: Path) -> None:
    image = engine.images.pull(IMAGES[name](images))
    target = tmp_path / "mounted"
    target.mkdir()
    with image.mounted(target):
        assert differences(read_tree(target), tree_of(image)) == []


def test_a_walk_gives_parents_first_and_names_in_order(engine: pyctrd.Engine, images: Images) -> None:
    layer = Layer().directory("b").file("b/2").file("b/1").file("b.x").file("a").file("implied/f")
    image = pull(engine, images, layer, Layer().file("b/0").whiteout("a"))
    assert paths(image.walk()) == ["/", "/b", "/b/0", "/b/1", "/b/2", "/b.x", "/implied", "/implied/f"]


def test_a_walk_may_begin_anywhere_and_end_at_a_depth(engine: pyctrd.Engine, images: Images) -> None:
    layer = Layer().file("usr/bin/tool").file("usr/lib/a/b").symlink("bin", "usr/bin").symlink("to-file", "/bin/tool")
    image = pull(engine, images, layer)
    assert paths(image.walk("/usr/lib")) == ["/usr/lib", "/usr/lib/a", "/usr/lib/a/b"]
    assert paths(image.walk("/bin")) == ["/usr/bin", "/usr/bin/tool"]
    assert paths(image.walk("/to-file")) == ["/usr/bin/tool"]
    assert paths(image.walk("bin/../lib/./a/")) == ["/usr/lib/a", "/usr/lib/a/b"]
    assert paths(image.walk("/usr", depth=0)) == ["/usr"]
    assert paths(image.walk(b"/usr", depth=1)) == ["/usr", "/usr/bin", "/usr/lib"]
    assert paths(image.walk(Path("/usr"), depth=2))[2:] == ["/usr/bin/tool", "/usr/lib", "/usr/lib/a"]
    with pytest.raises(InvalidError, match="invalid depth: -1"):
        image.walk(depth=-1)


def test_what_is_not_there_is_told_at_once(engine: pyctrd.Engine, images: Images) -> None:
    layer = Layer().symlink("a", "b").symlink("b", "a").symlink("nowhere", "none").file("f").whiteout("gone")
    image = pull(engine, images, Layer().file("gone"), layer)
    for path in ("/none", "/a", "/a/x", "/nowhere", "/f/x", "/f/..", "/gone", "/.wh.gone", "x" * 300, "/x\0y"):
        for ask in (image.walk, image.stat, image.open, image.read_file):
            with pytest.raises(NotFoundError) as caught:
                ask(path)
            assert caught.value.kind == "file"
            assert caught.value.name == path
    for path in ("/a", "/nowhere"):
        assert image.lstat(path).kind == "symlink"


def test_stat_follows_a_link_and_lstat_does_not(engine: pyctrd.Engine, images: Images) -> None:
    layer = Layer().file("d/f", b"12345", mode=0o4711, uid=7, gid=8, mtime_ns=-5, xattrs={"user.k": b"v"})
    image = pull(engine, images, layer.symlink("l", "/d/../d/f").symlink("up", "../../../d"))
    found = image.stat("/l")
    assert found == image.stat("/up/f") == image.lstat("/up/f") == image.stat("/d/f")
    assert (found.path, found.kind, found.mode, found.uid, found.gid) == ("/d/f", "file", 0o4711, 7, 8)
    assert (found.size_bytes, found.mtime_ns, found.link, found.device) == (5, -5, None, None)
    assert found.xattrs == {"user.k": b"v"}
    assert found.layer == image.config.raw["rootfs"]["diff_ids"][0]
    link = image.lstat("/l")
    assert (link.path, link.kind, link.mode, link.link, link.size_bytes) == ("/l", "symlink", 0o777, "/d/../d/f", 9)
    with pytest.raises(AttributeError):
        found.mode = 0  # type: ignore[misc] # that it cannot be set is the subject
    with pytest.raises(TypeError):
        found.xattrs["user.k"] = b"w"  # type: ignore[index] # as above


def test_an_opened_file_is_one_of_the_kernel(engine: pyctrd.Engine, images: Images) -> None:
    image = pull(engine, images, Layer().file("old/f", b"0123456789").symlink("l", "old/f").hardlink("h", "old/f"))
    for path in ("/old/f", "/l", "/h", b"/l", Path("/l")):
        with image.open(path) as file:
            assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
            assert os.pread(file.fileno(), 3, 2) == b"234"
            assert file.seek(-2, os.SEEK_END) == 8
            assert file.read() == b"89"
            assert not os.get_inheritable(file.fileno())


def test_what_is_no_regular_file_is_not_opened(engine: pyctrd.Engine, images: Images) -> None:
    layer = Layer().directory("d").fifo("p").device("null", 0o020000, 1, 3).symlink("to-pipe", "p")
    image = pull(engine, images, layer)
    for path in ("/", "/d", "/p", "/null", "/to-pipe"):
        with pytest.raises(NotFoundError, match="regular file not found"):
            image.open(path)


def test_names_of_any_bytes_come_back(engine: pyctrd.Engine, images: Images) -> None:
    names = [b"\xff\xfe", b"new\nline\x1b", "\u00fc\u4e16".encode()]
    layer = Layer().symlink("l", b"\xff\xfe")
    for name in names:
        layer.file(name, name)
    image = pull(engine, images, layer)
    assert sorted(os.fsencode(entry.path)[1:] for entry in image.walk(depth=1)) == sorted([b"", b"l", *names])
    for entry in image.walk():
        if entry.kind == "file":
            assert image.read_file(entry.path) == os.fsencode(entry.path)[1:]
    assert os.fsencode(image.lstat("/l").link or "") == b"\xff\xfe"
    assert image.read_file("/l") == b"\xff\xfe"


def test_more_entries_than_are_held_at_a_time_are_all_there(engine: pyctrd.Engine, images: Images) -> None:
    layer = Layer()
    for number in range(5000):
        layer.file(f"d/{number:04}")
    image = pull(engine, images, layer)
    walk = image.walk("/d")
    assert next(walk).path == "/d"
    assert paths(walk) == [f"/d/{number:04}" for number in range(5000)]
    assert len(list(pull(engine, images, Layer()).diff(image))) == 5001


def test_a_removed_image_stays_readable_where_it_is_open(engine: pyctrd.Engine, images: Images) -> None:
    image = pull(engine, images, Layer().file("f", b"content").file("g"))
    walk, file = image.walk(), image.open("/f")
    engine.images.remove(image.name)
    assert paths(walk) == ["/", "/f", "/g"]
    with file:
        assert file.read() == b"content"
    with pytest.raises(NotFoundError):
        image.walk()


def layers_held() -> int:
    """Directories of layers that this process has open."""
    layers = os.path.join(os.environ["PYCTRD_ROOT"], "layers/")  # noqa: PTH118 - compared as text
    count = 0
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are enough
        with suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{fd}").startswith(layers)  # noqa: PTH115 - as above
    return count


def test_few_images_are_held_open_and_none_of_a_closed_engine(engine: pyctrd.Engine, images: Images) -> None:
    made = [pull(engine, images, Layer().file("f", b"%d" % number), Layer().file("g")) for number in range(7)]
    for image in made:
        assert layers_held() <= 2 * OPEN_IMAGES_MAX
        assert image.stat("/f").size_bytes == 1
    assert layers_held() == 2 * OPEN_IMAGES_MAX
    for number, image in enumerate(made):
        assert image.read_file("/f") == b"%d" % number
    assert layers_held() == 2 * OPEN_IMAGES_MAX
    engine.close()
    assert layers_held() == 0
    assert made[0].read_file("/f") == b"0"  # a closed engine opens again, for an image that somebody kept


def test_an_image_that_was_removed_and_came_again_is_read_anew(engine: pyctrd.Engine, images: Images) -> None:
    pushed = images.push(build_image([Layer().file("f", b"content").build()]))
    image = engine.images.pull(pushed.reference)
    assert image.read_file("/f") == b"content"
    with pyctrd.Engine() as other:
        other.images.remove(image.name)
        for ask in (image.walk, image.open, image.stat, image.lstat):
            with pytest.raises(NotFoundError, match="blob not found"):
                ask("/f")
        other.images.pull(pushed.reference)
        assert image.read_file("/f") == b"content"
        other.images.remove(image.name)
        other.images.pull(pushed.reference)
        with image.open("/f") as file:  # the view that was read is that of the layer that is gone
            assert file.read() == b"content"
        assert [entry.path for entry in image.walk()] == ["/", "/f"]


def test_threads_read_one_image_at_once(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.many_layers.reference)

    def read(start: int) -> list[bytes]:
        numbers = [(start + step) % 120 for step in range(120)]
        assert len(list(image.walk())) == 121
        assert list(image.diff(image)) == []
        return [image.read_file(f"/layer-{number:03}") for number in numbers]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(8)))
    for start, contents in enumerate(found):
        assert contents == [b"%d" % ((start + step) % 120) for step in range(120)]


def test_an_image_that_was_not_unpacked_says_how_to(engine: pyctrd.Engine, images: Images) -> None:
    reference = images.tree.reference
    image = engine.images.pull(reference, unpack=False)
    for ask in (image.walk, image.open, image.stat, image.lstat):
        with pytest.raises(NotFoundError, match="layer not unpacked") as caught:
            ask("/")
        assert caught.value.hint == f"unpack it: pyctrd pull {reference}"


@pytest.mark.parametrize("name", sorted(FORMS))
def test_the_offset_is_where_the_content_is(name: str, engine: pyctrd.Engine, images: Images) -> None:
    tar = FORMS[name]().build()
    image = engine.images.pull(images.push(build_image([tar])).reference)
    for entry in image.walk():
        content = image.read_file(entry.path) if entry.kind == "file" else b""
        if entry.offset is None:
            assert content.strip(b"\0") == b""  # empty, or one hole
            continue
        assert entry.offset % 512 == 0
        if not name.startswith("sparse"):
            assert tar[entry.offset : entry.offset + len(content)] == content
        else:
            first = len(content) - len(content.lstrip(b"\0"))
            assert tar[entry.offset : entry.offset + 5] == content[first : first + 5]


def test_digests_of_contents_are_recorded_where_they_are_asked_for(tmp_path: Path) -> None:
    layer = Layer().file("f", b"x" * 300_000).file("empty").hardlink("h", "f").symlink("s", "f").directory("d")
    tar = layer.file("f2", b"again").file("f2", b"later").sparse("sparse", 4096, [(512, b"a" * 512)]).build()
    found = {}
    for wanted in (False, True):
        root = tmp_path / str(wanted)
        root.mkdir()
        one = _core.Ingest(root, "i", digest=sha256(tar), diff_id=sha256(tar), unpack=True, content_digests=wanted)
        one.write(tar)
        one.finish()
        _core.publish(root, [one], durability="none")
        index = _core.LayerIndex(root / "layers/sha256" / sha256(tar).removeprefix("sha256:"))
        found[wanted] = {entry.path: entry.blake3 for entry in index.walk() if entry.blake3 is not None}
    contents = {b"f": b"x" * 300_000, b"empty": b"", b"f2": b"later"}
    assert found == {False: {}, True: {name: blake3.blake3(content).digest() for name, content in contents.items()}}


@pytest.mark.usefixtures("as_directories")
def test_an_engine_records_digests_of_contents_if_it_is_told_to(
    images: Images, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del state
    layers = (
        Layer().file("f", b"x" * 300_000).file("empty").directory("d"),
        Layer().hardlink("h", "f").file("g", b"g"),
    )
    pushed = images.push(build_image([layer.build() for layer in layers]))
    with pyctrd.Engine() as plain:
        assert {entry.content_digest for entry in plain.images.pull(pushed.reference).walk()} == {None}
    with pyctrd.Engine(content_digests=True) as told:  # what is there stays as it is
        assert {entry.content_digest for entry in told.images.pull(pushed.reference).walk()} == {None}
        told.images.remove(pushed.reference)
        image = told.images.pull(pushed.reference)
        contents = {"/f": b"x" * 300_000, "/h": b"x" * 300_000, "/empty": b"", "/g": b"g"}
        expected = {path: f"blake3:{blake3.blake3(content).hexdigest()}" for path, content in contents.items()}
        assert {entry.path: entry.content_digest for entry in image.walk() if entry.kind == "file"} == expected
        assert {entry.content_digest for entry in image.walk() if entry.kind != "file"} == {None}
        told.images.remove(pushed.reference)
    monkeypatch.setenv("PYCTRD_CONTENT_DIGESTS", "1")
    with pyctrd.Engine() as by_variable, pyctrd.Engine(content_digests=False, namespace="plain") as against:
        assert by_variable.info()["content_digests"] is True
        assert against.info()["content_digests"] is False
        assert by_variable.images.pull(pushed.reference).stat("/g").content_digest == expected["/g"]
    monkeypatch.setenv("PYCTRD_CONTENT_DIGESTS", "yes")
    with pytest.raises(InvalidError, match="PYCTRD_CONTENT_DIGESTS: 'yes': expected 0 or 1"):
        pyctrd.Engine()


def test_the_command_records_and_shows_digests_of_contents(cli: Cli, images: Images) -> None:
    pushed = images.push(build_image([Layer().file("f", b"content").build()]))
    assert cli("pull", "-q", "--content-digests", pushed.reference).status == 0
    (shown,) = cli("ls", "--json", pushed.reference, "/f").lines
    assert shown["content_digest"] == f"blake3:{blake3.blake3(b'content').hexdigest()}"


def summary(changes: Iterable[pyctrd.FileChange]) -> list[str]:
    return [f"{change.kind} {change.path}" for change in changes]


def test_equal_images_differ_in_nothing(engine: pyctrd.Engine, images: Images) -> None:
    image = engine.images.pull(images.tree.reference)
    assert list(image.diff(image)) == []
    assert list(image.diff(engine.images.pull(images.tree_zstd.reference))) == []
    merged = pull(engine, images, base(), Layer().whiteout("d/f").file("x", b"same"))
    # The same tree, in layers that are others.
    flat = Layer().directory("./", mode=0o711, uid=8, gid=9, mtime_ns=8_000_000_007)
    assert summary(merged.diff(pull(engine, images, base(), flat.file("x", b"same").whiteout("d/f")))) == []


def test_a_difference_is_told_with_both_sides(engine: pyctrd.Engine, images: Images) -> None:
    one = pull(engine, images, base())
    upper = Layer().whiteout("d/f").file("d/n", b"new").file("f", b"f", mode=0o755).file("p", b"file now")
    other = pull(engine, images, base(), upper.directory("d/sub", mode=0o711).symlink("l", "d/sub"))
    there = {change.path: change for change in one.diff(other)}
    assert sorted(there) == ["/d/f", "/d/n", "/d/sub", "/f", "/l", "/p"]
    assert [there[path].kind for path in sorted(there)] == ["removed", "added", *["changed"] * 4]
    removed, added, changed = there["/d/f"], there["/d/n"], there["/p"]
    assert (removed.before, removed.after) == (one.stat("/d/f"), None)
    assert (added.before, added.after) == (None, other.stat("/d/n"))
    assert (changed.before, changed.after) == (one.stat("/p"), other.stat("/p"))
    back = {change.path: change for change in other.diff(one)}
    assert {path: (change.after, change.before) for path, change in back.items()} == {
        path: (change.before, change.after) for path, change in there.items()
    }


def test_a_directory_that_comes_or_goes_does_so_with_all_that_is_in_it(engine: pyctrd.Engine, images: Images) -> None:
    one = pull(engine, images, Layer().file("d/e/f").file("d/g").file("x"))
    other = pull(engine, images, Layer().file("d").file("x/y").file("x/z"))
    assert summary(one.diff(other)) == [
        "changed /d",
        "removed /d/e",
        "removed /d/e/f",
        "removed /d/g",
        "changed /x",
        "added /x/y",
        "added /x/z",
    ]


@pytest.mark.parametrize("size", [1, 131_071, 131_072, 131_073, 300_000])
def test_contents_decide_where_all_else_is_equal(size: int, engine: pyctrd.Engine, images: Images) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    one = pull(engine, images, Layer().file("same", content[:size]).file("last-byte", content[:size]).file("a"))
    upper = Layer().file("same", content[:size]).file("last-byte", content[: size - 1] + b"!").file("b")
    other = pull(engine, images, upper)
    assert summary(one.diff(other)) == ["removed /a", "added /b", "changed /last-byte"]


@pytest.mark.usefixtures("as_directories")
def test_the_files_of_layers_in_common_are_not_read(engine: pyctrd.Engine, images: Images) -> None:
    shared = Layer().file("big", b"content").file("d/e", b"e")
    one, other = pull(engine, images, shared), pull(engine, images, shared, Layer().file("d/f"))
    tree = Path(os.environ["PYCTRD_ROOT"], "layers", one.stat("/big").layer.replace(":", "/"), "tree")
    shutil.rmtree(tree)
    tree.mkdir()
    assert summary(one.diff(other)) == ["added /d/f"]


@pytest.mark.parametrize("name", STACKS)
def test_a_diff_is_what_two_walks_differ_in(name: str, engine: pyctrd.Engine, images: Images) -> None:
    one = pull(engine, images, base(), Layer().file("d/sub/g", b"G").directory("extra", mode=0o700))
    other = pull(engine, images, *STACKS[name]())
    facts = [{path: replace(found, same_as=b"") for path, found in tree_of(image).items()} for image in (one, other)]
    expected = {path for path in facts[0].keys() | facts[1].keys() if facts[0].get(path) != facts[1].get(path)}
    changes = list(one.diff(other))
    assert {os.fsencode(change.path)[1:] or b"." for change in changes} == expected
    for change in changes:
        name_there = os.fsencode(change.path)[1:] or b"."
        assert (change.before is None, change.after is None) == (name_there not in facts[0], name_there not in facts[1])


def test_images_of_two_engines_are_compared_too(engine: pyctrd.Engine, images: Images, tmp_path: Path) -> None:
    image = engine.images.pull(images.tree.reference)
    with pyctrd.Engine(root=tmp_path / "other") as elsewhere:
        other = elsewhere.images.pull(images.tree.reference)
        assert list(image.diff(other)) == []
