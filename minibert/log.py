"""The logger "minibert", without `logging` at the start of a process.

Importing it costs 3 ms, as much as a first vector. Where nobody has imported it, nobody has asked
for messages below a warning.
"""

from __future__ import annotations

import functools
import sys
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
