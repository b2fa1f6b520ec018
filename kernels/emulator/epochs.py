"""When each thread of a chunk acts, in barriers passed: what orders two accesses and what does not.

A stamp says who accessed a place last, and when:

```
bits 63-44  epoch of the block: barriers it has passed, from 1
     43     the access was atomic
     42-37  warp (63: several)         36-21  epoch of the warp (`__syncwarp`)
     20-15  lane (63: several)         14-0   index of the instruction
```
Zero means never. Two accesses race when neither epoch orders them, whatever the schedule was: one
run finds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from minibert.kernels.emulator.machine import WARP, Group
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.types import Array

if TYPE_CHECKING:
    from minibert.kernels.emulator.chunk import Chunk

__all__ = [
    "ATOMIC",
    "EPOCH",
    "LANE",
    "PC",
    "SEVERAL",
    "WARP_AT",
    "Epochs",
    "Listener",
    "field_of",
    "merge",
]

EPOCH, ATOMIC, WARP_AT, WARP_EPOCH, LANE = 44, 43, 37, 21, 15
SEVERAL = 63
PC = (1 << LANE) - 1
_u64 = np.uint64


def field_of(stamps: Array, shift: int, bits: int) -> Array:
    """One field of stamps, as int64."""
    return ((stamps >> _u64(shift)) & _u64((1 << bits) - 1)).astype(np.int64)


class Listener(Protocol):
    """A shadow that keeps stamps."""

    def all_passed(self) -> None:
        """Everything so far is ordered before everything to come."""
        ...

    def warp_epochs_full(self) -> None:
        """The warp epochs begin anew: what was is to count as long ago."""
        ...


class Epochs:
    """The clocks of every block and warp of a chunk.

    Attributes:
        epoch: (blocks,) barriers passed, from 1.
        stamp: (threads,) uint64, what an access now is stamped with, but for the instruction.
        floor: (threads,) uint64; a stamp above it may be unordered with the thread.
    """

    def __init__(self, chunk: Chunk) -> None:
        """Make the clocks; `start` sets them."""
        self.chunk = chunk
        self.listeners: list[Listener] = []
        threads = chunk.threads
        self._identity = (threads.warp.astype(np.uint64) << _u64(WARP_AT)) | (
            threads.lane.astype(np.uint64) << _u64(LANE)
        )
        blocks, warps = threads.geometry.blocks, threads.geometry.warps
        self.epoch = np.ones(blocks, np.int64)
        self._warp_epoch = np.zeros(threads.geometry.threads, np.uint64)
        self._warp_passes = 0
        self._clocks: Array | None = None  # (blocks, warps, warps), from the first partial barrier
        self._clock_shape = (blocks, warps, warps)
        self._floor_epoch = np.ones(threads.geometry.threads, np.uint64)
        self._restamp()

    def start(self) -> None:
        """New blocks begin."""
        self.epoch[...] = 1
        self._warp_epoch[...] = 0
        self._floor_epoch[...] = 1
        self._warp_passes = 0
        self._clocks = None
        self._restamp()

    def _restamp(self) -> None:
        epochs = self.epoch.astype(np.uint64)[self.chunk.threads.block_slot]
        stamp = (epochs << _u64(EPOCH)) | (self._warp_epoch << _u64(WARP_EPOCH))
        self.stamp = stamp | self._identity
        self.floor = (self._floor_epoch << _u64(EPOCH)) - _u64(1)

    def all_passed(self) -> None:
        """Every block of the chunk passed a barrier with all its threads."""
        for listener in self.listeners:
            listener.all_passed()
        self._warp_passes = 0
        self.epoch += 1
        self._warp_epoch[...] = 0
        self._floor_epoch[...] = self.epoch.astype(np.uint64)[self.chunk.threads.block_slot]
        self._restamp()

    def blocks_passed(self, blocks: Array) -> None:
        """Some blocks (mask) passed a barrier with all their threads."""
        self.epoch[blocks] += 1
        inside = blocks[self.chunk.threads.block_slot]
        self._warp_epoch[inside] = 0
        epochs = self.epoch.astype(np.uint64)[self.chunk.threads.block_slot]
        self._floor_epoch[inside] = epochs[inside]
        if self._clocks is not None:
            self._clocks[blocks] = self.epoch[blocks][:, None, None]
        self._restamp()

    def tick(self, block: int) -> int:
        """Begin a new epoch of one block without ordering anything; the epoch."""
        self.epoch[block] += 1
        self._restamp()
        return int(self.epoch[block])

    def warps_joined(self, block: int, joined: Array, released: Array, arrived: Array) -> None:
        """A barrier of some warps of a block completed.

        Args:
            block: slot of the block in the chunk.
            joined: warps whose accesses are ordered before the barrier.
            released: warps that go on behind it.
            arrived: (warps,) the epoch until which the accesses of a joined warp are ordered.
        """
        if self._clocks is None:
            floors = self._floor_epoch.reshape(self._clock_shape[0], -1, WARP)[:, :, 0]
            self._clocks = np.repeat(floors[:, :, None], self._clock_shape[1], 2).astype(np.int64)
        known = self._clocks[block, joined].max(axis=0)
        known[joined] = np.maximum(known[joined], arrived[joined])
        self._clocks[block, released] = np.maximum(self._clocks[block, released], known)

    def warp_passed(self, group: Group) -> None:
        """`__syncwarp` of a group."""
        self._warp_passes += 1
        if self._warp_passes >= (1 << 16) - 1:  # the field is full
            for listener in self.listeners:
                listener.warp_epochs_full()
            self._warp_epoch[...] = 0
            self._warp_passes = 0
        if group.lanes is None:
            self._warp_epoch += _u64(1)
        else:
            self._warp_epoch[group.lanes] += _u64(1)
        self._restamp()

    def conflict(self, lanes: Array, stamps: Array) -> tuple[int, str] | None:
        """The first access that nothing orders after an earlier one.

        Args:
            lanes: that access now.
            stamps: of the earlier accesses, one for each lane.

        Returns:
            Position, and kind of the fault; None if all are ordered.
        """
        epoch, warp = field_of(stamps, EPOCH, 20), field_of(stamps, WARP_AT, 6)
        lane = field_of(stamps, LANE, 6)
        mine = self.stamp[lanes]
        my_warp, my_lane = field_of(mine, WARP_AT, 6), field_of(mine, LANE, 6)
        same_warp = warp == my_warp
        newer = field_of(stamps, WARP_EPOCH, 16) >= field_of(mine, WARP_EPOCH, 16)
        inside = same_warp & (lane != my_lane) & newer
        across = ~same_warp & (epoch >= self._known(lanes, my_warp, warp))
        for wrong, kind in ((across, "race"), (inside, "exchange inside a warp")):
            if wrong.any():
                return int(np.argmax(wrong)), kind
        return None

    def _known(self, lanes: Array, my_warp: Array, warp: Array) -> Array:
        """The epoch from which accesses of `warp` are not ordered before those of a lane."""
        floor = self._floor_epoch[lanes].astype(np.int64)
        if self._clocks is None:
            return floor
        block = self.chunk.threads.block_slot[lanes]
        others = self._clocks[block, my_warp]
        several = warp == SEVERAL
        known = others[np.arange(len(lanes)), np.where(several, 0, warp)]
        known = np.where(several, others.max(axis=1), known)
        return np.maximum(floor, known)

    def report(
        self, instruction: Instruction, lane: int, stamp: int, kind: str, what: str, memory: str
    ) -> None:
        """Raise what `conflict` found.

        Args:
            instruction: of the later access.
            lane: of it.
            stamp: of the earlier one.
            kind: of fault.
            what: "read", "write" or "write after read".
            memory: where, "shared memory".
        """
        warp, other_lane = (stamp >> WARP_AT) & 63, (stamp >> LANE) & 63
        who = "several threads"
        if warp != SEVERAL and other_lane != SEVERAL:
            who = f"thread {warp * WARP + other_lane} of the block"
        verb = "read" if what == "write after read" else "wrote"
        between = "__syncwarp()" if kind != "race" else "barrier"
        detail = f"{what} of {memory} that {who} {verb} with no {between} between,"
        self.chunk.report(kind, detail, instruction, lane, self.chunk.instruction(stamp & PC))


def merge(before: Array, stamp: Array) -> Array:
    """The stamp of reads, after one more read of the same place."""
    lane_bits = _u64(SEVERAL << LANE)
    warp_bits = _u64(SEVERAL << WARP_AT)
    same_epoch = (before >> _u64(EPOCH)) == (stamp >> _u64(EPOCH))
    same_warp = ((before ^ stamp) & warp_bits) == 0
    same_thread = same_warp & (((before ^ stamp) & lane_bits) == 0)
    same_warp_epoch = (before >> _u64(WARP_EPOCH)) == (stamp >> _u64(WARP_EPOCH))
    merged = np.where(same_epoch & ~same_warp, stamp | warp_bits | lane_bits, stamp)
    shared_lane = same_epoch & same_warp & same_warp_epoch & ~same_thread
    result: Array = np.where(shared_lane, stamp | lane_bits, merged)
    return result
