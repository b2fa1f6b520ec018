from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibert.errors import DeviceMemoryError
from minibert.ops.arena import ALIGNMENT, Arena, OffsetAllocator


class Memory:
    """Counts what was asked for; refuses beyond a limit."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.calls: list[int] = []
        self.limit = limit

    def __call__(self, nbytes: int) -> np.ndarray:
        if nbytes > self.limit:
            raise DeviceMemoryError("full")
        self.calls.append(nbytes)
        return np.zeros(nbytes, np.uint8)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 9)), max_size=60))
def test_blocks_never_overlap(steps: list[tuple[int, int]]) -> None:
    line = OffsetAllocator()
    live: list[tuple[int, int]] = []
    for nbytes, drop in steps:
        if live and drop < 5:
            line.give(*live.pop(drop % len(live)))
        offset = line.take(nbytes)
        assert offset % ALIGNMENT == 0
        assert all(offset >= o + max(n, 1) or o >= offset + max(nbytes, 1) for o, n in live)
        live.append((offset, nbytes))
        assert line.high_water >= max(o + n for o, n in live)
    for block in live:
        line.give(*block)
    assert line.take(line.high_water) == 0


def test_the_second_pass_allocates_nothing_and_finds_the_same_places() -> None:
    memory = Memory()
    arena = Arena(memory)

    def one_pass() -> list[int]:
        a = arena.take(1000)
        b = arena.take(2000)
        arena.give(a)
        c = arena.take(500)
        return [block.offset for block in (a, b, c)]

    arena.reset(8)
    first = one_pass()
    arena.reset(8)
    calls = len(memory.calls)
    assert memory.calls[-1] == arena.slab_bytes == 3072
    assert one_pass() == first
    arena.reset(4)
    assert one_pass() == first
    assert len(memory.calls) == calls


def test_a_larger_batch_gives_up_the_slab_first() -> None:
    moves: list[int] = []
    arena = Arena(Memory(), on_move=lambda: moves.append(arena.slab_bytes))
    arena.reset(1)
    arena.take(100)
    arena.reset(1)
    assert arena.slab_bytes > 0
    arena.reset(1)
    moves.clear()
    arena.reset(2)
    assert arena.slab_bytes == 0
    assert moves == [256]  # said while the slab was still there


def test_blocks_of_an_earlier_batch_are_not_taken_back() -> None:
    arena = Arena(Memory())
    arena.reset(1)
    old = arena.take(100)
    arena.reset(1)
    new = arena.take(100)
    arena.give(old)
    assert arena.take(100).offset != new.offset


def test_a_full_device_leaves_the_arena_usable() -> None:
    memory = Memory(limit=1000)
    arena = Arena(memory)
    arena.reset(8)
    arena.take(900)
    with pytest.raises(DeviceMemoryError):
        arena.take(2000)
    memory.limit = 10_000
    arena.reset(4)
    assert arena.take(300).start == 0
    arena.reset(4)
    assert arena.slab_bytes == 512


def test_every_block_has_memory_of_its_own_without_reuse() -> None:
    memory = Memory()
    arena = Arena(memory, reuse=False)
    for _ in range(2):
        arena.reset(1)
        assert arena.take(10).memory is not arena.take(10).memory
    assert memory.calls == [10, 10, 10, 10]
