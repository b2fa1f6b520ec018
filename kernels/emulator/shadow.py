"""The shadow of shared memory: who touched each granule last, and in which epoch.

A granule is the smallest shared access of the kernel. For each, one stamp of `epochs` of the last
write and one of the last reads. Reads are logged and entered only if a write follows in the same
epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minibert.kernels.emulator.epochs import ATOMIC, EPOCH, PC, Epochs, field_of, merge
from minibert.kernels.emulator.machine import Group, pick
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.types import Array

if TYPE_CHECKING:
    from minibert.kernels.emulator.chunk import Chunk

__all__ = ["SharedShadow"]

_IN_FLIGHT = (1 << 20) - 2  # epochs that never come: a copy is on its way there
_GUARD = (1 << 20) - 1  # no array is there
_LONG = 4096  # logged reads before they are entered anyway
_u64 = np.uint64


class SharedShadow:
    """Stamps of the shared memory of every block of a chunk."""

    def __init__(self, chunk: Chunk, epochs: Epochs, granule: int) -> None:
        """Make the stamps; `start` clears them."""
        self.chunk, self.epochs = chunk, epochs
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
        epochs.listeners.append(self)

    def start(self) -> None:
        """Forget everything: new blocks begin."""
        self.writes[...] = 0
        self.reads[...] = 0
        self.log.clear()
        stride = self.chunk.shared.stride
        flat = self.writes.reshape(self.epochs.epoch.size, stride // self.granule)
        for start, end in self.chunk.guards():
            flat[:, -(-start // self.granule) : end // self.granule] = _u64(_GUARD << EPOCH)

    def all_passed(self) -> None:
        """See `Listener`."""
        self.log.clear()

    def warp_epochs_full(self) -> None:
        """See `Listener`: what was before is forgotten."""
        self.writes[(self.writes > 0) & (self.writes < _u64(_IN_FLIGHT << EPOCH))] = 1
        self.reads[...] = 0
        self.log.clear()

    def _rows(self, place: Array, size: int) -> tuple[int, Array]:
        """Granules of one access, and the row of each access among rows of so many granules."""
        count = max(size >> self.shift, 1)
        return count, place >> (self.shift + count.bit_length() - 1)

    def read(self, instruction: Instruction, group: Group, place: Array, size: int) -> None:
        """Check a read, and log it."""
        count, rows = self._rows(place, size)
        floor = pick(self.epochs.floor, group.lanes)
        found = self.write_rows[count].take(rows, axis=0, mode="clip")
        suspect = (found - _u64(1)) >= (floor if count == 1 else floor[:, None])  # 0 wraps around
        if suspect.any():
            self._judge(instruction, group, found, suspect, "read")
        stamp = pick(self.epochs.stamp, group.lanes) | _u64(self.chunk.index_of(instruction))
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
        floor, stamp = pick(self.epochs.floor, group.lanes), pick(self.epochs.stamp, group.lanes)
        if count > 1:
            floor, stamp = floor[:, None], stamp[:, None]
        found = self.write_rows[count].take(rows, axis=0, mode="clip")
        suspect = found > floor
        if suspect.any():
            if same is not None:
                quiet: Array = np.logical_and.reduce(same.reshape(len(same), -1), axis=1)
                quiet = quiet[:, None] if count > 1 else quiet
                suspect &= ~quiet | (found >= _u64(_IN_FLIGHT << EPOCH))
            if atomic:
                suspect &= ((found >> _u64(ATOMIC)) & _u64(1)) == 0
            if suspect.any():
                self._judge(instruction, group, found, suspect, "write")
        earlier = self.read_rows[count].take(rows, axis=0, mode="clip")
        suspect = earlier > floor
        if suspect.any():
            self._judge(instruction, group, earlier, suspect, "write after read")
        stamp = stamp | _u64(self.chunk.index_of(instruction))
        if atomic:
            stamp = stamp | _u64(1 << ATOMIC)
        if in_flight:
            epoch_bits = _u64((1 << EPOCH) - 1)
            stamp = (stamp & epoch_bits) | _u64(_IN_FLIGHT << EPOCH)
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
        stamp = self.epochs.stamp[lanes] | _u64(self.chunk.index_of(instruction))
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
            merged = merge(before, stamp)
            self.reads[granules] = merged
            for _ in range(2):  # lanes that lost to another reader of the same granule
                after = self.reads.take(granules, mode="clip")
                lost = after != merged
                if not lost.any():
                    break
                self.reads[granules[lost]] = merge(after[lost], stamp[lost])
                merged = np.where(lost, self.reads.take(granules, mode="clip"), merged)

    def _judge(
        self, instruction: Instruction, group: Group, found: Array, suspect: Array, what: str
    ) -> None:
        """Decide about granules whose last access is in an epoch that is not over."""
        rows = np.nonzero(suspect)[0]
        stamps = found[suspect]
        lanes = rows if group.lanes is None else group.lanes[rows]
        self._special(instruction, lanes, stamps, field_of(stamps, EPOCH, 20), what)
        wrong = self.epochs.conflict(lanes, stamps)
        if wrong is not None:
            at, kind = wrong
            stamp = int(stamps[at])
            self.epochs.report(instruction, int(lanes[at]), stamp, kind, what, "shared memory")

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
                other = self.chunk.instruction(int(stamps[at]) & PC)
                if kind == "copy in flight":
                    detail += " that was not waited for, issued"
                    self.chunk.report(kind, detail, instruction, int(lanes[at]), other)
                self.chunk.report(kind, detail, instruction, int(lanes[at]))
