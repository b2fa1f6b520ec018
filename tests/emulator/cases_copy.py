"""Asynchronous copies: whole, with a source size, with an ignored source; groups and waits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.emulator.harness import Case

THREADS = 64
DECLARED = ".shared .align 16 .b8 buf[1024];"
START = "mov.u64 %rd20, buf; mad.wide.u32 %rd21, %t, 16, %rd20; mad.wide.u32 %rd22, %t, 16, %m0;"
READ = "ld.shared.v4.u32 {{{0}, {1}, {2}, {3}}}, [%rd21];"
ZERO = "st.shared.v4.u32 [%rd21], {{7, 7, 7, 7}};"


def columns(rows: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.ascontiguousarray(rows[:, i]) for i in range(4))


def cases() -> Iterator[Case]:
    rows = np.random.default_rng(1).integers(0, 1 << 32, (THREADS, 4)).astype(np.uint32)
    flat = rows.reshape(-1).copy()
    memory = ((flat, flat),)
    for wait in (
        "cp.async.commit_group; cp.async.wait_group 0;",
        "cp.async.wait_all;",
        "cp.async.commit_group; cp.async.wait_all;",
    ):
        for kind in ("cg", "ca"):
            text = f"{START} cp.async.{kind}.shared.global [%rd21], [%rd22], 16; {wait} {READ}"
            yield Case(text, (), columns(rows), registers=DECLARED, memory=memory)
    for size in (4, 8):
        want = np.full_like(rows, 7)
        want[:, : size // 4] = rows[:, : size // 4]
        text = (
            f"{START} {ZERO} cp.async.ca.shared.global [%rd21], [%rd22], {size};"
            f"cp.async.wait_all; {READ}"
        )
        yield Case(text, (), columns(want), registers=DECLARED, memory=memory)
    taken = np.random.default_rng(2).integers(0, 17, THREADS).astype(np.uint32)
    octets = rows.view(np.uint8).reshape(THREADS, 16).copy()
    octets[np.arange(16) >= taken[:, None]] = 0
    text = (
        f"{START} cp.async.cg.shared.global.L2::128B [%rd21], [%rd22], 16, {{a}};"
        f"cp.async.wait_all; {READ}"
    )
    yield Case(text, (taken,), columns(octets.view(np.uint32)), registers=DECLARED, memory=memory)
    ignored = np.random.default_rng(3).random(THREADS) < 0.5
    want = np.where(ignored[:, None], np.uint32(0), rows)
    text = (
        f"{START} cp.async.cg.shared.global [%rd21], [%rd22], 16, {{a}}; cp.async.wait_all; {READ}"
    )
    yield Case(text, (ignored,), columns(want), registers=DECLARED, memory=memory)
    # a source that is not read may be any address
    text = (
        f"{START} mov.u64 %rd22, 0; cp.async.cg.shared.global [%rd21], [%rd22], 16, 0;"
        f"cp.async.wait_all; {READ}"
    )
    yield Case(text, (), columns(np.zeros_like(rows)), registers=DECLARED, memory=memory)
    # two groups; waiting for all but one lands the first, then the second
    declared = ".shared .align 16 .b8 buf[2048];"
    text = (
        f"{START} cp.async.cg.shared.global [%rd21], [%rd22], 16; cp.async.commit_group;"
        "xor.b32 %w0, %t, 1; mad.wide.u32 %rd23, %w0, 16, %m0;"
        "cp.async.cg.shared.global [%rd21+1024], [%rd23], 16; cp.async.commit_group;"
        "cp.async.wait_group 1; ld.shared.v2.u32 {{{0}, {1}}}, [%rd21];"
        "cp.async.wait_group 0; ld.shared.v2.u32 {{{2}, {3}}}, [%rd21+1032];"
    )
    other = rows[np.arange(THREADS) ^ 1]
    want = np.concatenate([rows[:, :2], other[:, 2:]], axis=1)
    yield Case(text, (), columns(want), registers=declared, memory=memory, name="two groups")
