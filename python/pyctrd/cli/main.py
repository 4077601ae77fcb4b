"""The ``pyctrd`` command: global options, lazy commands, one line for an error."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from pyctrd import __version__

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def main() -> NoReturn:
    """Run the command line and exit; ``version`` alone is answered before click is loaded."""
    if sys.argv[1:] in (["version"], ["--version"]):
        sys.stdout.write(f"pyctrd {__version__}\n")
        sys.stdout.flush()
        os._exit(0)  # nothing is open; the interpreter's teardown would be a third of the run
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    import click

    from pyctrd.cli.group import pyctrd
    from pyctrd.cli.output import complain

    debug = "--debug" in arguments
    try:
        status = pyctrd.main(args=arguments, prog_name="pyctrd", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`pyctrd ps | head -1`): no news, and no second error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        # The last place: a bug is one line too, without --debug.
        if debug:
            raise
        return complain(error)
    return status if isinstance(status, int) else 0
