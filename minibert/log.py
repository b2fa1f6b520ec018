"""The logger "minibert", without `logging` at the start of a process; warnings of a caller's line.

Importing it costs 3 ms, as much as a first vector. Where nobody has imported it, nobody has asked
for messages below a warning.
"""

from __future__ import annotations

import functools
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger


def info(message: str, *values: object) -> None:
    """Log at INFO."""
    if "logging" in sys.modules:
        _logger().info(message, *values, stacklevel=2)


def warning(message: str, *values: object) -> None:
    """Log at WARNING."""
    _logger().warning(message, *values, stacklevel=2)


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn of the line that called minibert, however deep in it this is said."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "minibert":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def is_verbose() -> bool:
    """Whether messages at INFO or DEBUG are wanted."""
    logging = sys.modules.get("logging")
    return logging is not None and _logger().getEffectiveLevel() in (logging.INFO, logging.DEBUG)


@functools.cache
def _logger() -> Logger:
    # Asked for once: each `getLogger` takes a lock of the whole process, which Ctrl-C can lose for
    # good between its taking and its giving back; all other threads would then wait for ever.
    import logging

    return logging.getLogger("minibert")
