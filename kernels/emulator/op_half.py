"""Arithmetic of float16 and bfloat16, alone and in pairs.

A sum or product of two halves is rounded once through float32, which has more than twice the
digits; a fused multiply-add goes through float64 and round-to-odd.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.machine import Group
from minibert.kernels.emulator.op_float import APPROXIMATE, extreme
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.rounding import (
    BF16,
    F16,
    bf16_to_f32,
    f32_to_bf16,
    round_to,
    sum_error,
    to_odd,
)
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import Array

_ALL = "f16 bf16 f16x2 bf16x2"
_NAN = np.uint16(0x7FFF)  # the NaN that arithmetic returns


def widen(bits: Array, kind: str) -> Array:
    """uint16 bits of a half to float32."""
    return bf16_to_f32(bits) if kind.startswith("bf") else bits.view(np.float16).astype(np.float32)


def narrow(value: Array, kind: str) -> Array:
    """float32 or float64 to the nearest half, as uint16 bits."""
    if kind.startswith("bf"):
        if value.dtype == np.float64:
            value = round_to(value, BF16, "rn").astype(np.float32)
        return f32_to_bf16(value)
    bits = value.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(value), _NAN, bits)


def halves(b: Binder, ins: Instruction, kind: str) -> list[Array]:
    """The sources as uint16 bits: (threads,), or (threads * 2,) for pairs."""
    found = []
    for operand in ins.operands[1:]:
        bits = b.source(operand, "b32" if kind.endswith("x2") else "b16")
        found.append(bits)
    return found


def half_step(
    b: Binder, ins: Instruction, kind: str, compute: Callable[..., Array], bits: list[Array]
) -> Step:
    """A step that works on the uint16 bits of halves and writes them back."""
    paired = kind.endswith("x2")
    write = b.writer(ins.operands[0], "b32" if paired else "b16")

    def step(group: Group) -> None:
        sources = [np.ascontiguousarray(s).view(np.uint16) if paired else s for s in bits]
        result = compute(*sources)
        write(result.view(np.uint32) if paired else result, group.alu)

    return step


def _finish(ins: Instruction, kind: str, value: Array) -> Array:
    """Round, then apply `.sat`, `.relu` and `.ftz`."""
    bits = narrow(value, kind)
    if "sat" in ins.parts or "relu" in ins.parts:
        wide = widen(bits, kind)
        top = 1.0 if "sat" in ins.parts else np.inf
        if "sat" in ins.parts:
            wide = np.where(np.isnan(wide), np.float32(0), wide)
        clipped = narrow(np.clip(wide, np.float32(0), np.float32(top)), kind)
        bits = np.where(np.isnan(wide), _NAN, clipped)
    if "ftz" in ins.parts:
        tiny = (bits & np.uint16(0x7C00)) == 0
        bits = np.where(tiny, bits & np.uint16(0x8000), bits)
    return bits


def _flushed(ins: Instruction, bits: Array) -> Array:
    if "ftz" not in ins.parts:
        return bits
    return np.where((bits & np.uint16(0x7C00)) == 0, bits & np.uint16(0x8000), bits)


@operation("add", _ALL, mods="rn ftz sat", kind="float", flops=1)
@operation("sub", _ALL, mods="rn ftz sat", kind="float", flops=1)
@operation("mul", _ALL, mods="rn ftz sat", kind="float", flops=1)
def arithmetic(b: Binder, ins: Instruction, kind: str) -> Step:
    """Sum, difference, product."""
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[ins.parts[0]]

    def compute(a: Array, c: Array) -> Array:
        x, y = widen(_flushed(ins, a), kind), widen(_flushed(ins, c), kind)
        if kind.startswith("bf"):  # a float32 sum could round twice
            wide = function(x, y, dtype=np.float64)
            if ins.parts[0] != "mul":
                signed = -y if ins.parts[0] == "sub" else y
                wide = to_odd(wide, sum_error(x.astype(np.float64), signed, wide))
            return _finish(ins, kind, wide)
        return _finish(ins, kind, function(x, y))

    return half_step(b, ins, kind, compute, halves(b, ins, kind))


@operation("fma", _ALL, mods="rn ftz sat relu", kind="float", flops=2)
def fma_half(b: Binder, ins: Instruction, kind: str) -> Step:
    """Product and sum with one rounding."""

    def compute(a: Array, c: Array, d: Array) -> Array:
        x, y, z = (widen(_flushed(ins, s), kind).astype(np.float64) for s in (a, c, d))
        product = x * y
        total = product + z
        odd = to_odd(total, sum_error(product, z, total))
        form = BF16 if kind.startswith("bf") else F16
        return _finish(ins, kind, round_to(odd, form, "rn"))

    return half_step(b, ins, kind, compute, halves(b, ins, kind))


@operation("min", _ALL, mods="ftz NaN", kind="float", since=80)
@operation("max", _ALL, mods="ftz NaN", kind="float", since=80)
def minmax_half(b: Binder, ins: Instruction, kind: str) -> Step:
    """The smaller or the larger; of a number and a NaN the number, unless `.NaN` is given."""
    small, nan = ins.parts[0] == "min", "NaN" in ins.parts

    def compute(a: Array, c: Array) -> Array:
        x, y = widen(_flushed(ins, a), kind), widen(_flushed(ins, c), kind)
        return narrow(extreme(x, y, small=small, nan=nan), kind)

    return half_step(b, ins, kind, compute, halves(b, ins, kind))


@operation("neg", _ALL, mods="ftz", kind="float")
@operation("abs", _ALL, mods="ftz", kind="float")
def sign_half(b: Binder, ins: Instruction, kind: str) -> Step:
    """Change or drop the sign."""
    negate = ins.parts[0] == "neg"

    def compute(a: Array) -> Array:
        a = _flushed(ins, a)
        return a ^ np.uint16(0x8000) if negate else a & np.uint16(0x7FFF)

    return half_step(b, ins, kind, compute, halves(b, ins, kind))


@operation("ex2", "approx", "f16 f16x2 bf16 bf16x2", mods="ftz", kind="special", flops=1, since=75)
@operation("tanh", "approx", "f16 f16x2 bf16 bf16x2", kind="special", flops=1, since=75)
def approximate_half(b: Binder, ins: Instruction, _: str, kind: str) -> Step:
    """Functions that the hardware approximates, rounded to nearest here."""
    function = APPROXIMATE[ins.parts[0]]

    def compute(a: Array) -> Array:
        return narrow(function(widen(a, kind).astype(np.float64)), kind)

    return half_step(b, ins, kind, compute, halves(b, ins, kind))
