"""Exchange inside a warp, barriers and branches; expected values lane by lane."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tests.emulator.cases_integer import edge
from tests.emulator.harness import Case

THREADS = 64
LANES = np.arange(THREADS)
FULL = "0xffffffff"


def cases() -> Iterator[Case]:
    yield from shuffles()
    yield from votes()
    yield from matches()
    yield from reductions()
    yield from barriers()
    yield from branches()


def shuffled(mode: str, values: np.ndarray, by: int, clamp: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition of the PTX manual, lane by lane."""
    segment, bound = clamp >> 8 & 31, clamp & 31
    out, inside = [], []
    for thread in range(len(values)):
        lane, start = thread % 32, thread // 32 * 32
        low = lane & segment
        top = low | bound & ~segment & 31
        if mode == "up":
            source = lane - by
            fits = source >= top
        elif mode == "down":
            source = lane + by
            fits = source <= top
        elif mode == "bfly":
            source = lane ^ by
            fits = source <= top
        else:
            source = low | by & ~segment & 31
            fits = source <= top
        out.append(values[start + (source if fits else lane)])
        inside.append(fits)
    return np.array(out, values.dtype), np.array(inside)


def shuffles() -> Iterator[Case]:
    values = edge("u32", THREADS, seed=1)
    for mode, by, clamp in (
        ("bfly", 16, 31),
        ("bfly", 1, 31),
        ("bfly", 4, 0x181F),
        ("up", 3, 0),
        ("up", 2, 0x1800),
        ("down", 5, 31),
        ("down", 1, 0x1C1F),
        ("idx", 7, 31),
        ("idx", 3, 0x181F),
    ):
        moved, inside = shuffled(mode, values, by, clamp)
        yield Case(
            f"shfl.sync.{mode}.b32 {{0}}|{{1}}, {{a}}, {by}, {clamp}, {FULL};",
            (values,),
            (moved, inside),
        )
        yield Case(f"shfl.sync.{mode}.b32 {{0}}, {{a}}, {by}, {clamp}, -1;", (values,), (moved,))
    by = np.random.default_rng(2).integers(0, 32, THREADS).astype(np.uint32)
    want = values[LANES // 32 * 32 + by]
    yield Case(f"shfl.sync.idx.b32 {{0}}, {{a}}, {{b}}, 31, {FULL};", (values, by), (want,))
    # two halves of a warp, each with its own mask
    lower = np.where(LANES % 32 < 16, np.uint32(0xFFFF), np.uint32(0xFFFF0000))
    moved, _ = shuffled("bfly", values, 8, 31)
    yield Case("shfl.sync.bfly.b32 {0}, {a}, 8, 31, {b};", (values, lower), (moved,))


def per_warp(function: Callable[[np.ndarray], object], values: np.ndarray) -> list[object]:
    return [function(values[i : i + 32]) for i in range(0, len(values), 32) for _ in range(32)]


def votes() -> Iterator[Case]:
    for seed, share in enumerate((0.5, 0.0, 1.0, 0.97)):
        p = np.random.default_rng(seed).random(THREADS) < share
        ballot = per_warp(lambda w: sum(int(v) << i for i, v in enumerate(w)), p)
        yield Case(
            f"vote.sync.ballot.b32 {{0}}, {{a}}, {FULL};", (p,), (np.array(ballot, np.uint32),)
        )
        for name, function in (
            ("all", lambda w: w.all()),
            ("any", lambda w: w.any()),
            ("uni", lambda w: w.all() or not w.any()),
        ):
            yield Case(
                f"vote.sync.{name}.pred {{0}}, {{a}}, {FULL};",
                (p,),
                (np.array(per_warp(function, p), np.bool_),),
            )
        yield Case(
            f"vote.sync.any.pred {{0}}, !{{a}}, {FULL};",
            (p,),
            (np.array(per_warp(lambda w: (~w).any(), p), np.bool_),),
        )
    yield Case("activemask.b32 {0};", (), (np.full(THREADS, 0xFFFFFFFF, np.uint32),))
    active = np.where(LANES % 32 < 5, np.uint32(31), np.uint32(0))
    yield Case(
        "mov.u32 {0}, 0; setp.lt.u32 {p}, {a}, 5; @{p} activemask.b32 {0};",
        ((LANES % 32).astype(np.uint32),),
        (active,),
    )
    leader = LANES % 32 == 0
    yield Case(f"elect.sync {{0}}|{{1}}, {FULL};", (), (np.zeros(THREADS, np.uint32), leader))


def matches() -> Iterator[Case]:
    for bits in (32, 64):
        values = np.random.default_rng(5).integers(0, 4, THREADS).astype(f"uint{bits}")
        values[32:] = 9
        want, same = [], []
        for thread in range(THREADS):
            warp = values[thread // 32 * 32 :][:32]
            want.append(sum(int(v == values[thread]) << i for i, v in enumerate(warp)))
            same.append(bool((warp == warp[0]).all()))
        masks = np.array(want, np.uint32)
        yield Case(f"match.any.sync.b{bits} {{0}}, {{a}}, {FULL};", (values,), (masks,))
        every = np.where(same, np.uint32(0xFFFFFFFF), np.uint32(0))
        yield Case(
            f"match.all.sync.b{bits} {{0}}|{{1}}, {{a}}, {FULL};",
            (values,),
            (every, np.array(same)),
        )


def reductions() -> Iterator[Case]:
    functions: dict[str, Callable[[int, int], int]] = {
        "add": lambda a, b: a + b,
        "min": min,
        "max": max,
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
    }
    for name, function in functions.items():
        for kind in ("u32", "s32") if name in ("add", "min", "max") else ("b32",):
            values = edge(kind, THREADS, seed=6)

            def fold(
                warp: np.ndarray, function: Callable[[int, int], int] = function, kind: str = kind
            ) -> int:
                total = int(warp[0])
                for value in warp[1:]:
                    total = function(total, int(value))
                total &= 0xFFFFFFFF
                return total - (1 << 32) if kind == "s32" and total >> 31 else total

            yield Case(
                f"redux.sync.{name}.{kind} {{0}}, {{a}}, {FULL};",
                (values,),
                (np.array(per_warp(fold, values), values.dtype),),
            )


def barriers() -> Iterator[Case]:
    declared = ".shared .align 16 .b8 buf[256];"
    values = edge("u32", THREADS, seed=7)
    turned = values[::-1].copy()
    exchange = (
        "mov.u64 %rd20, buf; mad.wide.u32 %rd21, %t, 4, %rd20; st.shared.u32 [%rd21], {a};"
        "WAIT; sub.u32 %w0, 63, %t; mad.wide.u32 %rd21, %w0, 4, %rd20; ld.shared.u32 {0}, [%rd21];"
    )
    for wait in ("bar.sync 0", "barrier.sync 0", "barrier.sync.aligned 1", "bar.sync 2, 64"):
        yield Case(exchange.replace("WAIT", wait), (values,), (turned,), registers=declared)
    for prefix in ("bar", "barrier"):
        # the first warp writes and arrives; the second waits and reads
        yield Case(
            "mov.u64 %rd20, buf; and.b32 %w0, %t, 31; mad.wide.u32 %rd21, %w0, 4, %rd20;"
            "mov.u32 {0}, {a}; setp.lt.u32 {p}, %t, 32;"
            f"@{{p}} st.shared.u32 [%rd21], {{a}}; @{{p}} {prefix}.arrive 3, 64;"
            f"@!{{p}} {prefix}.sync 3, 64; @!{{p}} ld.shared.u32 {{0}}, [%rd21];",
            (values,),
            (np.concatenate([values[:32], values[:32]]),),
            registers=declared,
        )
        for share in (0.3, 0.0, 1.0):
            p = np.random.default_rng(8).random(THREADS) < share
            yield Case(
                f"{prefix}.red.popc.u32 {{0}}, 0, {{a}};",
                (p,),
                (np.full(THREADS, p.sum(), np.uint32),),
            )
            yield Case(
                f"{prefix}.red.and.pred {{0}}, 0, {{a}};", (p,), (np.full(THREADS, p.all()),)
            )
            yield Case(f"{prefix}.red.or.pred {{0}}, 0, {{a}};", (p,), (np.full(THREADS, p.any()),))
    neighbour = values[LANES ^ 1]
    yield Case(
        "mov.u64 %rd20, buf; mad.wide.u32 %rd21, %t, 4, %rd20; st.shared.u32 [%rd21], {a};"
        "bar.warp.sync -1; xor.b32 %w0, %t, 1; mad.wide.u32 %rd21, %w0, 4, %rd20;"
        "ld.shared.u32 {0}, [%rd21];",
        (values,),
        (neighbour,),
        registers=declared,
    )
    nothing = (
        "membar.cta; fence.acq_rel.gpu; nanosleep.u32 20; pmevent 1;"
        "griddepcontrol.launch_dependents; griddepcontrol.wait; setmaxnreg.inc.sync.aligned.u32 64;"
    )
    yield Case(f"{nothing} mov.u32 {{0}}, {{a}};", (values,), (values,))


def branches() -> Iterator[Case]:
    thread = LANES.astype(np.uint32)
    # each thread counts to its own number: the longest loop ends last
    yield Case(
        "mov.u32 {0}, 0; LOOP: add.u32 {0}, {0}, 2; setp.lt.u32 {p}, {0}, {a}; @{p} bra LOOP;",
        (thread,),
        (np.maximum(2, (thread + 1) // 2 * 2).astype(np.uint32),),
        name="loop of different lengths",
    )
    yield Case(
        "setp.lt.u32 {p}, {a}, 10; @{p} bra.uni LESS; setp.lt.u32 {q}, {a}, 40; @{q} bra MIDDLE;"
        "mov.u32 {0}, 3; bra END; MIDDLE: mov.u32 {0}, 2; bra END; LESS: mov.u32 {0}, 1; END:"
        "add.u32 {0}, {0}, 10;",
        (thread,),
        (np.select([thread < 10, thread < 40], [11, 12], 13).astype(np.uint32),),
        name="nested branches",
    )
    moved, _ = shuffled("bfly", thread, 16, 31)
    yield Case(
        "setp.lt.u32 {p}, %laneid, 16; bra CHECK;"
        f"MEET: shfl.sync.bfly.b32 {{0}}, {{a}}, 16, 31, {FULL}; bra END;"
        "CHECK: @{p} bra MEET; add.u32 %w0, {a}, 1; bra MEET; END: mov.u32 {0}, {0};",
        (thread,),
        (moved,),
        name="lanes that come early wait for the rest",
    )
    yield Case(
        "and.b32 %w0, {a}, 3; TABLE: .branchtargets L0, L1, L2, L3; brx.idx %w0, TABLE;"
        "L0: mov.u32 {0}, 5; bra END; L1: mov.u32 {0}, 6; bra END; L2: mov.u32 {0}, 7; bra END;"
        "L3: mov.u32 {0}, 8; END: mov.u32 {0}, {0};",
        (thread,),
        (5 + thread % 4,),
        name="branch table",
    )
    yield Case(
        "mov.u32 {0}, 1; st.global.u32 [%rd0], 7; setp.ge.u32 {p}, {a}, 20; @{p} exit;",
        (thread,),
        (np.where(thread < 20, 1, 7).astype(np.uint32),),
        name="exit of some",
    )
