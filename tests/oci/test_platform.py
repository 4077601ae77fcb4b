"""Platforms are read in every spelling, and the best of several is found."""

from __future__ import annotations

import os

import pytest

from pyctrd.errors import InvalidError
from pyctrd.oci.platform import Platform


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("amd64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/i686", "linux/386"),
        ("linux/riscv64", "linux/riscv64"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_platform_is_normalised(text: str, expected: str) -> None:
    platform = Platform.parse(text)
    assert str(platform) == expected
    assert Platform.parse(expected) == platform


@pytest.mark.parametrize("text", ["", "/", "linux/", "linux//v7", "linux/amd64/v1/x", "linux/amd 64", "li\nux/amd64"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="invalid platform"):
        Platform.parse(text)


def test_host_is_this_machine() -> None:
    assert Platform.host() == Platform.parse(f"linux/{os.uname().machine}")


@pytest.mark.parametrize(
    ("host", "offered", "rank"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/amd64", "linux/amd64/v1", 0),
        ("linux/amd64", "linux/amd64/v2", None),
        ("linux/amd64/v3", "linux/amd64", 2),
        ("linux/amd64", "linux/386", None),
        ("linux/amd64", "windows/amd64", None),
        ("linux/arm/v7", "linux/arm/v7", 0),
        ("linux/arm/v7", "linux/arm/v6", 1),
        ("linux/arm/v7", "linux/arm/v5", 2),
        ("linux/arm/v6", "linux/arm/v7", None),
        ("linux/arm64", "linux/arm64/v8", 0),
        ("linux/arm64/v9", "linux/arm64", 1),
        ("linux/arm64", "linux/arm64/v9", None),
        ("linux/mips64le/hardfloat", "linux/mips64le/softfloat", None),
    ],
)
def test_offers_are_ranked(host: str, offered: str, rank: int | None) -> None:
    assert Platform.parse(host).rank(Platform.parse(offered)) == rank
