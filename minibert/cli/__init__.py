"""The command line: `minibert COMMAND`, one of `minibert.cli.app.COMMANDS`.

The commands live in modules of their own and are imported when they are asked for; NumPy, the
tokenizer and the engine are imported inside the commands, so that `minibert --help` is immediate.
"""

from __future__ import annotations

from minibert.cli.app import app, main

__all__ = ["app", "main"]
