"""The progress bar of `minibert encode`, on stderr."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """A bar over the bytes of the inputs, or a counter where their size is not known."""

    def __init__(self, total_bytes: int | None, *, shown: bool) -> None:
        """Prepare the bar.

        Args:
            total_bytes: of all inputs, or None.
            shown: whether there is one.
        """
        self._bar: Any = None
        self._num_texts = 0
        self._start = time.perf_counter()
        if shown:
            from tqdm import tqdm

            counter = "{desc} [{elapsed}]"
            bar = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
            size = shutil.get_terminal_size()  # tqdm shows nothing where a terminal has size 0
            self._bar = tqdm(
                total=total_bytes,
                bar_format=bar if total_bytes else counter,
                file=sys.stderr,
                ncols=size.columns,
                nrows=size.lines,
            )

    def update(self, num_texts: int, done_bytes: int) -> None:
        """Show that `num_texts` more are done, and that `done_bytes` were read since the start."""
        self._num_texts += num_texts
        if self._bar is None:
            return
        rate = self._num_texts / max(time.perf_counter() - self._start, 1e-9)
        self._bar.set_description_str(f"{self._num_texts:,} texts, {rate:,.0f}/s", refresh=False)
        self._bar.n = done_bytes
        self._bar.refresh()

    def __enter__(self) -> Progress:
        """Start counting."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the bar as it is and end its line."""
        if self._bar is not None:
            self._bar.close()
