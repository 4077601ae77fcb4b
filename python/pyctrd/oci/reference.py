"""References: ``[registry/]repository[:tag][@digest]``, as Docker and containerd read them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Self

from pyctrd.errors import InvalidError
from pyctrd.oci.digest import Digest
from pyctrd.oci.value import dataclass

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
OFFICIAL_PREFIX = "library/"
REPOSITORY_MAX_CHARS = 255
PORT_MAX = 65535

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HEX_ID = r"[a-f0-9]{64}"  # needed for Docker's own registry alone, so not compiled here
# Names that Docker once gave its registry.
_DOCKER_NAMES = frozenset({"index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference; ``str()`` is its full form.

    Attributes:
        registry: Host, with its port where one was given.
        repository: Path within it.
        tag: None where only a digest was given.
        digest: None where only a tag was given. With both, the digest decides and the tag is a name.

    Spec:
        distribution-spec v1.1, "Pulling manifests" (repository and tag grammar); Docker's defaults.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what a user wrote; what is left out is filled in.

        Raises:
            InvalidError: It is none; the message says which part.
        """
        rest, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text, field="reference.digest") if at else None
        registry, path = _split_registry(rest)
        repository, tag = _split_tag(path, text)
        if registry == DEFAULT_REGISTRY and re.fullmatch(_HEX_ID, path):
            raise _invalid(text, "64 hex digits could be an image's id; give a tag, or pull by name")
        if registry == DEFAULT_REGISTRY and "/" not in repository:
            repository = OFFICIAL_PREFIX + repository
        if _HOST.fullmatch(registry) is None or _port_of(registry) > PORT_MAX:
            raise _invalid(text, f"{registry!r} is no registry host")
        if _REPOSITORY.fullmatch(repository) is None:
            wrong = "must be lower case" if repository != repository.lower() else "is no repository name"
            raise _invalid(text, f"{repository[:80]!r} {wrong}")
        if len(repository) > REPOSITORY_MAX_CHARS:
            raise _invalid(text, f"the repository name is longer than {REPOSITORY_MAX_CHARS} characters")
        if tag is None and digest is None:
            tag = DEFAULT_TAG
        return cls(registry, repository, tag, digest)

    @property
    def repository_name(self) -> str:
        """``registry/repository``."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """The shortest form that means the same."""
        text = str(self)
        if self.registry == DEFAULT_REGISTRY:
            text = text.removeprefix(DEFAULT_REGISTRY + "/").removeprefix(OFFICIAL_PREFIX)
        return text.removesuffix(":" + DEFAULT_TAG)

    @property
    def target(self) -> str:
        """What the registry is asked for: the digest where there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def with_digest(self, digest: Digest) -> Self:
        """The same repository at a digest."""
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


def check_repository(name: str) -> str:
    """A repository's name as a registry has it in its URLs, if it is one.

    Raises:
        InvalidError: It is none.

    Spec:
        distribution-spec v1.1, "Pulling manifests", <name>.
    """
    if len(name) > REPOSITORY_MAX_CHARS or _REPOSITORY.fullmatch(name) is None:
        raise InvalidError(
            f"invalid repository: {name[:80]!r}: expected lower-case words with slashes between them, at most "
            f"{REPOSITORY_MAX_CHARS} characters",
            field="repository",
            value=name[:80],
        )
    return name


def is_tag(text: str) -> bool:
    """Whether a text can be a tag."""
    return _TAG.fullmatch(text) is not None


def _invalid(text: str, reason: str) -> InvalidError:
    return InvalidError(
        f"invalid reference: {text[:200]!r}: {reason}",
        field="reference",
        value=text[:200],
        hint="expected [registry/]repository[:tag][@digest]",
    )


def _split_registry(text: str) -> tuple[str, str]:
    """The first part is a host if it looks like one: a dot, a colon, upper case, or localhost."""
    first, slash, rest = text.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first):
        return (DEFAULT_REGISTRY if first in _DOCKER_NAMES else first), rest
    return DEFAULT_REGISTRY, text


def _port_of(registry: str) -> int:
    port = registry.rpartition(":")[2]
    return int(port) if port.isdecimal() else 0


def _split_tag(path: str, text: str) -> tuple[str, str | None]:
    repository, colon, tag = path.rpartition(":")
    if not colon or "/" in tag:
        return path, None
    if _TAG.fullmatch(tag) is None:
        raise _invalid(text, f"{tag[:140]!r} is no tag")
    return repository, tag
