"""Finds two blocks that write one place of global memory in one launch.

The order of blocks is not defined, so such a place holds either value. Rewriting the value that is
there already is let pass, and atomic operations are not looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minibert.kernels.emulator.device_memory import Allocation
from minibert.kernels.emulator.machine import Group, pick
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.types import Array

if TYPE_CHECKING:
    from minibert.kernels.emulator.chunk import Chunk

__all__ = ["GlobalWriters"]


class GlobalWriters:
    """Who wrote each granule of global memory.

    Attributes:
        granule: bytes; the smallest global store of the kernel.
    """

    def __init__(self, chunk: Chunk, granule: int) -> None:
        """Nothing is written yet."""
        self.chunk = chunk
        self.granule = granule

    def check(
        self,
        instruction: Instruction,
        group: Group,
        allocation: Allocation,
        index: Array,
        size: int,
        data: Array,
    ) -> None:
        """Check stores of `size` bytes at unit `index`, and note the writer."""
        owner = allocation.owner
        if owner.writers is None:
            owner.writers = np.zeros(-(-owner.data.size // self.granule), np.int32)
        each = max(size // self.granule, 1)
        first = (index * size + allocation.offset) // self.granule
        granules = first if each == 1 else first[:, None] + np.arange(each)
        block = (pick(self.chunk.threads.block_index, group.lanes) + 1).astype(np.int32)
        stamp = block if each == 1 else block[:, None]
        before = owner.writers.take(granules, mode="clip")
        foreign = (before != 0) & (before != stamp)
        if foreign.any():
            self._compare(instruction, group, allocation, index, size, data, before, foreign)
        owner.writers[granules] = stamp
        after = owner.writers.take(granules, mode="clip")
        lost = after != stamp
        if lost.any():
            self._collide(instruction, group, allocation, index, size, data, after, lost)

    def _compare(
        self,
        instruction: Instruction,
        group: Group,
        allocation: Allocation,
        index: Array,
        size: int,
        data: Array,
        before: Array,
        foreign: Array,
    ) -> None:
        there = allocation.view(size).take(index, axis=0, mode="clip")
        self._report(instruction, group, allocation, index, size, there != data, before, foreign)

    def _collide(
        self,
        instruction: Instruction,
        group: Group,
        allocation: Allocation,
        index: Array,
        size: int,
        data: Array,
        after: Array,
        lost: Array,
    ) -> None:
        scratch = allocation.view(size).copy()
        scratch[index] = data
        won = scratch.take(index, axis=0, mode="clip")
        self._report(instruction, group, allocation, index, size, won != data, after, lost)

    def _report(
        self,
        instruction: Instruction,
        group: Group,
        allocation: Allocation,
        index: Array,
        size: int,
        differs: Array,
        blocks: Array,
        suspect: Array,
    ) -> None:
        rows = suspect if suspect.ndim == 1 else suspect.any(axis=1)
        wrong = rows & (differs if differs.ndim == 1 else differs.any(axis=1))
        if not wrong.any():
            return
        position = int(np.argmax(wrong))
        lane = position if group.lanes is None else int(group.lanes[position])
        row = blocks[position]
        other = int(row if blocks.ndim == 1 else row[suspect[position]][0]) - 1
        offset = int(index[position]) * size - allocation.lead
        x, y, _ = self.chunk.threads.geometry.grid
        place = (other % x, other // x % y, other // (x * y))
        detail = f"offset {offset} of {allocation.label} was written by block {place} as well"
        self.chunk.report("two blocks write one place", detail, instruction, lane)
