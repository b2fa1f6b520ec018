"""Conversions between all pairs of types; expected values by exact fractions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from tests.emulator.cases_float import edge as float_edge
from tests.emulator.cases_half import to_bits
from tests.emulator.cases_integer import DTYPES
from tests.emulator.cases_integer import edge as int_edge
from tests.emulator.exact import FORMATS, halves, rounded, whole
from tests.emulator.harness import Case

INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
FLOAT_DTYPES = {"f32": "float32", "f64": "float64"}


def float_source(form: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stored values and what they mean in float64."""
    if form in FLOAT_DTYPES:
        values = float_edge(FLOAT_DTYPES[form], 96, seed)
        values[20:24] = [2.5, -3.5, 0.5, 1e10]
        return values, values.astype(np.float64)
    bits = np.random.default_rng(seed).integers(0, 1 << 16, 96).astype(np.uint16)
    bits[:6] = to_bits([0.0, -0.0, math.inf, -math.inf, math.nan, 2.5], form)
    return bits, halves(bits, form)


def to_float(value: float, form: str, mode: str) -> float:
    if math.isnan(value) or math.isinf(value):
        return value
    if value == 0:
        return value
    result = rounded(Fraction(value), form, mode)
    return math.copysign(result, value)


def stored(values: list[float], form: str) -> np.ndarray:
    if form in ("f16", "bf16"):
        return to_bits(values, form)
    dtype = np.float64 if form == "f64" else np.float32
    with np.errstate(all="ignore"):
        return np.array(values, np.float64).astype(dtype)


def clamp(value: int, kind: str) -> int:
    info = np.iinfo(DTYPES[kind])
    return max(info.min, min(info.max, value))


def register_type(kind: str) -> np.dtype:
    """8-bit values live in 16-bit registers; keep all of what a conversion leaves there."""
    return np.dtype("uint16" if kind == "u8" else "int16") if kind.endswith("8") else DTYPES[kind]


def cases() -> Iterator[Case]:
    yield from between_integers()
    yield from float_to_integer()
    yield from integer_to_float()
    yield from between_floats()
    yield from pairs()


def between_integers() -> Iterator[Case]:
    for target, source in itertools.product(INTEGERS, repeat=2):
        values = int_edge(source, seed=1)
        info = np.iinfo(DTYPES[target])
        width = info.max - info.min + 1
        wrapped = [(int(v) - info.min) % width + info.min for v in values]
        stored_values = (
            values if values.dtype.itemsize > 1 else values.astype(register_type(source))
        )
        for sat, want in (("", wrapped), (".sat", [clamp(int(v), target) for v in values])):
            yield Case(
                f"cvt{sat}.{target}.{source} {{0}}, {{a}};",
                (stored_values,),
                (np.array(want, register_type(target)),),
            )


def float_to_integer() -> Iterator[Case]:
    modes = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}
    for source, target in itertools.product(("f16", "bf16", "f32", "f64"), INTEGERS):
        if source == "bf16" and target.endswith("8"):
            continue
        values, meaning = float_source(source, 2)
        for name, mode in modes.items():
            want = []
            for value in meaning:
                if math.isnan(value):
                    want.append(0)
                elif math.isinf(value):
                    want.append(clamp(int(math.copysign(1 << 70, value)), target))
                else:
                    want.append(clamp(whole(Fraction(value), mode), target))
            yield Case(
                f"cvt.{name}.{target}.{source} {{0}}, {{a}};",
                (values,),
                (np.array(want, register_type(target)),),
            )


def integer_to_float() -> Iterator[Case]:
    for source, target in itertools.product(INTEGERS, ("f16", "bf16", "f32", "f64")):
        values = int_edge(source, seed=3)
        held = values if values.dtype.itemsize > 1 else values.astype(register_type(source))
        for mode in ("rn", "rz", "rm", "rp"):
            want = [rounded(Fraction(int(v)), target, mode) for v in values]
            yield Case(
                f"cvt.{mode}.{target}.{source} {{0}}, {{a}};", (held,), (stored(want, target),)
            )


def between_floats() -> Iterator[Case]:
    forms = ("f16", "bf16", "f32", "f64")
    for source, target in itertools.product(forms, repeat=2):
        if source == target:
            continue
        values, meaning = float_source(source, 4)
        wider = FORMATS[target][0] >= FORMATS[source][0] and target != "f16" and source != "f16"
        wider = wider or (source == "f16" and target in ("f32", "f64"))
        for mode in ("",) if wider else ("rn", "rz", "rm", "rp"):
            want = [to_float(v, target, mode or "rn") for v in meaning]
            dot = f".{mode}" if mode else ""
            yield Case(
                f"cvt{dot}.{target}.{source} {{0}}, {{a}};", (values,), (stored(want, target),)
            )
    modes = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}
    for form in ("f16", "f32", "f64"):
        values, meaning = float_source(form, 5)
        for name, mode in modes.items():
            want = [
                math.copysign(float(whole(Fraction(v), mode)), v) if math.isfinite(v) else v
                for v in meaning
            ]
            yield Case(f"cvt.{name}.{form}.{form} {{0}}, {{a}};", (values,), (stored(want, form),))
    values, meaning = float_source("f32", 6)
    tf32 = stored([to_float(v, "tf32", "rna") for v in meaning], "f32")
    yield Case("cvt.rna.tf32.f32 {0}, {a};", (values,), (tf32,))
    clipped = [0.0 if math.isnan(v) else min(max(v, 0.0), 1.0) for v in meaning]
    want = np.array([abs(v) if v == 0 else v for v in clipped], np.float32)
    yield Case("cvt.sat.f32.f32 {0}, {a};", (values,), (want,))
    yield Case(
        "cvt.rn.relu.f16.f32 {0}, {a};",
        (values,),
        (
            stored(
                [0.0 if v < 0 else to_float(abs(v) if v == 0 else v, "f16", "rn") for v in meaning],
                "f16",
            ),
        ),
    )


def pairs() -> Iterator[Case]:
    high, high_meaning = float_source("f32", 7)
    low, low_meaning = float_source("f32", 8)
    for form, mode in itertools.product(("f16", "bf16"), ("rn", "rz")):
        parts = [
            stored([to_float(v, form, mode) for v in meaning], form)
            for meaning in (low_meaning, high_meaning)
        ]
        want = np.ascontiguousarray(np.stack(parts, axis=1)).view(np.uint32).reshape(-1)
        yield Case(f"cvt.{mode}.{form}x2.f32 {{0}}, {{a}}, {{b}};", (high, low), (want,))
        relu = [np.where((p >> 15 == 1) & (p != 0x7FFF), np.uint16(0), p) for p in parts]
        want = np.ascontiguousarray(np.stack(relu, axis=1)).view(np.uint32).reshape(-1)
        yield Case(f"cvt.{mode}.relu.{form}x2.f32 {{0}}, {{a}}, {{b}};", (high, low), (want,))
    a, b, c = int_edge("s32", seed=9), int_edge("s32", seed=10), int_edge("u32", seed=11)
    for kind in ("s8", "u8"):
        want_bits = [
            (int(z) & 0xFFFF) << 16 | (clamp(int(x), kind) & 0xFF) << 8 | clamp(int(y), kind) & 0xFF
            for x, y, z in zip(a, b, c, strict=True)
        ]
        yield Case(
            f"cvt.pack.sat.{kind}.s32.b32 {{0}}, {{a}}, {{b}}, {{c}};",
            (a, b, c),
            (np.array(want_bits, np.uint32),),
        )
    for kind in ("s16", "u16"):
        want_bits = [
            (clamp(int(x), kind) & 0xFFFF) << 16 | clamp(int(y), kind) & 0xFFFF
            for x, y in zip(a, b, strict=True)
        ]
        yield Case(
            f"cvt.pack.sat.{kind}.s32 {{0}}, {{a}}, {{b}};",
            (a, b),
            (np.array(want_bits, np.uint32),),
        )
