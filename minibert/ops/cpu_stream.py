"""Streams of the CPU ops: a thread or a team of threads, and the memory of its arrays.

Arrays are addresses in a stream's own memory: blocks return to the stream when the last reference
to an array goes, so that in steady state nothing is allocated.
"""

from __future__ import annotations

import os
import threading
import weakref

import numpy as np

from minibert.errors import DeviceError
from minibert.kernels.cpu.loader import native

_ALIGNMENT = 64


class Memory:
    """Blocks of one stream: taken for an array, given back when the array goes."""

    def __init__(self) -> None:
        """Nothing is taken yet."""
        self._free: list[_Block] = []
        self.total_bytes = 0

    def take(self, size: int) -> _Block:
        """The smallest free block that is large enough; else a new one in place of a free one."""
        best: _Block | None = None
        largest: _Block | None = None
        for block in self._free:
            if block.size >= size and (best is None or block.size < best.size):
                best = block
            if largest is None or block.size > largest.size:
                largest = block
        if best is not None:
            self._free.remove(best)
            return best
        if largest is not None:  # too small for this request: replaced, so that none is left over
            self._free.remove(largest)
            self.total_bytes -= largest.size
        fresh = _Block(self, size)
        self.total_bytes += size
        return fresh

    def give_back(self, block: _Block) -> None:
        """The block may be taken again."""
        self._free.append(block)


class _Block:
    __slots__ = ("address", "buffer", "memory", "size")

    def __init__(self, memory: Memory, size: int) -> None:
        self.memory = memory
        self.size = size
        self.buffer = np.empty(size + _ALIGNMENT, np.uint8)
        address = self.buffer.ctypes.data
        self.address = address + -address % _ALIGNMENT


class CpuArray:
    """A float32 array (rows, cols) in a stream's memory."""

    __slots__ = ("_block", "address", "cols", "rows")

    def __init__(self, memory: Memory, rows: int, cols: int) -> None:
        """Take a block; its values are arbitrary."""
        self.rows = rows
        self.cols = cols
        self._block = memory.take(4 * rows * cols)
        self.address = self._block.address

    def __del__(self) -> None:
        """Give the block back to the stream."""
        block = getattr(self, "_block", None)  # none where there was no memory for it
        if block is not None:
            block.memory.give_back(block)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.rows, self.cols


class StreamState:
    """What one running batch holds: a native stream and its memory."""

    def __init__(self, path_index: int, threads: int) -> None:
        """Start the threads."""
        self.handle = native().stream(path_index, threads)
        self.memory = Memory()
        self.is_team = threads > 1


class StreamPool:
    """Streams between batches. Threads belong to the process that made them: a fork starts anew."""

    def __init__(self, path_index: int, threads: int) -> None:
        """Nothing is started before a stream is taken."""
        self._path_index = path_index
        self._threads = threads
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._single: list[StreamState] = []
        self._team: list[StreamState] = []
        # Weak: an interruption (Ctrl-C) can lose a stream on its way, and then there is no team.
        self._made: weakref.ref[StreamState] | None = None
        self._pid = os.getpid()  # last: who sees it uses the rest

    def take(self, alone: bool) -> StreamState:
        """A free stream or a new one: the team where `alone`, once; else one thread."""
        if self._pid != os.getpid():
            self._start()
        with self._lock:
            if self._closed:
                raise DeviceError("CpuOps was closed and cannot be used any more")
            if alone and self._threads > 1:
                if self._team:
                    return self._team.pop()
                if self._made is None or self._made() is None:
                    team = StreamState(self._path_index, self._threads)
                    self._made = weakref.ref(team)
                    return team
            if self._single:
                return self._single.pop()
        return StreamState(self._path_index, 1)

    def give_back(self, state: StreamState) -> None:
        """The stream may be taken again."""
        with self._lock:
            if not self._closed:
                (self._team if state.is_team else self._single).append(state)

    def wake(self) -> None:
        """Wake the threads of the team, where there is one that is free."""
        if self._threads > 1 and self._pid == os.getpid():
            with self._lock:
                if self._team:
                    native().wake(self._team[-1].handle)

    def close(self) -> None:
        """Let go of all streams that are not running."""
        if self._pid != os.getpid():
            self._start()
        with self._lock:
            self._closed = True
            self._single.clear()
            self._team.clear()
