"""Runs of `mma.sync` that multiply every A by every B, done as one larger product.

The inner loop of a matrix kernel holds such runs, unrolled. Each operand is unpacked once and the
matrices of a warp are multiplied together; every result is the same to the last bit, since sums are
taken in float64 either way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.machine import Group
from minibert.kernels.emulator.op_tensor import left_matrix, operand_types, right_matrix
from minibert.kernels.emulator.op_warp import together
from minibert.kernels.emulator.operands import Name, Operand, Vector
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.program import Program
from minibert.kernels.emulator.table import Operation
from minibert.kernels.emulator.types import Array

__all__ = ["fuse_runs"]

_MOST_WASTE = 2  # products computed per product needed


@dataclass(slots=True)
class _Run:
    """Consecutive instructions of one opcode that do not wait for each other's results."""

    start: int
    instructions: list[Instruction]
    lefts: list[Operand]
    rights: list[Operand]


def fuse_runs(binder: Binder, program: Program, table: list[Operation], steps: list[Step]) -> None:
    """Replace the steps of each run: the first does all, the others nothing."""
    labelled = set(program.labels.values())
    at = 0
    while at < len(steps):
        run = _run_from(program, table, labelled, at)
        size = len(run.instructions)
        if size > 1 and len(run.lefts) * len(run.rights) <= _MOST_WASTE * size:
            steps[at] = _fused(binder, run, table[at].choice)
            steps[at + 1 : at + size] = [_nothing] * (size - 1)
        at += max(size, 1)


def _nothing(group: Group) -> None:
    """The first step of the run did it."""


def _run_from(program: Program, table: list[Operation], labelled: set[int], start: int) -> _Run:
    run = _Run(start, [], [], [])
    written: set[tuple[int, int]] = set()
    for at in range(start, len(table)):
        ins = program.instructions[at]
        plain = table[at].kind == "tensor" and ins.guard is None and "satfinite" not in ins.parts
        if not plain or table[at].choice[0].startswith("sp") or operand_types(ins)[0] == "f16":
            break
        if run.instructions and (ins.parts != run.instructions[0].parts or at in labelled):
            break
        sources = {slot for operand in ins.operands[1:4] for slot in _slots(program, operand)}
        if sources & written:
            break
        written |= _slots(program, ins.operands[0])
        run.instructions.append(ins)
        for operand, known in ((ins.operands[1], run.lefts), (ins.operands[2], run.rights)):
            if operand not in known:
                known.append(operand)
    return run


def _slots(program: Program, operand: Operand) -> set[tuple[int, int]]:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    names = (item.name for item in items if isinstance(item, Name))
    return {program.slots[name] for name in names if name in program.slots}


def _fused(b: Binder, run: _Run, choice: tuple[str, ...]) -> Step:
    kind = choice[-1]
    rows = int(choice[0][1:].partition("n")[0])
    whole = "f32" if operand_types(run.instructions[0])[0] == "f32" else "s32"
    lefts = [[b.source(i, "b32") for i in b.items(operand)] for operand in run.lefts]
    rights = [[b.source(i, "b32") for i in b.items(operand)] for operand in run.rights]
    jobs: list[tuple[tuple[int, int, int, int], Array, Array]] = []
    for ins in run.instructions:
        pair = run.lefts.index(ins.operands[1]), run.rights.index(ins.operands[2])
        before, after = b.items(ins.operands[3]), b.items(ins.operands[0])
        for place, (c, d) in enumerate(zip(before, after, strict=True)):
            target = b.target(d, whole)
            assert target is not None
            where = (*pair, place // 2, place % 2)
            jobs.append((where, b.source(c, whole), target))
    shape = (-1, len(lefts), rows // 8, 8, len(rights), 4, 2)

    def work(group: Group) -> None:
        left = np.concatenate([left_matrix(registers, kind, rows) for registers in lefts], axis=1)
        right = np.concatenate([right_matrix(registers, kind) for registers in rights], axis=2)
        product = np.matmul(left, right)
        if whole == "s32":
            product = product.astype(np.int32)
        # (A, B, row block, parity of the column, warp, row, quad lane): registers are contiguous
        parts = np.ascontiguousarray(product.reshape(shape).transpose(1, 4, 2, 6, 0, 3, 5))
        for where, c, target in jobs:
            value = parts[where].reshape(-1)
            if group.alu is None:
                np.add(value, c, out=target, casting="same_kind")
            else:
                np.putmask(target, group.alu, (value + c).astype(target.dtype))

    return together(b, run.instructions[0], None, work)
