"""Sums over content: whose, of what, and what a quota makes of them."""

from __future__ import annotations

import pytest

from pyctrd.errors import NotFoundError, QuotaError
from pyctrd.metadata.database import Database, Tables
from tests.metadata.records import digest

LARGEST = 2**63 - 1


def add(tx: Tables, namespace: str, number: int, size: int) -> None:
    """A blob's record."""
    tx.content.add(namespace, digest(number), size=size, media_type="type/one", source="")


def reserve(tx: Tables, namespace: str, number: int, size: int, *, diff_id: str | None = None) -> None:
    """A reservation."""
    ingest_id = f"{namespace}-{number}-{diff_id}"
    tx.ingests.add(ingest_id, namespace=namespace, digest=digest(number), diff_id=diff_id, size=size)


def limit(database: Database, namespace: str, quota_bytes: int | None) -> None:
    """Set a namespace's quota."""
    with database.write() as tx:
        tx.namespaces.put(tx.namespaces.get(namespace)._replace(quota_bytes=quota_bytes))


def test_nothing_is_charged_for_nothing(database: Database) -> None:
    usage = database.usage
    assert (usage.charged("mine"), usage.exclusive("mine"), usage.reserved("mine")) == (0, 0, 0)


def test_a_blob_of_two_is_charged_to_both_and_exclusive_to_none(database: Database) -> None:
    with database.write() as tx:
        add(tx, "mine", 1, 5)
        add(tx, "mine", 2, 7)
        add(tx, "theirs", 2, 7)
    usage = database.usage
    assert (usage.charged("mine"), usage.exclusive("mine")) == (12, 5)
    assert (usage.charged("theirs"), usage.exclusive("theirs")) == (7, 0)


def test_what_is_not_stored_is_charged_and_frees_nothing(database: Database) -> None:
    with database.write() as tx:
        tx.content.add("mine", digest(1), size=5, media_type="", source="", is_stored=False)
        tx.content.add("mine", digest(2), size=7, media_type="", source="")
        tx.content.add("theirs", digest(2), size=7, media_type="", source="", is_stored=False)
    usage = database.usage
    assert (usage.charged("mine"), usage.exclusive("mine")) == (12, 7)
    assert (usage.charged("theirs"), usage.exclusive("theirs")) == (7, 0)
    assert usage.stored()[:2] == (1, 7)


def test_reserved_is_what_is_not_there_yet_and_each_blob_once(database: Database) -> None:
    with database.write() as tx:
        add(tx, "mine", 1, 5)
        reserve(tx, "mine", 1, 5)  # only to be unpacked
        reserve(tx, "mine", 2, 7, diff_id=digest(8))
        reserve(tx, "mine", 2, 7, diff_id=digest(9))
        reserve(tx, "theirs", 3, 11)
    assert database.usage.reserved("mine") == 7
    assert database.usage.reserved("mine", beside=[digest(2)]) == 0


def test_reservations_of_any_size_are_summed(database: Database) -> None:
    with database.write() as tx:
        reserve(tx, "mine", 1, LARGEST)
        reserve(tx, "mine", 2, LARGEST)
    assert database.usage.reserved("mine") == 2 * LARGEST


def test_without_a_quota_everything_is_admitted(database: Database) -> None:
    database.usage.admit("mine", {digest(1): LARGEST, digest(2): LARGEST})


@pytest.mark.parametrize(("quota_bytes", "fits"), [(20, True), (19, False), (0, False)])
def test_a_quota_counts_what_is_there_what_comes_and_what_is_new(
    database: Database, quota_bytes: int, *, fits: bool
) -> None:
    with database.write() as tx:
        add(tx, "mine", 1, 5)
        add(tx, "theirs", 1, 5)
        reserve(tx, "mine", 2, 7)
    limit(database, "mine", quota_bytes)
    blobs = {digest(1): 5, digest(3): 8}
    if fits:
        database.usage.admit("mine", blobs)
        return
    with pytest.raises(QuotaError) as caught:
        database.usage.admit("mine", blobs)
    error = caught.value
    assert (error.limit_bytes, error.use_bytes, error.need_bytes) == (quota_bytes, 12, 8)


def test_what_needs_nothing_is_admitted_whatever_the_quota(database: Database) -> None:
    with database.write() as tx:
        add(tx, "mine", 1, 5)
    limit(database, "mine", 1)
    database.usage.admit("mine", {digest(1): 5})
    database.usage.admit("mine", {})


def test_a_namespace_that_is_gone_admits_nothing(database: Database) -> None:
    with pytest.raises(NotFoundError, match="namespace not found: gone"):
        database.usage.admit("gone", {})
