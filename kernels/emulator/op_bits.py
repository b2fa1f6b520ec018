"""Operations on the bits of a word: funnel shifts, counts, fields, permutations, any logic."""

from __future__ import annotations

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import TYPES, Array

_ONES = np.array([value.bit_count() for value in range(256)], np.int64)
_REVERSED = np.array([int(f"{value:08b}"[::-1], 2) for value in range(256)], np.uint8)


def _sources(b: Binder, ins: Instruction, kind: str) -> list[Array]:
    return [b.source(operand, kind) for operand in ins.operands[1:]]


@operation("shf", "l r", "wrap clamp", "b32", kind="integer")
def funnel(b: Binder, ins: Instruction, way: str, mode: str, _: str) -> Step:
    """Shift of the 64 bits {b, a}; the upper (`l`) or the lower (`r`) half."""

    def compute(low: Array, high: Array, by: Array) -> Array:
        amount = by & np.uint32(31) if mode == "wrap" else np.minimum(by, np.uint32(32))
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        wide = amount.astype(np.uint64)
        moved = both << wide >> np.uint64(32) if way == "l" else both >> wide
        return moved.astype(np.uint32)

    return b.elementwise(ins, "b32", compute, *_sources(b, ins, "u32"))


@operation("popc", "b32 b64", kind="integer")
@operation("clz", "b32 b64", kind="integer")
def count(b: Binder, ins: Instruction, kind: str) -> Step:
    """Number of ones, or of leading zeros."""
    ones = ins.parts[0] == "popc"

    def compute(a: Array) -> Array:
        if ones:
            return _popcount(a).astype(np.uint32)
        return (8 * a.dtype.itemsize - _length(a)).astype(np.uint32)

    return b.elementwise(ins, "u32", compute, *_sources(b, ins, kind))


def _popcount(a: Array) -> Array:
    octets = np.ascontiguousarray(a).view(np.uint8).reshape(-1, a.dtype.itemsize)
    result: Array = _ONES[octets].sum(axis=1)
    return result


def _length(a: Array) -> Array:
    """Bits up to the highest one."""
    spread = a.copy()
    for step in (1, 2, 4, 8, 16, 32):
        if step < 8 * a.dtype.itemsize:
            spread |= spread >> a.dtype.type(step)
    return _popcount(spread)


@operation("bfind", "u32 s32 u64 s64", mods="shiftamt", kind="integer")
def bfind(b: Binder, ins: Instruction, kind: str) -> Step:
    """Position of the highest bit that is no sign bit; all ones if there is none."""
    bits = 8 * TYPES[kind].size

    def compute(a: Array) -> Array:
        if a.dtype.kind == "i":
            a = np.where(a < 0, ~a, a)
        at = _length(a.view(f"u{bits // 8}")) - 1
        if "shiftamt" in ins.parts:
            at = np.where(at >= 0, bits - 1 - at, at)
        return at.astype(np.int32).view(np.uint32)

    return b.elementwise(ins, "u32", compute, *_sources(b, ins, kind))


@operation("brev", "b32 b64", kind="integer")
def brev(b: Binder, ins: Instruction, kind: str) -> Step:
    """The bits in reverse order."""

    def compute(a: Array) -> Array:
        octets = np.ascontiguousarray(a).view(np.uint8).reshape(-1, a.dtype.itemsize)
        return np.ascontiguousarray(_REVERSED[octets][:, ::-1]).view(a.dtype).reshape(-1)

    return b.elementwise(ins, kind, compute, *_sources(b, ins, kind))


@operation("bfe", "u32 s32 u64 s64", kind="integer")
def bfe(b: Binder, ins: Instruction, kind: str) -> Step:
    """A field of bits, extended by zeros or by its highest bit."""
    bits = 8 * TYPES[kind].size
    a = b.source(ins.operands[1], kind)
    start, length = (b.source(operand, "u32") for operand in ins.operands[2:])

    def compute(x: Array, pos: Array, n: Array) -> Array:
        pos, n = (pos & 0xFF).astype(np.int64), (n & 0xFF).astype(np.int64)
        signed = x.dtype.kind == "i"
        raw = x.view(f"u{bits // 8}").astype(np.uint64)
        field = np.where(pos < bits, raw >> np.minimum(pos, 63).astype(np.uint64), np.uint64(0))
        mask = np.where(n >= 64, ~np.uint64(0), (np.uint64(1) << (n % 64).astype(np.uint64)) - 1)
        field &= mask.astype(np.uint64)
        if signed:
            top = np.minimum(pos + n - 1, bits - 1)
            negative = (n > 0) & ((raw >> np.maximum(top, 0).astype(np.uint64)) & 1 == 1)
            kept = np.clip(top - pos + 1, 0, 64)
            low = np.where(
                kept >= 64, ~np.uint64(0), (np.uint64(1) << (kept % 64).astype(np.uint64)) - 1
            )
            field = np.where(negative, field | ~low.astype(np.uint64), field)
        return field.astype(f"u{bits // 8}").view(x.dtype)

    return b.elementwise(ins, kind, compute, a, start, length)


@operation("bfi", "b32 b64", kind="integer")
def bfi(b: Binder, ins: Instruction, kind: str) -> Step:
    """The lowest bits of a, put into b."""
    bits = 8 * TYPES[kind].size
    a, into = (b.source(operand, kind) for operand in ins.operands[1:3])
    start, length = (b.source(operand, "u32") for operand in ins.operands[3:])

    def compute(x: Array, y: Array, pos: Array, n: Array) -> Array:
        pos, n = (pos & 0xFF).astype(np.uint64), (n & 0xFF).astype(np.uint64)
        ones = np.where(n >= 64, ~np.uint64(0), (np.uint64(1) << (n % np.uint64(64))) - 1)
        ones = ones.astype(np.uint64)
        at = np.minimum(pos, np.uint64(63))
        mask = np.where(pos < bits, ones << at, np.uint64(0))
        value = np.where(pos < bits, x.astype(np.uint64) << at, np.uint64(0))
        return ((y & ~mask) | (value & mask)).astype(x.dtype)

    return b.elementwise(ins, kind, compute, a, into, start, length)


@operation("prmt", "b32", kind="integer")
def prmt(b: Binder, ins: Instruction, kind: str) -> Step:
    """Four bytes picked from the eight of {b, a}; bit 3 of a selector copies the sign."""

    def compute(low: Array, high: Array, selectors: Array) -> Array:
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        result = np.zeros(low.shape, np.uint32)
        for place in range(4):
            selector = (selectors >> np.uint32(4 * place)) & np.uint32(15)
            amount = ((selector & np.uint32(7)) * np.uint32(8)).astype(np.uint64)
            octet = ((both >> amount) & np.uint64(0xFF)).astype(np.uint32)
            sign = np.where(octet & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
            result |= np.where(selector & np.uint32(8), sign, octet) << np.uint32(8 * place)
        return result

    return b.elementwise(ins, kind, compute, *_sources(b, ins, kind))


@operation("lop3", "b32", kind="integer")
def lop3(b: Binder, ins: Instruction, kind: str) -> Step:
    """Any logic function of three operands, given by its truth table."""
    a, c, d = (b.source(operand, kind) for operand in ins.operands[1:4])
    truth = int(b.source(ins.operands[4], "u32")[0])

    def compute(x: Array, y: Array, z: Array) -> Array:
        result = np.zeros(x.shape, np.uint32)
        for row in range(8):
            if truth >> row & 1:
                term = x if row & 4 else ~x
                term = term & (y if row & 2 else ~y)
                result |= term & (z if row & 1 else ~z)
        return result

    return b.elementwise(ins, kind, compute, a, c, d)
