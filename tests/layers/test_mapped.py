"""Owners mapped: the archive's, in a user namespace that a user without rights is given ids for."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

import pyctrd
from pyctrd.errors import UnsafeArchiveError, UnsupportedError
from tests.archives import Tar
from tests.cli.commands import NOBODY, Nobody, as_nobody, is_one_error
from tests.images import CAPABILITY, BuiltImage, Images
from tests.subids import Ranges
from tests.trees import Facts, differences, read_tree

MISSING = [name for name in ("newuidmap", "newgidmap", "setpriv", "unshare") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
    pytest.mark.skipif(not Path("/etc/subuid").exists(), reason="needs /etc/subuid, to mount another over it"),
]

ZEROS = f"sha256:{'0' * 64}"
FIRST, COUNT = 200_000, 1000
MORE_FIRST, MORE_COUNT = 300_000, 64536
DEADLINE_SECONDS = 60.0
# What is raised, as words: class, message, attributes.
ATTEMPT = """
import pyctrd, sys
source, dest, ownership, *options = sys.argv[1:]
try:
    done = pyctrd.unpack(source, dest, ownership=ownership, **eval(options[0], {"Limits": pyctrd.Limits}))
except Exception as error:
    print(ascii((type(error).__name__, str(error), sorted(vars(error).items()), getattr(error, "errno", None))))
else:
    print(ascii((done.digest, done.size, done.compression, done.diff_id, done.layer_bytes, done.layer_entries,
                 done.implied, done.foreign_links, done.skipped_xattrs, done.unrecorded_owners)))
"""


@pytest.fixture
def ranges(tmp_path: Path) -> Iterator[Ranges]:
    """Two ranges for nobody, enough for ids up to 65535."""
    with Ranges(tmp_path, f"nobody:{FIRST}:{COUNT}", "somebody:1:2", f"{NOBODY}:{MORE_FIRST}:{MORE_COUNT}") as made:
        yield made


@pytest.fixture
def nobody() -> Iterator[Nobody]:
    """A user without any rights."""
    with as_nobody() as user:
        yield user


def on_host(inside: int, *, user: int = NOBODY) -> int:
    """What an id is outside the namespace."""
    if inside == 0:
        return user
    return FIRST + inside - 1 if inside <= COUNT else MORE_FIRST + inside - 1 - COUNT


def shifted(tree: dict[bytes, Facts], *, user: int = NOBODY) -> dict[bytes, Facts]:
    return {
        name: replace(facts, uid=on_host(facts.uid, user=user), gid=on_host(facts.gid, user=user))
        for name, facts in tree.items()
    }


def all_but_devices() -> Tar:
    tar = Tar().directory("./", mode=0o755, uid=1, gid=COUNT).directory("d", mode=0o1577, uid=COUNT + 1, gid=4)
    tar.file("d/f", b"content", mode=0o4711, uid=65535, gid=6, xattrs={"user.k": b"v"}).hardlink("h", "d/f")
    tar.symlink("s", "d/f", uid=7, gid=8).fifo("p", uid=9, gid=10).file("none", b"x", mode=0, uid=5)
    return tar.file("x/y/f", b"", mode=0o444, xattrs={"user.k": b"v"})


def unpack(nobody: Nobody, blob: bytes, *, name: str = "tree") -> Path:
    """Unpack as nobody, owners mapped."""
    layer = nobody.home / "layer"
    layer.write_bytes(blob)
    done = nobody.run("unpack", "--ownership", "mapped", str(layer), str(nobody.home / name))
    assert (done.status, done.err) == (0, "")
    return nobody.home / name


def refused(nobody: Nobody, blob: bytes, *, env: dict[str, str] | None = None) -> str:
    """The one error that it ends with, hint and all."""
    (nobody.home / "layer").write_bytes(blob)
    words = ("unpack", "--ownership", "mapped", str(nobody.home / "layer"), str(nobody.home / "tree"))
    done = nobody.run(*words, env=env)
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err), done.err
    return done.err


def kept(blobs: list[bytes], directory: Path) -> dict[bytes, Facts]:
    """What root gets who keeps owners."""
    for number, blob in enumerate(blobs):
        (directory / f"kept-{number}").write_bytes(blob)
        pyctrd.unpack(directory / f"kept-{number}", directory / "kept")
    return read_tree(directory / "kept")


@pytest.mark.usefixtures("ranges")
def test_owners_are_subordinate_ids_on_disk(nobody: Nobody, tmp_path: Path) -> None:
    tree = unpack(nobody, all_but_devices().build())
    found = read_tree(tree)
    assert (found[b"d/f"].uid, found[b"d/f"].gid) == (MORE_FIRST + 65535 - 1 - COUNT, FIRST + 5)
    assert (found[b"."].uid, found[b"."].gid) == (FIRST, FIRST + COUNT - 1)
    assert (found[b"x"].uid, found[b"x/y/f"].gid) == (NOBODY, NOBODY)
    assert differences(shifted(kept([all_but_devices().build()], tmp_path)), found) == []


# A process each.
LAYERS_MAX = 20
IMAGES: dict[str, Callable[[Images], BuiltImage]] = {
    "busybox": lambda images: images.busybox.built,
    "many-layers": lambda images: images.many_layers.built,
}


@pytest.mark.usefixtures("ranges")
@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_what_root_unpacks_shifted(name: str, images: Images, nobody: Nobody, tmp_path: Path) -> None:
    layers = [layer.content for layer in IMAGES[name](images).layers[:LAYERS_MAX]]
    for layer in layers:
        unpack(nobody, layer)
    expected, found = shifted(kept(layers, tmp_path)), read_tree(nobody.home / "tree")
    # A root that no layer lists is as old as it is.
    found[b"."] = replace(found[b"."], mtime_ns=expected[b"."].mtime_ns)
    assert differences(expected, found) == []


@pytest.mark.usefixtures("ranges")
@pytest.mark.skipif(shutil.which("podman") is None, reason="needs podman")
def test_it_is_what_tar_extracts_in_the_namespace_of_podman(nobody: Nobody) -> None:
    ours = unpack(nobody, all_but_devices().build())
    theirs = nobody.home / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    extract = ["tar", "-xpf", str(nobody.home / "layer"), "-C", str(theirs), "--numeric-owner", "--xattrs"]
    try:
        done = nobody.execute("podman", "unshare", *extract, "--xattrs-include=*")
    finally:
        nobody.execute("podman", "system", "migrate")  # it ends the process by which podman keeps its namespace
    if "cannot set up namespace" in done.err:
        pytest.skip(done.err)
    assert done.status == 0, done.err
    expected, found = read_tree(theirs), read_tree(ours)
    for name in (b"x", b"x/y"):  # which the archive does not list: tar takes the umask and now
        expected[name] = replace(expected[name], mode=0o755, mtime_ns=0)
    assert differences(expected, found) == []


@pytest.mark.usefixtures("ranges")
def test_inside_such_a_namespace_the_owners_are_the_archives(nobody: Nobody) -> None:
    tree = unpack(nobody, Tar().file("f", b"f", uid=0, gid=0, xattrs={"security.capability": CAPABILITY}).build())
    # The kernel notes whose namespace a capability is good in: version 3, with the id of its root.
    value = os.getxattr(tree / "f", "security.capability")
    assert value[:4] == (0x03000001).to_bytes(4, "little")
    assert int.from_bytes(value[20:24], "little") == NOBODY
    code = "import os, sys; s = os.stat(sys.argv[1]); print(s.st_uid, s.st_gid)"
    done = nobody.execute("unshare", "--user", "--map-root-user", sys.executable, "-P", "-c", code, str(tree / "f"))
    assert done.out == "0 0\n"


@pytest.mark.usefixtures("ranges")
def test_the_result_is_that_of_any_other_way(nobody: Nobody, tmp_path: Path) -> None:
    layer = nobody.home / "layer"
    lying = {"user.containers.override_stat": b"0:0:0644:file"}
    layer.write_bytes(Tar().file("f", b"x" * 5, xattrs=lying).fifo("p", xattrs={"user.k": b"v"}).build())
    attempts = [
        nobody.execute(
            sys.executable, "-P", "-c", ATTEMPT, str(layer), str(nobody.home / ownership), ownership, "{}"
        ).out
        for ownership in ("mapped", "recorded")
    ]
    assert attempts[0] == attempts[1]
    assert attempts[0].endswith(", 5, 2, 0, 0, 2, 0)\n"), attempts[0]


REFUSED: dict[str, tuple[Callable[[], Tar], str]] = {
    "archive": (lambda: Tar().file("a\nb", b"f").file("c/.wh.."), "{}"),
    "diff-id": (lambda: Tar().file("f"), f"{{'diff_id': '{ZEROS}'}}"),
    "digest": (lambda: Tar().file("f"), f"{{'digest': '{ZEROS}'}}"),
    "limit": (lambda: Tar().file("f").file("g"), "{'limits': Limits(entries=1)}"),
    "words": (lambda: Tar().file("f"), "{'digest': 'md5:0'}"),
    "kernel": (lambda: Tar().file("f", xattrs={"unknown.x": b""}), "{}"),
}


@pytest.mark.usefixtures("ranges")
@pytest.mark.parametrize("name", REFUSED)
def test_an_error_is_the_one_of_any_other_way(name: str, nobody: Nobody) -> None:
    make, options = REFUSED[name]
    layer = nobody.home / "layer"
    # The caller's in both ways, so that nothing else is in the way of keeping.
    layer.write_bytes(make().build())
    run = [sys.executable, "-P", "-c", ATTEMPT, str(layer)]
    mapped = nobody.execute(*run, str(nobody.home / "mapped"), "mapped", options)
    kept = subprocess.run(
        [*run, str(nobody.home / "kept"), "keep", options], capture_output=True, text=True, check=True
    )
    assert mapped.out == kept.stdout
    assert mapped.out.startswith("('"), mapped.err


@pytest.mark.usefixtures("ranges")
@pytest.mark.parametrize(("kind", "number"), [("uid", 65537), ("gid", 70000)])
def test_an_id_beyond_the_ranges_is_named(kind: str, number: int, nobody: Nobody) -> None:
    tar = Tar().file("before").file(".wh.x", uid=70000)  # a marker is nobody's
    tar.file("a\nb", uid=number) if kind == "uid" else tar.file("a\nb", gid=number)
    said = refused(nobody, tar.build())
    assert f"a\\nb: owner {kind} {number}: needs a user namespace that maps it, this one has 65537" in said
    assert f"hint: give the user {number + 1 - 65537} more ids in /etc/sub{kind}, or record ownership" in said


@pytest.mark.usefixtures("ranges")
@pytest.mark.parametrize(
    ("make", "operation"),
    [
        (lambda: Tar().device("c", stat.S_IFCHR, 1, 3), "c: mknod"),
        (lambda: Tar().device("b", stat.S_IFBLK, 7, 0), "b: mknod"),
        (lambda: Tar().file("f", xattrs={"trusted.t": b"v"}), "f: set xattr"),
        (lambda: Tar().file("f", xattrs={"security.ima": b"v"}), "f: set xattr"),
    ],
    ids=["character", "block", "trusted", "security"],
)
def test_what_no_namespace_allows_says_what_does(make: Callable[[], Tar], operation: str, nobody: Nobody) -> None:
    said = refused(nobody, make().build())
    expected = f'ownership "mapped": {operation}: Operation not permitted: needs root, or ownership "recorded"'
    assert expected in said


def test_a_user_without_ranges_is_told_where_they_are_missing(ranges: Ranges, nobody: Nobody) -> None:
    ranges.set("somebody:1:2", "# nobody:1:2")
    said = refused(nobody, Tar().build())
    assert 'ownership "mapped": needs a range of ids for user nobody in /etc/subuid' in said
    assert "hint: as root add a line nobody:FIRST:65536 to it" in said
    assert not (nobody.home / "tree").exists()
    ranges.set(f"nobody:{FIRST}:{COUNT}", only="subuid")
    assert "in /etc/subgid" in refused(nobody, Tar().build())


@pytest.mark.parametrize("line", ["nobody:1", "nobody:a:1", "nobody:1:-1", "nobody:1:2:3"])
def test_a_range_that_cannot_be_read_is_named(line: str, ranges: Ranges, nobody: Nobody) -> None:
    ranges.set("somebody", line)
    assert "invalid range of ids: /etc/subuid, line 2: expected nobody:FIRST:COUNT" in refused(nobody, Tar().build())


@pytest.mark.usefixtures("ranges")
def test_a_missing_newuidmap_is_named(nobody: Nobody) -> None:
    (nobody.home / "bin").mkdir()
    for name in ("unshare", "sh", "mount", "mkdir", "setpriv"):
        (nobody.home / "bin" / name).symlink_to(shutil.which(name) or "")
    said = refused(nobody, Tar().build(), env=nobody.environment(PATH=str(nobody.home / "bin")))
    assert "needs newuidmap, which is not installed\nhint: install it (Debian: apt-get install uidmap)" in said


def test_what_newuidmap_refuses_is_said(ranges: Ranges, nobody: Nobody) -> None:
    (nobody.home / "bin").mkdir()
    # Without its set-uid bit, as an image of a system that was copied by its user has it.
    for name in ("newuidmap", "newgidmap"):
        shutil.copy(shutil.which(name) or "", nobody.home / "bin" / name)
        (nobody.home / "bin" / name).chmod(0o755)
    path = f"{nobody.home / 'bin'}:{os.environ['PATH']}"
    said = refused(nobody, Tar().build(), env=nobody.environment(PATH=path))
    assert 'ownership "mapped": needs newuidmap to work: newuidmap: ' in said
    assert "hint: newuidmap must be set-uid root" in said


@pytest.mark.usefixtures("ranges")
def test_forbidden_namespaces_are_told(nobody: Nobody) -> None:
    hold = nobody.home.parent / "root"
    hold.mkdir()
    (nobody.home / "layer").write_bytes(Tar().build())
    words = ["unpack", "--ownership", "mapped", str(nobody.home / "layer"), str(nobody.home / "tree")]
    # The kernel lets nobody make user namespaces whose root directory is another than the mount namespace's.
    script = 'mount --rbind / "$1"; hold=$1; shift; exec chroot "$hold" "$@"'
    inside = nobody.words(sys.executable, "-P", "-m", "pyctrd", *words)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(hold), *inside],
        capture_output=True,
        text=True,
        check=False,
        env=nobody.environment(),
        timeout=DEADLINE_SECONDS,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert is_one_error(done.stderr), done.stderr
    assert "needs user namespaces that a user may make (unshare: Operation not permitted)" in done.stderr
    assert "hint: see sysctl user.max_user_namespaces" in done.stderr


def test_root_has_ranges_like_any_user(ranges: Ranges, tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(all_but_devices().build())
    with pytest.raises(UnsupportedError, match="range of ids for user root in /etc/subuid"):
        pyctrd.unpack(tmp_path / "layer", tmp_path / "tree", ownership="mapped")
    ranges.set(f"root:{FIRST}:{COUNT}", f"0:{MORE_FIRST}:{MORE_COUNT}")
    # Pytest's directories are root's alone, which the caller is in the namespace too.
    pyctrd.unpack(tmp_path / "layer", tmp_path / "tree", ownership="mapped")
    expected = shifted(kept([all_but_devices().build()], tmp_path), user=0)
    assert differences(expected, read_tree(tmp_path / "tree")) == []
    (tmp_path / "layer").write_bytes(b"x" * 512)
    with pytest.raises(UnsafeArchiveError):
        pyctrd.unpack(tmp_path / "layer", tmp_path / "tree", ownership="mapped")


@contextmanager
def started(words: list[str], nobody: Nobody) -> Iterator[subprocess.Popen[str]]:
    """A process for the length of a ``with`` block; it is killed at the end, if it is there still."""
    pipe = subprocess.PIPE
    with subprocess.Popen(words, env=nobody.environment(), stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def unpacker_of(pid: int) -> int:
    """The child that unpacks, once it is at it."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        for child in children(pid):
            with suppress(FileNotFoundError):  # newuidmap's, and that has ended
                if any(os.path.realpath(fd).endswith("/endless") for fd in Path(f"/proc/{child}/fd").iterdir()):
                    return child
        time.sleep(0.01)
    raise AssertionError("no child unpacks")


def is_gone(pid: int) -> bool:
    """Whether a process ends; a dead one that nobody waits for has."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


@pytest.mark.usefixtures("ranges")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_caller_is_the_childs(number: signal.Signals, nobody: Nobody) -> None:
    layer = nobody.home / "endless"
    with layer.open("wb") as file:
        file.write(Tar().file("f", b"f").build())
        file.truncate(1 << 42)  # after the end blocks anything may stand: it counts for the digest
    words = [sys.executable, "-P", "-m", "pyctrd", "unpack", "--ownership", "mapped", str(layer)]
    with started(nobody.words(*words, str(nobody.home / "tree")), nobody) as process:
        child = unpacker_of(process.pid)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=DEADLINE_SECONDS)
        assert is_gone(child)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert complaint.strip() == ""


@pytest.mark.usefixtures("ranges")
def test_a_child_that_is_killed_is_an_error(nobody: Nobody) -> None:
    layer = nobody.home / "endless"
    with layer.open("wb") as file:
        file.truncate(1 << 42)
    words = [sys.executable, "-P", "-c", ATTEMPT, str(layer), str(nobody.home / "tree"), "mapped", "{}"]
    with started(nobody.words(*words), nobody) as process:
        os.kill(unpacker_of(process.pid), signal.SIGKILL)
        out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert out.startswith("('PyctrdError', 'child in a user namespace: ended without an answer: status -9'")
