"""Modules that a command loads only if somebody needs what they have.

With what they import themselves they are a sixth of a small pull, and a command that goes well needs none of them: they
are imported for annotations, for errors, or by modules of which we use another part. This is for the process of a
command only, where no other thread meets a stand-in, and where no message has a translation.
"""

from __future__ import annotations

import sys
from contextlib import suppress

TYPE_CHECKING = False  # what `typing` has too, which is one of those that wait
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

_SHORT_OPTION_CHARS = 2
_NOTHING_ELSE = ("array", "copy", "ipaddress", "ntpath", "selectors")


def defer_modules() -> None:
    """Put up the stand-ins, each for a module that is not loaded yet."""

    def cleandoc(text: str) -> str:
        return text.expandtabs().lstrip() if "\n" not in text else str(load("cleandoc")(text))

    def get_annotations(of: object, **options: Any) -> dict[str, Any]:
        # `dataclasses` asks for each class, from Python 3.13 on.
        if options or not isinstance(of, type):
            return dict(load("get_annotations")(of, **options))
        return dict(vars(of).get("__annotations__", ()))

    def get_close_matches(word: str, possibilities: Iterable[str], **how: float) -> list[str]:
        # Of each short option click asks first what long one it could be: none.
        if len(word) == _SHORT_OPTION_CHARS:
            return []
        return list(load_matches("get_close_matches")(word, possibilities, **how))

    class UUID:
        def __new__(cls, *args: Any, **named: Any) -> Any:
            return load_uuid("UUID")(*args, **named)

    class JSONDecodeError(ValueError):
        """What orjson's own error is a kind of; nobody in a command looks for Python's."""

    load = _stand_in("inspect", cleandoc=cleandoc, get_annotations=get_annotations)
    load_matches = _stand_in("difflib", get_close_matches=get_close_matches)
    load_uuid = _stand_in("uuid", UUID=UUID)
    _stand_in("gettext", gettext=lambda text: text, ngettext=lambda one, many, count: one if count == 1 else many)
    _stand_in("json", JSONDecodeError=JSONDecodeError)
    for name in _NOTHING_ELSE:
        _stand_in(name)
    with suppress(ImportError):
        # Its classes are these; those that it has in Python, for where there are none in C, take long to load.
        native: Any = __import__("_datetime")
        classes = ("date", "datetime", "time", "timedelta", "timezone", "tzinfo", "datetime_CAPI")
        _stand_in("datetime", **{name: getattr(native, name) for name in classes})
    _defer_typing()


def _stand_in(name: str, **known: Any) -> Callable[[str], Any]:
    """Put up a module that becomes the real one when it is asked for what it does not know."""
    stand_in = type(sys)(name)

    def load(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)  # the import system asks for such; they load nothing
        if sys.modules.get(name) is stand_in:
            sys.modules.pop(name, None)
        return getattr(_real(name), attribute)

    vars(stand_in).update(known, __getattr__=load)
    sys.modules.setdefault(name, stand_in)
    return load


def _real(name: str) -> Any:
    from importlib import import_module

    return import_module(name)


class _Never:
    """For what ``dataclasses`` looks for in annotations: none of ours is that."""


class _Form:
    """For ``typing``'s special forms: in annotations that nobody evaluates, and as a base that does nothing."""

    def __class_getitem__(cls, item: object) -> type[_Form]:
        return cls


def _cast(_: object, value: Any) -> Any:
    return value


def _defer_typing() -> None:
    """The same for ``typing``, for modules of ours alone: all others get the real one, whatever they ask for.

    ``typing`` knows its own forms by identity, so nobody who evaluates annotations may be given another's.
    """
    forms = ("Any", "BinaryIO", "IO", "Literal", "NoReturn", "Protocol", "Self")
    ours: Mapping[str, Any] = {"TYPE_CHECKING": False, "cast": _cast, **dict.fromkeys(forms, _Form)}
    looked_at = dict.fromkeys(("ClassVar", "_GenericAlias"), _Never)
    asked: Mapping[str, Mapping[str, Any]] = {"pyctrd": ours, "dataclasses": looked_at}
    stand_in = type(sys)("typing")

    def load(attribute: str) -> Any:
        asking = str(sys._getframe(1).f_globals.get("__name__", "")).partition(".")[0]  # noqa: SLF001 - CPython's
        known = asked.get(asking, {})
        if attribute in known:
            return known[attribute]
        if attribute.startswith("__") and attribute != "__all__":
            raise AttributeError(attribute)
        if sys.modules.get("typing") is stand_in:
            del sys.modules["typing"]
        real = _real("typing")
        vars(stand_in).update(vars(real))  # for those that hold it
        return getattr(real, attribute)

    vars(stand_in)["__getattr__"] = load
    sys.modules.setdefault("typing", stand_in)
