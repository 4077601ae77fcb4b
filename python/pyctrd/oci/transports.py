"""Transports: names of images that are in no registry, ``oci:PATH[:TAG]``, as skopeo and Podman write them."""

from __future__ import annotations

from typing import Literal, Self

from pyctrd.errors import InvalidError
from pyctrd.oci.value import NamedTuple

Form = Literal["oci-archive", "oci", "docker-archive"]
FORMS: tuple[Form, ...] = ("oci-archive", "oci", "docker-archive")
# A reference to Docker's registry could begin so as well; it can be written in full.
PREFIXES = ("oci:", "oci-archive:", "docker-archive:")


class Transport(NamedTuple):
    """Where an image is, or is to be.

    Attributes:
        form: What is there: a layout, or an archive.
        path: Of the directory or file; it has no colon.
        name: A tag, or a full reference; "" where nothing is said.
    """

    form: Form
    path: str
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what a user wrote.

        Raises:
            InvalidError: There is no such transport, or no path.

        Spec:
            containers-transports(5).
        """
        word, colon, rest = text.partition(":")
        path, _, name = rest.partition(":")
        form = next((form for form in FORMS if form == word), None)
        if form is None or not colon or not path:
            raise InvalidError(
                f"invalid transport: {text[:200]!r}: expected {', '.join(FORMS)}, each with :PATH[:NAME]",
                field="transport",
                value=text[:200],
            )
        return cls(form, path, name)

    @property
    def is_tag(self) -> bool:
        """Whether the name is a tag alone."""
        return bool(self.name) and not any(mark in self.name for mark in ":/@")

    def __str__(self) -> str:
        return ":".join(part for part in self if part)


def is_transport(text: str) -> bool:
    """Whether a user means a place by it, and no registry's image."""
    return text.startswith(PREFIXES)


def check_form(form: str) -> Form:
    """One of the forms, by its name.

    Raises:
        InvalidError: There is no such form.
    """
    for known in FORMS:
        if known == form:
            return known
    raise InvalidError(f"invalid format: {form[:80]!r}: expected {', '.join(FORMS)}", field="format", value=form[:80])
