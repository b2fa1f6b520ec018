"""Operations of float16 and bfloat16, alone and in pairs; expected values by exact fractions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from tests.emulator.exact import halves, rounded
from tests.emulator.harness import Case


def to_bits(values: list[float], form: str) -> np.ndarray:
    """Values that the format holds exactly, to their bits; NaN to the canonical one."""
    with np.errstate(all="ignore"):
        if form == "f16":
            bits = np.array(values, np.float16).view(np.uint16)
        else:
            bits = (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), bits)


def random_bits(form: str, seed: int, count: int = 128) -> np.ndarray:
    """Any bits at all, but for NaN."""
    bits = np.random.default_rng(seed).integers(0, 1 << 16, count).astype(np.uint16)
    if form == "bf16":  # sizes whose products stay in range
        bits = (bits & 0x8FFF) | 0x3000
    return np.where(np.isfinite(halves(bits, form)), bits, np.uint16(0x3C00))


def exact(function: Callable[..., Fraction], form: str, *sources: np.ndarray) -> np.ndarray:
    values = [halves(s, form) for s in sources]
    out = [
        rounded(function(*(Fraction(float(v)) for v in row)), form)
        for row in zip(*values, strict=True)
    ]
    return to_bits(out, form)


def zero_sign(
    function: Callable[..., float], form: str, bits: np.ndarray, *sources: np.ndarray
) -> np.ndarray:
    """Give zeros the sign that IEEE gives them."""
    values = [halves(s, form) for s in sources]
    ieee = np.array([function(*(float(v) for v in row)) for row in zip(*values, strict=True)])
    return np.where((bits & 0x7FFF == 0) & np.signbit(ieee), np.uint16(0x8000), bits)


def paired(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits).view(np.uint32)


def both(
    op: str, form: str, places: str, sources: tuple[np.ndarray, ...], want: np.ndarray
) -> Iterator[Case]:
    """The operation on single halves and on pairs."""
    yield Case(f"{op}.{form} {{0}}, {places};", sources, (want,))
    yield Case(f"{op}.{form}x2 {{0}}, {places};", tuple(map(paired, sources)), (paired(want),))


def cases() -> Iterator[Case]:
    for form in ("f16", "bf16"):
        a, b, c = (random_bits(form, s) for s in (1, 2, 3))
        for name, function in (
            ("add", lambda x, y: x + y),
            ("sub", lambda x, y: x - y),
            ("mul", lambda x, y: x * y),
        ):
            want = zero_sign(function, form, exact(function, form, a, b), a, b)
            yield from both(f"{name}.rn", form, "{a}, {b}", (a, b), want)

        def fused(x: Fraction, y: Fraction, z: Fraction) -> Fraction:
            return x * y + z

        want = zero_sign(fused, form, exact(fused, form, a, b, c), a, b, c)
        yield from both("fma.rn", form, "{a}, {b}, {c}", (a, b, c), want)
        relu = np.where(want >> 15 == 1, np.uint16(0), want)
        yield from both("fma.rn.relu", form, "{a}, {b}, {c}", (a, b, c), relu)
        yield from both("neg", form, "{a}", (a,), a ^ np.uint16(0x8000))
        yield from both("abs", form, "{a}", (a,), a & np.uint16(0x7FFF))
        yield from extremes(form)
        yield from approximate(form)
    yield from modified()


def extremes(form: str) -> Iterator[Case]:
    a, b = random_bits(form, 4), random_bits(form, 5)
    nan = np.uint16(0x7FFF)
    a[:4], b[2:6] = nan, nan
    x, y = halves(a, form), halves(b, form)
    for name, pick in (("min", min), ("max", max)):
        rows = list(zip(x, y, strict=True))
        number = [q if math.isnan(p) else p if math.isnan(q) else pick(p, q) for p, q in rows]
        strict = [math.nan if math.isnan(p) or math.isnan(q) else pick(p, q) for p, q in rows]
        yield from both(name, form, "{a}, {b}", (a, b), to_bits(number, form))
        yield from both(f"{name}.NaN", form, "{a}, {b}", (a, b), to_bits(strict, form))


def approximate(form: str) -> Iterator[Case]:
    values = to_bits(
        [rounded(Fraction(v).limit_denominator(64), form) for v in np.linspace(-4, 4, 64)], form
    )
    x = halves(values, form)
    for name, function in (("ex2.approx", lambda v: 2.0**v), ("tanh.approx", math.tanh)):
        ftz = ".ftz" if form == "bf16" and name.startswith("ex2") else ""
        want = to_bits([rounded(Fraction(function(v)), form) for v in x], form)
        yield from both(f"{name}{ftz}", form, "{a}", (values,), want)


def modified() -> Iterator[Case]:
    """Saturation and flushing of float16."""
    a, b = random_bits("f16", 6), random_bits("f16", 7)

    def clip(x: Fraction, y: Fraction) -> Fraction:
        return min(max(x + y, Fraction(0)), Fraction(1))

    yield Case("add.sat.f16 {0}, {a}, {b};", (a, b), (exact(clip, "f16", a, b),))
    tiny = np.array([1, 0x3FF, 0x8001, 0x400, 0x83FF, 0x3C00], np.uint16)
    zero = np.zeros(6, np.uint16)
    want = np.array([0, 0, 0, 0x400, 0, 0x3C00], np.uint16)
    yield Case("add.ftz.f16 {0}, {a}, {b};", (tiny, zero), (want,))
