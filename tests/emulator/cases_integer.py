"""Integer operations; expected values by Python's integers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from tests.emulator.harness import Case

DTYPES = {f"{c}{b}": np.dtype(f"{n}{b}") for c, n in (("u", "uint"), ("s", "int"), ("b", "uint"))
          for b in (8, 16, 32, 64)}  # fmt: skip
rng = np.random.default_rng(1)


def edge(kind: str, count: int = 96, seed: int = 0) -> np.ndarray:
    """Numbers at the ends of the range, small ones, and random ones."""
    dtype = DTYPES[kind]
    info = np.iinfo(dtype)
    few = [0, 1, 2, 3, 7, info.max, info.max - 1, info.min, info.min + 1, info.max // 3]
    few += [-1, -2, -7] if info.min < 0 else [1 << (dtype.itemsize * 8 - 1)]
    source = np.random.default_rng(seed)
    values = source.integers(info.min, info.max, count, dtype, endpoint=True)
    values[: len(few)] = np.array(few, dtype)
    values[len(few) : 2 * len(few)] = values[: len(few)][::-1]
    source.shuffle(values)
    return values


def by_int(function: Callable[..., int], kind: str, *sources: np.ndarray) -> np.ndarray:
    """Apply a function of Python integers, and wrap."""
    dtype = DTYPES[kind]
    mask = (1 << 8 * dtype.itemsize) - 1
    bits = [function(*(int(v) for v in row)) & mask for row in zip(*sources, strict=True)]
    return np.array(bits, np.dtype(f"uint{8 * dtype.itemsize}")).view(dtype)


def case(text: str, kind: str, function: Callable[..., int], *sources: np.ndarray) -> Case:
    return Case(text, sources, (by_int(function, kind, *sources),))


def trunc_div(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def cases() -> Iterator[Case]:
    yield from arithmetic()
    yield from logic_and_shifts()
    yield from bit_fields()
    yield from special()


def arithmetic() -> Iterator[Case]:
    for kind in ("u16", "s16", "u32", "s32", "u64", "s64"):
        a, b, c = (edge(kind, seed=s) for s in (1, 2, 3))
        bits = int(kind[1:])
        nonzero = np.where(b == 0, b.dtype.type(5), b)
        yield case(f"add.{kind} {{0}}, {{a}}, {{b}};", kind, lambda x, y: x + y, a, b)
        yield case(f"sub.{kind} {{0}}, {{a}}, {{b}};", kind, lambda x, y: x - y, a, b)
        yield case(f"mul.lo.{kind} {{0}}, {{a}}, {{b}};", kind, lambda x, y: x * y, a, b)
        yield case(
            f"mul.hi.{kind} {{0}}, {{a}}, {{b}};", kind, lambda x, y, n=bits: x * y >> n, a, b
        )
        yield case(
            f"mad.lo.{kind} {{0}}, {{a}}, {{b}}, {{c}};", kind, lambda x, y, z: x * y + z, a, b, c
        )
        yield case(
            f"mad.hi.{kind} {{0}}, {{a}}, {{b}}, {{c}};",
            kind,
            lambda x, y, z, n=bits: (x * y >> n) + z,
            a,
            b,
            c,
        )
        yield case(f"div.{kind} {{0}}, {{a}}, {{b}};", kind, trunc_div, a, nonzero)
        yield case(
            f"rem.{kind} {{0}}, {{a}}, {{b}};",
            kind,
            lambda x, y: x - trunc_div(x, y) * y,
            a,
            nonzero,
        )
        yield case(f"min.{kind} {{0}}, {{a}}, {{b}};", kind, min, a, b)
        yield case(f"max.{kind} {{0}}, {{a}}, {{b}};", kind, max, a, b)
        yield case(
            f"sad.{kind} {{0}}, {{a}}, {{b}}, {{c}};",
            kind,
            lambda x, y, z: z + abs(x - y),
            a,
            b,
            c,
        )
        if kind[0] == "s":
            yield case(f"neg.{kind} {{0}}, {{a}};", kind, lambda x: -x, a)
            yield case(f"abs.{kind} {{0}}, {{a}};", kind, abs, a)
        if bits < 64:
            wide = f"{kind[0]}{2 * bits}"
            more = edge(wide, seed=4)
            yield case(f"mul.wide.{kind} {{0}}, {{a}}, {{b}};", wide, lambda x, y: x * y, a, b)
            yield case(
                f"mad.wide.{kind} {{0}}, {{a}}, {{b}}, {{c}};",
                wide,
                lambda x, y, z: x * y + z,
                a,
                b,
                more,
            )
    a, b = edge("s32", seed=5), edge("s32", seed=6)
    for name, sign in (("add", 1), ("sub", -1)):
        yield case(
            f"{name}.sat.s32 {{0}}, {{a}}, {{b}};",
            "s32",
            lambda x, y, s=sign: max(-(1 << 31), min((1 << 31) - 1, x + s * y)),
            a,
            b,
        )
    for kind in ("u32", "s32"):
        a, b = edge(kind, seed=7), edge(kind, seed=8)
        for part, shift in (("lo", 0), ("hi", 16)):
            yield case(
                f"mul24.{part}.{kind} {{0}}, {{a}}, {{b}};",
                kind,
                lambda x, y, n=shift, s=kind[0] == "s": low24(x, s) * low24(y, s) >> n,
                a,
                b,
            )


def low24(value: int, signed: bool) -> int:
    value &= (1 << 24) - 1
    return value - (1 << 24) if signed and value >> 23 else value


def logic_and_shifts() -> Iterator[Case]:
    for kind in ("b16", "b32", "b64"):
        a, b = edge(kind, seed=11), edge(kind, seed=12)
        bits = int(kind[1:])
        yield case(f"and.{kind} {{0}}, {{a}}, {{b}};", kind, lambda x, y: x & y, a, b)
        yield case(f"or.{kind} {{0}}, {{a}}, {{b}};", kind, lambda x, y: x | y, a, b)
        yield case(f"xor.{kind} {{0}}, {{a}}, {{b}};", kind, lambda x, y: x ^ y, a, b)
        yield case(f"not.{kind} {{0}}, {{a}};", kind, lambda x: ~x, a)
        yield case(f"cnot.{kind} {{0}}, {{a}};", kind, lambda x: int(x == 0), a)
        amounts = rng.integers(0, 2 * bits + 3, len(a)).astype(np.uint32)
        yield case(
            f"shl.{kind} {{0}}, {{a}}, {{b}};",
            kind,
            lambda x, n, w=bits: x << n if n < w else 0,
            a,
            amounts,
        )
        yield case(f"shl.{kind} {{0}}, {{a}}, 3;", kind, lambda x: x << 3, a)
        for letter in "ubs":
            signed = f"{letter}{bits}"
            values = edge(signed, seed=13)
            yield case(
                f"shr.{signed} {{0}}, {{a}}, {{b}};", signed, lambda x, n: x >> n, values, amounts
            )
            yield case(f"shr.{signed} {{0}}, {{a}}, 5;", signed, lambda x: x >> 5, values)
    a, b, n = edge("u32", seed=14), edge("u32", seed=15), rng.integers(0, 70, 96).astype(np.uint32)
    for way, mode in itertools.product("lr", ("wrap", "clamp")):

        def funnel(x: int, y: int, by: int, way: str = way, mode: str = mode) -> int:
            by = by % 32 if mode == "wrap" else min(by, 32)
            both = y << 32 | x
            return both << by >> 32 if way == "l" else both >> by

        yield case(f"shf.{way}.{mode}.b32 {{0}}, {{a}}, {{b}}, {{c}};", "u32", funnel, a, b, n)
    p, q = rng.random(64) < 0.5, rng.random(64) < 0.5
    for name, function in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
        yield Case(f"{name}.pred {{0}}, {{a}}, {{b}};", (p, q), (function(p, q),))
    yield Case("not.pred {0}, {a};", (p,), (~p,))
    yield Case("mov.pred {0}, {a};", (p,), (p,))


def bit_fields() -> Iterator[Case]:
    for bits in (32, 64):
        a, b = edge(f"b{bits}", seed=21), edge(f"b{bits}", seed=22)
        yield Case(
            f"popc.b{bits} {{0}}, {{a}};",
            (a,),
            (np.array([int(x).bit_count() for x in a], np.uint32),),
        )
        yield Case(
            f"clz.b{bits} {{0}}, {{a}};",
            (a,),
            (np.array([bits - int(x).bit_length() for x in a], np.uint32),),
        )
        yield case(
            f"brev.b{bits} {{0}}, {{a}};",
            f"b{bits}",
            lambda x, n=bits: int(f"{x:0{n}b}"[::-1], 2),
            a,
        )
        start = rng.integers(0, bits + 8, 96).astype(np.uint32)
        length = rng.integers(0, bits + 8, 96).astype(np.uint32)
        yield case(
            f"bfi.b{bits} {{0}}, {{a}}, {{b}}, {{c}}, {{d}};",
            f"b{bits}",
            lambda x, y, p, n, w=bits: insert(x, y, p, n, w),
            a,
            b,
            start,
            length,
        )
        for letter in "us":
            kind = f"{letter}{bits}"
            values = edge(kind, seed=23)
            yield case(
                f"bfe.{kind} {{0}}, {{a}}, {{b}}, {{c}};",
                kind,
                lambda x, p, n, w=bits, s=letter == "s": extract(x, p, n, w, s),
                values,
                start,
                length,
            )
            for mode in ("", ".shiftamt"):
                yield Case(
                    f"bfind{mode}.{kind} {{0}}, {{a}};",
                    (values,),
                    (np.array([find(int(x), bits, mode) for x in values], np.uint32),),
                )


def insert(a: int, b: int, start: int, length: int, bits: int) -> int:
    for i in range(length):
        if start + i < bits:
            b = b & ~(1 << start + i) | (a >> i & 1) << start + i
    return b


def extract(a: int, start: int, length: int, bits: int, signed: bool) -> int:
    raw = a & ((1 << bits) - 1)
    result = 0
    if signed and length > 0:
        top = raw >> min(start + length - 1, bits - 1) & 1
        result = -1 if top else 0
    for i in range(min(length, bits)):
        if start + i < bits:
            bit = raw >> start + i & 1
        elif signed:
            bit = raw >> bits - 1 & 1
        else:
            bit = 0
        result = result & ~(1 << i) | bit << i
    return result if length else 0


def find(value: int, bits: int, mode: str) -> int:
    value = ~value if value < 0 else value
    at = value.bit_length() - 1
    if at < 0:
        return 0xFFFFFFFF
    return bits - 1 - at if mode else at


def special() -> Iterator[Case]:
    a, b, c = (edge("u32", seed=s) for s in (31, 32, 33))
    yield case("prmt.b32 {0}, {a}, {b}, {c};", "u32", permute, a, b, c)
    yield case(
        "prmt.b32 {0}, {a}, {b}, 0x5410;", "u32", lambda x, y: x & 0xFFFF | (y & 0xFFFF) << 16, a, b
    )
    for truth in (0x80, 0xFE, 0x96, 0xE4, 0x1B):
        yield case(
            f"lop3.b32 {{0}}, {{a}}, {{b}}, {{c}}, {truth};",
            "u32",
            lambda x, y, z, t=truth: sum(
                (t >> (4 * (x >> i & 1) + 2 * (y >> i & 1) + (z >> i & 1)) & 1) << i
                for i in range(32)
            ),
            a,
            b,
            c,
        )
    for left, right in itertools.product(("u32", "s32"), repeat=2):
        kind = "s32" if "s32" in (left, right) else "u32"
        z = edge(kind, seed=34)

        def dot(x: int, y: int, z: int, left: str = left, right: str = right) -> int:
            return z + sum(part(x, 8 * i, 8, left) * part(y, 8 * i, 8, right) for i in range(4))

        yield case(f"dp4a.{left}.{right} {{0}}, {{a}}, {{b}}, {{c}};", kind, dot, a, b, z)
        for half, base in (("lo", 0), ("hi", 16)):

            def pairs(
                x: int, y: int, z: int, left: str = left, right: str = right, base: int = base
            ) -> int:
                return z + sum(
                    part(x, 16 * i, 16, left) * part(y, base + 8 * i, 8, right) for i in range(2)
                )

            yield case(
                f"dp2a.{half}.{left}.{right} {{0}}, {{a}}, {{b}}, {{c}};", kind, pairs, a, b, z
            )


def permute(a: int, b: int, selectors: int) -> int:
    both, result = b << 32 | a, 0
    for i in range(4):
        selector = selectors >> 4 * i & 15
        octet = both >> 8 * (selector & 7) & 255
        result |= (255 * (octet >> 7) if selector & 8 else octet) << 8 * i
    return result


def part(value: int, start: int, bits: int, kind: str) -> int:
    field = value >> start & ((1 << bits) - 1)
    return field - (1 << bits) if kind[0] == "s" and field >> bits - 1 else field
