"""The shadow of shared memory: who touched each granule last, and in which epoch.

A granule is the smallest shared access of the kernel. For each, one 64-bit stamp of the last write
and one of the last reads:

```
bits 63-44  epoch of the block: barriers it has passed, from 1
     43     the write was atomic
     42-37  warp (63: several)         36-21  epoch of the warp (`__syncwarp`)
     20-15  lane (63: several)         14-0   index of the instruction
```
Zero means never. Two accesses race when neither epoch orders them, whatever the schedule was: one
run finds them. Reads are logged and entered only if a write follows in the same epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minibert.kernels.emulator.machine import WARP, Group, pick
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.types import Array

if TYPE_CHECKING:
    from minibert.kernels.emulator.chunk import Chunk

__all__ = ["SharedShadow"]

_EPOCH, _ATOMIC, _WARP, _WARP_EPOCH, _LANE = 44, 43, 37, 21, 15
_SEVERAL = 63
_PC = (1 << _LANE) - 1
_IN_FLIGHT = (1 << 20) - 2  # epochs that never come: a copy is on its way there
_GUARD = (1 << 20) - 1  # no array is there
_LONG = 4096  # logged reads before they are entered anyway
_u64 = np.uint64


def _field(stamps: Array, shift: int, bits: int) -> Array:
    return ((stamps >> _u64(shift)) & _u64((1 << bits) - 1)).astype(np.int64)


class SharedShadow:
    """Stamps of the shared memory of every block of a chunk."""

    def __init__(self, chunk: Chunk, granule: int) -> None:
        """Make the stamps; `start` clears them."""
        self.chunk = chunk
        self.granule = granule
        self.shift = granule.bit_length() - 1
        size = chunk.shared.data.size // granule
        self.writes = np.zeros(size, np.uint64)
        self.reads = np.zeros(size, np.uint64)
        several = [n for n in (2, 4, 8, 16) if n * granule <= 16]
        self.write_rows: dict[int, Array] = {n: self.writes.reshape(-1, n) for n in several}
        self.read_rows: dict[int, Array] = {n: self.reads.reshape(-1, n) for n in several}
        self.write_rows[1], self.read_rows[1] = self.writes, self.reads
        self.log: list[tuple[int, Array, Array]] = []
        self.warp_passes = 0
        threads = chunk.threads
        self.identity = (threads.warp.astype(np.uint64) << _u64(_WARP)) | (
            threads.lane.astype(np.uint64) << _u64(_LANE)
        )
        blocks, warps = threads.geometry.blocks, threads.geometry.warps
        self.epoch = np.ones(blocks, np.int64)
        self.warp_epoch = np.zeros(threads.geometry.threads, np.uint64)
        self.clocks: Array | None = (
            None  # (blocks, warps, warps): made by the first partial barrier
        )
        self._clock_shape = (blocks, warps, warps)
        self.floor_epoch = np.ones(threads.geometry.threads, np.uint64)

    def start(self) -> None:
        """Forget everything: new blocks begin."""
        self.writes[...] = 0
        self.reads[...] = 0
        self.log.clear()
        self.epoch[...] = 1
        self.warp_epoch[...] = 0
        self.floor_epoch[...] = 1
        self.warp_passes = 0
        self.clocks = None
        stride = self.chunk.shared.stride
        flat = self.writes.reshape(self.epoch.size, stride // self.granule)
        for start, end in self.chunk.guards():
            flat[:, -(-start // self.granule) : end // self.granule] = _u64(_GUARD << _EPOCH)
        self._restamp()

    def _restamp(self) -> None:
        epochs = self.epoch.astype(np.uint64)[self.chunk.threads.block_slot]
        stamp = (epochs << _u64(_EPOCH)) | (self.warp_epoch << _u64(_WARP_EPOCH))
        self.stamp = stamp | self.identity
        self.floor = (self.floor_epoch << _u64(_EPOCH)) - _u64(1)

    def all_passed(self) -> None:
        """Every block of the chunk passed a barrier with all its threads."""
        self.log.clear()
        self.warp_passes = 0
        self.epoch += 1
        self.warp_epoch[...] = 0
        self.floor_epoch[...] = self.epoch.astype(np.uint64)[self.chunk.threads.block_slot]
        self._restamp()

    def blocks_passed(self, blocks: Array) -> None:
        """Some blocks (mask) passed a barrier with all their threads."""
        self.epoch[blocks] += 1
        inside = blocks[self.chunk.threads.block_slot]
        self.warp_epoch[inside] = 0
        epochs = self.epoch.astype(np.uint64)[self.chunk.threads.block_slot]
        self.floor_epoch[inside] = epochs[inside]
        if self.clocks is not None:
            self.clocks[blocks] = self.epoch[blocks][:, None, None]
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
        if self.clocks is None:
            floors = self.floor_epoch.reshape(self._clock_shape[0], -1, WARP)[:, :, 0]
            self.clocks = np.repeat(floors[:, :, None], self._clock_shape[1], 2).astype(np.int64)
        known = self.clocks[block, joined].max(axis=0)
        known[joined] = np.maximum(known[joined], arrived[joined])
        self.clocks[block, released] = np.maximum(self.clocks[block, released], known)

    def warp_passed(self, group: Group) -> None:
        """`__syncwarp` of a group."""
        self.warp_passes += 1
        if self.warp_passes >= (1 << 16) - 1:  # the field is full: what was before is forgotten
            self.writes[(self.writes > 0) & (self.writes < _u64(_IN_FLIGHT << _EPOCH))] = 1
            self.reads[...] = 0
            self.log.clear()
            self.warp_epoch[...] = 0
            self.warp_passes = 0
        if group.lanes is None:
            self.warp_epoch += _u64(1)
        else:
            self.warp_epoch[group.lanes] += _u64(1)
        self._restamp()

    def _rows(self, place: Array, size: int) -> tuple[int, Array]:
        """Granules of one access, and the row of each access among rows of so many granules."""
        count = max(size >> self.shift, 1)
        return count, place >> (self.shift + count.bit_length() - 1)

    def read(self, instruction: Instruction, group: Group, place: Array, size: int) -> None:
        """Check a read, and log it."""
        count, rows = self._rows(place, size)
        floor = pick(self.floor, group.lanes)
        found = self.write_rows[count].take(rows, axis=0, mode="clip")
        suspect = (found - _u64(1)) >= (floor if count == 1 else floor[:, None])  # 0 wraps around
        if suspect.any():
            self._judge(instruction, group, found, suspect, "read")
        stamp = pick(self.stamp, group.lanes) | _u64(self.chunk.index_of(instruction))
        self.log.append((count, rows, stamp))
        if len(self.log) > _LONG:
            self._enter_reads()

    def write(
        self,
        instruction: Instruction,
        group: Group,
        place: Array,
        size: int,
        same: Array | None,
        *,
        atomic: bool = False,
        in_flight: bool = False,
    ) -> None:
        """Check a write and stamp it.

        Args:
            instruction: that writes.
            group: the lanes.
            place: byte offsets.
            size: bytes of a lane.
            same: lanes whose value is already there; rewriting it by another thread is no race.
            atomic: an atomic operation: it does not race with others.
            in_flight: a copy was issued and has not landed.
        """
        if self.log:
            self._enter_reads()
        count, rows = self._rows(place, size)
        floor, stamp = pick(self.floor, group.lanes), pick(self.stamp, group.lanes)
        if count > 1:
            floor, stamp = floor[:, None], stamp[:, None]
        found = self.write_rows[count].take(rows, axis=0, mode="clip")
        suspect = found > floor
        if suspect.any():
            if same is not None:
                quiet: Array = np.logical_and.reduce(same.reshape(len(same), -1), axis=1)
                quiet = quiet[:, None] if count > 1 else quiet
                suspect &= ~quiet | (found >= _u64(_IN_FLIGHT << _EPOCH))
            if atomic:
                suspect &= ((found >> _u64(_ATOMIC)) & _u64(1)) == 0
            if suspect.any():
                self._judge(instruction, group, found, suspect, "write")
        earlier = self.read_rows[count].take(rows, axis=0, mode="clip")
        suspect = earlier > floor
        if suspect.any():
            self._judge(instruction, group, earlier, suspect, "write after read")
        stamp = stamp | _u64(self.chunk.index_of(instruction))
        if atomic:
            stamp = stamp | _u64(1 << _ATOMIC)
        if in_flight:
            epoch_bits = _u64((1 << _EPOCH) - 1)
            stamp = (stamp & epoch_bits) | _u64(_IN_FLIGHT << _EPOCH)
        self.write_rows[count][rows] = stamp
        if in_flight:
            first = self.writes.take(place >> self.shift, mode="clip")
            kept = first == (stamp if count == 1 else stamp[:, 0])
            self.check_collision(instruction, group, place, kept)

    def check_initialised(
        self, instruction: Instruction, group: Group, place: Array, size: int
    ) -> None:
        """An atomic reads what it changes: it must have been written."""
        count, rows = self._rows(place, size)
        never = self.write_rows[count].take(rows, axis=0, mode="clip") == 0
        if never.any():
            position = int(np.nonzero(never)[0][0])
            lane = position if group.lanes is None else int(group.lanes[position])
            detail = "shared memory that no thread wrote"
            self.chunk.report("uninitialised read", detail, instruction, lane)

    def land(self, instruction: Instruction, lanes: Array, place: Array, size: int) -> None:
        """Copies arrived: stamp their destination by the thread that waited for them."""
        count, rows = self._rows(place, size)
        stamp = self.stamp[lanes] | _u64(self.chunk.index_of(instruction))
        self.write_rows[count][rows] = stamp if count == 1 else stamp[:, None]

    def check_collision(
        self, instruction: Instruction, group: Group, place: Array, kept: Array
    ) -> None:
        """Two lanes of one instruction that wrote different values to one place."""
        if not kept.all():
            lost = kept.reshape(len(kept), -1).all(axis=1)
            position = int(np.argmin(lost))
            lane = position if group.lanes is None else int(group.lanes[position])
            detail = f"two threads write shared byte {self._local(int(place[position]))} at once"
            self.chunk.report("race", detail, instruction, lane)

    def _local(self, place: int) -> int:
        return place % self.chunk.shared.stride

    def _enter_reads(self) -> None:
        """Enter the logged reads into `reads`, oldest first."""
        entries, self.log = self.log, []
        for count, rows, stamps in entries:
            granules, stamp = rows, stamps
            if count > 1:
                granules = rows[:, None] * count + np.arange(count)
                stamp = np.broadcast_to(stamps[:, None], granules.shape)
            before = self.reads.take(granules, mode="clip")
            merged = _merge(before, stamp)
            self.reads[granules] = merged
            for _ in range(2):  # lanes that lost to another reader of the same granule
                after = self.reads.take(granules, mode="clip")
                lost = after != merged
                if not lost.any():
                    break
                self.reads[granules[lost]] = _merge(after[lost], stamp[lost])
                merged = np.where(lost, self.reads.take(granules, mode="clip"), merged)

    def _judge(
        self, instruction: Instruction, group: Group, found: Array, suspect: Array, what: str
    ) -> None:
        """Decide about granules whose last access is in an epoch that is not over."""
        rows = np.nonzero(suspect)[0]
        stamps = found[suspect]
        lanes = rows if group.lanes is None else group.lanes[rows]
        epoch, warp = _field(stamps, _EPOCH, 20), _field(stamps, _WARP, 6)
        lane = _field(stamps, _LANE, 6)
        mine = self.stamp[lanes]
        my_warp, my_lane = _field(mine, _WARP, 6), _field(mine, _LANE, 6)
        self._special(instruction, lanes, stamps, epoch, what)
        same_warp = warp == my_warp
        newer = _field(stamps, _WARP_EPOCH, 16) >= _field(mine, _WARP_EPOCH, 16)
        inside = same_warp & (lane != my_lane) & newer
        across = ~same_warp & (epoch >= self._known(lanes, my_warp, warp))
        for wrong, kind in ((across, "race"), (inside, "exchange inside a warp")):
            if wrong.any():
                at = int(np.argmax(wrong))
                self._report(instruction, int(lanes[at]), int(stamps[at]), kind, what)

    def _known(self, lanes: Array, my_warp: Array, warp: Array) -> Array:
        """The epoch from which accesses of `warp` are not ordered before those of a lane."""
        floor = self.floor_epoch[lanes].astype(np.int64)
        if self.clocks is None:
            return floor
        block = self.chunk.threads.block_slot[lanes]
        others = self.clocks[block, my_warp]
        several = warp == _SEVERAL
        known = others[np.arange(len(lanes)), np.where(several, 0, warp)]
        known = np.where(several, others.max(axis=1), known)
        return np.maximum(floor, known)

    def _special(
        self, instruction: Instruction, lanes: Array, stamps: Array, epoch: Array, what: str
    ) -> None:
        """Granules never written, outside of every array, or waiting for a copy."""
        for wrong, kind, detail in (
            (epoch == _GUARD, "out of bounds", "the access is behind the end of a shared array"),
            (stamps == 0, "uninitialised read", "shared memory that no thread wrote"),
            (epoch == _IN_FLIGHT, "copy in flight", f"{what} of the destination of a cp.async"),
        ):
            if wrong.any():
                at = int(np.argmax(wrong))
                other = self.chunk.instruction(int(stamps[at]) & _PC)
                if kind == "copy in flight":
                    detail += " that was not waited for, issued"
                    self.chunk.report(kind, detail, instruction, int(lanes[at]), other)
                self.chunk.report(kind, detail, instruction, int(lanes[at]))

    def _report(
        self, instruction: Instruction, lane: int, stamp: int, kind: str, what: str
    ) -> None:
        warp, other_lane = (stamp >> _WARP) & 63, (stamp >> _LANE) & 63
        who = "several threads"
        if warp != _SEVERAL and other_lane != _SEVERAL:
            who = f"thread {warp * WARP + other_lane} of the block"
        verb = "read" if what == "write after read" else "wrote"
        between = "__syncwarp()" if kind != "race" else "barrier"
        detail = f"{what} of shared memory that {who} {verb} with no {between} between,"
        self.chunk.report(kind, detail, instruction, lane, self.chunk.instruction(stamp & _PC))


def _merge(before: Array, stamp: Array) -> Array:
    """The stamp of reads, after one more read of the same granule."""
    lane_bits = _u64(_SEVERAL << _LANE)
    warp_bits = _u64(_SEVERAL << _WARP)
    same_epoch = (before >> _u64(_EPOCH)) == (stamp >> _u64(_EPOCH))
    same_warp = ((before ^ stamp) & warp_bits) == 0
    same_thread = same_warp & (((before ^ stamp) & lane_bits) == 0)
    same_warp_epoch = (before >> _u64(_WARP_EPOCH)) == (stamp >> _u64(_WARP_EPOCH))
    merged = np.where(same_epoch & ~same_warp, stamp | warp_bits | lane_bits, stamp)
    shared_lane = same_epoch & same_warp & same_warp_epoch & ~same_thread
    result: Array = np.where(shared_lane, stamp | lane_bits, merged)
    return result
