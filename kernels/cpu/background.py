"""Work on weights beside the calling thread, while an engine is loaded.

One thread of the extension checks, lays out and lets go of weights in the order in which it was
told, without Python's lock: meanwhile the caller reads the next layers and the tokenizer's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.errors import DeviceError
from minibert.kernels.cpu.loader import native

_MOST_COPIED_BYTES = 32 << 20
"""Of arrays that are no mapped file's, and that wait for their turn: more, and the caller waits."""


class Background:
    """The thread and its work. Use as a context: at its end what has not begun is dropped.

    Attributes:
        handle: what the extension knows it by.
    """

    def __init__(self) -> None:
        """The thread starts with the first work."""
        self.handle: Any = native().background()
        self._kept: dict[int, NDArray[Any]] = {}
        self._copied_bytes = 0
        self._closed = False

    def check_finite(self, values: NDArray[np.float32]) -> None:
        """Look for NaN and infinity; `wait` tells."""
        values = np.ascontiguousarray(values)
        self.keep(values)
        native().background_check(self.handle, values.ctypes.data, values.size)

    def concatenate(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Arrays one below the other; the values are there for later work, or after `wait`."""
        joined = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), np.float32)
        parts = [np.ascontiguousarray(part) for part in parts]
        self.keep(joined, *parts)
        first = 0
        for part in parts:
            to = joined[first : first + len(part)]
            native().background_copy(self.handle, to.ctypes.data, part.ctypes.data, part.nbytes)
            first += len(part)
        return joined

    def release(self, mapped: NDArray[Any], address: int, size: int) -> None:
        """Let go of whole pages of a mapped file, which `mapped` is of."""
        self.keep(mapped)
        native().background_release(self.handle, address, size)

    def keep(self, *arrays: NDArray[Any]) -> None:
        """Keep arrays until the work is done; waits before it where copies take much memory.

        All arrays of one piece of work belong into one call: waiting lets go of those of earlier
        ones.
        """
        if self._closed:
            return
        roots = {id(root): root for root in map(_root, arrays)}
        copied = self._copied(roots)
        if copied and self._copied_bytes + copied > _MOST_COPIED_BYTES:
            self.wait()
            copied = self._copied(roots)
        self._copied_bytes += copied
        self._kept.update(roots)

    def _copied(self, roots: dict[int, NDArray[Any]]) -> int:
        """Bytes of those that are not kept yet, and are no mapped file's."""
        return sum(
            root.nbytes
            for key, root in roots.items()
            if key not in self._kept and root.base is None
        )

    def wait(self) -> bool:
        """Until all work is done.

        Returns:
            Whether all values that were checked, ever, are finite.
        """
        finite: bool = native().background_wait(self.handle)
        self._let_go()
        return finite

    def close(self) -> None:
        """Drop what has not begun and end the thread; later work is done at once."""
        native().background_close(self.handle)
        self._closed = True
        self._let_go()

    def __enter__(self) -> Background:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def _let_go(self) -> None:
        self._kept.clear()
        self._copied_bytes = 0


def _root(array: NDArray[Any]) -> NDArray[Any]:
    """The array whose memory it shows."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def start_background() -> AbstractContextManager[Background | None]:
    """A `Background` where the extension was built, else None: everything is done at once then."""
    try:
        return Background()
    except DeviceError:
        return nullcontext()
