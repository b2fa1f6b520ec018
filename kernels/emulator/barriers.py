"""Barriers of blocks: who waits where, who may go on, and what that orders.

`bar.sync 0` of all threads is by far the most common and takes a short way. Barriers of some of the
threads (`bar.sync id, count` with `bar.arrive`) order only the warps that take part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from minibert.kernels.emulator.machine import WARP, Group
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.types import Array

if TYPE_CHECKING:
    from minibert.kernels.emulator.chunk import Chunk

__all__ = ["Barriers"]


@dataclass(slots=True)
class _Barrier:
    """One barrier of one block.

    Attributes:
        waiting: lanes of the block that stand at it.
        places: index of the instruction -> lanes that came by it.
        passed: threads that only arrived, and went on.
        expected: threads that complete it; 0 for all threads of the block.
        arrived: warp -> epoch until which its accesses are ordered.
    """

    waiting: Array
    expected: int
    places: dict[int, Array] = field(default_factory=dict)
    passed: int = 0
    arrived: dict[int, int] = field(default_factory=dict)


class Barriers:
    """The barriers of every block of a chunk."""

    def __init__(self, chunk: Chunk) -> None:
        """Nobody waits."""
        self.chunk = chunk
        self.open: dict[tuple[int, int], _Barrier] = {}

    def start(self) -> None:
        """Forget everything: new blocks begin."""
        self.open.clear()

    def sync(
        self, instruction: Instruction, index: int, group: Group, number: int, count: int
    ) -> bool:
        """Threads of a group reach `bar.sync number{, count}`.

        Returns:
            Whether the whole group goes on at once.
        """
        chunk = self.chunk
        if not self.open and count == 0 and group.count == chunk.threads.live_count:
            if chunk.epochs is not None:
                chunk.epochs.all_passed()
            return True
        stride = chunk.threads.geometry.stride
        for block, lanes in self._by_block(group):
            barrier = self._barrier(block, number, count, instruction, group)
            barrier.waiting[lanes] = True
            place = barrier.places.setdefault(index, np.zeros(stride, np.bool_))
            place[lanes] = True
            self._arrive(block, barrier, lanes, tick=False)
            if count == 0 and len(barrier.places) > 1:
                self._two_places(block, number, barrier, instruction)
        self.release()
        return False

    def arrive(self, instruction: Instruction, group: Group, number: int, count: int) -> None:
        """Threads of a group reach `bar.arrive number, count` and go on."""
        for block, lanes in self._by_block(group):
            barrier = self._barrier(block, number, count, instruction, group)
            barrier.passed += len(lanes)
            self._arrive(block, barrier, lanes, tick=True)
        self.release()

    def _by_block(self, group: Group) -> list[tuple[int, Array]]:
        """The lanes of a group inside of each block that has some."""
        geometry = self.chunk.threads.geometry
        mask = np.ones(geometry.threads, np.bool_) if group.mask is None else group.mask
        rows = mask.reshape(geometry.blocks, geometry.stride)
        return [(int(b), np.flatnonzero(rows[b])) for b in np.flatnonzero(rows.any(axis=1))]

    def _barrier(
        self, block: int, number: int, count: int, instruction: Instruction, group: Group
    ) -> _Barrier:
        key = (block, number)
        if key not in self.open:
            self.open[key] = _Barrier(
                np.zeros(self.chunk.threads.geometry.stride, np.bool_), expected=count
            )
        barrier = self.open[key]
        if barrier.expected != count:
            lane = 0 if group.lanes is None else int(group.lanes[0])
            detail = f"barrier {number} is used for {barrier.expected} and for {count} threads"
            self.chunk.report("divergent barrier", detail, instruction, lane)
        return barrier

    def _arrive(self, block: int, barrier: _Barrier, lanes: Array, *, tick: bool) -> None:
        """Note until when the accesses of the arriving warps are ordered."""
        epochs = self.chunk.epochs
        if epochs is None or barrier.expected == 0:
            return
        now = epochs.tick(block) if tick else int(epochs.epoch[block]) + 1
        for warp in np.unique(lanes // WARP):
            barrier.arrived[int(warp)] = now

    def _two_places(
        self, block: int, number: int, barrier: _Barrier, instruction: Instruction
    ) -> None:
        first = next(iter(barrier.places))
        lane = block * self.chunk.threads.geometry.stride
        lane += int(np.argmax(list(barrier.places.values())[-1]))
        detail = f"other threads of the block wait for barrier {number} at another place,"
        self.chunk.report(
            "divergent barrier", detail, instruction, lane, self.chunk.instruction(first)
        )

    def release(self) -> None:
        """Let the threads of every complete barrier go on; called also when threads exit."""
        if not self.open:
            return
        geometry = self.chunk.threads.geometry
        live = self.chunk.threads.live.reshape(geometry.blocks, geometry.stride)
        whole = np.zeros(geometry.blocks, np.bool_)
        for (block, number), barrier in list(self.open.items()):
            here = int(np.count_nonzero(barrier.waiting)) + barrier.passed
            if barrier.expected:
                complete = here >= barrier.expected
            else:
                complete = here > 0 and here == int(np.count_nonzero(live[block]))
            if not complete:
                continue
            del self.open[block, number]
            if barrier.expected == 0:
                whole[block] = True
            else:
                self._join(block, barrier)
            self._resume(block, barrier)
        if whole.any() and self.chunk.epochs is not None:
            self.chunk.epochs.blocks_passed(whole)

    def _join(self, block: int, barrier: _Barrier) -> None:
        epochs = self.chunk.epochs
        if epochs is None:
            return
        epochs.tick(block)
        warps = self.chunk.threads.geometry.warps
        joined = np.zeros(warps, np.bool_)
        arrived = np.zeros(warps, np.int64)
        for warp, epoch in barrier.arrived.items():
            joined[warp], arrived[warp] = True, epoch
        released = np.logical_or.reduce(barrier.waiting.reshape(warps, WARP), axis=1)
        arrived[released] = int(epochs.epoch[block])
        epochs.warps_joined(block, joined, released, arrived)

    def _resume(self, block: int, barrier: _Barrier) -> None:
        geometry = self.chunk.threads.geometry
        start = block * geometry.stride
        for index, lanes in barrier.places.items():
            mask = np.zeros(geometry.threads, np.bool_)
            mask[start : start + geometry.stride] = lanes
            self.chunk.resume(index + 1, mask)

    def stuck(self) -> tuple[int, int, _Barrier] | None:
        """A barrier that somebody waits at: (block, number, barrier)."""
        for (block, number), barrier in self.open.items():
            if barrier.waiting.any():
                return block, number, barrier
        return None
