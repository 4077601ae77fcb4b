"""``ls`` and ``cat``: an image's files on a screen, in a pipe and as JSON."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.commands import (
    DEADLINE_SECONDS,
    NOBODY,
    Nobody,
    Terminal,
    command,
    environment,
    is_one_error,
    run,
    shell,
)
from tests.images import Images, build_image
from tests.layers.model import Layer

pytestmark = pytest.mark.root

EVIL = b"a\x1b[2J\nb\xff"


def layer() -> Layer:
    made = Layer().directory("d", mode=0o1777, uid=1, gid=2).file("d/f", b"content\n", mode=0o4755, mtime_ns=0)
    made.file("d/sub/deep", b"deep\0\xff").symlink("l", "d").symlink("to-f", "/d/f").symlink("nowhere", "none")
    made.device("null", 0o020000, 1, 3).fifo("p").file("late", mtime_ns=300 * 10**18 + 1)
    return made.file("h/x", b"x", xattrs={"user.k": b"\0v"}).hardlink("h/y", "h/x")


@pytest.fixture
def image(images: Images) -> str:
    """The reference of an image that was pulled."""
    reference = images.push(build_image([layer().build(), Layer().whiteout("d/sub/none").build()])).reference
    assert run("pull", "-q", reference).status == 0
    return reference


@pytest.fixture
def evil(images: Images) -> str:
    """One whose file has a name that no terminal should see."""
    reference = images.push(build_image([Layer().file(EVIL, b"x").symlink("l", EVIL).build()])).reference
    assert run("pull", "-q", reference).status == 0
    return reference


def test_ls_names_what_is_in_a_directory(image: str) -> None:
    top = ["d", "h", "l", "late", "nowhere", "null", "p", "to-f"]
    for words, names in (
        ([], top),
        (["/"], top),
        (["d"], ["f", "sub"]),
        (["/l"], ["f", "sub"]),
        (["l/.."], top),
        (["/d/f"], ["/d/f"]),
        (["to-f"], ["to-f"]),
        (["nowhere"], ["nowhere"]),
        (["-R", "/d"], ["f", "sub", "sub/deep"]),
        (["-R", "l"], ["f", "sub", "sub/deep"]),
        (["-R", "h"], ["x", "y"]),
    ):
        done = run("ls", image, *words)
        assert (done.status, done.out.splitlines(), done.err) == (0, names, ""), words


def test_ls_tells_all_of_each_with_l(image: str) -> None:
    lines = run("ls", "-l", image).out.splitlines()
    assert lines[0].split() == ["drwxrwxrwt", "1", "2", "0", "2023-11-14T22:13:20Z", "d"]
    assert lines[2].split()[0] == "lrwxrwxrwx"
    assert lines[2].endswith(" l -> d")
    assert lines[3].split()[4] == "@300000000000"  # a year that no calendar has
    assert lines[5].split()[:4] == ["crw-------", "0", "0", "1,3"]
    assert run("ls", "-l", image, "d").out.splitlines()[0].split() == [
        "-rwsr-xr-x",
        "0",
        "0",
        "8",
        "1970-01-01T00:00:00Z",
        "f",
    ]
    # As ls does: with -l a link is what was asked for, unless a slash asks for the directory.
    assert run("ls", "-l", image, "/l").out.endswith(" /l -> d\n")
    assert [line.split()[-1] for line in run("ls", "-l", image, "/l/").out.splitlines()] == ["f", "sub"]


def test_ls_gives_json_with_the_same_keys_for_everything(image: str, evil: str) -> None:
    found = run("ls", "--json", "-R", image).lines
    assert found == run("--json", "ls", "-R", image).lines
    assert [entry["path"] for entry in found][:3] == ["/d", "/d/f", "/d/sub"]
    assert len({tuple(entry) for entry in [*found, *run("ls", "--json", evil).lines]}) == 1
    there = {entry["path"]: entry for entry in found}
    assert (there["/null"]["kind"], there["/null"]["device"]) == ("character", [1, 3])
    assert (there["/l"]["link"], there["/l"]["mode"]) == ("d", 0o777)
    assert (there["/late"]["mtime_seconds"], there["/late"]["mtime_subsecond_ns"]) == (300_000_000_000, 1)
    assert there["/h/x"]["inode"] == there["/h/y"]["inode"]
    assert there["/h/x"]["xattrs_base64"] == {"user.k": base64.b64encode(b"\0v").decode()}
    assert run("ls", "--json", image, "/d/f").lines == [there["/d/f"]]


def test_names_go_raw_into_a_pipe_and_escaped_onto_a_terminal(evil: str) -> None:
    raw = subprocess.run(
        command("ls", evil), capture_output=True, check=True, timeout=DEADLINE_SECONDS, env=environment()
    )
    assert raw.stdout == EVIL + b"\nl\n"
    with Terminal("ls", evil) as terminal:
        assert terminal.finish() == 0
    assert terminal.seen.splitlines() == ["a\\x1b[2J\\nb\\udcff", "l"]
    long = run("ls", "-l", evil).out.splitlines()
    assert [line.partition("Z ")[2] for line in long] == ["a\\x1b[2J\\nb\\udcff", "l -> a\\x1b[2J\\nb\\udcff"]
    first, second = run("ls", "--json", evil).lines
    assert (first["path"], first["path_base64"]) == ("/a\x1b[2J\nb\ufffd", base64.b64encode(b"/" + EVIL).decode())
    assert (second["path_base64"], second["link_base64"]) == (None, base64.b64encode(EVIL).decode())
    assert shell('"$@" "$(printf \'a\\033[2J\\nb\\377\')"', "cat", evil).out == "x"


def test_cat_writes_files_as_they_are(image: str) -> None:
    done = subprocess.run(
        command("cat", image, "/d/f", "l/sub/deep", "to-f"),
        capture_output=True,
        check=True,
        timeout=DEADLINE_SECONDS,
        env=environment(),
    )
    assert done.stdout == b"content\ndeep\0\xffcontent\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ls", "IMAGE", "/none"], "file not found: /none"),
        (["ls", "-R", "IMAGE", "d/f/x"], "file not found: d/f/x"),
        (["ls", "-l", "IMAGE", "/d/sub/none"], "file not found: /d/sub/none"),
        (["cat", "IMAGE", "/none"], "file not found: /none"),
        (["cat", "IMAGE", "nowhere"], "file not found: nowhere"),
        (["cat", "IMAGE", "/d"], "regular file not found: /d"),
        (["cat", "IMAGE", "/null"], "regular file not found: /null"),
        (["cat", "IMAGE", "a\x1b\udcff"], "a\\x1b"),
        (["ls", "no-such-thing"], "image not found: no-such-thing"),
        (["cat", "no-such-thing", "x"], "image not found: no-such-thing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_there_is_one_error(image: str, words: list[str], told: str) -> None:
    done = run(*(image if word == "IMAGE" else word for word in words))
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert told in done.err


def test_cat_writes_what_comes_before_what_is_missing(image: str) -> None:
    done = run("cat", image, "/d/f", "/none", "/d/f")
    assert (done.status, done.out) == (1, "content\n")
    assert is_one_error(done.err)


@pytest.mark.parametrize("words", [["ls"], ["ls", "-lR"], ["--json", "ls"], ["cat"]], ids=" ".join)
def test_a_reader_that_has_left_is_no_news(image: str, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command(*words, image, *(["/d/f"] if words == ["cat"] else [])),
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=DEADLINE_SECONDS,
        check=False,
        env=environment(),
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_big_file_whose_reader_leaves_in_the_middle_is_no_news(images: Images) -> None:
    reference = images.push(build_image([Layer().file("big", bytes(8 << 20)).build()])).reference
    assert run("pull", "-q", reference).status == 0
    done = shell('"$@" | head -c 1 | wc -c; exit "${PIPESTATUS[0]}"', "cat", reference, "big")
    assert (done.status, done.out, done.err) == (1, "1\n", "")


def test_an_images_files_are_read_by_whoever_owns_the_store(nobody: Nobody, images: Images) -> None:
    reference = images.push(build_image([layer().build()])).reference
    root = nobody.home / "root"
    assert run("--root", str(root), "pull", "-q", reference).status == 0
    subprocess.run(["chown", "-R", "-h", f"{NOBODY}:{NOBODY}", str(root)], check=True)
    assert nobody.run("ls", "-R", reference, "/d").out == "f\nsub\nsub/deep\n"
    assert nobody.run("ls", "-l", reference, "/d/f").out.split()[1:3] == ["0", "0"]  # the image's owner, not the disk's
    done = nobody.run("cat", reference, "to-f")
    assert (done.status, done.out, done.err) == (0, "content\n", "")


def test_a_user_reads_an_image_whose_files_are_all_theirs(nobody: Nobody, images: Images) -> None:
    own = {"uid": NOBODY, "gid": NOBODY}
    made = Layer().directory("./", **own).directory("d", **own).file("d/f", b"mine", mode=0o600, **own)
    shut = made.file("d/shut", b"x", mode=0, **own)
    reference = images.push(
        build_image([shut.build(), Layer().directory("./", **own).whiteout("none").build()])
    ).reference
    assert nobody.run("pull", "-q", reference).status == 0
    assert nobody.run("cat", reference, "d/f").out == "mine"
    done = nobody.run("cat", reference, "d/shut")
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert "ermission denied: d/shut" in done.err


@pytest.mark.parametrize("words", [["ls", "IMAGE"], ["cat", "IMAGE", "/a/file"]], ids=["ls", "cat"])
def test_an_image_that_was_not_unpacked_says_how_to(nobody: Nobody, images: Images, words: list[str]) -> None:
    reference = images.tree.reference
    assert nobody.run("pull", "-q", "--no-unpack", reference).status == 0
    done = nobody.run(*(reference if word == "IMAGE" else word for word in words))
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert "layer not unpacked" in done.err
    assert f"hint: unpack it: pyctrd pull {reference}" in done.err


def test_listing_flushes_what_cannot_be_written_as_one_error(image: str) -> None:
    for words in (["ls", image], ["cat", image, "d/f"], ["ls", "-lR", image]):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                command(*words),
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=DEADLINE_SECONDS,
                env=environment(),
            )
        assert done.returncode == 1
        assert is_one_error(done.stderr)
        assert "no space left" in done.stderr
