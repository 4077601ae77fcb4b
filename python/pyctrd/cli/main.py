"""The ``pyctrd`` command: global options, lazy commands, one line for an error."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from pyctrd import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
# Objects made before the collector looks for cycles: importing makes tens of thousands, and none of them is garbage.
GC_THRESHOLD = 50_000
SHORT_OPTION_CHARS = 2


def main() -> NoReturn:
    """Run the command line and exit; ``version`` alone is answered before click is loaded."""
    _fill_closed_streams()
    if sys.argv[1:] in (["version"], ["--version"]):
        _exit(0, f"pyctrd {__version__}\n")
    gc.set_threshold(GC_THRESHOLD)
    _defer_modules()
    try:
        status = _run(sys.argv[1:])
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED  # while modules were loaded: nothing was begun
    _exit(status)


def _fill_closed_streams() -> None:
    """Open /dev/null where the caller closed a standard stream, or the next file opened would get its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - os takes it so
    os.close(descriptor)
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode))


def _defer_modules() -> None:
    """Let modules wait that click, socket, pathlib and others import, until somebody needs what they have.

    With what they import themselves they are a tenth of a small pull, and a command that goes well needs none. Only
    here, where no other thread of the process can meet a stand-in, and where no message has a translation.
    """

    def cleandoc(text: str) -> str:
        return text.expandtabs().lstrip() if "\n" not in text else str(load("cleandoc")(text))

    def get_close_matches(word: str, possibilities: Iterable[str]) -> list[str]:
        # Of each short option click asks first what long one it could be: none.
        return [] if len(word) == SHORT_OPTION_CHARS else list(load_matches("get_close_matches")(word, possibilities))

    class UUID:
        def __new__(cls, *args: Any, **named: Any) -> Any:
            return load_uuid("UUID")(*args, **named)

    load = _stand_in("inspect", cleandoc=cleandoc)
    load_matches = _stand_in("difflib", get_close_matches=get_close_matches)
    load_uuid = _stand_in("uuid", UUID=UUID)
    _stand_in("gettext", gettext=lambda text: text, ngettext=lambda one, many, count: one if count == 1 else many)
    for name in ("array", "copy", "ipaddress", "ntpath", "selectors"):
        _stand_in(name)
    with suppress(ImportError):
        # Its classes are these; those that it has in Python, for where there are none in C, take long to load.
        native = import_module("_datetime")
        classes = ("date", "datetime", "time", "timedelta", "timezone", "tzinfo")
        _stand_in("datetime", **{name: getattr(native, name) for name in classes})


def _stand_in(name: str, **known: Callable[..., Any]) -> Callable[[str], Any]:
    """Put up a module that becomes the real one when it is asked for what it does not know."""
    stand_in = type(sys)(name)

    def load(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)  # the import system asks for such; they load nothing
        if sys.modules.get(name) is stand_in:
            sys.modules.pop(name, None)
        return getattr(import_module(name), attribute)

    vars(stand_in).update(known, __getattr__=load)
    sys.modules.setdefault(name, stand_in)
    return load


def _exit(status: int, text: str = "") -> NoReturn:
    """End now: the engine is closed, and taking the interpreter apart would be a third of a short command."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = status or EXIT_FAILED  # the reader left before it had all
    except OSError as error:
        from pyctrd.cli.output import complain

        status = status or complain(error)
    os._exit(status)


def _run(arguments: list[str]) -> int:
    from pyctrd.cli.output import complain
    from pyctrd.cli.plain import read_pull

    try:
        plain = read_pull(arguments)
        if plain is None:
            return _run_by_click(arguments)
        from pyctrd.cli.pull import pull

        return pull(plain.options, (plain.reference,), quiet=plain.quiet)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`pyctrd ps | head -1`): no news, and no second error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        # The last place: a bug is one line too, without --debug.
        if "--debug" in arguments:
            raise
        return complain(error)


def _run_by_click(arguments: list[str]) -> int:
    import click

    from pyctrd.cli.group import pyctrd

    try:
        status = pyctrd.main(args=arguments, prog_name="pyctrd", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return EXIT_INTERRUPTED
    return status if isinstance(status, int) else 0
