"""Comparisons and selections: `setp`, `set`, `selp`, `slct`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.faults import UnsupportedError
from minibert.kernels.emulator.machine import Group
from minibert.kernels.emulator.op_half import widen
from minibert.kernels.emulator.operands import Pair
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.rounding import flush
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import TYPES, Array

_INTEGERS = "u16 s16 b16 u32 s32 b32 u64 s64 b64"
_HALVES = "f16 bf16 f16x2 bf16x2"
_COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
_UNORDERED = ("equ", "neu", "ltu", "leu", "gtu", "geu")
_TESTS = " ".join((*_COMPARE, *_UNORDERED, "num", "nan"))


def _test(name: str, *, floating: bool) -> Callable[[Array, Array], Array]:
    """A comparison; for floats NaN makes ordered ones false and unordered ones true."""
    if not floating:
        return _COMPARE[name]
    if name == "num":
        return lambda a, c: ~(np.isnan(a) | np.isnan(c))
    if name == "nan":
        return lambda a, c: np.isnan(a) | np.isnan(c)
    if name in _UNORDERED:
        inner = _COMPARE[name[:-1]]
        return lambda a, c: inner(a, c) | np.isnan(a) | np.isnan(c)
    if name == "ne":  # NumPy's is true for NaN
        return lambda a, c: np.not_equal(a, c) & ~(np.isnan(a) | np.isnan(c))
    return _COMPARE[name]


def _read(b: Binder, ins: Instruction, kind: str, first: int) -> Callable[[], list[Array]]:
    """The two values to compare; halves as float32, pairs as (threads, 2)."""
    operands = ins.operands[first : first + 2]
    if kind in _HALVES.split():
        bits = [b.source(o, "b32" if kind.endswith("x2") else "b16") for o in operands]

        def read() -> list[Array]:
            if not kind.endswith("x2"):
                return [widen(v, kind) for v in bits]
            return [
                widen(np.ascontiguousarray(v).view(np.uint16), kind).reshape(-1, 2) for v in bits
            ]

        return read
    values = [b.source(operand, kind) for operand in operands]
    if "ftz" in ins.parts:
        return lambda: [flush(v) for v in values]
    return lambda: values


def _name(ins: Instruction, kind: str) -> str:
    found = [part for part in ins.parts[1:] if part in _TESTS.split()]
    if not found or (not TYPES[kind].is_float and found[0] in (*_UNORDERED, "num", "nan")):
        raise UnsupportedError(f"PTX opcode {ins.opcode} has no comparison for its type")
    return found[0]


@operation(
    "setp", _INTEGERS + " f32 f64 " + _HALVES, mods=_TESTS + " and or xor ftz", kind="compare"
)
def setp(b: Binder, ins: Instruction, kind: str) -> Step:
    """Compare, and combine with a predicate; a second result is the opposite, combined alike."""
    test = _test(_name(ins, kind), floating=TYPES[kind].is_float)
    read = _read(b, ins, kind, 1)
    combine = next((_COMBINE[part] for part in ins.parts if part in _COMBINE), None)
    other = b.predicate(ins.operands[3]) if combine is not None else None
    target = ins.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    write, write_opposite = b.writer(first, "pred"), b.writer(second, "pred")
    paired = kind.endswith("x2")

    def step(group: Group) -> None:
        result = test(*read())
        opposite = ~result
        if paired:
            result, opposite = result[:, 0], result[:, 1]
        if combine is not None and other is not None:
            more = other()
            result, opposite = combine(result, more), combine(opposite, more)
        write(result, group.alu)
        if second is not None:
            write_opposite(opposite, group.alu)

    if combine is None and second is None and not paired and isinstance(test, np.ufunc):
        values = read()
        if kind not in _HALVES.split() and "ftz" not in ins.parts:
            return b.elementwise(ins, "pred", test, *values)
    return step


@operation("set", _HALVES, mods=f"{_TESTS} ftz {_HALVES}", kind="compare")
def set_half(b: Binder, ins: Instruction, kind: str) -> Step:
    """1.0 or 0.0 in each half, by comparison."""
    types = [part for part in ins.parts if part in TYPES]
    if types != [kind, kind]:
        raise UnsupportedError(f"PTX opcode {ins.opcode} is not known to the emulator")
    test = _test(_name(ins, kind), floating=True)
    read = _read(b, ins, kind, 1)
    one = np.uint16(0x3F80 if kind.startswith("bf") else 0x3C00)

    def compute() -> Array:
        bits = np.where(test(*read()), one, np.uint16(0))
        return bits.view(np.uint32).reshape(-1) if kind.endswith("x2") else bits

    return b.elementwise(ins, "b32" if kind.endswith("x2") else "b16", compute)


@operation("set", "u32 s32", mods=f"{_TESTS} ftz f32 f64 u32 s32 u16 s16 u64 s64", kind="compare")
@operation("set", "f32", mods=f"{_TESTS} ftz f32 f64 u32 s32 u16 s16 u64 s64", kind="compare")
def set_word(b: Binder, ins: Instruction, kind: str) -> Step:
    """All ones (or 1.0) for true, 0 for false."""
    types = [part for part in ins.parts if part in TYPES]
    target, source = types[0], types[-1]
    test = _test(_name(ins, source), floating=TYPES[source].is_float)
    read = _read(b, ins, source, 1)
    if target == "f32":
        return b.elementwise(ins, "f32", lambda: test(*read()).astype(np.float32))
    return b.elementwise(ins, "u32", lambda: np.where(test(*read()), ~np.uint32(0), np.uint32(0)))


@operation("selp", _INTEGERS + " f32 f64", kind="move")
def selp(b: Binder, ins: Instruction, kind: str) -> Step:
    """Choose by a predicate."""
    first, second = (b.source(operand, kind) for operand in ins.operands[1:3])
    predicate = b.predicate(ins.operands[3])
    return b.elementwise(ins, kind, lambda: np.where(predicate(), first, second))


@operation("slct", "b16 b32 b64 u32 s32 u64 s64 f32 f64", mods="s32 f32 ftz", kind="move")
def slct(b: Binder, ins: Instruction, kind: str) -> Step:
    """C >= 0 ? a : b."""
    first, second = (b.source(operand, kind) for operand in ins.operands[1:3])
    sign = b.source(ins.operands[3], ins.parts[-1])
    ftz = "ftz" in ins.parts
    return b.elementwise(
        ins, kind, lambda: np.where((flush(sign) if ftz else sign) >= 0, first, second)
    )
