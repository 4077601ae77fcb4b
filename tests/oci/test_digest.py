"""Digests are checked once and then trusted."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctrd.errors import DigestMismatchError, InvalidError
from pyctrd.oci.digest import Digest

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_digest_has_two_parts() -> None:
    digest = Digest.parse(EMPTY)
    assert (digest.algorithm, len(digest.hex)) == ("sha256", 64)
    assert digest == EMPTY


@given(st.binary(max_size=200), st.sampled_from(["sha256", "sha512"]))
def test_digest_of_bytes_is_theirs(content: bytes, algorithm: str) -> None:
    digest = Digest.of(content, algorithm)
    assert Digest.parse(digest) == f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    digest.check(content, subject="test")
    with pytest.raises(DigestMismatchError):
        digest.check(content + b"x", subject="test")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        "sha1:" + "a" * 40,
        EMPTY[:-1],
        EMPTY + "0",
        EMPTY.upper(),
        EMPTY + "\n",
        "sha512" + EMPTY[6:],
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Digest.parse(text, field="layers[3].digest")
    assert caught.value.field == "layers[3].digest"


def test_mismatch_names_both_digests_whole() -> None:
    with pytest.raises(DigestMismatchError, match=f"expected {EMPTY}, got sha256:") as caught:
        Digest(EMPTY).check(b"x", subject="config")
    assert (caught.value.subject, caught.value.expected) == ("config", EMPTY)
