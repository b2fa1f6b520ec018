"""Work on weights beside the calling thread: the same bytes, and nothing left behind."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert.errors import DeviceError
from minibert.kernels.cpu import background as module
from minibert.kernels.cpu.background import Background, start_background
from minibert.kernels.cpu.loader import choose_path, native
from minibert.ops.cpu import CpuOps
from minibert.weights.tensors import release
from tests.cpu_encoder import needs_kernels
from tests.threads import needs_tasks, new_threads, threads

pytestmark = needs_kernels


def layer(seed: int, out_features: int = 70, in_features: int = 50) -> Any:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((out_features, in_features), np.float32)


def laid_out(linear: Any) -> bytes:
    address, size = native().linear_memory(linear.handle)
    return ctypes.string_at(address, size)


@pytest.fixture
def used_memory() -> None:
    """What the next layers are put into has held values before, no two of them alike.

    glibc hands large blocks back to the system, to get them again full of zeros; once it gave back
    one of 30 MB, smaller ones stay, and 48 MB of them make room for the next layers' block.
    """
    bytes(30 << 20)
    values = np.random.default_rng(0).bytes(2 << 20)
    pieces = [values[i:-i] for i in range(1, 25)]
    del pieces


@pytest.mark.usefixtures("used_memory")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_layers_are_laid_out_as_at_once(isa: str, dtype: str) -> None:
    weights = [layer(i, 40 + 13 * i, 24 + 7 * i) for i in range(6)]
    expected = CpuOps(dtype, isa=isa)
    with Background() as background:
        ops = CpuOps(dtype, isa=isa, background=background)
        found = [ops.prepare_linear(w, w[:, 0], name=str(i)) for i, w in enumerate(weights)]
        background.wait()
    for i, weight in enumerate(weights):
        at_once = expected.prepare_linear(weight, weight[:, 0], name=str(i))
        assert laid_out(found[i]) == laid_out(at_once), i


def test_a_block_sparse_layer_takes_the_memory_that_its_values_need(block_isa: str) -> None:
    parts = [layer(i, 64, 96) for i in range(3)]
    for part in parts:
        part[:, ::2] = 0
    with Background() as background:
        ops = CpuOps(isa=block_isa, background=background)
        joined = background.concatenate(parts)
        found = ops.prepare_linear(joined, None, name="a", sparsity="block")
        background.wait()
    at_once = CpuOps(isa=block_isa).prepare_linear(
        np.concatenate(parts), None, name="a", sparsity="block"
    )
    assert laid_out(found) == laid_out(at_once)


def test_a_block_sparse_layer_outlives_its_values(block_isa: str) -> None:
    with Background() as background:
        ops = CpuOps(isa=block_isa, background=background)
        found = []
        for i in range(6):
            found.append(ops.prepare_linear(layer(i, 256, 512), None, name="a", sparsity="block"))
            np.full((256, 512), np.nan, np.float32)  # in the place of its values, if they went
        background.wait()
    expected = CpuOps(isa=block_isa)
    for i, linear in enumerate(found):
        at_once = expected.prepare_linear(layer(i, 256, 512), None, name="a", sparsity="block")
        assert laid_out(linear) == laid_out(at_once), i


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 64, 1000])
def test_one_value_that_is_not_finite_is_found_anywhere(bad: float, size: int) -> None:
    for place in {0, size // 2, size - 1}:
        values = np.full(size, np.finfo(np.float32).max, np.float32)
        values[: size // 3] = -np.float32(1e-45)
        with Background() as background:
            background.check_finite(values)
            assert background.wait()
            values[place] = bad
            background.check_finite(values)
            assert not background.wait()
            background.check_finite(np.ones(5, np.float32))
            assert not background.wait()  # once seen, it stays


def test_nothing_is_finite() -> None:
    with Background() as background:
        assert background.wait()
        background.check_finite(np.empty(0, np.float32))
        assert background.wait()


def test_joined_values_are_there_after_wait_and_for_later_work() -> None:
    parts = [layer(i, rows, 50) for i, rows in enumerate((1, 8, 30))]
    with Background() as background:
        joined = background.concatenate(parts)
        twice = background.concatenate([joined, joined])
        background.wait()
    assert np.array_equal(joined, np.concatenate(parts))
    assert np.array_equal(twice, np.concatenate(parts * 2))


def test_arrays_are_kept_until_the_work_is_done() -> None:
    with Background() as background:
        for i in range(20):  # each goes out of scope here, and its memory to the next
            background.check_finite(layer(i, 300, 300))
            background.concatenate([layer(i, 300, 300)] * 2)
        assert background.wait()
        assert not background._kept


def test_copies_that_wait_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_COPIED_BYTES", 3 * 4 * 70 * 50)
    most = 0
    with Background() as background:
        for i in range(20):
            background.check_finite(layer(i))
            most = max(most, sum(array.nbytes for array in background._kept.values()))
    assert most == 3 * 4 * 70 * 50


def test_arrays_of_one_piece_of_work_are_kept_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_COPIED_BYTES", 3 * 4 * 70 * 50)
    with Background() as background:
        for i in range(20):
            parts = [layer(3 * i + k) for k in range(3)]
            joined = background.concatenate(parts)
            assert {id(joined), *map(id, parts)} <= set(background._kept)


def test_views_of_one_array_count_once() -> None:
    values = layer(0)
    with Background() as background:
        for row in values:
            background.keep(row)
        assert len(background._kept) == 1
        assert background._copied_bytes == values.nbytes


def test_pages_of_a_file_go_and_come_again(tmp_path: Path) -> None:
    values = np.arange(10 * mmap.PAGESIZE, dtype=np.float32)
    values.tofile(tmp_path / "values")
    mapped = np.memmap(tmp_path / "values", np.float32, "r")
    with Background() as background:
        background.check_finite(mapped)
        release(mapped[5:-5], background)
        assert background.wait()
        assert np.array_equal(mapped, values)
        release(values, background)  # not mapped: nothing happens
        assert background.wait()
    assert np.array_equal(values, np.arange(values.size, dtype=np.float32))


@needs_tasks
def test_no_thread_is_left_behind() -> None:
    before = threads()
    with pytest.raises(ZeroDivisionError), Background() as background:
        ops = CpuOps(background=background)
        for i in range(50):
            ops.prepare_linear(layer(i, 500, 500), None, name=str(i))
        assert len(threads() - before) == 1
        raise ZeroDivisionError
    assert not new_threads(before)
    lost = Background()
    lost.check_finite(layer(0))
    del lost
    assert not new_threads(before)


def test_after_the_end_work_is_done_at_once() -> None:
    background = Background()
    background.close()
    background.close()
    ops = CpuOps(background=background)
    linear = ops.prepare_linear(layer(1), None, name="a")
    assert laid_out(linear) == laid_out(CpuOps().prepare_linear(layer(1), None, name="a"))
    assert np.array_equal(background.concatenate([layer(2)]), layer(2))
    assert not background._kept
    assert background.wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_fork_does_not_wait_for_the_thread_of_its_parent() -> None:
    background = Background()
    background.check_finite(layer(0, 1000, 1000))
    child = os.fork()
    if child == 0:
        del background
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert background.wait()
    background.close()


def test_two_threads_may_have_one_each() -> None:
    found: list[bool] = []

    def work(spoil: bool) -> None:
        with Background() as background:
            values = layer(0, 500, 500)
            values[3, 3] = np.nan if spoil else 0
            for _ in range(20):
                background.check_finite(values)
            found.append(background.wait() != spoil)

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_without_the_extension_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise DeviceError("the extension is not there")

    monkeypatch.setattr(module, "native", missing)
    with start_background() as background:
        assert background is None


def test_wrong_arguments_are_refused() -> None:
    handle = native().background()
    with pytest.raises(TypeError, match="expected 3 arguments, got 1"):
        native().background_check(handle)
    with pytest.raises(ValueError, match="PyCapsule"):
        native().background_wait(native().stream(choose_path().index, 1))
