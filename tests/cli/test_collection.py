"""``gc``, ``lease`` and ``rmi --no-collect`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.archives import Tar
from tests.cli.commands import is_one_error, run
from tests.images import build_image


def test_gc_frees_what_rmi_left_and_a_dry_run_tells_it_before(stored: str) -> None:
    assert run("rmi", "--no-collect", stored).status == 0
    told = run("gc", "--dry-run")
    assert "free blob sha256:" in told.out
    assert told.out.splitlines()[-1].startswith("would free ")
    items = [json.loads(line) for line in run("--json", "gc").out.splitlines()]
    assert {(item["kind"], item["kept"], item["reason"]) for item in items[:-1]} == {
        ("blob", False, "nothing needs it")
    }
    assert items[-1] == {"freed_bytes": sum(item["bytes"] for item in items[:-1]), "skipped": ""}
    assert run("gc").out == "freed 0 B\n"
    assert run("check", "--digests").out == "clean\n"


def test_a_lease_keeps_an_image_until_it_is_removed(stored: str) -> None:
    made = run("lease", "create", "--label", "for=test", "--expires", "2h", stored)
    lease_id = made.out.strip()
    assert (made.status, made.err, len(lease_id)) == (0, "", 32)
    assert run("rmi", stored).status == 0
    assert f"lease {lease_id}" in run("gc", "--dry-run").out
    listed = run("lease", "ls")
    assert lease_id in listed.out
    assert "in 1h" in listed.out
    document = json.loads(run("--json", "lease", "ls").out)
    assert (document["id"], document["labels"]) == (lease_id, {"for": "test"})
    digest = document["resources"][0]["name"]
    assert run("lease", "add", lease_id, digest).status == 0
    assert run("lease", "ls", "-q").out == f"{lease_id}\n"
    assert run("-n", "other", "lease", "ls", "-q").out == ""
    assert run("lease", "rm", lease_id).out == f"{lease_id}\n"
    assert "freed 0 B" not in run("gc").out


def test_what_cannot_be_leased_leaves_no_lease_and_is_one_line(stored: str) -> None:
    done = run("lease", "create", stored, "sha256:" + "0" * 64)
    assert done.status == 1
    assert is_one_error(done.err)
    assert run("lease", "ls", "-q").out == ""
    for words in (["add", "nothing", stored], ["rm", "nothing"]):
        done = run("lease", *words)
        assert done.status == 1
        assert done.err.startswith("pyctrd: lease not found: nothing\n")
    for text in ("", "x", "1w", "-1", "1.5h"):
        assert run("lease", "create", f"--expires={text}").status == 2
    assert run("lease", "create", "--expires=0").status == 1


def test_df_tells_of_images_and_only_if_asked_of_namespaces(stored: str) -> None:
    document = json.loads(run("--json", "df").out)
    (image,) = document["images"]
    assert image["bytes"] == image["unique_bytes"] == document["charged_bytes"] > 0
    assert (document["namespaces"], document["store"]) == ([], None)
    told = run("df").out
    assert told.startswith("charged ")
    assert "UNIQUE" in told
    assert "EXCLUSIVE" not in told
    assert "EXCLUSIVE" in run("df", "--all-namespaces").out
    assert run("rmi", stored).status == 0
    assert run("df").out == "charged 0 B\n"


@pytest.mark.root
def test_what_layers_share_is_counted_for_the_keeper_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCTRD_SNAPSHOTTER", "composefs")
    built = build_image([Tar().file("f", bytes(range(256)) * 64).build()])
    built.write_layout(tmp_path / "layout")
    assert run("load", "--name", "example.com/app:1", "-i", str(tmp_path / "layout")).status == 0
    assert "store: 1 contents of files, 16.4 kB" in run("df", "--all-namespaces").out
    assert json.loads(run("--json", "df", "--all-namespaces").out)["store"]["objects"] == 1
    assert "contents of files" not in run("df").out
    assert run("rmi", "--no-collect", "example.com/app:1").status == 0
    assert "objects" not in run("gc", "--dry-run").out
    assert "free objects 1 16.4 kB: no layer has them" in run("gc", "--dry-run", "--all-namespaces").out
    assert "freed objects 1 16.4 kB: no layer has them" in run("gc", "--all-namespaces").out
    assert "contents of files" not in run("df", "--all-namespaces").out
