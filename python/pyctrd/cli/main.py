"""The ``pyctrd`` command: global options, lazy commands, one line for an error."""

from __future__ import annotations

import gc
import os
import sys

from pyctrd import __version__
from pyctrd.cli.deferred import defer_modules
from pyctrd.cli.finder import find_quickly

TYPE_CHECKING = False  # what `typing` has too, which is loaded only if it is needed
if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from typing import NoReturn

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
# Objects made before the collector looks for cycles: importing makes tens of thousands, and none of them is garbage.
GC_THRESHOLD = 50_000
AGAIN_SECONDS = 0.01


def main() -> NoReturn:
    """Run the command line and exit; ``version`` alone is answered before click is loaded."""
    _fill_closed_streams()
    if sys.argv[1:] in (["version"], ["--version"]):
        _exit(0, f"pyctrd {__version__}\n")
    gc.set_threshold(GC_THRESHOLD)
    keep_interrupts()
    find_quickly()
    defer_modules()
    try:
        status = _run(sys.argv[1:])
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED  # while modules were loaded: nothing was begun
    _exit(status)


def keep_interrupts() -> None:
    """Let Ctrl-C come again where Python throws it away: where it comes in the middle of a callback or a finaliser.

    Of 600 pulls that were interrupted one went on: ``threading`` has a callback for each thread that is forgotten.
    """
    ordinary = sys.unraisablehook

    def hook(thrown: UnraisableHookArgs) -> None:
        if not issubclass(thrown.exc_type, KeyboardInterrupt):
            ordinary(thrown)
            return
        import signal
        from threading import Timer, main_thread

        # When the callback has ended; really sent, so that it ends whatever call the main thread waits in.
        again = Timer(AGAIN_SECONDS, signal.pthread_kill, (main_thread().ident, signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook


def _fill_closed_streams() -> None:
    """Open /dev/null where the caller closed a standard stream, or the next file opened would get its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - os takes it so
    os.close(descriptor)
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode))


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
