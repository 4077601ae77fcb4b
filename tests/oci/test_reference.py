"""References are read as Docker and containerd read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctrd.errors import InvalidError
from pyctrd.oci.reference import Reference

SHA = "sha256:" + "a" * 64
SHA512 = "sha512:" + "b" * 128


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("alpine", "docker.io/library/alpine:latest", "alpine"),
        ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
        ("user/app", "docker.io/user/app:latest", "user/app"),
        ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest", "alpine"),
        ("registry-1.docker.io/user/app:1", "docker.io/user/app:1", "user/app:1"),
        ("ghcr.io/org/app:1.2", "ghcr.io/org/app:1.2", "ghcr.io/org/app:1.2"),
        ("localhost/app", "localhost/app:latest", "localhost/app"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app"),
        ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
        ("127.0.0.1:5000/a/b/c:t", "127.0.0.1:5000/a/b/c:t", "127.0.0.1:5000/a/b/c:t"),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app"),
        ("Host/app", "Host/app:latest", "Host/app"),
        (f"alpine@{SHA}", f"docker.io/library/alpine@{SHA}", f"alpine@{SHA}"),
        (f"alpine:3.20@{SHA}", f"docker.io/library/alpine:3.20@{SHA}", f"alpine:3.20@{SHA}"),
        (f"ghcr.io/org/app@{SHA512}", f"ghcr.io/org/app@{SHA512}", f"ghcr.io/org/app@{SHA512}"),
        ("a__b/c-d.e---f", "docker.io/a__b/c-d.e---f:latest", "a__b/c-d.e---f"),
        ("app:" + "t" * 128, "docker.io/library/app:" + "t" * 128, "app:" + "t" * 128),
    ],
)
def test_reference_is_completed(text: str, full: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == full
    assert reference.familiar == familiar
    assert Reference.parse(full) == reference
    assert Reference.parse(familiar) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        " alpine",
        "alpine ",
        "alpine\n",
        "Alpine",
        "user/App",
        "alpine:",
        "alpine:" + "t" * 129,
        "alpine:-x",
        "alpine@",
        "alpine@sha256:abc",
        "alpine@md5:" + "a" * 32,
        "alpine@SHA256:" + "a" * 64,
        "alpine@sha256:" + "A" * 64,
        f"alpine@{SHA}@{SHA}",
        "a//b",
        "/a",
        "a/",
        "a/../b",
        "a___b",
        "a/-b",
        "-host.io/a",
        "host..io/a",
        "host.io:/a",
        "host.io:123456/a",
        "host.io:65536/a",
        "https://host.io/a",
        "user:pw@host.io/a",
        "host.io/a?b=c",
        "host.io/\u0430",
        "a" * 64,
        "host.io/" + "a" * 256,
        "[::1/a",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Reference.parse(text)
    assert caught.value.field.startswith("reference")
    assert "\n" not in str(caught.value)


def test_digest_decides_what_is_asked_for() -> None:
    assert Reference.parse(f"alpine:3.20@{SHA}").target == SHA
    assert Reference.parse("alpine:3.20").target == "3.20"
    assert Reference.parse("alpine").target == "latest"


def test_error_does_not_repeat_a_long_text() -> None:
    with pytest.raises(InvalidError) as caught:
        Reference.parse("x" * 100_000 + "!")
    assert len(str(caught.value)) < 1000


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidError:
        return
    assert Reference.parse(str(reference)) == reference


NAMES = st.from_regex(r"[a-z0-9]{1,8}([._-][a-z0-9]{1,8}){0,2}", fullmatch=True)


@given(
    registry=st.sampled_from(["docker.io", "ghcr.io", "localhost:5000", "[::1]:80"]),
    path=st.lists(NAMES, min_size=1, max_size=3),
    tag=st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    digest=st.none() | st.just(SHA),
)
def test_full_form_is_read_back(registry: str, path: list[str], tag: str | None, digest: str | None) -> None:
    text = f"{registry}/x/{'/'.join(path)}" + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    reference = Reference.parse(text)
    assert str(reference) == (text if tag or digest else f"{text}:latest")
