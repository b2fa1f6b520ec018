"""Moves of 8x8 matrices of halves between shared memory and registers: `ldmatrix` and the like.

Row r of matrix i is the 16 bytes at the address that lane 8i + r holds; lane l receives row l >> 2,
halves 2t and 2t + 1 with t = l & 3, or with `.trans` the same of the transposed matrix.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.machine import WARP, Group
from minibert.kernels.emulator.op_memory import addresses, port_of
from minibert.kernels.emulator.op_warp import together
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import Array

_MODS = "sync aligned m8n8 trans shared shared::cta b16"
_COUNT = {"x1": 1, "x2": 2, "x4": 4}


class _RowLanes:
    """The lanes of a group whose addresses count: the first 8 per matrix."""

    def __init__(self, b: Binder, count: int) -> None:
        self.threads = b.chunk.threads
        self.mask = self.threads.lane < 8 * count
        self.whole = count == 4
        self.all = Group(self.mask, self.mask, int(np.count_nonzero(self.mask)))

    def of(self, group: Group) -> Group:
        """Those lanes of a group of whole warps."""
        if self.whole:
            return group
        if group.mask is None:
            return self.all
        mask = self.mask & group.mask
        return Group(mask, mask, int(np.count_nonzero(mask)))


def _transposed(words: Array) -> Array:
    """Transpose each matrix of (..., 8, 4) words of two halves."""
    halves = words.view(np.uint16)
    return np.ascontiguousarray(np.swapaxes(halves, -1, -2)).view(np.uint32)


@operation("ldmatrix", "x1 x2 x4", mods=_MODS, kind="load", since=75)
def ldmatrix(b: Binder, ins: Instruction, count: str) -> Step:
    """Load one, two or four matrices."""
    number = _COUNT[count]
    rows = _RowLanes(b, number)
    where, port = addresses(b, ins, 1), port_of(b, ins)
    writers = [b.lane_writer(item, "b32") for item in b.items(ins.operands[0])]
    trans = "trans" in ins.parts

    def work(group: Group) -> None:
        part = rows.of(group)
        data = port.load(ins, part, where(part), 16)
        words = data.view(np.uint32).reshape(-1, number, 8, 4)
        if trans:
            words = _transposed(words)
        for place, write in enumerate(writers):
            write(words[:, place].reshape(-1), group.lanes)

    return together(b, ins, None, work)


@operation("stmatrix", "x1 x2 x4", mods=_MODS, kind="store", since=90)
def stmatrix(b: Binder, ins: Instruction, count: str) -> Step:
    """Store one, two or four matrices."""
    number = _COUNT[count]
    rows = _RowLanes(b, number)
    where, port = addresses(b, ins, 0), port_of(b, ins)
    sources = [b.source(item, "b32") for item in b.items(ins.operands[1])]
    trans = "trans" in ins.parts

    def work(group: Group) -> None:
        part = rows.of(group)
        lanes = slice(None) if group.lanes is None else group.lanes
        words = np.stack([source[lanes].reshape(-1, 8, 4) for source in sources], axis=1)
        if trans:
            words = _transposed(np.ascontiguousarray(words))
        data = np.ascontiguousarray(words).reshape(-1, 4).view(np.uint64)
        port.store(ins, part, where(part), 16, data)

    return together(b, ins, None, work)


@operation("movmatrix", "trans", mods="sync aligned m8n8 b16", kind="warp", since=75)
def movmatrix(b: Binder, ins: Instruction, _: str) -> Step:
    """Transpose a matrix held by the lanes of a warp."""
    source = b.source(ins.operands[1], "b32")
    write = b.writer(ins.operands[0], "b32")

    def work(group: Group) -> None:
        words = np.ascontiguousarray(source).reshape(-1, 8, 4)
        write(_transposed(words).reshape(-1), group.alu)

    assert b.threads % WARP == 0
    return together(b, ins, None, work)
