"""Rounds float64 values to the narrower formats, in every rounding mode, exactly.

An exact result is handed over as a float64 plus the sign of what was lost on the way there. It is
made a round-to-odd float64 first: its last bit then stands for all bits that follow, and a second
rounding to a format of at most 51 bits is exact in any mode (Boldo and Melquiond, 2008).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minibert.kernels.emulator.types import Array

__all__ = [
    "BF16",
    "F16",
    "F32",
    "TF32",
    "Format",
    "bf16_to_f32",
    "f32_to_bf16",
    "flush",
    "fma_f32",
    "fma_f64",
    "round_to",
    "sum_error",
    "to_odd",
]


@dataclass(frozen=True, slots=True)
class Format:
    """A binary format: `digits` of significand (hidden one included), exponents, total bits."""

    digits: int
    min_exponent: int
    max_exponent: int
    bits: int


F32 = Format(24, -126, 127, 32)
F16 = Format(11, -14, 15, 16)
BF16 = Format(8, -126, 127, 16)
TF32 = Format(11, -126, 127, 32)
_SMALLEST_NORMAL = 2.0**-126


def sum_error(a: Array, b: Array, total: Array) -> Array:
    """What `total = a + b` lost, exactly (Knuth's TwoSum)."""
    back = total - a
    result: Array = (a - (total - back)) + (b - back)
    return result


def to_odd(value: Array, error: Array) -> Array:
    """Round `value + error` to odd: truncate toward zero, set the last bit if inexact."""
    bits = value.view(np.int64)
    inexact = (error != 0) & np.isfinite(value)
    # A nonzero error on the side of zero means that `value` was rounded away from zero.
    away = inexact & ((error < 0) == (value > 0)) & (value != 0)
    truncated = bits - away
    result: Array = np.where(inexact, truncated | 1, bits).view(np.float64)
    return result


def round_to(value: Array, form: Format, mode: str, *, saturate: bool = False) -> Array:
    """Round float64 to a format, as float64 that the format holds exactly.

    Args:
        value: float64; round-to-odd if it stands for more digits.
        form: the target.
        mode: `rn` nearest even, `rna` nearest away, `rz` zero, `rm` down, `rp` up.
        saturate: the largest finite number instead of infinity.
    """
    _, exponent = np.frexp(value)
    exponent = np.maximum(exponent.astype(np.int32) - 1, form.min_exponent)
    quantum = np.ldexp(1.0, exponent - form.digits + 1)
    scaled = value / quantum
    rounded = _integral(scaled, mode) * quantum
    limit = float(np.ldexp(2.0 - 2.0 ** (1 - form.digits), form.max_exponent))
    over = np.abs(rounded) > limit
    stays = {"rz": over, "rm": over & (value > 0), "rp": over & (value < 0)}.get(mode)
    finite = np.isfinite(value)
    rounded = np.where(over, np.copysign(np.inf, value), rounded)
    if saturate:
        rounded = np.where(over, np.copysign(limit, value), rounded)
    elif stays is not None:
        rounded = np.where(stays & finite, np.copysign(limit, value), rounded)
    result: Array = np.where(finite, np.copysign(rounded, value), value)
    return result


def _integral(value: Array, mode: str) -> Array:
    """Round to integers."""
    if mode == "rna":
        whole = np.trunc(value)
        away: Array = whole + np.where(np.abs(value - whole) >= 0.5, np.sign(value), 0.0)
        return away
    function = {"rn": np.rint, "rz": np.trunc, "rm": np.floor, "rp": np.ceil}[mode]
    result: Array = function(value)
    return result


def bf16_to_f32(bits: Array) -> Array:
    """Widen bfloat16 bits (uint16) to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(value: Array) -> Array:
    """Round float32 to the nearest bfloat16, as uint16 bits; NaN becomes 0x7FFF."""
    bits = value.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), rounded.astype(np.uint16))


def flush(value: Array) -> Array:
    """Replace subnormal float32 by zeros of the same sign."""
    tiny = np.abs(value) < np.float32(1.1754944e-38)
    return np.where(tiny, np.copysign(np.float32(0), value), value) if tiny.any() else value


def fma_f32(a: Array, b: Array, c: Array, mode: str = "rn") -> Array:
    """`a * b + c` of float32 values with one rounding.

    The product is exact in float64. Two roundings of the sum agree with one except where the first
    lands on the middle between two float32, or the result is subnormal: only those are redone.
    """
    if mode != "rn":
        return _fma_exactly(a, b, c, mode)
    total: Array = np.multiply(a, b, dtype=np.float64)
    total += c
    result: Array = total.astype(np.float32)
    # The 29 bits that float32 lacks, moved up: a one and zeros is the middle.
    tie = (total.view(np.uint64) << np.uint64(35)) == np.uint64(1 << 63)
    if tie.any() or float(np.abs(result).min()) < _SMALLEST_NORMAL:
        again = np.flatnonzero(tie | ((np.abs(result) < _SMALLEST_NORMAL) & (total != 0)))
        if again.size:
            result[again] = _fma_exactly(a[again], b[again], c[again], "rn")
    return result


def _fma_exactly(a: Array, b: Array, c: Array, mode: str) -> Array:
    wide = c.astype(np.float64)
    product = np.multiply(a, b, dtype=np.float64)
    total = product + wide
    odd = to_odd(total, sum_error(product, wide, total))
    return round_to(odd, F32, mode).astype(np.float32)


def _split(a: Array) -> tuple[Array, Array]:
    scaled = a * 134217729.0  # 2^27 + 1
    high = scaled - (scaled - a)
    return high, a - high


def product_error(a: Array, b: Array, product: Array) -> Array:
    """What `product = a * b` lost, exactly barring overflow (Dekker)."""
    ah, al = _split(a)
    bh, bl = _split(b)
    result: Array = al * bl - (((product - ah * bh) - al * bh) - ah * bl)
    return result


def fma_f64(a: Array, b: Array, c: Array) -> Array:
    """`a * b + c` of float64 values with one rounding, to nearest even.

    Exact unless the product comes near the ends of the range, where the plain sum is returned.
    """
    product = a * b
    low = product_error(a, b, product)
    t_high = c + low
    t_low = sum_error(c, low, t_high)
    v_high = product + t_high
    v_low = sum_error(product, t_high, v_high)
    tail = t_low + v_low
    result = v_high + to_odd(tail, sum_error(t_low, v_low, tail))
    return np.where(np.isfinite(result), result, product + c)
