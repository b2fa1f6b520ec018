"""Floating-point arithmetic of 64 and 32 bits, with rounding modes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minibert.kernels.emulator.bind import Binder, Step
from minibert.kernels.emulator.parse import Instruction
from minibert.kernels.emulator.rounding import (
    F32,
    flush,
    fma_f32,
    fma_f64,
    product_error,
    round_to,
    sum_error,
    to_odd,
)
from minibert.kernels.emulator.table import operation
from minibert.kernels.emulator.types import TYPES, Array

_MODES = "rn rz rm rp"
_DIRECTED = ("rz", "rm", "rp")


def _mode(ins: Instruction) -> str:
    return next((part for part in ins.parts if part in _MODES.split()), "rn")


def _dress(ins: Instruction, compute: Callable[..., Array]) -> Callable[..., Array]:
    """Add what `.ftz` and `.sat` ask for."""
    ftz, sat = "ftz" in ins.parts, "sat" in ins.parts
    if not ftz and not sat:
        return compute

    def dressed(*sources: Array) -> Array:
        if ftz:
            sources = tuple(flush(source) for source in sources)
        result = compute(*sources)
        if ftz:
            result = flush(result)
        if sat:  # NaN becomes zero
            result = np.where(np.isnan(result), result.dtype.type(0), np.clip(result, 0, 1) + 0)
        return result

    return dressed


def _sources(b: Binder, ins: Instruction, kind: str) -> list[Array]:
    return [b.source(operand, kind) for operand in ins.operands[1:]]


def _directed_sum(a: Array, c: Array, mode: str) -> Array:
    x, y = a.astype(np.float64), c.astype(np.float64)
    total = x + y
    return round_to(to_odd(total, sum_error(x, y, total)), F32, mode).astype(np.float32)


@operation("add", "f32", mods=_MODES + " ftz sat", kind="float", flops=1)
@operation("sub", "f32", mods=_MODES + " ftz sat", kind="float", flops=1)
def add_f32(b: Binder, ins: Instruction, kind: str) -> Step:
    """Sum or difference."""
    mode, minus = _mode(ins), ins.parts[0] == "sub"
    compute: Callable[..., Array] = np.subtract if minus else np.add
    if mode in _DIRECTED:

        def compute(a: Array, c: Array) -> Array:
            return _directed_sum(a, -c if minus else c, mode)

    return b.elementwise(ins, kind, _dress(ins, compute), *_sources(b, ins, kind))


@operation("mul", "f32", mods=_MODES + " ftz sat", kind="float", flops=1)
def mul_f32(b: Binder, ins: Instruction, kind: str) -> Step:
    """Product, which is exact in float64."""
    mode = _mode(ins)
    compute: Callable[..., Array] = np.multiply
    if mode in _DIRECTED:

        def compute(a: Array, c: Array) -> Array:
            wide = np.multiply(a, c, dtype=np.float64)
            return round_to(wide, F32, mode).astype(np.float32)

    return b.elementwise(ins, kind, _dress(ins, compute), *_sources(b, ins, kind))


@operation("fma", "f32", mods=_MODES + " ftz sat", kind="float", flops=2)
@operation("mad", "f32", mods=_MODES + " ftz sat", kind="float", flops=2)
def fma_single(b: Binder, ins: Instruction, kind: str) -> Step:
    """Product and sum with one rounding."""
    mode = _mode(ins)

    def compute(a: Array, c: Array, d: Array) -> Array:
        return fma_f32(a, c, d, mode)

    return b.elementwise(ins, kind, _dress(ins, compute), *_sources(b, ins, kind))


@operation("add", "f64", mods=_MODES, kind="float", flops=1)
@operation("sub", "f64", mods=_MODES, kind="float", flops=1)
def add_f64(b: Binder, ins: Instruction, kind: str) -> Step:
    """Sum or difference."""
    mode, minus = _mode(ins), ins.parts[0] == "sub"

    def compute(a: Array, c: Array) -> Array:
        c = -c if minus else c
        total = a + c
        return total if mode == "rn" else nudge(total, sum_error(a, c, total), mode)

    return b.elementwise(ins, kind, compute, *_sources(b, ins, kind))


@operation("mul", "f64", mods=_MODES, kind="float", flops=1)
def mul_f64(b: Binder, ins: Instruction, kind: str) -> Step:
    """Product."""
    mode = _mode(ins)

    def compute(a: Array, c: Array) -> Array:
        product = a * c
        return product if mode == "rn" else nudge(product, product_error(a, c, product), mode)

    return b.elementwise(ins, kind, compute, *_sources(b, ins, kind))


def nudge(value: Array, error: Array, mode: str) -> Array:
    """Correct a value rounded to nearest to a directed mode, given the exact error."""
    toward = {"rz": -np.sign(value), "rm": np.full_like(value, -1), "rp": np.full_like(value, 1)}
    way = toward[mode]
    wrong = np.isfinite(value) & (error != 0) & (np.sign(error) == way)
    return np.where(wrong, np.nextafter(value, way * np.inf), value)


@operation("fma", "f64", mods="rn", kind="float", flops=2)
def fma_double(b: Binder, ins: Instruction, kind: str) -> Step:
    """Product and sum with one rounding."""
    return b.elementwise(ins, kind, fma_f64, *_sources(b, ins, kind))


@operation("min", "f32", mods="ftz NaN", kind="float")
@operation("max", "f32", mods="ftz NaN", kind="float")
@operation("min", "f64", kind="float")
@operation("max", "f64", kind="float")
def minmax(b: Binder, ins: Instruction, kind: str) -> Step:
    """The smaller or the larger; of a number and a NaN the number, unless `.NaN` is given."""
    small = ins.parts[0] == "min"
    nan = "NaN" in ins.parts

    def compute(a: Array, c: Array) -> Array:
        return extreme(a, c, small=small, nan=nan)

    return b.elementwise(ins, kind, _dress(ins, compute), *_sources(b, ins, kind))


def extreme(a: Array, c: Array, *, small: bool, nan: bool) -> Array:
    """Minimum or maximum; -0 counts as smaller than +0."""
    function: np.ufunc = np.minimum if small else np.maximum
    if not nan:
        function = np.fmin if small else np.fmax
    result: Array = function(a, c)
    zeros = (a == 0) & (c == 0)
    if zeros.any():
        negative = np.signbit(a) | np.signbit(c) if small else np.signbit(a) & np.signbit(c)
        zero = np.where(negative, result.dtype.type(-0.0), result.dtype.type(0.0))
        result = np.where(zeros, zero, result)
    return result


@operation("neg", "f32", mods="ftz", kind="float")
@operation("abs", "f32", mods="ftz", kind="float")
@operation("neg", "f64", kind="float")
@operation("abs", "f64", kind="float")
def sign(b: Binder, ins: Instruction, kind: str) -> Step:
    """Change or drop the sign."""
    function = np.negative if ins.parts[0] == "neg" else np.abs
    return b.elementwise(ins, kind, _dress(ins, function), *_sources(b, ins, kind))


@operation("copysign", "f32 f64", kind="float")
def copysign(b: Binder, ins: Instruction, kind: str) -> Step:
    """The size of b with the sign of a."""
    return b.elementwise(ins, kind, lambda a, c: np.copysign(c, a), *_sources(b, ins, kind))


@operation("testp", "finite infinite number notanumber normal subnormal", "f32 f64", kind="compare")
def testp(b: Binder, ins: Instruction, what: str, kind: str) -> Step:
    """Classify a number."""
    tiny = float(np.finfo(TYPES[kind].dtype).tiny)
    tests: dict[str, Callable[[Array], Array]] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda x: ~np.isnan(x),
        "notanumber": np.isnan,
        "normal": lambda x: np.isfinite(x) & (np.abs(x) >= tiny),
        "subnormal": lambda x: (x != 0) & (np.abs(x) < tiny),
    }

    return b.elementwise(ins, "pred", tests[what], *_sources(b, ins, kind))


def _directed(
    exact: Callable[..., Array], residual: Callable[..., Array], mode: str
) -> Callable[..., Array]:
    """A quotient or root in any mode: float64 value, and the sign of what it lacks."""

    def compute(*sources: Array) -> Array:
        wide = [source.astype(np.float64) for source in sources]
        value = exact(*wide)
        odd = to_odd(value, np.where(np.isfinite(value), residual(value, *wide), 0.0))
        return round_to(odd, F32, mode).astype(np.float32)

    return compute


def _quotient_rest(q: Array, a: Array, c: Array) -> Array:
    result: Array = (a - q * c - product_error(q, c, q * c)) * np.sign(c)
    return result


def _root_rest(r: Array, a: Array) -> Array:
    result: Array = a - r * r - product_error(r, r, r * r)
    return result


@operation("div", "f32", mods=_MODES + " approx full ftz", kind="special", flops=1)
def div_f32(b: Binder, ins: Instruction, kind: str) -> Step:
    """Quotient; `.approx` and `.full` are computed exactly and rounded to nearest."""
    mode = _mode(ins)
    compute: Callable[..., Array] = np.divide
    if mode in _DIRECTED:
        compute = _directed(np.divide, _quotient_rest, mode)
    return b.elementwise(ins, kind, _dress(ins, compute), *_sources(b, ins, kind))


@operation("rcp", "f32", mods=_MODES + " approx ftz", kind="special", flops=1)
def rcp_f32(b: Binder, ins: Instruction, kind: str) -> Step:
    """1 / a."""
    mode = _mode(ins)

    def compute(a: Array) -> Array:
        one = np.ones_like(a)
        if mode in _DIRECTED:
            return _directed(np.divide, _quotient_rest, mode)(one, a)
        return one / a

    return b.elementwise(ins, kind, _dress(ins, compute), *_sources(b, ins, kind))


@operation("sqrt", "f32", mods=_MODES + " approx ftz", kind="special", flops=1)
def sqrt_f32(b: Binder, ins: Instruction, kind: str) -> Step:
    """Square root."""
    mode = _mode(ins)
    compute: Callable[..., Array] = np.sqrt
    if mode in _DIRECTED:
        compute = _directed(np.sqrt, _root_rest, mode)
    return b.elementwise(ins, kind, _dress(ins, compute), *_sources(b, ins, kind))


@operation("div", "f64", mods="rn", kind="special", flops=1)
@operation("sqrt", "f64", mods="rn", kind="special", flops=1)
@operation("rcp", "f64", mods="rn", kind="special", flops=1)
@operation("rcp", "approx", "f64", mods="ftz", kind="special", flops=1)
@operation("rsqrt", "approx", "f64", mods="ftz", kind="special", flops=1)
def double_functions(b: Binder, ins: Instruction, *choice: str) -> Step:
    """Quotient, root and reciprocals of float64."""
    functions: dict[str, Callable[..., Array]] = {
        "div": np.divide,
        "sqrt": np.sqrt,
        "rcp": lambda a: 1.0 / a,
        "rsqrt": lambda a: 1.0 / np.sqrt(a),
    }
    return b.elementwise(ins, "f64", functions[ins.parts[0]], *_sources(b, ins, "f64"))


def _through_double(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def compute(a: Array) -> Array:
        return function(a.astype(np.float64)).astype(np.float32)

    return compute


APPROXIMATE: dict[str, Callable[[Array], Array]] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "rsqrt": lambda a: 1.0 / np.sqrt(a),
}


@operation("ex2", "approx", "f32", mods="ftz", kind="special", flops=1)
@operation("lg2", "approx", "f32", mods="ftz", kind="special", flops=1)
@operation("sin", "approx", "f32", mods="ftz", kind="special", flops=1)
@operation("cos", "approx", "f32", mods="ftz", kind="special", flops=1)
@operation("rsqrt", "approx", "f32", mods="ftz", kind="special", flops=1)
@operation("tanh", "approx", "f32", kind="special", flops=1, since=75)
def approximate(b: Binder, ins: Instruction, _: str, kind: str) -> Step:
    """Functions that the hardware approximates, rounded to nearest here."""
    compute = _through_double(APPROXIMATE[ins.parts[0]])
    return b.elementwise(ins, kind, _dress(ins, compute), *_sources(b, ins, kind))
