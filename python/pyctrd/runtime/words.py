"""What a process, or the JSON that describes it, can take."""

from __future__ import annotations

from pyctrd.errors import InvalidError


def passable(field: str, text: str) -> None:
    """Refuse what cannot be passed on.

    Raises:
        InvalidError: A NUL character, or no UTF-8; ``field`` names the option.
    """
    if "\0" in text:
        raise InvalidError(f"{field}: {text!r}: a NUL character cannot be passed", field=field, value=text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidError(f"{field}: {text!r}: expected UTF-8", field=field, value=text) from error
