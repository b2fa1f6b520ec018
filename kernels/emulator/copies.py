"""Asynchronous copies from global to shared memory: `cp.async`.

A copy is checked when it is issued and performed when it is waited for, the latest moment that the
architecture allows: a wait that is missing or counts one group too many leaves the destination in
flight, and whoever touches it then is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.machine import Group, pick
from minibert.kernels.emulator.op_memory import addresses
from minibert.kernels.emulator.operands import Immediate
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import Array

if TYPE_CHECKING:
    from minibert.kernels.emulator.chunk import Chunk

__all__ = ["Copies"]


@dataclass(slots=True)
class _Copy:
    """One `cp.async` of some lanes, not performed yet; every array is over those lanes.

    Attributes:
        instruction: that issued it.
        lanes: of the chunk.
        number: the commit group that it will belong to; one number if it is the same for all.
        place: byte offset in the shared memory of the chunk.
        data: bytes that will arrive, (lanes, size).
    """

    instruction: Instruction
    lanes: Array
    number: Array | int
    place: Array
    data: Array


class Copies:
    """The copies in flight of every thread of a chunk."""

    def __init__(self, chunk: Chunk) -> None:
        """No copy is in flight."""
        self.chunk = chunk
        self.every = np.arange(chunk.threads.geometry.threads)
        self.committed = np.zeros(chunk.threads.geometry.threads, np.int64)
        self.alike: int | None = 0  # what every thread has committed, if it is the same
        self.pending: list[_Copy] = []

    def start(self) -> None:
        """Forget everything: new blocks begin."""
        self.committed[...] = 0
        self.alike = 0
        self.pending.clear()

    def issue(
        self,
        instruction: Instruction,
        group: Group,
        target: Array,
        source: Array,
        size: int,
        taken: Array | None,
    ) -> None:
        """Check a copy and put it in flight.

        Args:
            instruction: that issues it.
            group: the lanes.
            target: shared addresses.
            source: global addresses.
            size: bytes of a lane.
            taken: bytes that are read, the rest being zeros; None for all.
        """
        chunk = self.chunk
        place = chunk.shared.place(instruction, group, target, size)
        if chunk.counters is not None:
            chunk.counters.shared_access(instruction, group, target, size, "copy")
        if chunk.shadow is not None:
            chunk.shadow.write(instruction, group, place, size, None, in_flight=True)
        lanes = self.every if group.lanes is None else group.lanes
        data = self._read(instruction, group, source, size, taken)
        number = pick(self.committed, group.lanes).copy() if self.alike is None else self.alike
        self.pending.append(_Copy(instruction, lanes, number, place, data))

    def _read(
        self,
        instruction: Instruction,
        group: Group,
        source: Array,
        size: int,
        taken: Array | None,
    ) -> Array:
        port = self.chunk.memory
        if taken is None or bool((taken == size).all()):
            return port.load(instruction, group, source, size).view(np.uint8).reshape(-1, size)
        data = np.zeros((len(source), size), np.uint8)
        for amount in np.unique(taken):
            here = taken == amount
            mask = np.zeros(self.every.size, np.bool_)
            mask[slice(None) if group.lanes is None else group.lanes] = here
            part = self.chunk.threads.part(group, mask)
            if amount == 0 or part is None:
                continue
            if amount in (4, 8, 16):
                read = port.load(instruction, part, source[here], int(amount))
                data[here, : int(amount)] = read.view(np.uint8).reshape(-1, int(amount))
            else:
                for octet in range(int(amount)):
                    at = source[here] + np.uint64(octet)
                    data[here, octet] = port.load(instruction, part, at, 1)
        return data

    def commit(self, group: Group) -> None:
        """Close the group of copies of each thread."""
        if group.alu is None:
            self.committed += 1
            self.alike = None if self.alike is None else self.alike + 1
        else:
            self.committed[group.lanes] += 1
            self.alike = None

    def wait(self, group: Group, left: int, *, uncommitted: bool = False) -> None:
        """Perform the copies of all but the last `left` groups of each thread."""
        later = 1 if uncommitted else 0
        rest = []
        for copy in self.pending:
            if isinstance(copy.number, int) and self.alike is not None and group.alu is None:
                if copy.number < self.alike - left + later:
                    self._land(copy)
                else:
                    rest.append(copy)
                continue
            due = copy.number < (self.committed - left + later)[copy.lanes]
            if group.mask is not None:
                due &= group.mask[copy.lanes]
            if due.all():
                self._land(copy)
            elif not due.any():
                rest.append(copy)
            else:
                self._land(_part(copy, due))
                rest.append(_part(copy, ~due))
        self.pending = rest

    def _land(self, copy: _Copy) -> None:
        size = copy.data.shape[1]
        shared = self.chunk.shared
        units = copy.data.view(np.uint64 if size > 8 else np.dtype(f"uint{8 * size}"))
        shared.views[size][copy.place // size] = units if size > 8 else units.reshape(-1)
        if self.chunk.shadow is not None:
            self.chunk.shadow.land(copy.instruction, copy.lanes, copy.place, size)


def _part(copy: _Copy, where: Array) -> _Copy:
    return _Copy(
        copy.instruction,
        copy.lanes[where],
        copy.number if isinstance(copy.number, int) else copy.number[where],
        copy.place[where],
        copy.data[where],
    )


def _copies(b: Binder) -> Copies:
    if b.chunk.copies is None:
        b.chunk.copies = Copies(b.chunk)
    return b.chunk.copies


@operation(
    "cp",
    "async",
    "ca cg",
    mods="shared shared::cta global L2:: L2::cache_hint",
    kind="copy",
    since=80,
)
def cp_async(b: Binder, ins: Instruction, *_: str) -> Step:
    """Start a copy of 4, 8 or 16 bytes; a source size below that leaves zeros behind."""
    copies = _copies(b)
    target, source = addresses(b, ins, 0), addresses(b, ins, 1)
    size_operand = ins.operands[2]
    assert isinstance(size_operand, Immediate)
    size = size_operand.value
    more = list(ins.operands[3:])
    if "L2::cache_hint" in ins.parts:
        more.pop()
    amount = None
    ignore = None
    if more:
        operand = more[0]
        is_predicate = not isinstance(operand, Immediate) and b.is_predicate(operand)
        if is_predicate:
            ignore = b.predicate(operand)
        else:
            amount = b.source(operand, "u32")

    def step(group: Group) -> None:
        taken = None
        if amount is not None:
            taken = np.minimum(pick(amount, group.lanes), np.uint32(size))
        elif ignore is not None:
            taken = np.where(pick(ignore(), group.lanes), np.uint32(0), np.uint32(size))
        copies.issue(ins, group, target(group), source(group), size, taken)

    return step


@operation("cp", "async", "commit_group", kind="copy", since=80)
def commit(b: Binder, ins: Instruction, *_: str) -> Step:
    """Close a group of copies."""
    copies = _copies(b)
    return lambda group: copies.commit(group)


@operation("cp", "async", "wait_group", kind="copy", since=80)
def wait_group(b: Binder, ins: Instruction, *_: str) -> Step:
    """Wait for all groups but the last N."""
    copies = _copies(b)
    left = ins.operands[0]
    assert isinstance(left, Immediate)
    count = left.value
    return lambda group: copies.wait(group, count)


@operation("cp", "async", "wait_all", kind="copy", since=80)
def wait_all(b: Binder, ins: Instruction, *_: str) -> Step:
    """Wait for all copies, committed or not."""
    copies = _copies(b)
    return lambda group: copies.wait(group, 0, uncommitted=True)
