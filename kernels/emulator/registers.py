"""Lets registers share memory: two that are never needed at the same place get one array.

PTX names a new register for nearly every value, thousands in an unrolled kernel; as arrays over all
threads they would not stay in any cache. Liveness on the control flow gives each register an
interval of instructions, and a linear scan gives intervals that do not overlap the same slot.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from minibert.kernels.emulator.operands import Address, Name, Operand, Pair, Vector
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.program import Program
from minibert.kernels.emulator.types import TYPES

__all__ = ["share_registers"]

_NO_RESULT = frozenset(
    "st red bra brx bar barrier cp prefetch prefetchu applypriority discard membar fence nanosleep "
    "pmevent griddepcontrol setmaxnreg trap brkpt ret exit stmatrix".split()
)


@dataclass(slots=True)
class _Block:
    """Instructions without a branch inside: from `start` up to `end`, then to `successors`.

    Registers are bits of integers: `reads` before any write, `writes` for certain.
    """

    start: int
    end: int
    successors: list[int]
    reads: int = 0
    writes: int = 0
    live_in: int = 0
    live_out: int = 0


def share_registers(program: Program) -> dict[str, tuple[int, int]]:
    """Assign a slot to each register of a program.

    Returns:
        Register -> (bytes of the slot, number of the slot among those of its size); predicates have
        0 bytes.
    """
    numbers = {name: bit for bit, name in enumerate(program.registers)}
    touched = [_touched(ins, numbers) for ins in program.instructions]
    blocks = _blocks(program)
    for block in blocks.values():
        for reads, writes in touched[block.start : block.end]:
            block.reads |= reads & ~block.writes
            block.writes |= writes
    _solve(blocks)
    intervals = _intervals(blocks, touched)
    return _scan(program, list(numbers), intervals)


def _names(operand: Operand) -> Iterator[str]:
    if isinstance(operand, Name):
        yield operand.name
    elif isinstance(operand, Address) and operand.base is not None:
        yield operand.base
    elif isinstance(operand, Vector):
        for item in operand.items:
            yield from _names(item)
    elif isinstance(operand, Pair):
        yield from (item.name for item in (operand.first, operand.second) if item is not None)


def _touched(ins: Instruction, numbers: dict[str, int]) -> tuple[int, int]:
    """Registers that an instruction reads, and that it certainly writes."""

    def bits(operands: tuple[Operand, ...]) -> int:
        found = 0
        for operand in operands:
            for name in _names(operand):
                if name in numbers:
                    found |= 1 << numbers[name]
        return found

    has_result = ins.parts[0] not in _NO_RESULT or "red" in ins.parts[:2][1:]
    writes = bits(ins.operands[:1]) if has_result else 0
    reads = bits(ins.operands[1:] if has_result else ins.operands)
    if ins.guard is not None:
        reads |= 1 << numbers[ins.guard[0]]
        return reads | writes, 0  # the old value may survive
    return reads, writes


def _blocks(program: Program) -> dict[int, _Block]:
    """The basic blocks, by their first instruction."""
    count = len(program.instructions)
    starts = {0, *(index for index in program.labels.values() if index < count)}
    for index, ins in enumerate(program.instructions):
        if ins.parts[0] in ("bra", "brx", "ret", "exit") and index + 1 < count:
            starts.add(index + 1)
    ordered = sorted(starts)
    blocks = {}
    for start, end in zip(ordered, [*ordered[1:], count], strict=True):
        last = program.instructions[end - 1]
        successors = [end] if end < count else []
        if last.parts[0] in ("bra", "brx"):
            target = last.operands[-1]
            assert isinstance(target, Name)
            labels = program.tables.get(target.name, (target.name,))
            if last.guard is None:
                successors = []
            successors += [program.labels[label] for label in labels if label in program.labels]
        elif last.parts[0] in ("ret", "exit") and last.guard is None:
            successors = []
        blocks[start] = _Block(start, end, successors)
    return blocks


def _solve(blocks: dict[int, _Block]) -> None:
    """Liveness: what a block hands on is what its successors need."""
    changed = True
    while changed:
        changed = False
        for block in reversed(blocks.values()):
            out = 0
            for successor in block.successors:
                out |= blocks[successor].live_in
            live = block.reads | (out & ~block.writes)
            if out != block.live_out or live != block.live_in:
                block.live_out, block.live_in = out, live
                changed = True


def _intervals(
    blocks: dict[int, _Block], touched: list[tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """First and last instruction at which each register is needed or written."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}

    def note(registers: int, at: int) -> None:
        while registers:
            low = registers & -registers
            bit = low.bit_length() - 1
            first[bit] = min(first.get(bit, at), at)
            last[bit] = max(last.get(bit, at), at)
            registers ^= low

    for block in blocks.values():
        note(block.live_in, block.start)
        note(block.live_out, block.end)
        for at in range(block.start, block.end):
            reads, writes = touched[at]
            note(reads | writes, at)
    return {bit: (first[bit], last[bit]) for bit in first}


def _scan(
    program: Program, names: list[str], intervals: dict[int, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Linear scan; the slot freed last is reused first, while it is still in the cache."""
    free: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    active: list[tuple[int, int, int]] = []  # a heap of (end, size, slot)
    slots: dict[str, tuple[int, int]] = {}
    for bit, (start, end) in sorted(intervals.items(), key=lambda item: item[1][0]):
        while active and active[0][0] < start:
            _, old_size, old_slot = heapq.heappop(active)
            free.setdefault(old_size, []).append(old_slot)
        kind = program.registers[names[bit]]
        size = 0 if kind == "pred" else TYPES[kind].size if kind in TYPES else -1
        if size < 0:
            continue  # refused when it is bound
        spare = free.setdefault(size, [])
        if not spare:
            spare.append(used.get(size, 0))
            used[size] = used.get(size, 0) + 1
        slot = spare.pop()
        heapq.heappush(active, (end, size, slot))
        slots[names[bit]] = (size, slot)
    return slots
