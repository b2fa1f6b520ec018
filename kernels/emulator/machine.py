"""The state of a running chunk of the grid: its threads, groups, memories and barriers.

Threads lie one after the other, 32 to a warp, warps to blocks; a block whose size is no multiple of
32 has lanes at its end that never live. Every register is an array over all threads of the chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

import numpy as np

from minibert.kernels.emulator.faults import KernelFault, Thread
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.types import Array

__all__ = ["WARP", "Geometry", "Group", "Threads", "fault", "pick"]

WARP = 32


@dataclass(frozen=True)
class Geometry:
    """Shape of a launch and of its chunks.

    Attributes:
        grid: blocks in x, y, z.
        block: threads in x, y, z.
        blocks: blocks of one chunk.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    blocks: int

    @cached_property
    def block_size(self) -> int:
        """Threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]

    @cached_property
    def warps(self) -> int:
        """Warps of a block."""
        return -(-self.block_size // WARP)

    @cached_property
    def stride(self) -> int:
        """Lanes of a block, padding included."""
        return self.warps * WARP

    @cached_property
    def threads(self) -> int:
        """Lanes of a chunk."""
        return self.blocks * self.stride

    @cached_property
    def total_blocks(self) -> int:
        """Blocks of the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]


class Group:
    """Threads that run together.

    Attributes:
        mask: (threads,) bool, or None for all of them.
        alu: where register writes must be masked; None if the rest is dead anyway.
        count: number of threads.
    """

    __slots__ = ("_lanes", "_warps", "alu", "count", "mask")

    def __init__(self, mask: Array | None, alu: Array | None, count: int) -> None:
        """See the attributes."""
        self.mask, self.alu, self.count = mask, alu, count
        self._lanes: Array | None = None
        self._warps: int | None = None

    @property
    def lanes(self) -> Array | None:
        """Indices of the threads, or None for all."""
        if self._lanes is None and self.mask is not None:
            self._lanes = np.flatnonzero(self.mask)
        return self._lanes

    def warps(self, threads: int) -> int:
        """How many warps have a thread in the group."""
        if self._warps is None:
            if self.mask is None:
                self._warps = threads // WARP
            else:
                self._warps = int(self.mask.reshape(-1, WARP).any(axis=1).sum())
        return self._warps


def pick(values: Array, lanes: Array | None) -> Array:
    """`values` of the lanes of a group."""
    return values if lanes is None else values[lanes]


class Threads:
    """Who lives in the chunk, and the indices of every thread."""

    def __init__(self, geometry: Geometry) -> None:
        """Lay out the threads; `start` sets the blocks."""
        self.geometry = geometry
        lane = np.arange(geometry.threads, dtype=np.int64)
        inside = lane % geometry.stride
        x, y, _ = geometry.block
        self.lane = (lane % WARP).astype(np.uint32)
        self.warp = (inside // WARP).astype(np.uint32)
        self.block_slot = lane // geometry.stride
        self.inside = inside
        self.tid = [
            (inside % x).astype(np.uint32),
            (inside // x % y).astype(np.uint32),
            (inside // (x * y)).astype(np.uint32),
        ]
        self.real = inside < geometry.block_size
        self.ctaid = [np.zeros(geometry.threads, np.uint32) for _ in range(3)]
        self.block_index = np.zeros(geometry.threads, np.int64)
        self.nctaid = [np.full(geometry.threads, extent, np.uint32) for extent in geometry.grid]
        self.live = self.real.copy()
        self.live_count = int(self.live.sum())

    def set_grid(self, grid: tuple[int, int, int]) -> None:
        """Take another grid of the same blocks."""
        self.geometry = replace(self.geometry, grid=grid)
        for extent, values in zip(grid, self.nctaid, strict=True):
            values[...] = extent

    def start(self, first_block: int) -> Group:
        """Place the chunk at a block of the grid; all its threads live."""
        geometry = self.geometry
        block = self.block_slot + first_block
        x, y, _ = geometry.grid
        self.block_index[...] = block
        self.ctaid[0][...] = block % x
        self.ctaid[1][...] = block // x % y
        self.ctaid[2][...] = block // (x * y)
        self.live = self.real & (block < geometry.total_blocks)
        return self.group(self.live.copy())

    def group(self, mask: Array) -> Group:
        """Make a group of threads, all alive."""
        self.live_count = int(np.count_nonzero(self.live))
        count = int(np.count_nonzero(mask))
        if count == mask.size:
            return Group(None, None, count)
        return Group(mask, None if count == self.live_count else mask, count)

    def part(self, group: Group, predicate: Array) -> Group | None:
        """The threads of a group for which a predicate holds; None if there are none."""
        mask = predicate if group.mask is None else predicate & group.mask
        count = int(np.count_nonzero(mask))
        if count == 0:
            return None
        if count == group.count:
            return group
        return Group(mask.copy() if mask is predicate else mask, mask, count)

    def name(self, lane: int) -> Thread:
        """Block and thread index of a lane."""
        block = (int(self.ctaid[0][lane]), int(self.ctaid[1][lane]), int(self.ctaid[2][lane]))
        thread = (int(self.tid[0][lane]), int(self.tid[1][lane]), int(self.tid[2][lane]))
        return Thread(block, thread)


def fault(
    kind: str,
    detail: str,
    instruction: Instruction,
    kernel: str,
    thread: Thread | None,
    other: Instruction | None = None,
) -> NoReturn:
    """Raise a finding."""
    if other is not None:
        detail += f" at {other.location}"
    raise KernelFault(
        kind,
        detail,
        kernel=kernel,
        location=instruction.location,
        thread=thread,
        instruction=instruction.text,
        other=other.location if other else None,
    )
