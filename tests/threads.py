"""The threads of this process, those of extensions among them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

_TASKS = Path("/proc/self/task")
needs_tasks = pytest.mark.skipif(not _TASKS.is_dir(), reason="threads are counted in /proc")


def threads() -> set[str]:
    """Their ids; on Linux only."""
    return {task.name for task in _TASKS.iterdir()}


def new_threads(before: set[str], seconds: float = 5.0) -> set[str]:
    """Those that were not there before, once they had time to go: the system shows a thread for
    a moment after it was joined."""
    until = time.monotonic() + seconds
    while (new := threads() - before) and time.monotonic() < until:
        time.sleep(0.001)
    return new
