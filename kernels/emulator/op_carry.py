"""Integer arithmetic in several words: operations that set or use the carry of each thread."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.machine import Group
from minibert.kernels.emulator.op_integer import high_product
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import TYPES, Array, unsigned

_WORDS = "u32 s32 u64 s64"


def _carried(
    b: Binder,
    ins: Instruction,
    kind: str,
    operands: Callable[[], tuple[Array, Array]],
    *,
    minus: bool = False,
) -> Step:
    """A step for x + y or x - y of unsigned words, with the carry coming in and going out."""
    write = b.writer(ins.operands[0], f"b{8 * TYPES[kind].size}")
    takes = ins.parts[0] in ("addc", "subc", "madc")
    gives = "cc" in ins.parts
    carry = b.chunk.carry
    dtype = unsigned(TYPES[kind].size)

    def step(group: Group) -> None:
        x, y = operands()
        coming = carry.astype(dtype) if takes else dtype.type(0)
        if minus:
            first: Array = x - y
            result: Array = first - coming
            out = (x < y) | (first < coming)
        else:
            first = x + y
            result = first + coming
            out = (first < x) | (result < first)
        write(result, group.alu)
        if not gives:
            return
        if group.alu is None:
            carry[...] = out
        else:
            np.putmask(carry, group.alu, out)

    return step


@operation("add", "cc", _WORDS, kind="integer")
@operation("sub", "cc", _WORDS, kind="integer")
@operation("addc", _WORDS, mods="cc", kind="integer")
@operation("subc", _WORDS, mods="cc", kind="integer")
def add_with_carry(b: Binder, ins: Instruction, *choice: str) -> Step:
    """Sum or difference of words."""
    kind = choice[-1]
    x, y = (b.source(operand, f"b{8 * TYPES[kind].size}") for operand in ins.operands[1:])
    return _carried(b, ins, kind, lambda: (x, y), minus=ins.parts[0].startswith("sub"))


@operation("mad", "lo hi", "cc", _WORDS, kind="integer")
@operation("madc", "lo hi", _WORDS, mods="cc", kind="integer")
def mad_with_carry(b: Binder, ins: Instruction, part: str, *choice: str) -> Step:
    """A half of a product, plus c."""
    kind = choice[-1]
    left, right = (b.source(operand, kind) for operand in ins.operands[1:3])
    addend = b.source(ins.operands[3], f"b{8 * TYPES[kind].size}")
    product = np.multiply if part == "lo" else high_product

    def operands() -> tuple[Array, Array]:
        value: Array = product(left, right)
        return value.view(addend.dtype), addend

    return _carried(b, ins, kind, operands)
