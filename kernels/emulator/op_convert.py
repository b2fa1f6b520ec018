"""Conversions between number formats: `cvt`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.faults import UnsupportedError
from minibert.kernels.emulator.machine import Group
from minibert.kernels.emulator.op_float import nudge
from minibert.kernels.emulator.op_half import narrow, widen
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.rounding import (
    BF16,
    F16,
    F32,
    TF32,
    flush,
    round_to,
    sum_error,
    to_odd,
)
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import TYPES, Array

_INTEGERS = "u8 s8 u16 s16 u32 s32 u64 s64"
_FLOATS = "f16 bf16 f32 tf32 f64"
_FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "tf32": TF32}
_TO_WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _types(ins: Instruction) -> tuple[str, str]:
    target, source = (part for part in ins.parts if part in TYPES)
    return target, source


def _mode(ins: Instruction) -> str:
    modes = [part for part in ins.parts if part in ("rn", "rna", "rz", "rm", "rp")]
    return modes[0] if modes else ""


def _as_double(b: Binder, ins: Instruction, kind: str, index: int = 1) -> Callable[[], Array]:
    """A float operand as float64, read anew at each call."""
    operand = ins.operands[index]
    ftz = "ftz" in ins.parts
    if kind in ("f16", "bf16"):
        bits = b.source(operand, "b16")
        return lambda: widen(bits, kind).astype(np.float64)
    values = b.source(operand, "f32" if kind == "tf32" else kind)
    if ftz and kind == "f32":
        return lambda: flush(values).astype(np.float64)
    return lambda: values.astype(np.float64)


@operation("cvt", "int_to_int", mods=_INTEGERS + " sat", kind="convert")
def int_to_int(b: Binder, ins: Instruction, _: str) -> Step:
    """Truncate, extend, or saturate."""
    target, source = _types(ins)
    values = b.source(ins.operands[1], source)
    write = b.writer(ins.operands[0], target)
    dtype = TYPES[target].dtype
    limits = np.iinfo(dtype)
    saturate = "sat" in ins.parts

    def step(group: Group) -> None:
        result = values
        if saturate:
            given = np.iinfo(values.dtype)
            result = np.clip(values, max(limits.min, given.min), min(limits.max, given.max))
        write(result.astype(dtype), group.alu)

    return step


@operation(
    "cvt", "float_to_int", mods=f"{_INTEGERS} {_FLOATS} rni rzi rmi rpi ftz sat", kind="convert"
)
def float_to_int(b: Binder, ins: Instruction, _: str) -> Step:
    """Round to an integer and saturate; NaN becomes zero."""
    target, source = _types(ins)
    rounded = next((_TO_WHOLE[p] for p in ins.parts if p in _TO_WHOLE), None)
    if rounded is None:
        raise UnsupportedError(f"PTX opcode {ins.opcode} lacks a rounding mode")
    read, function = _as_double(b, ins, source), rounded
    dtype = TYPES[target].dtype
    limits = np.iinfo(dtype)

    def compute() -> Array:
        whole = function(read())
        over = whole >= float(limits.max)
        under = whole <= float(limits.min)
        safe = np.where(over | under | np.isnan(whole), 0.0, whole).astype(dtype)
        result = np.where(over, dtype.type(limits.max), safe)
        return np.where(under, dtype.type(limits.min), result)

    return b.elementwise(ins, target, compute)


@operation("cvt", "int_to_float", mods=f"{_INTEGERS} {_FLOATS} rn rz rm rp sat", kind="convert")
def int_to_float(b: Binder, ins: Instruction, _: str) -> Step:
    """Round an integer to a float."""
    target, source = _types(ins)
    values = b.source(ins.operands[1], source)
    mode, saturate = _mode(ins) or "rn", "sat" in ins.parts

    def compute() -> Array:
        if values.dtype.itemsize < 8:
            exact, error = values.astype(np.float64), np.zeros(values.shape)
        else:
            high = (values >> values.dtype.type(32)).astype(np.float64) * 4294967296.0
            low = (values & values.dtype.type(0xFFFFFFFF)).astype(np.float64)
            exact = high + low
            error = sum_error(high, low, exact)
        if saturate:
            exact = np.clip(exact, 0.0, 1.0)
            error = np.zeros(values.shape)
        if target == "f64":
            return exact if mode == "rn" else nudge(exact, error, mode)
        return _pack(round_to(to_odd(exact, error), _FORMATS[target], mode), target)

    return b.elementwise(ins, _stored(target), compute)


def _stored(target: str) -> str:
    return {"f16": "b16", "bf16": "b16", "tf32": "f32"}.get(target, target)


def _pack(value: Array, target: str) -> Array:
    """float64 that the target holds exactly, as the target stores it."""
    if target in ("f16", "bf16"):
        return narrow(value, target)
    return value.astype(TYPES[_stored(target)].dtype)


@operation(
    "cvt",
    "float_to_float",
    mods=f"{_FLOATS} rn rna rz rm rp rni rzi rmi rpi ftz sat relu satfinite",
    kind="convert",
)
def float_to_float(b: Binder, ins: Instruction, _: str) -> Step:
    """Widen, narrow, or round to an integer in the same format."""
    target, source = _types(ins)
    mode = _mode(ins)
    whole = next((_TO_WHOLE[p] for p in ins.parts if p in _TO_WHOLE), None)
    plain = not {"ftz", "sat", "relu", "satfinite"} & set(ins.parts) and whole is None
    if plain and (fast := _fast(b, ins, target, source, mode)) is not None:
        return fast
    read = _as_double(b, ins, source)

    def compute() -> Array:
        value = read()
        if whole is not None:
            value = whole(value)
        if target != "f64":
            finite = "satfinite" in ins.parts
            value = round_to(value, _FORMATS[target], mode or "rn", saturate=finite)
        if "sat" in ins.parts:
            value = np.where(np.isnan(value), 0.0, np.clip(value, 0.0, 1.0) + 0.0)
        if "relu" in ins.parts:
            value = np.where(value <= 0, 0.0, value)
        result = _pack(value, target)
        return flush(result) if "ftz" in ins.parts and target == "f32" else result

    return b.elementwise(ins, _stored(target), compute)


def _fast(b: Binder, ins: Instruction, target: str, source: str, mode: str) -> Step | None:
    """The conversions that kernels are full of."""
    if (target, source) in (("f32", "f16"), ("f32", "bf16")):
        bits = b.source(ins.operands[1], "b16")
        return b.elementwise(ins, "f32", lambda: widen(bits, source))
    if source == "f32" and mode == "rn" and target in ("f16", "bf16"):
        values = b.source(ins.operands[1], "f32")
        return b.elementwise(ins, "b16", lambda: narrow(np.ascontiguousarray(values), target))
    return None


@operation(
    "cvt", "float_to_pair", mods="f16x2 bf16x2 f32 rn rz relu satfinite", kind="convert", since=80
)
def float_to_pair(b: Binder, ins: Instruction, _: str) -> Step:
    """Two float32 to a pair of halves; the first source is the upper half."""
    target, _source = _types(ins)
    kind = target.removesuffix("x2")
    high, low = (b.source(ins.operands[index], "f32") for index in (1, 2))
    mode = _mode(ins)
    pair = np.empty((b.threads, 2), np.uint16)
    write = b.writer(ins.operands[0], "b32")

    def one(values: Array) -> Array:
        if mode == "rn" and "satfinite" not in ins.parts:
            bits = narrow(np.ascontiguousarray(values), kind)
        else:
            finite = "satfinite" in ins.parts
            form = _FORMATS[kind]
            bits = narrow(round_to(values.astype(np.float64), form, mode, saturate=finite), kind)
        if "relu" in ins.parts:
            negative = (bits > np.uint16(0x8000)) & ~np.isnan(values)
            bits = np.where(negative | (bits == 0x8000), np.uint16(0), bits)
        return bits

    def step(group: Group) -> None:
        pair[:, 0] = one(low)
        pair[:, 1] = one(high)
        write(pair.view(np.uint32).reshape(-1), group.alu)

    return step


@operation("cvt", "pack", mods="sat s8 u8 s16 u16 s32 b32", kind="convert", since=72)
def pack_integers(b: Binder, ins: Instruction, _: str) -> Step:
    """Two s32 saturated to a narrow type; with c, its lower half moves to the upper one."""
    kind = TYPES[ins.parts[3]]
    limits = np.iinfo(kind.dtype)
    first, second = (b.source(ins.operands[index], "s32") for index in (1, 2))
    rest = b.source(ins.operands[3], "u32") if len(ins.operands) > 3 else None
    bits = np.uint32(8 * kind.size)
    mask = np.uint32((1 << 8 * kind.size) - 1)

    def compute() -> Array:
        parts = [np.clip(v, limits.min, limits.max).view(np.uint32) & mask for v in (first, second)]
        result = (parts[0] << bits) | parts[1]
        return result if rest is None else result | (rest << (bits * np.uint32(2)))

    return b.elementwise(ins, "b32", compute)
