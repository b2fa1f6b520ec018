"""Scratch memory of one running batch: one slab, handed out and taken back by offset.

A forward pass makes and drops the same arrays in the same order every time, so the places that a
pass found are found again: the second pass over a batch of the same size allocates nothing, and a
graph captured from it may keep the addresses.

The first pass over a larger batch does not know yet how much it needs. Its arrays get memory of
their own, while the offsets that they would have had are tracked; the next `reset` makes a slab of
exactly that size.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minibert.errors import DeviceMemoryError

__all__ = ["ALIGNMENT", "Arena", "Block", "OffsetAllocator"]

ALIGNMENT = 256
"""Every array starts at a multiple of this many bytes, as cudaMalloc would give it."""


class OffsetAllocator:
    """First fit over an endless line of bytes; remembers how far it ever went."""

    def __init__(self) -> None:
        """Start with nothing taken."""
        self._free: list[tuple[int, int]] = []
        self._end = 0
        self.high_water = 0

    def take(self, nbytes: int) -> int:
        """Offset of `nbytes` free bytes."""
        size = _round_up(max(nbytes, 1))
        for i, (offset, free) in enumerate(self._free):
            if free >= size:
                if free == size:
                    del self._free[i]
                else:
                    self._free[i] = (offset + size, free - size)
                return offset
        # The last hole touches the end: grow from its start.
        if self._free and sum(self._free[-1]) == self._end:
            offset = self._free.pop()[0]
        else:
            offset = self._end
        self._end = offset + size
        self.high_water = max(self.high_water, self._end)
        return offset

    def give(self, offset: int, nbytes: int) -> None:
        """Take back what `take` gave, and join it with its free neighbours."""
        insort(self._free, (offset, _round_up(max(nbytes, 1))))
        joined: list[tuple[int, int]] = []
        for begin, size in self._free:
            if joined and sum(joined[-1]) == begin:
                joined[-1] = (joined[-1][0], joined[-1][1] + size)
            else:
                joined.append((begin, size))
        self._free = joined


@dataclass(frozen=True, slots=True)
class Block:
    """Memory of one array.

    Attributes:
        memory: array of bytes from the device.
        start: first byte within `memory`.
        offset: place on the arena's line.
        nbytes: size.
        generation: which batch of the arena it belongs to.
    """

    memory: Any
    start: int
    offset: int
    nbytes: int
    generation: int


class Arena:
    """Scratch memory of one stream. Not thread-safe: a stream belongs to one thread."""

    def __init__(
        self,
        empty: Callable[[int], Any],
        reuse: bool = True,
        on_move: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin without memory.

        Args:
            empty: bytes -> memory of the device; may raise DeviceMemoryError.
            reuse: False gives every block memory of its own.
            on_move: called before the slab is given up: who kept an address must forget it, and
                who kept an array must drop it, or old and new memory stand side by side.
        """
        self._empty = empty
        self._reuse = reuse
        self._on_move = on_move
        self._line = OffsetAllocator()
        self._slab: Any = None
        self._rows = 0
        self.slab_bytes = 0
        self.generation = 0
        self.fixed = False
        """While True (during capture) memory outside the slab is an error, never an allocation."""

    def reset(self, num_rows: int) -> None:
        """Begin a batch: every block handed out before becomes invalid.

        Args:
            num_rows: tokens of the batch; need grows with them, so a larger batch than any before
                gives up the slab first, and old and new memory never stand side by side.
        """
        needed = self._line.high_water
        if num_rows > self._rows:
            self._drop_slab()
            self._rows = num_rows
        elif self._reuse and needed > self.slab_bytes:
            self._drop_slab()
            self._slab, self.slab_bytes = self._empty(needed), needed
        self.generation += 1
        self._line = OffsetAllocator()

    def take(self, nbytes: int) -> Block:
        """Memory for one array.

        Raises:
            DeviceMemoryError: the device has no more.
        """
        nbytes = max(nbytes, 1)
        offset = self._line.take(nbytes)
        if offset + nbytes <= self.slab_bytes:
            return Block(self._slab, offset, offset, nbytes, self.generation)
        assert not self.fixed, "a captured pass repeats one that ran"
        try:
            memory = self._empty(nbytes)
        except DeviceMemoryError:
            self.clear()
            raise
        return Block(memory, 0, offset, nbytes, self.generation)

    def give(self, block: Block) -> None:
        """Take back a block; one of an earlier batch is forgotten already."""
        if block.generation == self.generation:
            self._line.give(block.offset, block.nbytes)

    def clear(self) -> None:
        """Give all memory back to the device."""
        self._drop_slab()
        self._rows = 0
        self.generation += 1
        self._line = OffsetAllocator()

    @property
    def high_water(self) -> int:
        """Bytes that this batch has needed so far."""
        return self._line.high_water

    def _drop_slab(self) -> None:
        self._on_move()
        self._slab, self.slab_bytes = None, 0


def _round_up(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
