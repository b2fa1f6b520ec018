"""The logger "minibert", without `logging` at the start of a process.

Importing it costs 3 ms, as much as a first vector. Where nobody has imported it, nobody has asked
for messages below a warning.
"""

from __future__ import annotations

import sys


def info(message: str, *values: object) -> None:
    """Log at INFO."""
    if "logging" in sys.modules:
        import logging

        logging.getLogger("minibert").info(message, *values, stacklevel=2)


def warning(message: str, *values: object) -> None:
    """Log at WARNING."""
    import logging

    logging.getLogger("minibert").warning(message, *values, stacklevel=2)


def is_verbose() -> bool:
    """Whether messages at INFO or DEBUG are wanted."""
    if "logging" not in sys.modules:
        return False
    import logging

    return logging.getLogger("minibert").getEffectiveLevel() in (logging.INFO, logging.DEBUG)
