"""Loads and stores of the three memories: global, shared and local.

A port takes addresses of the lanes of a group, checks bounds and alignment, consults the shadow,
and moves whole units of 1, 2, 4, 8 or 16 bytes. Generic addresses are told apart by their windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minibert.kernels.emulator.device_memory import ID_SHIFT, Allocation, as_units
from minibert.kernels.emulator.machine import Group, pick
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.types import Array

if TYPE_CHECKING:
    from minibert.kernels.emulator.chunk import Chunk

__all__ = ["LOCAL_WINDOW", "SHARED_WINDOW", "GenericPort", "GlobalPort", "LocalPort", "SharedPort"]

SHARED_WINDOW = 1 << 24  # generic addresses of shared and local memory; both lie in id 0
LOCAL_WINDOW = 1 << 25
_SHIFT = {1: 0, 2: 1, 4: 2, 8: 3, 16: 4}


class _Port:
    """What the ports share: reports."""

    name = ""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk

    def report(
        self, kind: str, detail: str, instruction: Instruction, group: Group, position: int
    ) -> None:
        """Raise a finding of the lane at a position of the group."""
        lane = position if group.lanes is None else int(group.lanes[position])
        self.chunk.report(kind, detail, instruction, lane)

    def check_alignment(
        self, address: Array, size: int, instruction: Instruction, group: Group
    ) -> None:
        """Every address must be a multiple of the size."""
        if size > 1 and int(np.bitwise_or.reduce(address)) & (size - 1):
            wrong = (address & address.dtype.type(size - 1)) != 0
            position = int(np.argmax(wrong))
            detail = f"{self.name} address {int(address[position]):#x} is no multiple of {size}"
            self.report("misaligned", detail, instruction, group, position)


class GlobalPort(_Port):
    """Global memory, constants and kernel parameters: everything with an absolute address."""

    name = "global"

    def load(self, instruction: Instruction, group: Group, address: Array, size: int) -> Array:
        """Read a unit per lane."""
        found = self.reach(instruction, group, address, size)
        counters = self.chunk.counters
        if counters is not None:
            counters.global_access(instruction, group, address, size, "load")
        if isinstance(found, list):
            return self._scattered(instruction, group, address, size, found)
        allocation, index = found
        if allocation.owner.written is not None and self.chunk.checks:
            self.check_written(instruction, group, allocation, index, size)
        self._note_read(instruction, group, allocation, index, size)
        return allocation.view(size).take(index, axis=0, mode="clip")

    def _note_read(
        self,
        instruction: Instruction,
        group: Group,
        allocation: Allocation,
        index: Array,
        size: int,
    ) -> None:
        shadow = self.chunk.global_shadow
        if shadow is not None and allocation.owner.data is not self.chunk.parameters:
            shadow.read(instruction, group, allocation, index, size)

    def store(
        self, instruction: Instruction, group: Group, address: Array, size: int, data: Array
    ) -> None:
        """Write a unit per lane."""
        found = self.reach(instruction, group, address, size)
        counters = self.chunk.counters
        if counters is not None:
            counters.global_access(instruction, group, address, size, "store")
        if isinstance(found, list):
            for where in found:
                part = self.chunk.threads.part(group, where)
                if part is not None:
                    inside = pick(where, group.lanes)
                    self._write_part(instruction, part, address[inside], size, data[inside])
            return
        self._write(instruction, group, found, size, data)

    def _write_part(
        self, instruction: Instruction, group: Group, address: Array, size: int, data: Array
    ) -> None:
        found = self.reach(instruction, group, address, size)
        assert not isinstance(found, list)
        self._write(instruction, group, found, size, data)

    def _write(
        self,
        instruction: Instruction,
        group: Group,
        found: tuple[Allocation, Array],
        size: int,
        data: Array,
    ) -> None:
        allocation, index = found
        if not allocation.writable:
            detail = f"{allocation.label} is read-only on the host"
            self.report("write to read-only memory", detail, instruction, group, 0)
        if self.chunk.checks:
            self.chunk.writers.check(instruction, group, allocation, index, size, data)
            if self.chunk.global_shadow is not None:
                self.chunk.global_shadow.write(instruction, group, allocation, index, size, data)
        allocation.view(size)[index] = data
        if allocation.owner.written is not None:
            allocation.written_view(size)[index] = _ones(min(size, 8))

    def reach(
        self, instruction: Instruction, group: Group, address: Array, size: int
    ) -> tuple[Allocation, Array] | list[Array]:
        """Check the addresses.

        Returns:
            The allocation and the unit index of each lane; or, when the lanes reach several
            allocations, one mask over the threads for each of them.
        """
        allocation = self.chunk.space.find(int(address[0]))
        if allocation is not None:
            offset = address - np.uint64(allocation.address)
            room = allocation.size - size
            if room >= 0 and int(offset.max()) <= room:
                self.check_alignment(address, size, instruction, group)
                units = (address - np.uint64(allocation.base)) >> np.uint64(_SHIFT[size])
                return allocation, units.view(np.int64)
        return self._several(instruction, group, address, size)

    def _several(
        self, instruction: Instruction, group: Group, address: Array, size: int
    ) -> list[Array]:
        numbers = address >> np.uint64(ID_SHIFT)
        masks = []
        for number in np.unique(numbers):
            allocation = self.chunk.space.find(int(number) << ID_SHIFT)
            here = numbers == number
            if allocation is None:
                outside = here
            else:
                offset = address - np.uint64(allocation.address)
                room = allocation.size - size
                outside = here & ((offset > np.uint64(max(room, 0))) | (room < 0))
            if outside.any():
                position = int(np.argmax(outside))
                detail = self._where(int(address[position]), size, allocation)
                self.report("out of bounds", detail, instruction, group, position)
            mask = np.zeros(self.chunk.threads.geometry.threads, np.bool_)
            mask[slice(None) if group.lanes is None else group.lanes] = here
            masks.append(mask)
        return masks

    def _where(self, address: int, size: int, near: Allocation | None) -> str:
        if address >> ID_SHIFT == 0:
            return f"{size} bytes at {address:#x}: a null or made-up pointer"
        if near is None:  # an index that left its array by a wide margin
            return f"{size} bytes at {address:#x}: no array is there"
        offset = address - near.address
        return f"{size} bytes at offset {offset} of {near.label}, which has {near.size} bytes"

    def _scattered(
        self, instruction: Instruction, group: Group, address: Array, size: int, masks: list[Array]
    ) -> Array:
        shape = address.shape if size <= 8 else (*address.shape, size // 8)
        data = np.zeros(shape, np.uint64 if size > 8 else np.dtype(f"uint{8 * size}"))
        for mask in masks:
            part = self.chunk.threads.part(group, mask)
            inside = pick(mask, group.lanes)
            if part is not None:
                found = self.reach(instruction, part, address[inside], size)
                assert not isinstance(found, list)
                allocation, index = found
                if allocation.owner.written is not None and self.chunk.checks:
                    self.check_written(instruction, part, allocation, index, size)
                self._note_read(instruction, part, allocation, index, size)
                data[inside] = allocation.view(size).take(index, axis=0, mode="clip")
        return data

    def check_written(
        self,
        instruction: Instruction,
        group: Group,
        allocation: Allocation,
        index: Array,
        size: int,
    ) -> None:
        """Every byte of the units must have been written."""
        flags = allocation.written_view(size).take(index, axis=0, mode="clip")
        whole = flags == flags.dtype.type(_ones(min(size, 8)))
        if not whole.all():
            if whole.ndim > 1:
                whole = whole.all(axis=1)
            position = int(np.argmin(whole))
            offset = int(index[position]) * size - allocation.lead
            detail = f"{size} bytes at offset {offset} of {allocation.label} were never written"
            self.report("uninitialised read", detail, instruction, group, position)


def _ones(size: int) -> int:
    return (1 << 8 * size) - 1


class SharedPort(_Port):
    """Shared memory of every block of the chunk, with its shadow."""

    name = "shared"

    def __init__(self, chunk: Chunk) -> None:
        """Make the memory."""
        super().__init__(chunk)
        geometry = chunk.threads.geometry
        self.room = chunk.shared_bytes
        self.stride = -(-max(self.room, 1) // 128) * 128
        self.data = np.zeros(geometry.blocks * self.stride, np.uint8)
        self.views = {size: as_units(self.data, size) for size in _SHIFT}
        self.base = chunk.threads.block_slot * self.stride

    def place(self, instruction: Instruction, group: Group, address: Array, size: int) -> Array:
        """Check the addresses; byte offsets into `data`."""
        if int(address.max()) > self.room - size:
            outside = address > address.dtype.type(max(self.room - size, 0))
            position = int(np.argmax(outside)) if self.room >= size else 0
            detail = (
                f"{size} bytes at shared address {int(address[position])}, "
                f"of {self.chunk.real_shared_bytes} bytes"
            )
            self.report("out of bounds", detail, instruction, group, position)
        self.check_alignment(address, size, instruction, group)
        return np.add(address, pick(self.base, group.lanes), dtype=np.int64, casting="unsafe")

    def load(self, instruction: Instruction, group: Group, address: Array, size: int) -> Array:
        """Read a unit per lane."""
        place = self.place(instruction, group, address, size)
        if self.chunk.counters is not None:
            self.chunk.counters.shared_access(instruction, group, address, size, "load")
        if self.chunk.shadow is not None:
            self.chunk.shadow.read(instruction, group, place, size)
        return self.views[size].take(place >> _SHIFT[size], axis=0, mode="clip")

    def store(
        self, instruction: Instruction, group: Group, address: Array, size: int, data: Array
    ) -> None:
        """Write a unit per lane."""
        place = self.place(instruction, group, address, size)
        if self.chunk.counters is not None:
            self.chunk.counters.shared_access(instruction, group, address, size, "store")
        index = place >> _SHIFT[size]
        view = self.views[size]
        if self.chunk.shadow is not None:
            same = view.take(index, axis=0, mode="clip") == data
            self.chunk.shadow.write(instruction, group, place, size, same)
            view[index] = data
            kept = view.take(index, axis=0, mode="clip") == data
            self.chunk.shadow.check_collision(instruction, group, place, kept)
        else:
            view[index] = data


class LocalPort(_Port):
    """Local memory: each thread's own arrays and the parameters of its calls."""

    name = "local"

    def __init__(self, chunk: Chunk) -> None:
        """Make the memory."""
        super().__init__(chunk)
        self.room = chunk.program.local_bytes
        self.stride = -(-max(self.room, 1) // 16) * 16
        threads = chunk.threads.geometry.threads
        self.data = np.zeros(threads * self.stride, np.uint8)
        self.views = {size: as_units(self.data, size) for size in _SHIFT}
        kept = self.data.size if chunk.checks and self.room else 0
        self.written = np.zeros(kept, np.uint8)  # 0xFF for each byte that was written
        self.written_views = {size: as_units(self.written, size) for size in _SHIFT}
        self.base = np.arange(threads, dtype=np.int64) * self.stride

    def start(self) -> None:
        """New threads begin: what their arrays hold counts as unwritten."""
        self.written[...] = 0

    def _index(self, instruction: Instruction, group: Group, address: Array, size: int) -> Array:
        if int(address.max()) > self.room - size:
            position = int(np.argmax(address > address.dtype.type(max(self.room - size, 0))))
            detail = f"{size} bytes at local address {int(address[position])}, of {self.room} bytes"
            self.report("out of bounds", detail, instruction, group, position)
        self.check_alignment(address, size, instruction, group)
        base = pick(self.base, group.lanes)
        place = np.add(address, base, dtype=np.int64, casting="unsafe")
        index: Array = place >> _SHIFT[size]
        return index

    def load(self, instruction: Instruction, group: Group, address: Array, size: int) -> Array:
        """Read a unit per lane."""
        index = self._index(instruction, group, address, size)
        if self.written.size:
            flags = self.written_views[size].take(index, axis=0, mode="clip")
            whole = flags == flags.dtype.type(_ones(min(size, 8)))
            if not whole.all():
                position = int(np.argmin(whole if whole.ndim == 1 else whole.all(axis=1)))
                detail = (
                    f"{size} bytes at local address {int(address[position])} were never written"
                )
                self.report("uninitialised read", detail, instruction, group, position)
        return self.views[size].take(index, axis=0, mode="clip")

    def store(
        self, instruction: Instruction, group: Group, address: Array, size: int, data: Array
    ) -> None:
        """Write a unit per lane."""
        index = self._index(instruction, group, address, size)
        self.views[size][index] = data
        if self.written.size:
            self.written_views[size][index] = _ones(min(size, 8))


class GenericPort(_Port):
    """Addresses without a space: each lane goes to the port of its window."""

    name = "generic"

    def split(self, group: Group, address: Array) -> list[tuple[Group, Array, Array, _PortLike]]:
        """Groups by memory: (group, positions in the given one, addresses there, port)."""
        chunk = self.chunk
        near = (address >> np.uint64(ID_SHIFT)) == 0
        is_shared = near & (address >= np.uint64(SHARED_WINDOW))
        is_local = is_shared & (address >= np.uint64(LOCAL_WINDOW))
        is_shared &= ~is_local
        parts = []
        for where, window, port in (
            (is_shared, SHARED_WINDOW, chunk.shared),
            (is_local, LOCAL_WINDOW, chunk.local),
            (~(is_shared | is_local), 0, chunk.memory),
        ):
            if where.all():
                return [(group, where, address - np.uint64(window), port)]
            if where.any():
                mask = np.zeros(chunk.threads.geometry.threads, np.bool_)
                mask[slice(None) if group.lanes is None else group.lanes] = where
                part = chunk.threads.part(group, mask)
                assert part is not None
                parts.append((part, where, address[where] - np.uint64(window), port))
        return parts

    def load(self, instruction: Instruction, group: Group, address: Array, size: int) -> Array:
        """Read a unit per lane."""
        parts = self.split(group, address)
        if len(parts) == 1:
            part, _, inside, port = parts[0]
            return port.load(instruction, part, inside, size)
        shape = address.shape if size <= 8 else (*address.shape, size // 8)
        data = np.zeros(shape, np.uint64 if size > 8 else np.dtype(f"uint{8 * size}"))
        for part, where, inside, port in parts:
            data[where] = port.load(instruction, part, inside, size)
        return data

    def store(
        self, instruction: Instruction, group: Group, address: Array, size: int, data: Array
    ) -> None:
        """Write a unit per lane."""
        for part, where, inside, port in self.split(group, address):
            port.store(instruction, part, inside, size, data[where])


_PortLike = GlobalPort | SharedPort | LocalPort
