"""Operations of float32 and float64, in every rounding mode; expected values by exact fractions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from tests.emulator.exact import rounded
from tests.emulator.harness import Case

MODES = ("rn", "rz", "rm", "rp")
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 3.0]


def edge(dtype: str, count: int = 128, seed: int = 0, *, special: bool = True) -> np.ndarray:
    """Random numbers of many sizes, subnormal ones, neighbours of one, and special values."""
    source = np.random.default_rng(seed)
    info = np.finfo(dtype)
    values = source.standard_normal(count) * 2.0 ** source.integers(-20, 20, count)
    values[: count // 4] = source.standard_normal(count // 4)
    values[-8:] = np.array([1, 3, -5, 7, 11, -2, 9, 1]) * float(info.smallest_subnormal)
    values[-16:-8] = 1.0 + source.integers(-3, 4, 8) * float(info.eps)
    out = values.astype(dtype)
    if special:
        out[: len(SPECIAL)] = SPECIAL
        out[len(SPECIAL)] = info.max
    return out


def exact(
    function: Callable[..., Fraction], form: str, mode: str, *sources: np.ndarray
) -> np.ndarray:
    """Round an exact result; where it is zero or a source is not finite, take IEEE's by NumPy."""
    out = []
    for row in zip(*sources, strict=True):
        out.append(rounded(function(*(Fraction(float(v)) for v in row)), form, mode))
    return np.array(out).astype({"f32": np.float32, "f64": np.float64}[form])


def finite(dtype: str, seed: int, count: int = 96) -> np.ndarray:
    values = edge(dtype, count, seed, special=False)
    return np.where(values == 0, values.dtype.type(1.5), values)


def rounding() -> Iterator[Case]:
    """Sums, products and fused ones of finite numbers whose exact result is not zero."""
    for form in ("f32", "f64"):
        dtype = {"f32": "float32", "f64": "float64"}[form]
        a, b, c = (finite(dtype, s) for s in (1, 2, 3))
        half_ulp = np.where(np.arange(len(a)) % 3 == 0, dtype_scale(a), c)  # ties on purpose
        for mode in MODES:
            for name, function in (
                ("add", lambda x, y: x + y),
                ("sub", lambda x, y: x - y),
                ("mul", lambda x, y: x * y),
            ):
                y = half_ulp.astype(dtype) if name != "mul" else b
                keep = np.array(
                    [
                        function(Fraction(float(p)), Fraction(float(q))) != 0
                        for p, q in zip(a, y, strict=True)
                    ]
                )
                if name == "mul" and form == "f64":
                    keep &= np.abs(a.astype(np.float64) * y) > 1e-290
                yield Case(
                    f"{name}.{mode}.{form} {{0}}, {{a}}, {{b}};",
                    (a[keep], y[keep]),
                    (exact(function, form, mode, a[keep], y[keep]),),
                )
            if form == "f64" and mode != "rn":
                continue
            tie = np.where(np.arange(len(a)) % 2 == 0, -(a.astype(np.float64) * b), c).astype(dtype)
            keep = np.array(
                [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) != 0
                 for x, y, z in zip(a, b, tie, strict=True)]
            )  # fmt: skip
            if form == "f64":
                keep &= np.abs(a * b) > 1e-290
            sources = (a[keep], b[keep], tie[keep])
            yield Case(
                f"fma.{mode}.{form} {{0}}, {{a}}, {{b}}, {{c}};",
                sources,
                (exact(lambda x, y, z: x * y + z, form, mode, *sources),),
            )
    yield from near_ties()
    yield from quotients()


def dtype_scale(a: np.ndarray) -> np.ndarray:
    """Half a unit in the last place of each number."""
    return np.spacing(np.abs(a)) / 2


def near_ties() -> Iterator[Case]:
    """Products next to the middle of two float32: rounding through float64 goes wrong there."""
    source = np.random.default_rng(7)
    a = (1 + source.integers(1, 2**11, 96) * 2.0**-11).astype(np.float32)
    b = (1 + (2 * source.integers(0, 2**12, 96) + 1) * 2.0**-13).astype(np.float32)
    c = (source.choice([-1, 1], 96) * 2.0 ** source.integers(-90, -60, 96)).astype(np.float32)
    for mode in MODES:
        yield Case(
            f"fma.{mode}.f32 {{0}}, {{a}}, {{b}}, {{c}};",
            (a, b, c),
            (exact(lambda x, y, z: x * y + z, "f32", mode, a, b, c),),
            name=f"near-tie {mode}",
        )


def quotients() -> Iterator[Case]:
    a, b = finite("float32", 4), finite("float32", 5)
    b = np.where(np.abs(b) < 1e-30, np.float32(0.3), b)
    positive = np.abs(a)
    one = np.ones_like(b)
    for mode in MODES:
        yield Case(
            f"div.{mode}.f32 {{0}}, {{a}}, {{b}};",
            (a, b),
            (exact(lambda x, y: x / y, "f32", mode, a, b),),
        )
        yield Case(
            f"rcp.{mode}.f32 {{0}}, {{a}};",
            (b,),
            (exact(lambda x, y: x / y, "f32", mode, one, b),),
        )
        yield Case(f"sqrt.{mode}.f32 {{0}}, {{a}};", (positive,), (roots(positive, mode),))
    c, d = finite("float64", 6), finite("float64", 7)
    d = np.where(np.abs(d) < 1e-290, 0.3, d)
    yield Case("div.rn.f64 {0}, {a}, {b};", (c, d), (exact(lambda x, y: x / y, "f64", "rn", c, d),))
    yield Case("rcp.rn.f64 {0}, {a};", (d,), (exact(lambda x: 1 / x, "f64", "rn", d),))
    yield Case(
        "sqrt.rn.f64 {0}, {a};", (np.abs(c),), (np.array([math.sqrt(x) for x in np.abs(c)]),)
    )
    yield Case("rcp.approx.ftz.f64 {0}, {a};", (d,), (1 / d,), relative=2e-6)
    yield Case("rsqrt.approx.f64 {0}, {a};", (np.abs(d),), (1 / np.sqrt(np.abs(d)),), relative=2e-6)
    yield Case("div.full.f32 {0}, {a}, {b};", (a, b), (a / b,), relative=5e-7)
    yield Case("div.approx.f32 {0}, {a}, {b};", (a, b), (a / b,), relative=5e-7)


def roots(values: np.ndarray, mode: str) -> np.ndarray:
    """Square roots by integers: isqrt of a number scaled up a lot."""
    out = []
    for value in values:
        fraction = Fraction(float(value))
        root = Fraction(math.isqrt(fraction.numerator * fraction.denominator << 400))
        root = root / (fraction.denominator << 200)
        if root * root != fraction:  # keep what isqrt cut off alive
            root += Fraction(1, fraction.denominator << 201)
        out.append(rounded(root, "f32", mode))
    return np.array(out, np.float32)


def plain() -> Iterator[Case]:
    """Special values, flushing and saturation."""
    for form, dtype in (("f32", "float32"), ("f64", "float64")):
        a, b = edge(dtype, seed=11), edge(dtype, seed=12)
        b = np.roll(b, 3)
        with np.errstate(all="ignore"):
            yield Case(f"add.{form} {{0}}, {{a}}, {{b}};", (a, b), (a + b,))
            yield Case(f"sub.{form} {{0}}, {{a}}, {{b}};", (a, b), (a - b,))
            yield Case(f"mul.{form} {{0}}, {{a}}, {{b}};", (a, b), (a * b,))
            yield Case(f"neg.{form} {{0}}, {{a}};", (a,), (-a,))
            yield Case(f"abs.{form} {{0}}, {{a}};", (a,), (np.abs(a),))
        yield Case(f"copysign.{form} {{0}}, {{a}}, {{b}};", (a, b), (np.copysign(b, a),))
        for name, pick in (("min", min), ("max", max)):
            want = [two(pick, x, y, nan=False) for x, y in zip(a, b, strict=True)]
            yield Case(f"{name}.{form} {{0}}, {{a}}, {{b}};", (a, b), (np.array(want, dtype),))
        for what, test in (
            ("finite", math.isfinite),
            ("infinite", math.isinf),
            ("number", lambda x: not math.isnan(x)),
            ("notanumber", math.isnan),
            ("normal", lambda x, d=dtype: math.isfinite(x) and abs(x) >= np.finfo(d).tiny),
            ("subnormal", lambda x, d=dtype: 0 < abs(x) < np.finfo(d).tiny),
        ):
            want = np.array([test(float(x)) for x in a])
            yield Case(f"testp.{what}.{form} {{0}}, {{a}};", (a,), (want,))
    yield from modified()


def two(pick: Callable[[float, float], float], a: float, b: float, *, nan: bool) -> float:
    if math.isnan(a) or math.isnan(b):
        return math.nan if nan or (math.isnan(a) and math.isnan(b)) else a if math.isnan(b) else b
    if a == b == 0:
        signs = [math.copysign(1, a), math.copysign(1, b)]
        return math.copysign(0.0, pick(signs))
    return pick(a, b)


def flushed(values: np.ndarray) -> np.ndarray:
    tiny = np.abs(values) < 2.0**-126
    return np.where(tiny, np.copysign(np.float32(0), values), values)


def modified() -> Iterator[Case]:
    a, b = edge("float32", seed=21), np.roll(edge("float32", seed=22), 5)
    small = (np.random.default_rng(3).standard_normal(128) * 2.0**-64).astype(np.float32)
    with np.errstate(all="ignore"):
        yield Case("add.ftz.f32 {0}, {a}, {b};", (a, b), (flushed(flushed(a) + flushed(b)),))
        yield Case("mul.ftz.f32 {0}, {a}, {b};", (small, small), (flushed(small * small),))
        total = a + b
        clipped = np.where(np.isnan(total), 0, np.clip(total, 0, 1)).astype(np.float32)
        yield Case("add.sat.f32 {0}, {a}, {b};", (a, b), (np.where(clipped == 0, 0, clipped),))
        yield Case("abs.ftz.f32 {0}, {a};", (a,), (np.abs(flushed(a)),))
        for name, pick in (("min", min), ("max", max)):
            want = [two(pick, x, y, nan=True) for x, y in zip(a, b, strict=True)]
            yield Case(
                f"{name}.NaN.f32 {{0}}, {{a}}, {{b}};", (a, b), (np.array(want, np.float32),)
            )
    # mad of float32 is a fused multiply-add
    x, y, z = (finite("float32", s) for s in (23, 24, 25))
    want = exact(lambda p, q, r: p * q + r, "f32", "rn", x, y, z)
    yield Case("mad.rn.f32 {0}, {a}, {b}, {c};", (x, y, z), (want,))
    yield from approximate()


def approximate() -> Iterator[Case]:
    """Within the error that PTX states for each function."""
    x = np.linspace(-30, 30, 128).astype(np.float32)
    positive = np.geomspace(1e-30, 1e30, 128).astype(np.float32)
    angle = np.linspace(-3, 3, 128).astype(np.float32)
    wide = np.float64
    for name, source, want in (
        ("ex2.approx", x, [2.0 ** float(v) for v in x]),
        ("ex2.approx.ftz", x, [2.0 ** float(v) for v in x]),
        ("lg2.approx", positive, [math.log2(float(v)) for v in positive]),
        ("lg2.approx.ftz", positive, [math.log2(float(v)) for v in positive]),
        ("sin.approx", angle, [math.sin(float(v)) for v in angle]),
        ("cos.approx", angle, [math.cos(float(v)) for v in angle]),
        ("tanh.approx", angle, [math.tanh(float(v)) for v in angle]),
        ("rsqrt.approx", positive, [float(v) ** -0.5 for v in positive]),
        ("rcp.approx.ftz", angle, [1 / float(v) for v in angle]),
        ("sqrt.approx.ftz", positive, [float(v) ** 0.5 for v in positive]),
    ):
        expected = np.array(want, wide).astype(np.float32)
        yield Case(f"{name}.f32 {{0}}, {{a}};", (source,), (expected,), relative=5e-7)


def cases() -> Iterator[Case]:
    yield from rounding()
    yield from plain()
