"""Integer arithmetic, logic and shifts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import TYPES, Array

_WHOLE = "u16 s16 u32 s32 u64 s64"
_BITS = "b16 b32 b64"
_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


def _sources(b: Binder, ins: Instruction, kind: str) -> list[Array]:
    return [b.source(operand, kind) for operand in ins.operands[1:]]


@operation("add", _WHOLE, kind="integer")
@operation("add", "s32", "sat", kind="integer")
def add(b: Binder, ins: Instruction, kind: str, mode: str = "") -> Step:
    """Sum, wrapping or saturating."""
    if mode:
        return b.elementwise(ins, kind, _saturated(np.add), *_sources(b, ins, kind))
    return b.elementwise(ins, kind, np.add, *_sources(b, ins, kind))


@operation("sub", _WHOLE, kind="integer")
@operation("sub", "s32", "sat", kind="integer")
def sub(b: Binder, ins: Instruction, kind: str, mode: str = "") -> Step:
    """Difference, wrapping or saturating."""
    if mode:
        return b.elementwise(ins, kind, _saturated(np.subtract), *_sources(b, ins, kind))
    return b.elementwise(ins, kind, np.subtract, *_sources(b, ins, kind))


def _saturated(function: np.ufunc) -> Callable[[Array, Array], Array]:
    def compute(a: Array, c: Array) -> Array:
        wide = function(a.astype(np.int64), c.astype(np.int64))
        result: Array = np.clip(wide, -(1 << 31), (1 << 31) - 1).astype(np.int32)
        return result

    return compute


def high_product(a: Array, c: Array) -> Array:
    """The upper half of a product."""
    bits = a.dtype.itemsize * 8
    if bits < 64:
        wide = np.dtype(f"{'int' if a.dtype.kind == 'i' else 'uint'}{2 * bits}")
        product: Array = a.astype(wide) * c.astype(wide) >> wide.type(bits)
        return product.astype(a.dtype)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    ua, uc = a.view(np.uint64), c.astype(a.dtype).view(np.uint64)
    al, ah, cl, ch = ua & low, ua >> half, uc & low, uc >> half
    middle = ah * cl + (al * cl >> half)
    other = al * ch + (middle & low)
    high = ah * ch + (middle >> half) + (other >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, uc, np.uint64(0)) - np.where(c < 0, ua, np.uint64(0))
    result: Array = high.view(a.dtype)
    return result


def _wide(kind: str) -> str:
    return f"{kind[0]}{2 * int(kind[1:])}"


@operation("mul", "lo hi", _WHOLE, kind="integer")
@operation("mul", "wide", "u16 s16 u32 s32", kind="integer")
@operation("mul24", "lo hi", "u32 s32", kind="integer")
def mul(b: Binder, ins: Instruction, part: str, kind: str) -> Step:
    """The lower half, the upper half or the whole of a product."""
    a, c = _sources(b, ins, kind)
    if ins.parts[0] == "mul24":
        return b.elementwise(ins, kind, _mul24(part), a, c)
    if part == "wide":
        dtype = TYPES[_wide(kind)].dtype
        return b.elementwise(ins, _wide(kind), lambda x, y: np.multiply(x, y, dtype=dtype), a, c)
    return b.elementwise(ins, kind, np.multiply if part == "lo" else high_product, a, c)


def _mul24(part: str) -> Callable[[Array, Array], Array]:
    def compute(a: Array, c: Array) -> Array:
        wide = np.dtype("int64") if a.dtype.kind == "i" else np.dtype("uint64")
        eight = a.dtype.type(8)
        x, y = ((v << eight >> eight).astype(wide) for v in (a, c))
        result: Array = (x * y >> wide.type(16 if part == "hi" else 0)).astype(a.dtype)
        return result

    return compute


@operation("mad", "lo hi", _WHOLE, kind="integer")
@operation("mad", "wide", "u16 s16 u32 s32", kind="integer")
def mad(b: Binder, ins: Instruction, part: str, kind: str) -> Step:
    """A part of a product, plus c."""
    a, c = (b.source(operand, kind) for operand in ins.operands[1:3])
    if part == "wide":
        dtype = TYPES[_wide(kind)].dtype
        addend = b.source(ins.operands[3], _wide(kind))
        return b.elementwise(
            ins, _wide(kind), lambda x, y, z: np.multiply(x, y, dtype=dtype) + z, a, c, addend
        )
    addend = b.source(ins.operands[3], kind)
    product = np.multiply if part == "lo" else high_product
    return b.elementwise(ins, kind, lambda x, y, z: product(x, y) + z, a, c, addend)


@operation("div", _WHOLE, kind="integer")
def div(b: Binder, ins: Instruction, kind: str) -> Step:
    """Quotient rounded toward zero; all ones for a division by zero, which PTX leaves open."""
    return b.elementwise(ins, kind, _quotient, *_sources(b, ins, kind))


def _quotient(a: Array, c: Array) -> Array:
    zero = c == 0
    safe = np.where(zero, c.dtype.type(1), c)
    if a.dtype.kind == "u":
        return np.where(zero, ~a.dtype.type(0), a // safe)
    return np.where(zero, a.dtype.type(-1), _truncated(a, safe))


def _truncated(a: Array, c: Array) -> Array:
    quotient = a // c
    inexact = quotient * c != a
    result: Array = quotient + (inexact & ((a < 0) != (c < 0)))
    return result


@operation("rem", _WHOLE, kind="integer")
def rem(b: Binder, ins: Instruction, kind: str) -> Step:
    """Remainder with the sign of the dividend; the dividend itself for a division by zero."""

    def compute(a: Array, c: Array) -> Array:
        zero = c == 0
        safe = np.where(zero, c.dtype.type(1), c)
        quotient = a // safe if a.dtype.kind == "u" else _truncated(a, safe)
        return np.where(zero, a, a - quotient * safe)

    return b.elementwise(ins, kind, compute, *_sources(b, ins, kind))


@operation("min", _WHOLE, kind="integer")
@operation("max", _WHOLE, kind="integer")
def minmax(b: Binder, ins: Instruction, kind: str) -> Step:
    """The smaller or the larger."""
    function = np.minimum if ins.parts[0] == "min" else np.maximum
    return b.elementwise(ins, kind, function, *_sources(b, ins, kind))


@operation("neg", "s16 s32 s64", kind="integer")
@operation("abs", "s16 s32 s64", kind="integer")
def negabs(b: Binder, ins: Instruction, kind: str) -> Step:
    """Change or drop the sign, wrapping."""
    function = np.negative if ins.parts[0] == "neg" else np.abs
    return b.elementwise(ins, kind, function, *_sources(b, ins, kind))


@operation("and", _BITS + " pred", kind="integer")
@operation("or", _BITS + " pred", kind="integer")
@operation("xor", _BITS + " pred", kind="integer")
def logic(b: Binder, ins: Instruction, kind: str) -> Step:
    """Bitwise operations, also of predicates."""
    if kind == "pred":
        function = _LOGIC[ins.parts[0]]
        left, right = (b.predicate(operand) for operand in ins.operands[1:])
        return b.elementwise(ins, kind, lambda: function(left(), right()))
    return b.elementwise(ins, kind, _LOGIC[ins.parts[0]], *_sources(b, ins, kind))


@operation("not", _BITS + " pred", kind="integer")
def invert(b: Binder, ins: Instruction, kind: str) -> Step:
    """Bitwise complement."""
    return b.elementwise(ins, kind, np.invert, *_sources(b, ins, kind))


@operation("cnot", _BITS, kind="integer")
def cnot(b: Binder, ins: Instruction, kind: str) -> Step:
    """1 for zero, 0 for anything else."""
    return b.elementwise(ins, kind, lambda a: (a == 0).astype(a.dtype), *_sources(b, ins, kind))


@operation("shl", _BITS, kind="integer")
@operation("shr", _WHOLE + " " + _BITS, kind="integer")
def shift(b: Binder, ins: Instruction, kind: str) -> Step:
    """Shifts; amounts beyond the width give what an endless shift would."""
    bits = 8 * TYPES[kind].size
    dtype = TYPES[kind].dtype
    left = ins.parts[0] == "shl"
    a, amount = b.source(ins.operands[1], kind), b.source(ins.operands[2], "u32")
    function = np.left_shift if left else np.right_shift
    if amount.strides == (0,) and int(amount[0]) < bits:
        count = np.broadcast_to(dtype.type(int(amount[0])), a.shape)
        return b.elementwise(ins, kind, function, a, count)

    def compute(x: Array, by: Array) -> Array:
        beyond = by >= bits
        moved: Array = function(x, np.minimum(by, np.uint32(bits - 1)).astype(dtype))
        if not beyond.any() or (dtype.kind == "i" and not left):
            return moved
        return np.where(beyond, dtype.type(0), moved)

    return b.elementwise(ins, kind, compute, a, amount)


@operation("sad", _WHOLE, kind="integer")
def sad(b: Binder, ins: Instruction, kind: str) -> Step:
    """Add the size of a difference."""

    def compute(x: Array, y: Array, z: Array) -> Array:
        result: Array = z + np.where(x < y, y - x, x - y)
        return result

    return b.elementwise(ins, kind, compute, *_sources(b, ins, kind))


@operation("dp4a", kind="integer", mods="u32 s32")
@operation("dp2a", "lo hi", kind="integer", mods="u32 s32")
def dot(b: Binder, ins: Instruction, half: str = "") -> Step:
    """Add the dot product of four bytes, or of two halves with two bytes."""
    left, right = ins.parts[-2:]
    a = b.source(ins.operands[1], left)
    c = b.source(ins.operands[2], right)
    kind = "s32" if "s32" in (left, right) else "u32"
    addend = b.source(ins.operands[3], kind)

    def compute(x: Array, y: Array, z: Array) -> Array:
        octets = np.ascontiguousarray(y).view(f"{right[0].replace('s', 'i')}1").reshape(-1, 4)
        if half:
            octets = octets[:, :2] if half == "lo" else octets[:, 2:]
        parts = np.ascontiguousarray(x).view(f"{left[0].replace('s', 'i')}{4 // octets.shape[1]}")
        products = parts.reshape(octets.shape).astype(np.int64) * octets
        result: Array = (z + products.sum(axis=1)).astype(z.dtype)
        return result

    return b.elementwise(ins, kind, compute, a, c, addend)
