from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from minibert.kernels.cuda import launch
from tests import reference
from tests.kernels.cuda.conftest import (
    Bench,
    assert_as_good_as_plain,
    hard_values,
    rounded,
    stored,
    widened,
)

FLOATS = ("float32", "float16", "bfloat16")


def run_pool(
    bench: Bench, hidden: NDArray[Any], seqlens: list[int], skip: list[int], mode: str, dtype: str
) -> NDArray[Any]:
    size = hidden.shape[1]
    out = bench.empty((len(seqlens), size), "float32")
    bench.launch(
        launch.pool(bench.target, dtype, mode, num_seqs=len(seqlens), hidden_size=size),
        out,
        bench.put(hidden),
        bench.put(np.cumsum([0, *seqlens]).astype(np.int32)),
        bench.put(np.asarray(skip, np.int32)),
        size,
    )
    return bench.get(out)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", launch.POOL_MODES)
def test_pooling_matches_float64(bench: Bench, mode: str, dtype: str) -> None:
    seqlens, skip = [1, 20, 9, 8], [0, 3, 0, 7]
    hidden = stored(hard_values(1, (38, 136)), dtype)
    out = run_pool(bench, hidden, seqlens, skip, mode, dtype)
    wide = widened(hidden)
    cu_seqlens = np.cumsum([0, *seqlens])
    ref = reference.pool(wide, cu_seqlens, mode, skip)
    plain = np.stack(
        [
            np.asarray(
                reference.pool(
                    part.astype(np.float32).astype(np.float64), [0, len(part)], mode, [left_out]
                )[0],
                np.float32,
            )
            for part, left_out in zip(np.split(wide, cu_seqlens[1:-1]), skip, strict=True)
        ]
    )
    assert_as_good_as_plain(out, plain, ref)


def test_pooling_of_a_sequence_does_not_depend_on_its_place(bench: Bench) -> None:
    seqlens = [5, 30, 11]
    hidden = stored(hard_values(1, (46, 384)), "float16")
    out = run_pool(bench, hidden, seqlens, [0, 0, 0], "mean", "float16")
    alone = run_pool(bench, hidden[5:35], [30], [0], "mean", "float16")
    assert np.array_equal(alone[0], out[1])


def test_an_empty_sequence_pools_to_zeros(bench: Bench) -> None:
    hidden = stored(hard_values(1, (4, 64)), "float16")
    for mode in launch.POOL_MODES:
        out = run_pool(bench, hidden, [4, 0], [0, 0], mode, "float16")
        assert not out[1].any() and out[0].any(), mode


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "size"), [(1, 384), (5, 31), (2, 1024)])
def test_rows_are_normalised(bench: Bench, rows: int, size: int, dtype: str) -> None:
    stride, out_stride = size + 3, size + 1
    values = np.zeros((rows, stride), np.float32)
    values[:, :size] = hard_values(1, (rows, size))
    values = stored(values, dtype)
    out = bench.empty((rows, out_stride), "float32")
    bench.launch(
        launch.normalize(bench.target, dtype, num_rows=rows),
        out,
        bench.put(values),
        rows,
        size,
        out_stride,
        stride,
    )
    x = widened(values)[:, :size]
    ref = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    x32 = x.astype(np.float32)
    plain = x32 / np.sqrt(np.square(x32).sum(axis=1, keepdims=True))
    found = bench.get(out)
    assert_as_good_as_plain(found[:, :size], plain, ref)
    assert not found[:, size:].any()


def test_a_row_of_zeros_is_normalised_to_zeros(bench: Bench) -> None:
    out = bench.empty((1, 8), "float32")
    bench.launch(
        launch.normalize(bench.target, "float32", num_rows=1),
        out,
        bench.put(np.zeros((1, 8), np.float32)),
        1,
        8,
        8,
        8,
    )
    assert not bench.get(out).any()


@pytest.mark.parametrize(("to", "source"), [("float16", "float32"), ("float32", "bfloat16")])
def test_columns_are_copied_converted_and_filled_with_zeros(
    bench: Bench, to: str, source: str
) -> None:
    values = stored(hard_values(1, (5, 13)), source)
    out = bench.put(stored(np.ones((5, 20)), to))
    itemsize = bench.get(out).itemsize
    bench.launch(
        launch.copy_columns(bench.target, to, source, num_rows=5, written_columns=14),
        bench.device.view(out, 2 * itemsize, (98,), bench.get(out).dtype.str),
        bench.put(values),
        5,
        11,
        14,
        20,
        13,
    )
    expected = np.ones((5, 20))
    expected[:, 2:13] = rounded(widened(values)[:, :11], to)
    expected[:, 13:16] = 0
    assert np.array_equal(widened(bench.get(out)), expected)
