"""Repositories' tables: what tags hold, what goes with one, and what keeps a blob."""

from __future__ import annotations

import time

import pytest

from pyctrd.metadata.database import Database
from pyctrd.metadata.repositories import Ref, manifest_row

DAY_NS = 24 * 3600 * 10**9
APP = "localhost/app"


def digest(letter: str) -> str:
    """A digest that is easily told from others."""
    return f"sha256:{letter * 64}"


def put(
    database: Database, name: str, *, blobs: str = "", children: str = "", subject: str = "", tag: str = ""
) -> None:
    """Record a manifest that names some blobs and manifests, by letters."""
    row = manifest_row(
        "default",
        APP,
        digest=digest(name),
        media_type="application/vnd.oci.image.manifest.v1+json",
        size=10,
        subject=digest(subject) if subject else "",
        artifact_type="",
        annotations={},
    )
    refs = [Ref(digest(letter), "blob", "x/y", 1, required=True) for letter in blobs]
    refs += [Ref(digest(letter), "manifest", "x/y", 1, required=True) for letter in children]
    with database.write() as tx:
        tx.repositories.put_manifest(row, refs)
        tx.content.add("default", digest(name), size=10, media_type="x/y", source="")
        for letter in blobs:
            tx.content.add("default", digest(letter), size=1, media_type="x/y", source="")
        if tag:
            tx.repositories.put_tag("default", APP, tag, digest(name))


@pytest.fixture(autouse=True)
def _namespace(database: Database) -> None:
    with database.write() as tx:
        tx.namespaces.ensure("default")


def manifests(database: Database) -> set[str]:
    """The letters of those that are there."""
    return {row.digest[7] for row in database.repositories.walk()}


def kept(database: Database, letter: str) -> str | None:
    """What keeps a blob, by what the tables of images and repositories say."""
    found = database.reachability.find_blob("default", digest(letter))
    assert found is not None
    return found.image


def test_with_a_tag_goes_what_only_it_named(database: Database) -> None:
    put(database, "a", blobs="1")
    put(database, "b", blobs="2")
    put(database, "c", children="ab", tag="index")
    put(database, "d", subject="a")
    put(database, "e", children="a", tag="other")
    with database.write() as tx:
        tx.repositories.forget_tag("default", APP, "absent")
        tx.repositories.forget_tag("default", APP, "index")
    assert manifests(database) == {"a", "d", "e"}
    with database.write() as tx:
        tx.repositories.forget_tag("default", APP, "other")
    assert manifests(database) == set()
    assert database._run("SELECT * FROM repository_refs") == []


def test_a_manifest_that_another_tag_names_stays(database: Database) -> None:
    put(database, "a", tag="1")
    put(database, "a", tag="2")
    with database.write() as tx:
        tx.repositories.forget_tag("default", APP, "1")
    assert manifests(database) == {"a"}
    assert database.repositories.tags_of("default", APP, digest("a")) == ["2"]


def test_manifests_and_what_they_name_are_kept(database: Database) -> None:
    put(database, "a", blobs="12")
    with database.write() as tx:
        tx.content.add("default", digest("3"), size=1, media_type="x/y", source="")
    for letter in "a12":
        assert kept(database, letter) == f"{APP}@{digest('a')}"
    assert kept(database, "3") is None


def test_what_was_sent_is_kept_for_a_day(database: Database) -> None:
    with database.write() as tx:
        tx.content.add("default", digest("3"), size=1, media_type="x/y", source="")
        tx.repositories.add_blob("default", APP, digest("3"))
    for age, keeper in ((0, f"{APP}, sent today"), (DAY_NS // 2, f"{APP}, sent today"), (DAY_NS + 10**10, None)):
        for sign in (1, -1):  # a clock may be set back
            with database.write() as tx:
                database._run("UPDATE repository_blobs SET created_ns = ?", (time.time_ns() - sign * age,))
            assert kept(database, "3") == keeper


def test_another_namespace_keeps_nothing_here(database: Database) -> None:
    put(database, "a", blobs="1")
    with database.write() as tx:
        tx.namespaces.ensure("other")
        tx.content.add("other", digest("1"), size=1, media_type="x/y", source="")
    found = database.reachability.find_blob("other", digest("1"))
    assert found is not None
    assert found.image is None


def test_an_upload_is_held_against_a_quota(database: Database) -> None:
    with database.write() as tx:
        tx.uploads.add("u", namespace="default", repository=APP, algorithm="sha256")
        tx.uploads.reserve("u", 500)
    assert database.usage.reserved("default") == 500
    with database.write() as tx:
        tx.namespaces.delete("default")
    assert database.uploads.list() == []
