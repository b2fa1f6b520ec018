"""Comparisons, selections and moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from tests.emulator.cases_float import edge as float_edge
from tests.emulator.cases_half import random_bits
from tests.emulator.cases_integer import edge as int_edge
from tests.emulator.exact import halves
from tests.emulator.harness import Case

ORDERED: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def float_test(name: str, a: float, b: float) -> bool:
    """As PTX defines it: NaN makes ordered tests false and unordered ones true."""
    nan = math.isnan(a) or math.isnan(b)
    if name == "num":
        return not nan
    if name == "nan":
        return nan
    if name.endswith("u"):
        return nan or ORDERED[name[:-1]](a, b)
    return not nan and ORDERED[name](a, b)


FLOAT_TESTS = (*ORDERED, *(f"{n}u" for n in ORDERED), "num", "nan")


def close(seed: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays that are equal in many places."""
    a, b = int_edge(kind, seed=seed), int_edge(kind, seed=seed + 1)
    return a, np.where(np.arange(len(a)) % 3 == 0, a, b)


def cases() -> Iterator[Case]:
    yield from comparisons()
    yield from sets()
    yield from selections()
    yield from moves()


def comparisons() -> Iterator[Case]:
    for kind in ("u16", "s16", "b16", "u32", "s32", "b32", "u64", "s64", "b64"):
        a, b = close(1, kind)
        names = ("eq", "ne") if kind[0] == "b" else tuple(ORDERED)
        for name in names:
            want = np.array([ORDERED[name](int(x), int(y)) for x, y in zip(a, b, strict=True)])
            yield Case(f"setp.{name}.{kind} {{0}}, {{a}}, {{b}};", (a, b), (want,))
    a, b = close(5, "u32")
    for name, plain in UNSIGNED.items():
        want = np.array([ORDERED[plain](int(x), int(y)) for x, y in zip(a, b, strict=True)])
        yield Case(f"setp.{name}.u32 {{0}}, {{a}}, {{b}};", (a, b), (want,))
    for form, dtype in (("f32", "float32"), ("f64", "float64")):
        a, b = float_edge(dtype, seed=6), np.roll(float_edge(dtype, seed=6), 2)
        b = np.where(np.arange(len(a)) % 3 == 0, a, b)
        for name in FLOAT_TESTS:
            want = np.array([float_test(name, x, y) for x, y in zip(a, b, strict=True)])
            yield Case(f"setp.{name}.{form} {{0}}, {{a}}, {{b}};", (a, b), (want,))
    tiny = np.array([1e-40, -1e-40, 0, 1, 1e-40], np.float32)
    other = np.array([0, 0, 1e-39, 1, 1], np.float32)
    want = np.array([True, True, True, True, False])
    yield Case("setp.eq.ftz.f32 {0}, {a}, {b};", (tiny, other), (want,))
    yield from half_comparisons()
    yield from combined()


def half_comparisons() -> Iterator[Case]:
    for form in ("f16", "bf16"):
        a, b = random_bits(form, 8), random_bits(form, 9)
        a[:5], b[3:9] = 0x7FFF, 0x7FFF
        b[20:40] = a[20:40]
        x, y = halves(a, form), halves(b, form)
        pair_a, pair_b = (np.ascontiguousarray(v).view(np.uint32) for v in (a, b))
        for name in FLOAT_TESTS:
            want = np.array([float_test(name, p, q) for p, q in zip(x, y, strict=True)])
            yield Case(f"setp.{name}.{form} {{0}}, {{a}}, {{b}};", (a, b), (want,))
        low = np.array([float_test("lt", p, q) for p, q in zip(x[::2], y[::2], strict=True)])
        high = np.array([float_test("lt", p, q) for p, q in zip(x[1::2], y[1::2], strict=True)])
        yield Case(f"setp.lt.{form}x2 {{0}}|{{1}}, {{a}}, {{b}};", (pair_a, pair_b), (low, high))


def combined() -> Iterator[Case]:
    a, b = close(10, "s32")
    c = np.random.default_rng(1).random(len(a)) < 0.5
    for name, function in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
        less = a < b
        yield Case(
            f"setp.lt.{name}.s32 {{0}}|{{1}}, {{a}}, {{b}}, {{c}};",
            (a, b, c),
            (function(less, c), function(~less, c)),
        )
        yield Case(
            f"setp.lt.{name}.s32 {{0}}, {{a}}, {{b}}, !{{c}};", (a, b, c), (function(less, ~c),)
        )
    yield Case("setp.eq.s32 {0}|{1}, {a}, {b};", (a, b), (a == b, a != b))


def sets() -> Iterator[Case]:
    for form, one in (("f16", 0x3C00), ("bf16", 0x3F80)):
        a, b = random_bits(form, 11), random_bits(form, 12)
        a[:5] = 0x7FFF
        x, y = halves(a, form), halves(b, form)
        true = np.array([float_test("gtu", p, q) for p, q in zip(x, y, strict=True)])
        want = np.where(true, np.uint16(one), np.uint16(0))
        yield Case(f"set.gtu.{form}.{form} {{0}}, {{a}}, {{b}};", (a, b), (want,))
        pairs = tuple(np.ascontiguousarray(v).view(np.uint32) for v in (a, b))
        yield Case(
            f"set.gtu.{form}x2.{form}x2 {{0}}, {{a}}, {{b}};",
            pairs,
            (np.ascontiguousarray(want).view(np.uint32),),
        )
    a, b = close(13, "s32")
    ones = np.where(a <= b, np.uint32(0xFFFFFFFF), np.uint32(0))
    yield Case("set.le.u32.s32 {0}, {a}, {b};", (a, b), (ones,))
    x, y = float_edge("float32", seed=14), float_edge("float32", seed=15)
    true = np.array([float_test("lt", p, q) for p, q in zip(x, y, strict=True)])
    yield Case("set.lt.f32.f32 {0}, {a}, {b};", (x, y), (true.astype(np.float32),))
    yield Case("set.le.s32.s32 {0}, {a}, {b};", (a, b), (ones,))
    yield Case(
        "set.lt.s32.f32 {0}, {a}, {b};",
        (x, y),
        (np.where(true, np.uint32(0xFFFFFFFF), np.uint32(0)),),
    )


def selections() -> Iterator[Case]:
    choice = np.random.default_rng(2).random(96) < 0.5
    for kind in ("u16", "s16", "b16", "u32", "s32", "b32", "u64", "s64", "b64"):
        a, b = int_edge(kind, seed=16), int_edge(kind, seed=17)
        yield Case(
            f"selp.{kind} {{0}}, {{a}}, {{b}}, {{c}};", (a, b, choice), (np.where(choice, a, b),)
        )
    for form, dtype in (("f32", "float32"), ("f64", "float64")):
        x, y = float_edge(dtype, 96, seed=18), float_edge(dtype, 96, seed=19)
        yield Case(
            f"selp.{form} {{0}}, {{a}}, {{b}}, {{c}};", (x, y, choice), (np.where(choice, x, y),)
        )
        sign = int_edge("s32", seed=20)
        yield Case(
            f"slct.{form}.s32 {{0}}, {{a}}, {{b}}, {{c}};",
            (x, y, sign),
            (np.where(sign >= 0, x, y),),
        )
    sign32 = float_edge("float32", 96, seed=21)
    for kind in ("b16", "b32", "b64", "u32", "s32", "u64", "s64"):
        a, b = int_edge(kind, seed=22), int_edge(kind, seed=23)
        with np.errstate(invalid="ignore"):
            want = np.where(sign32 >= 0, a, b)
        yield Case(f"slct.{kind}.f32 {{0}}, {{a}}, {{b}}, {{c}};", (a, b, sign32), (want,))


def moves() -> Iterator[Case]:
    for kind in ("b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64"):
        a = int_edge(kind, seed=24)
        yield Case(f"mov.{kind} {{0}}, {{a}};", (a,), (a,))
    for form, dtype in (("f32", "float32"), ("f64", "float64")):
        x = float_edge(dtype, seed=25)
        yield Case(f"mov.{form} {{0}}, {{a}};", (x,), (x,))
    words = np.arange(64, dtype=np.uint32)
    yield Case("mov.u32 {0}, %tid.x;", (), (words,))
    yield Case("mov.u32 {0}, %laneid;", (), (words % 32,))
    yield Case("mov.b32 {0}, 0f3F800000;", (), (np.full(8, 1.0, np.float32),))
    yield Case("mov.f32 {0}, 0fC0490FDB;", (), (np.full(8, -np.pi, np.float32),))
    yield Case("mov.f64 {0}, 0d4005BF0A8B145769;", (), (np.full(8, math.e),))
    yield Case("mov.u32 {0}, 0x8000U;", (), (np.full(8, 0x8000, np.uint32),))
    yield Case("mov.u32 {0}, -2;", (), (np.full(8, 0xFFFFFFFE, np.uint32),))
    low, high = int_edge("u16", seed=26), int_edge("u16", seed=27)
    joined = low.astype(np.uint32) | high.astype(np.uint32) << 16
    yield Case("mov.b32 {0}, {{{a}, {b}}};", (low, high), (joined,))
    yield Case("mov.b32 {{{0}, {1}}}, {a};", (joined,), (low, high))
    lower, upper = int_edge("u32", seed=28), int_edge("u32", seed=29)
    wide = lower.astype(np.uint64) | upper.astype(np.uint64) << 32
    yield Case("mov.b64 {0}, {{{a}, {b}}};", (lower, upper), (wide,))
    yield Case("mov.b64 {{{0}, {1}}}, {a};", (wide,), (lower, upper))
    yield Case("mov.b64 {{_, {0}}}, {a};", (wide,), (upper,))
