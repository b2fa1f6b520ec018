"""Loads, stores, atomics and addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tests.emulator.cases_convert import register_type
from tests.emulator.cases_float import edge as float_edge
from tests.emulator.cases_half import paired, random_bits, to_bits
from tests.emulator.cases_integer import DTYPES
from tests.emulator.cases_integer import edge as int_edge
from tests.emulator.exact import halves
from tests.emulator.harness import Case

TYPES = (
    "u8",
    "s8",
    "b8",
    "u16",
    "s16",
    "b16",
    "u32",
    "s32",
    "b32",
    "u64",
    "s64",
    "b64",
    "f32",
    "f64",
)
THREADS = 64

# what comes before an access; the address is left in %rd20
SPACES = {
    "shared": (
        "mov.u64 %rd20, buf; mad.wide.u32 %rd20, %t, 16, %rd20;",
        ".shared .align 16 .b8 buf[1024];",
    ),
    "local": ("mov.u64 %rd20, buf; add.s64 %rd20, %rd20, 16;", ".local .align 16 .b8 buf[32];"),
    "global": ("mad.wide.u32 %rd20, %t, 16, %m0;", ""),
}


def values_of(kind: str) -> np.ndarray:
    if kind in ("f32", "f64"):
        return float_edge({"f32": "float32", "f64": "float64"}[kind], THREADS, seed=1)
    return int_edge(kind, THREADS, seed=2)


def widened(kind: str, values: np.ndarray) -> np.ndarray:
    """What a load leaves in the register."""
    if kind in ("f32", "f64") or values.dtype.itemsize > 1:
        return values
    return values.astype(register_type("s8" if kind == "s8" else "u8"))


def cases() -> Iterator[Case]:
    yield from round_trips()
    yield from constants()
    yield from vectors()
    yield from atomics()
    yield from addresses()
    yield from half_atomics()


def round_trips() -> Iterator[Case]:
    for kind in TYPES:
        values = values_of(kind)
        want = widened(kind, values)
        for space, (before, declared) in SPACES.items():
            memory = np.zeros(THREADS * 16, np.uint8)
            after = memory.copy()
            after.reshape(THREADS, 16)[:, : values.dtype.itemsize] = values.view(np.uint8).reshape(
                THREADS, -1
            )
            text = f"{before} st.{space}.{kind} [%rd20], {{a}}; ld.{space}.{kind} {{0}}, [%rd20];"
            yield Case(
                text,
                (values,),
                (want,),
                registers=declared,
                memory=((memory, after),) if space == "global" else (),
                name=f"{space} {kind}",
            )
            if space != "global":
                text = (
                    f"{before} cvta.{space}.u64 %rd21, %rd20; st.{kind} [%rd21], {{a}};"
                    f"cvta.to.{space}.u64 %rd22, %rd21; ld.{space}.{kind} {{0}}, [%rd22];"
                    f"ld.{kind} {{0}}, [%rd21];"
                )
                yield Case(
                    text, (values,), (want,), registers=declared, name=f"generic {space} {kind}"
                )
        text = (
            f"{{{{ .param .b64 q; st.param.{kind} [q+0], {{a}}; ld.param.{kind} {{0}}, [q+0]; }}}}"
        )
        yield Case(text, (values,), (want,), name=f"param {kind}")


def constants() -> Iterator[Case]:
    octets = np.random.default_rng(3).integers(0, 255, 16).astype(np.uint8)
    module = f".const .align 16 .b8 table[16] = {{{', '.join(map(str, octets))}}};\n"
    for kind in TYPES:
        dtype = {"f32": np.float32, "f64": np.float64}.get(kind) or DTYPES[kind]
        value = octets[8 : 8 + np.dtype(dtype).itemsize].view(dtype)
        want = widened(kind, np.repeat(value, 8))
        text = f"mov.u64 %rd20, table; ld.const.{kind} {{0}}, [%rd20+8];"
        yield Case(text, (), (want,), module=module, name=f"const {kind}")
    text = "mov.u64 %rd20, table; cvta.const.u64 %rd21, %rd20; ld.u32 {0}, [%rd21+4];"
    yield Case(text, (), (np.repeat(octets[4:8].view(np.uint32), 8),), module=module)
    module = ".global .align 4 .u32 counter = 41;\n"
    text = "mov.u64 %rd20, counter; ld.global.u32 {0}, [%rd20];"
    yield Case(text, (), (np.full(8, 41, np.uint32),), module=module)


def vectors() -> Iterator[Case]:
    rows = np.random.default_rng(4).integers(0, 1 << 32, (THREADS, 4)).astype(np.uint32)
    columns = tuple(np.ascontiguousarray(rows[:, i]) for i in range(4))
    memory = rows.reshape(-1).copy()
    yield Case(
        "mad.wide.u32 %rd20, %t, 16, %m0; ld.global.nc.v4.u32 {{{0}, {1}, {2}, {3}}}, [%rd20];",
        (),
        columns,
        memory=((memory, memory),),
    )
    yield Case(
        "mad.wide.u32 %rd20, %t, 16, %m0; ld.global.v2.u64 {{{0}, {1}}}, [%rd20];",
        (),
        tuple(np.ascontiguousarray(rows).view(np.uint64).T.copy()),
        memory=((memory, memory),),
    )
    yield Case(
        "mad.wide.u32 %rd20, %t, 16, %m0;"
        "st.global.v4.f32 [%rd20], {{{a}, {b}, {c}, {d}}}; mov.u32 {0}, 1;",
        columns,
        (np.ones(THREADS, np.uint32),),
        memory=((np.zeros_like(memory), memory),),
    )
    short = np.random.default_rng(5).integers(0, 1 << 16, (THREADS, 2)).astype(np.uint16)
    yield Case(
        "mov.u64 %rd20, buf; mad.wide.u32 %rd20, %t, 16, %rd20;"
        "st.shared.v2.u16 [%rd20], {{{a}, {b}}}; ld.shared.v2.u16 {{{1}, {0}}}, [%rd20];",
        (short[:, 0].copy(), short[:, 1].copy()),
        (short[:, 1].copy(), short[:, 0].copy()),
        registers=SPACES["shared"][1],
    )


UPDATES: dict[str, Callable[[int, int], int]] = {
    "add": lambda old, v: old + v,
    "min": min,
    "max": max,
    "and": lambda old, v: old & v,
    "or": lambda old, v: old | v,
    "xor": lambda old, v: old ^ v,
    "exch": lambda old, v: v,
    "inc": lambda old, v: 0 if old >= v else old + 1,
    "dec": lambda old, v: v if old == 0 or old > v else old - 1,
}
ATOMIC_TYPES = {
    "add": ("u32", "s32", "u64"),
    "min": ("u32", "s32", "u64", "s64"),
    "max": ("u32", "s32", "u64", "s64"),
    "and": ("b32", "b64"),
    "or": ("b32", "b64"),
    "xor": ("b32", "b64"),
    "exch": ("b32", "b64"),
    "inc": ("u32",),
    "dec": ("u32",),
}


def served(name: str, values: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lanes in order, lane i at place i % 4: what each saw, and what is left."""
    memory = [int(v) for v in start]
    mask = (1 << 8 * values.dtype.itemsize) - 1
    low = np.iinfo(values.dtype).min
    seen = []
    for lane, value in enumerate(values):
        old = memory[lane % 4]
        seen.append(old)
        new = UPDATES[name](old, int(value)) & mask
        memory[lane % 4] = new - (mask + 1) if low < 0 and new > mask >> 1 else new
    return np.array(seen, values.dtype), np.array(memory, values.dtype)


def atomics() -> Iterator[Case]:
    for name, kinds in ATOMIC_TYPES.items():
        for kind in kinds:
            values = int_edge(kind, THREADS, seed=6)
            if name in ("inc", "dec"):
                values = values % 7
            start = int_edge(kind, 40, seed=7)[:4] if name not in ("inc", "dec") else values[:4]
            size = values.dtype.itemsize
            seen, after = served(name, values, start)
            where = f"and.b32 %w0, %t, 3; mad.wide.u32 %rd20, %w0, {size}, %m0;"
            yield Case(
                f"{where} atom.global.{name}.{kind} {{0}}, [%rd20], {{a}};",
                (values,),
                (seen,),
                memory=((start, after),),
                name=f"atom.{name}.{kind}",
            )
            if name != "exch":
                yield Case(
                    f"{where} red.global.{name}.{kind} [%rd20], {{a}};"
                    f"mov.b{8 * size} {{0}}, {{a}};",
                    (values,),
                    (values,),
                    memory=((start, after),),
                    name=f"red.{name}.{kind}",
                )
    # compare and swap: only the first lane of each place finds what it compares with
    start = np.array([10, 11, 12, 13], np.uint32)
    compare = start[np.arange(THREADS) % 4]
    values = np.arange(THREADS, dtype=np.uint32) + 100
    seen = np.where(np.arange(THREADS) < 4, compare, values[np.arange(THREADS) % 4])
    yield Case(
        "and.b32 %w0, %t, 3; mad.wide.u32 %rd20, %w0, 4, %m0;"
        "atom.global.cas.b32 {0}, [%rd20], {a}, {b};",
        (compare, values),
        (seen.astype(np.uint32),),
        memory=((start, values[:4]),),
    )
    ones = np.ones(THREADS, np.float32)
    count = np.arange(THREADS, dtype=np.float32)
    yield Case(
        "atom.global.add.f32 {0}, [%m0], {a};",
        (ones,),
        (count,),
        memory=((np.zeros(1, np.float32), np.full(1, THREADS, np.float32)),),
    )
    yield Case(
        "mov.u64 %rd20, buf; setp.eq.u32 {p}, %t, 0; @{p} st.shared.u32 [%rd20], 5; bar.sync 0;"
        "atom.shared.add.u32 {0}, [%rd20], {a};",
        (np.full(THREADS, 2, np.uint32),),
        ((5 + 2 * np.arange(THREADS)).astype(np.uint32),),
        registers=SPACES["shared"][1],
    )
    yield Case(
        "mov.u64 %rd20, buf; setp.eq.u32 {p}, %t, 0; @{p} st.shared.u32 [%rd20], 5; bar.sync 0;"
        "cvta.shared.u64 %rd21, %rd20; atom.add.u32 {0}, [%rd21], {a};",
        (np.full(THREADS, 2, np.uint32),),
        ((5 + 2 * np.arange(THREADS)).astype(np.uint32),),
        registers=SPACES["shared"][1],
        name="generic atomic",
    )


def half_atomics() -> Iterator[Case]:
    for form in ("f16", "bf16"):
        bits = random_bits(form, 8, 2 * THREADS)
        start = random_bits(form, 9, 2 * THREADS)
        total = halves(bits, form) + halves(start, form)
        keep = np.abs(total) < 60000
        bits, start = (np.where(keep, v, np.uint16(0)) for v in (bits, start))
        total = np.where(keep, total, 0.0)
        if form == "f16":
            want = total.astype(np.float16).view(np.uint16)
        else:
            import torch

            rounded = torch.tensor(total).to(torch.bfloat16).view(torch.int16).numpy()
            want = to_bits(list(halves(rounded.view(np.uint16), "bf16")), "bf16")
        yield Case(
            f"mad.wide.u32 %rd20, %t, 4, %m0;atom.global.add.noftz.{form}x2 {{0}}, [%rd20], {{a}};",
            (paired(bits),),
            (paired(start),),
            memory=((paired(start), paired(want)),),
        )


def addresses() -> Iterator[Case]:
    declared = ".shared .align 16 .b8 s[64]; .local .align 16 .b8 l[64];"
    module = ".const .align 4 .u32 table = 1;\n"
    places = {
        "shared": "mov.u64 %rd20, s; cvta.shared.u64 %rd20, %rd20;",
        "local": "mov.u64 %rd20, l; cvta.local.u64 %rd20, %rd20;",
        "global": "cvta.global.u64 %rd20, %m0;",
        "param": "mov.u64 %rd20, p0; cvta.param.u64 %rd20, %rd20;",
    }
    memory = np.zeros(4, np.uint32)
    for there, before in places.items():
        for asked in (*places, "const"):
            want = np.full(8, there == asked)
            yield Case(
                f"{before} isspacep.{asked} {{0}}, %rd20;",
                (),
                (want,),
                registers=declared,
                module=module,
                memory=((memory, memory),),
                name=f"isspacep {there} {asked}",
            )
    text = "mov.u64 %rd20, p1; ld.param.u64 %rd21, [%rd20]; ld.global.u32 {0}, [%rd21];"
    words = np.arange(8, dtype=np.uint32)
    yield Case(text, (words,), (np.zeros(8, np.uint32),), name="parameter by its address")
    hints = (
        "prefetch.global.L2 [%m0]; prefetch.global.L2::evict_last [%m0]; prefetchu.L1 [%m0];"
        "createpolicy.fractional.L2::evict_last.b64 %rd21, 1.0;"
        "applypriority.global.L2::evict_normal [%m0], 128; discard.global.L2 [%m0], 128;"
        "cp.async.bulk.prefetch.L2.global [%m0], 16;"
        "ld.global.L1::no_allocate.L2::128B.u32 {0}, [%m0];"
    )
    yield Case(hints, (), (np.zeros(8, np.uint32),), memory=((memory, memory),), name="cache hints")
