"""The shadow of global memory: accesses of one block that no barrier orders.

Stamps are those of `epochs`, per granule of the smallest global store of the kernel, with the block
beside them: what other blocks did is not looked at here (`writers` finds two blocks that write one
place). A store covers its granules whole, so an access to a stamped granule is one to stored bytes.

Reads are noted as they were made and stamped only if a store to that array follows before the next
barrier. Reads that the compiler marked `.nc`, of memory that is constant during the launch, are
checked and not noted. Volatile, relaxed, acquire and release accesses are ordered by other means
and let pass; so are stores of the value that is there already, and `cas` and `exch`, of which locks
and loops are made that begin with a plain read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from minibert.kernels.emulator.device_memory import Allocation, Owner
from minibert.kernels.emulator.epochs import ATOMIC, Epochs, merge
from minibert.kernels.emulator.machine import Group, pick
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.types import Array

if TYPE_CHECKING:
    from minibert.kernels.emulator.chunk import Chunk

__all__ = ["GlobalShadow", "GlobalStamps"]

_SWAPS = frozenset(("cas", "exch"))
_ORDERED = frozenset(("volatile", "relaxed", "acquire", "release", "mmio"))
_MOST_NOTED = 32 << 20  # bytes of noted reads before they are stamped anyway
_u64 = np.uint64


@dataclass(slots=True)
class _Read:
    """Reads as they were made: units of `size` bytes from byte `offset` of the owner on."""

    index: Array
    size: int
    offset: int
    lanes: Array | None
    stamp: Array
    place: int


@dataclass(slots=True)
class GlobalStamps:
    """Stamps of one buffer in one launch; blocks count from 1.

    Attributes:
        writes, write_blocks: of the last write of each granule, once there was one.
        reads, read_blocks: of the last reads.
        noted: reads without a stamp.
    """

    writes: Array | None = None
    write_blocks: Array | None = None
    reads: Array | None = None
    read_blocks: Array | None = None
    noted: list[_Read] = field(default_factory=list)


class GlobalShadow:
    """Checks loads, stores and atomics of global memory."""

    def __init__(self, chunk: Chunk, epochs: Epochs, granule: int) -> None:
        """Listen to barriers.

        Args:
            chunk: whose accesses these are.
            epochs: its clocks.
            granule: bytes; the smallest global store of the kernel.
        """
        self.chunk, self.epochs, self.granule = chunk, epochs, granule
        self._noting: list[GlobalStamps] = []
        self._noted_bytes = 0
        epochs.listeners.append(self)

    def start(self) -> None:
        """New blocks begin: nobody reads what the ones before noted."""
        self.all_passed()

    def all_passed(self) -> None:
        """See `Listener`."""
        for stamps in self._noting:
            stamps.noted.clear()
        self._noting.clear()
        self._noted_bytes = 0

    def warp_epochs_full(self) -> None:
        """See `Listener`: what was before is forgotten."""
        self.all_passed()
        for owner in self.chunk.space.owners.values():
            owner.stamps = None

    def read(
        self,
        instruction: Instruction,
        group: Group,
        allocation: Allocation,
        index: Array,
        size: int,
    ) -> None:
        """Check a read of `size` bytes at unit `index`, and note it."""
        stamps = _stamps(allocation.owner)
        if _ORDERED.intersection(instruction.parts):
            return
        if stamps.writes is not None and stamps.write_blocks is not None:
            granules = self._granules(index, size, allocation.offset)
            found = stamps.writes.take(granules, mode="clip")
            self._check(
                instruction, group, allocation, found, stamps.write_blocks, granules, None, "read"
            )
        if "nc" in instruction.parts or not allocation.writable:
            return
        if not stamps.noted:
            self._noting.append(stamps)
        place = self.chunk.index_of(instruction)
        lanes, stamp = group.lanes, self.epochs.stamp
        stamps.noted.append(_Read(index, size, allocation.offset, lanes, stamp, place))
        self._noted_bytes += index.nbytes
        if self._noted_bytes > _MOST_NOTED:
            for owner in self.chunk.space.owners.values():
                if owner.stamps is not None and owner.stamps.noted:
                    self._enter(owner, owner.stamps)
            self.all_passed()

    def write(
        self,
        instruction: Instruction,
        group: Group,
        allocation: Allocation,
        index: Array,
        size: int,
        data: Array | None,
    ) -> None:
        """Check a store of `data`, or an atomic where it is None, and stamp it."""
        owner = allocation.owner
        stamps = _stamps(owner)
        if data is not None and _ORDERED.intersection(instruction.parts):
            return
        if data is None and not _SWAPS.isdisjoint(instruction.parts):
            return
        if stamps.noted:
            self._enter(owner, stamps)
            stamps.noted.clear()
        if stamps.writes is None or stamps.write_blocks is None:
            count = -(-owner.data.size // self.granule)
            stamps.writes = np.zeros(count, np.uint64)
            stamps.write_blocks = np.zeros(count, np.int32)
        granules = self._granules(index, size, allocation.offset)
        quiet = None
        found = stamps.writes.take(granules, mode="clip")
        if data is not None:
            same = allocation.view(size).take(index, axis=0, mode="clip") == data
            quiet = same if same.ndim == 1 else same.all(axis=1)
        else:
            # Atomics do not race with each other.
            found = np.where((found >> _u64(ATOMIC)) & _u64(1), _u64(0), found)
        blocks = stamps.write_blocks
        self._check(instruction, group, allocation, found, blocks, granules, quiet, "write")
        if stamps.reads is not None and stamps.read_blocks is not None:
            earlier = stamps.reads.take(granules, mode="clip")
            blocks = stamps.read_blocks
            what = "write after read"
            self._check(instruction, group, allocation, earlier, blocks, granules, None, what)
        stamp = pick(self.epochs.stamp, group.lanes) | _u64(self.chunk.index_of(instruction))
        if data is None:
            stamp = stamp | _u64(1 << ATOMIC)
        wide = granules.ndim > 1
        stamps.writes[granules] = stamp[:, None] if wide else stamp
        block = self._blocks(group)
        stamps.write_blocks[granules] = block[:, None] if wide else block
        if data is not None:
            self._collide(instruction, group, allocation, stamps.writes, granules, stamp, data)

    def _collide(
        self,
        instruction: Instruction,
        group: Group,
        allocation: Allocation,
        writes: Array,
        granules: Array,
        stamp: Array,
        data: Array,
    ) -> None:
        """Two threads of one instruction that write different values to one place."""
        first = granules if granules.ndim == 1 else granules[:, 0]
        winner = writes.take(first, mode="clip")
        lost = np.flatnonzero(winner != stamp)
        if not lost.size:
            return
        # `writers` reports two blocks; here the winner is another thread of the same one.
        block = self._blocks(group)
        order = np.argsort(first, kind="stable")
        for position in lost.tolist():
            begin = np.searchsorted(first, first[position], "left", sorter=order)
            end = np.searchsorted(first, first[position], "right", sorter=order)
            rivals = order[begin:end]
            differs = (data[rivals] != data[position]).reshape(len(rivals), -1).any(axis=1)
            if (differs & (block[rivals] == block[position])).any():
                lane = position if group.lanes is None else int(group.lanes[position])
                detail = f"two threads write the same place of {allocation.label} at once"
                self.chunk.report("race", detail, instruction, lane)

    def _check(
        self,
        instruction: Instruction,
        group: Group,
        allocation: Allocation,
        found: Array,
        blocks: Array,
        granules: Array,
        quiet: Array | None,
        what: str,
    ) -> None:
        """Decide about stamps (lanes,) or (lanes, granules of an access)."""
        floor = pick(self.epochs.floor, group.lanes)
        wide = found.ndim > 1
        suspect = found > (floor[:, None] if wide else floor)
        if not suspect.any():
            return
        block = self._blocks(group)
        suspect &= blocks.take(granules, mode="clip") == (block[:, None] if wide else block)
        if quiet is not None:
            suspect &= ~(quiet[:, None] if wide else quiet)
        rows = np.nonzero(suspect)[0]
        if not rows.size:
            return
        lanes = rows if group.lanes is None else group.lanes[rows]
        stamps = found[suspect]
        wrong = self.epochs.conflict(lanes, stamps)
        if wrong is not None:
            at, kind = wrong
            memory = f"global memory ({allocation.label})"
            self.epochs.report(instruction, int(lanes[at]), int(stamps[at]), kind, what, memory)

    def _enter(self, owner: Owner, stamps: GlobalStamps) -> None:
        """Stamp the noted reads, oldest first."""
        if stamps.reads is None or stamps.read_blocks is None:
            count = -(-owner.data.size // self.granule)
            stamps.reads = np.zeros(count, np.uint64)
            stamps.read_blocks = np.zeros(count, np.int32)
        reads, read_blocks = stamps.reads, stamps.read_blocks
        index_of_block = (self.chunk.threads.block_index + 1).astype(np.int32)
        for noted in stamps.noted:
            granules = self._granules(noted.index, noted.size, noted.offset)
            stamp = pick(noted.stamp, noted.lanes) | _u64(noted.place)
            block = pick(index_of_block, noted.lanes)
            if granules.ndim > 1:
                stamp = np.broadcast_to(stamp[:, None], granules.shape)
                block = np.broadcast_to(block[:, None], granules.shape)
            for _ in range(3):  # again for lanes that lost to another reader of the same granule
                before = np.where(read_blocks[granules] == block, reads[granules], _u64(0))
                merged = merge(before, stamp)
                reads[granules], read_blocks[granules] = merged, block
                lost = (reads[granules] != merged) & (read_blocks[granules] == block)
                if not lost.any():
                    break
                granules, stamp, block = granules[lost], stamp[lost], block[lost]

    def _granules(self, index: Array, size: int, offset: int) -> Array:
        first: Array = (index * size + offset) // self.granule
        each = size // self.granule
        return first if each <= 1 else first[:, None] + np.arange(each)

    def _blocks(self, group: Group) -> Array:
        return (pick(self.chunk.threads.block_index, group.lanes) + 1).astype(np.int32)


def _stamps(owner: Owner) -> GlobalStamps:
    if owner.stamps is None:
        owner.stamps = GlobalStamps()
    return owner.stamps
