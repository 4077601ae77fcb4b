"""Transports: what is one, and what is a reference."""

from __future__ import annotations

import pytest

from pyctrd import images
from pyctrd.errors import InvalidError
from pyctrd.oci.transports import PREFIXES, Transport, check_form, is_transport


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("oci:/a/b", ("oci", "/a/b", "")),
        ("oci:b:1.0", ("oci", "b", "1.0")),
        ("oci-archive:/a.tar:docker.io/x/y:1", ("oci-archive", "/a.tar", "docker.io/x/y:1")),
        ("docker-archive:./a.tar:x:latest", ("docker-archive", "./a.tar", "x:latest")),
    ],
)
def test_a_transport_is_a_word_a_path_and_a_name(text: str, parts: tuple[str, str, str]) -> None:
    assert is_transport(text)
    assert tuple(Transport.parse(text)) == parts
    assert str(Transport.parse(text)) == text


@pytest.mark.parametrize("text", ["oci", "oci:", "oci::1", "dir:/a", "docker://x", "", ":x", "OCI:/a"])
def test_what_is_no_transport_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="invalid transport"):
        Transport.parse(text)


@pytest.mark.parametrize("text", ["alpine", "docker.io/library/oci:latest", "ociregistry.example/x:1", "ocis:1"])
def test_references_are_no_transports(text: str) -> None:
    assert not is_transport(text)


def test_a_name_is_a_tag_or_a_reference() -> None:
    assert Transport.parse("oci:p:1.0").is_tag
    assert not Transport.parse("oci:p:x:1.0").is_tag
    assert not Transport.parse("oci:p:x/y").is_tag
    assert not Transport.parse("oci:p").is_tag


def test_a_form_has_a_name() -> None:
    assert check_form("oci") == "oci"
    with pytest.raises(InvalidError, match="expected oci-archive, oci, docker-archive"):
        check_form("tar")


def test_the_engine_knows_the_same_words_with_nothing_loaded() -> None:
    assert images._TRANSPORTS == PREFIXES
