"""Without root: what works works, and what does not says so and leaves nothing."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from tests.cli.commands import Nobody, environment, is_one_error
from tests.images import Images

pytestmark = pytest.mark.root


def nothing_is_half_made(nobody: Nobody) -> None:
    """No image, no container, no bytes on the way in or out."""
    assert nobody.run("check", "--digests").out == "clean\n"
    assert nobody.run("ps", "-aq").out == ""
    for empty in ("content/ingest", "layers/sha256", "trash", "snapshots", "containers"):
        directory = nobody.home / "root" / empty
        assert not directory.exists() or list(directory.iterdir()) == [], empty
    assert list((nobody.home / "state").iterdir()) == []


def test_it_is_nobody(nobody: Nobody) -> None:
    assert nobody.run("images").status == 0
    root = (nobody.home / "root").stat()
    assert (root.st_uid, stat.filemode(root.st_mode)) == (65534, "drwx------")


def test_a_pull_that_does_not_unpack_needs_no_rights(nobody: Nobody, images: Images) -> None:
    done = nobody.run("pull", "-q", "--no-unpack", images.tree.reference)
    assert (done.status, done.out, done.err) == (0, f"{images.tree.built.digest}\n", "")
    assert nobody.run("images", "-q").out == f"{images.tree.reference}\n"
    assert nobody.run("inspect", images.tree.reference).lines[0]["digest"] == images.tree.built.digest
    nothing_is_half_made(nobody)
    assert nobody.run("rmi", images.tree.reference).status == 0
    assert list((nobody.home / "root/content/blobs/sha256").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "status", "said", "hint"),
    [
        (["pull", "-q", "IMAGE"], 1, "not permitted", "run as root"),
        (["run", "IMAGE", "true"], 125, "containers without root rights: needs ", "as root add a line nobody:FIRST"),
    ],
    ids=["pull", "run"],
)
@pytest.mark.skipif(shutil.which("newuidmap") is None, reason="needs newuidmap, to be told of ranges")
def test_what_needs_root_says_so_and_leaves_nothing_half_made(
    nobody: Nobody, images: Images, words: list[str], status: int, said: str, hint: str
) -> None:
    done = nobody.run(*(images.tree.reference if word == "IMAGE" else word for word in words))
    assert (done.status, done.out) == (status, "")
    error = done.err[done.err.index("pyctrd: ") :]  # below the lines of progress
    assert is_one_error(error)
    assert said in error
    assert f"hint: {hint}" in error
    assert nobody.run("images", "-q").out == ""
    assert list((nobody.home / "root").glob("content/blobs/sha256/*")) == []
    nothing_is_half_made(nobody)


def test_an_image_that_was_not_unpacked_says_how_to(nobody: Nobody, images: Images) -> None:
    reference = images.tree.reference
    assert nobody.run("pull", "-q", "--no-unpack", reference).status == 0
    done = nobody.run("mount", reference, str(nobody.home / "root"))
    assert (done.status, done.out) == (1, "")
    assert is_one_error(done.err)
    assert f"hint: unpack it: pyctrd pull {reference}" in done.err
    nothing_is_half_made(nobody)


def test_a_root_that_belongs_to_another_is_named(nobody: Nobody, tmp_path: Path) -> None:
    for option in ("--root", "--state"):
        done = nobody.run(option, str(tmp_path / "another's"), "images")
        assert (done.status, done.out) == (1, "")
        assert is_one_error(done.err)
        # The first on the way that is closed: which, depends on where the tests have their directories.
        denied = done.err.partition("permission denied: ")[2].partition("\n")[0]
        assert Path(denied) in ((tmp_path / "another's"), *(tmp_path / "another's").parents)
        assert "hint: run as root, or choose --root and --state" in done.err


def test_a_user_has_directories_of_their_own(nobody: Nobody) -> None:
    home, session = nobody.home, nobody.home / "session"
    names = ("PYCTRD_ROOT", "PYCTRD_STATE", "XDG_DATA_HOME")
    env = {name: value for name, value in environment().items() if name not in names}
    done = nobody.run("--json", "info", env=env | {"HOME": str(home), "XDG_RUNTIME_DIR": str(session)})
    assert (done.status, done.err) == (0, "")
    assert done.lines[0]["root"] == str(home / ".local/share/pyctrd")
    assert done.lines[0]["state"] == str(session / "pyctrd")
