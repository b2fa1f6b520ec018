"""Tensor instructions; fragments are taken apart and put together lane by lane.

The positions are those of the PTX manual: lane l holds, with g = l / 4 and t = l % 4, rows g and
g + 8 of A and of C, column g of B.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from tests.emulator.cases_half import to_bits
from tests.emulator.harness import Case

WARPS = 2
THREADS = 32 * WARPS
WIDTH = {"f16": 16, "bf16": 16, "tf32": 32, "s8": 8, "u8": 8}


def bits_of(matrix: np.ndarray, kind: str) -> np.ndarray:
    """Elements as unsigned integers of their width."""
    if kind in ("f16", "bf16"):
        return to_bits(list(matrix.reshape(-1)), kind).reshape(matrix.shape).astype(np.uint64)
    if kind == "tf32":
        return matrix.astype(np.float32).view(np.uint32).astype(np.uint64)
    return (matrix.astype(np.int64) & 0xFF).astype(np.uint64)


def register(elements: list[int], kind: str) -> int:
    return sum(int(e) << WIDTH[kind] * i for i, e in enumerate(elements))


def fragment_a(a: np.ndarray, kind: str) -> list[np.ndarray]:
    """A (WARPS, rows, K) to registers over the threads."""
    bits = bits_of(a, kind)
    each = 32 // WIDTH[kind]
    rows, k = a.shape[1:]
    registers = []
    for block_k, block_m in itertools.product(range(k // (4 * each)), range(rows // 8)):
        values = []
        for thread in range(THREADS):
            g, t = thread % 32 // 4, thread % 4
            start = 4 * each * block_k + each * t
            row = bits[thread // 32, 8 * block_m + g]
            values.append(register(list(row[start : start + each]), kind))
        registers.append(np.array(values, np.uint32))
    return registers


def fragment_b(b: np.ndarray, kind: str) -> list[np.ndarray]:
    """B (WARPS, K, 8) to registers."""
    return fragment_a(np.ascontiguousarray(b.transpose(0, 2, 1)), kind)


def fragment_c(c: np.ndarray) -> list[np.ndarray]:
    """C (WARPS, rows, 8) to one element per register."""
    registers = []
    for block_m in range(c.shape[1] // 8):
        for element in range(2):
            values = [
                c[thread // 32, 8 * block_m + thread % 32 // 4, 2 * (thread % 4) + element]
                for thread in range(THREADS)
            ]
            registers.append(np.array(values, c.dtype))
    return registers


def small(shape: tuple[int, ...], seed: int, low: int = -8, high: int = 8) -> np.ndarray:
    """Integers: every product and sum is exact in every format used here."""
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(np.float64)


def instruction(name: str, counts: tuple[int, int, int], more: str = "") -> str:
    """`name {d}, {a}, {b}, {c}` with the placeholders of a case."""
    letters = iter("abcdefghijklmnop")
    d = ", ".join(f"{{{i}}}" for i in range(counts[0]))
    a, b, c = (
        ", ".join(f"{{{next(letters)}}}" for _ in range(n))
        for n in (counts[1], counts[2], counts[0])
    )
    braces = [f"{{{{{part}}}}}" for part in (d, a, b, c)]
    return f"{name} {', '.join(braces)}{more};"


def half_pairs(elements: list[np.ndarray]) -> list[np.ndarray]:
    """Elements of a row, two by two in one register."""
    return [
        np.ascontiguousarray(np.stack(elements[i : i + 2], axis=1)).view(np.uint32).reshape(-1)
        for i in range(0, len(elements), 2)
    ]


def dense(name: str, kind: str, m: int, k: int, *, half_sum: bool = False) -> Case:
    low, high = {"s8": (-128, 127), "u8": (0, 255)}.get(kind, (-8, 8))
    a, b = small((WARPS, m, k), 1, low, high), small((WARPS, k, 8), 2, low, high)
    c = small((WARPS, m, 8), 3, -99, 99)
    d = np.einsum("wmk,wkn->wmn", a, b) + c
    integer = kind in ("s8", "u8")
    left, right = fragment_a(a, kind), fragment_b(b, kind)
    if half_sum:
        before, after = (half_pairs(fragment_c(x.astype(np.float16))) for x in (c, d))
    else:
        dtype = np.int32 if integer else np.float32
        before, after = fragment_c(c.astype(dtype)), fragment_c(d.astype(dtype))
    text = instruction(name, (len(after), len(left), len(right)))
    return Case(text, (*left, *right, *before), tuple(after), name=name)


def cases() -> Iterator[Case]:
    start = "mma.sync.aligned"
    for shape, kind in (
        ("m16n8k16", "f16"),
        ("m16n8k8", "f16"),
        ("m16n8k16", "bf16"),
        ("m16n8k8", "bf16"),
        ("m16n8k8", "tf32"),
        ("m16n8k4", "tf32"),
    ):
        k = int(shape.partition("k")[2])
        yield dense(f"{start}.{shape}.row.col.f32.{kind}.{kind}.f32", kind, 16, k)
    yield dense(f"{start}.m16n8k16.row.col.f16.f16.f16.f16", "f16", 16, 16, half_sum=True)
    for shape, kind in itertools.product(("m16n8k32", "m16n8k16", "m8n8k16"), ("s8", "u8")):
        m, k = int(shape[1:].partition("n")[0]), int(shape.partition("k")[2])
        yield dense(f"{start}.{shape}.row.col.s32.{kind}.{kind}.s32", kind, m, k)
    yield saturated()
    for kind, form in itertools.product(("f16", "bf16"), ("sp", "sp::ordered_metadata")):
        for selector in (0, 1):
            yield sparse(kind, form, selector)
    yield from matrices()


def saturated() -> Case:
    a, b = np.full((WARPS, 16, 32), 127.0), np.full((WARPS, 32, 8), 127.0)
    c = np.full((WARPS, 16, 8), (1 << 31) - 100, np.int32)
    left, right = fragment_a(a, "s8"), fragment_b(b, "s8")
    want = fragment_c(np.full_like(c, (1 << 31) - 1))
    name = "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"
    return Case(
        instruction(name, (4, 4, 2)), (*left, *right, *fragment_c(c)), tuple(want), name=name
    )


def sparse(kind: str, form: str, selector: int) -> Case:
    """A keeps two of every four neighbours; metadata says which, from lanes 2s and 2s + 1 of 4."""
    source = np.random.default_rng(4)
    kept = small((WARPS, 16, 16), 5)
    a = np.zeros((WARPS, 16, 32))
    words = np.zeros((WARPS, 16, 2), np.int64)
    for w, row, group in itertools.product(range(WARPS), range(16), range(8)):
        first, second = sorted(source.choice(4, 2, replace=False))
        a[w, row, 4 * group + first] = kept[w, row, 2 * group]
        a[w, row, 4 * group + second] = kept[w, row, 2 * group + 1]
        words[w, row, group // 4] |= int(first | second << 2) << 4 * (group % 4)
    metadata = np.zeros(THREADS, np.uint32)
    for thread in range(THREADS):
        g, t = thread % 32 // 4, thread % 4
        if t // 2 == selector:
            low, high = (words[thread // 32, row, t % 2] for row in (g, g + 8))
            metadata[thread] = low | high << 16
        else:
            metadata[thread] = 0xDEADBEEF  # must not be looked at
    b, c = small((WARPS, 32, 8), 6), small((WARPS, 16, 8), 7)
    d = np.einsum("wmk,wkn->wmn", a, b) + c
    name = f"mma.{form}.sync.aligned.m16n8k32.row.col.f32.{kind}.{kind}.f32"
    inputs = [*fragment_a(kept, kind), *fragment_b(b, kind), *fragment_c(c.astype(np.float32))]
    text = instruction(name, (4, 4, 4), f", {{{chr(ord('a') + len(inputs))}}}, {selector}")
    want = fragment_c(d.astype(np.float32))
    return Case(text, (*inputs, metadata), tuple(want), name=f"{name} selector {selector}")


def matrices() -> Iterator[Case]:
    """`ldmatrix`, `stmatrix` and `movmatrix` of 8x8 matrices of halves."""
    halves = np.random.default_rng(8).integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    rows = halves.reshape(32, 8)  # row r of matrix i belongs to lane 8 i + r
    words = np.tile(rows.view(np.uint32), (WARPS, 1))
    columns = tuple(np.ascontiguousarray(words[:, i]) for i in range(4))
    fill = (
        "mov.u64 %rd20, buf; and.b32 %w0, %t, 31; mad.wide.u32 %rd21, %w0, 16, %rd20;"
        "setp.lt.u32 {p}, %t, 32; @{p} st.shared.v4.u32 [%rd21], {{{a}, {b}, {c}, {d}}};"
        "bar.sync 0;"
    )
    declared = ".shared .align 16 .b8 buf[512];"
    for count, trans in itertools.product((1, 2, 4), (False, True)):
        source = halves.transpose(0, 2, 1) if trans else halves
        lanes = np.ascontiguousarray(source).view(np.uint32).reshape(4, 32)
        want = tuple(np.tile(lanes[i], WARPS) for i in range(count))
        registers = ", ".join(f"{{{i}}}" for i in range(count))
        dot = ".trans" if trans else ""
        name = f"ldmatrix.sync.aligned.m8n8.x{count}{dot}.shared.b16"
        yield Case(
            f"{fill} {name} {{{{{registers}}}}}, [%rd21];",
            columns,
            want,
            registers=declared,
            name=name,
        )
        letters = ", ".join(f"{{{'abcd'[i]}}}" for i in range(count))
        held = tuple(np.tile(lanes[i], WARPS) for i in range(count))
        name = f"stmatrix.sync.aligned.m8n8.x{count}{dot}.shared.b16"
        where = np.minimum(np.arange(THREADS) % 32, 8 * count - 1)
        stored = np.ascontiguousarray(rows).view(np.uint32)[where]
        yield Case(
            "mov.u64 %rd20, buf; and.b32 %w0, %t, 31; mad.wide.u32 %rd21, %w0, 16, %rd20;"
            f"setp.lt.u32 {{p}}, %t, 32; @{{p}} {name} [%rd21], {{{{{letters}}}}}; bar.sync 0;"
            f"min.u32 %w0, %w0, {8 * count - 1}; mad.wide.u32 %rd21, %w0, 16, %rd20;"
            "ld.shared.v4.u32 {{{0}, {1}, {2}, {3}}}, [%rd21];",
            held,
            tuple(np.ascontiguousarray(stored[:, i]) for i in range(4)),
            registers=declared,
            name=name,
        )
    one = np.tile(np.ascontiguousarray(halves[0]).view(np.uint32).reshape(-1), WARPS)
    turned = np.ascontiguousarray(halves[0].T).view(np.uint32).reshape(-1)
    name = "movmatrix.sync.aligned.m8n8.trans.b16"
    yield Case(f"{name} {{0}}, {{a}};", (one,), (np.tile(turned, WARPS),), name=name)
