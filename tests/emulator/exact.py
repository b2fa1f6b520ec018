"""Rounding by exact rational arithmetic: where expected values of the opcode tests come from."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

# digits of significand, smallest exponent, largest exponent
FORMATS = {
    "f64": (53, -1022, 1023),
    "f32": (24, -126, 127),
    "tf32": (11, -126, 127),
    "f16": (11, -14, 15),
    "bf16": (8, -126, 127),
}


def whole(value: Fraction, mode: str) -> int:
    """Round a rational to an integer."""
    low = math.floor(value)
    rest = value - low
    if rest == 0:
        return low
    if mode == "rm":
        return low
    if mode == "rp":
        return low + 1
    if mode == "rz":
        return low if value > 0 else low + 1
    if rest == Fraction(1, 2):
        if mode == "rna":
            return low + 1 if value > 0 else low
        return low if low % 2 == 0 else low + 1
    return low + 1 if rest > Fraction(1, 2) else low


def rounded(value: Fraction, form: str, mode: str = "rn") -> float:
    """Round a rational to a format; a zero result has no sign here."""
    digits, low, high = FORMATS[form]
    if value == 0:
        return 0.0
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    exponent = max(exponent, low)
    quantum = Fraction(2) ** (exponent - digits + 1)
    result = whole(value / quantum, mode) * quantum
    top = (2 - Fraction(2) ** (1 - digits)) * Fraction(2) ** high
    if abs(result) > top:
        up = mode in ("rn", "rna") or ((mode == "rp") == (value > 0) and mode != "rz")
        return math.copysign(math.inf if up else float(top), float(value > 0) - 0.5)
    return float(result)


def numbers(values: np.ndarray) -> list[Fraction]:
    return [Fraction(float(v)) for v in values]


def halves(bits: np.ndarray, form: str) -> np.ndarray:
    """uint16 bits of a half to float64."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        if form == "f16":
            return bits.view(np.float16).astype(np.float64)
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
