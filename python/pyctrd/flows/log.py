"""What is odd and no error, for who listens to the logger ``pyctrd.flows``."""

from __future__ import annotations

import sys


class Logger:
    """Passes on what is told. ``logging`` takes 4 ms to load, and who did not load it listens to nothing."""

    @staticmethod
    def debug(message: str, *args: object) -> None:
        """As ``logging.Logger.debug``."""
        logging = sys.modules.get("logging")
        if logging is not None:
            logging.getLogger("pyctrd.flows").debug(message, *args, stacklevel=2)


logger = Logger()
