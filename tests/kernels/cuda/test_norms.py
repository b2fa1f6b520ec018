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
SHAPES = [(1, 384), (3, 8), (7, 128), (5, 132), (4, 768), (2, 1024), (1, 2048)]
EPS = 1e-12


def run_layer_norm(
    bench: Bench,
    hidden: NDArray[Any],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    dtype: str,
    *,
    quantized_size: int = 0,
) -> tuple[NDArray[Any], ...]:
    tokens, size = hidden.shape
    out = bench.empty((tokens, size), dtype)
    out_q = bench.empty((tokens, quantized_size), "int8") if quantized_size else None
    scale = bench.empty((tokens, 2), "float32") if quantized_size else None
    bench.launch(
        launch.layer_norm(bench.target, dtype, num_tokens=tokens, hidden_size=size),
        out,
        out_q,
        scale,
        bench.put(hidden),
        bench.put(weight),
        bench.put(bias),
        tokens,
        size,
        quantized_size,
        EPS,
    )
    return tuple(bench.get(array) for array in (out, out_q, scale) if array is not None)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_matches_float64(bench: Bench, shape: tuple[int, int], dtype: str) -> None:
    hidden = stored(hard_values(1, shape) + 3, dtype)
    weight, bias = hard_values(2, shape[1:]), hard_values(3, shape[1:])
    (out,) = run_layer_norm(bench, hidden, weight, bias, dtype)
    x = widened(hidden)
    ref = reference.layer_norm(x, weight.astype(np.float64), bias.astype(np.float64), EPS)
    x32 = x.astype(np.float32)
    centred = x32 - x32.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True) + np.float32(EPS)
    plain = rounded(centred / np.sqrt(variance) * weight + bias, dtype)
    assert_as_good_as_plain(out, plain, ref)


def test_layer_norm_of_equal_values_is_the_bias(bench: Bench) -> None:
    hidden = stored(np.full((2, 384), 7.25), "float32")
    weight, bias = np.ones(384, np.float32), hard_values(1, (384,))
    (out,) = run_layer_norm(bench, hidden, weight, bias, "float32")
    assert np.array_equal(out, np.stack([bias, bias]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_row_does_not_depend_on_its_place(bench: Bench, dtype: str) -> None:
    hidden = stored(hard_values(1, (9, 384)), dtype)
    weight, bias = hard_values(2, (384,)), hard_values(3, (384,))
    (out,) = run_layer_norm(bench, hidden, weight, bias, dtype)
    order = np.random.default_rng(0).permutation(9)
    (permuted,) = run_layer_norm(bench, hidden[order], weight, bias, dtype)
    assert np.array_equal(permuted, out[order])
    (alone,) = run_layer_norm(bench, hidden[4:5], weight, bias, dtype)
    assert np.array_equal(alone[0], out[4])


def run_quantize(bench: Bench, hidden: NDArray[Any], dtype: str, size: int) -> list[NDArray[Any]]:
    tokens, stride = hidden.shape
    out_q, scale = bench.empty((tokens, size), "int8"), bench.empty((tokens, 2), "float32")
    bench.launch(
        launch.quantize_rows(bench.target, dtype, num_tokens=tokens),
        out_q,
        scale,
        bench.put(hidden),
        tokens,
        stride,
        stride,
        size,
    )
    return [bench.get(out_q), bench.get(scale)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 384), (5, 24), (3, 1536), (2, 136)])
def test_rows_are_quantized_to_the_nearest_step(
    bench: Bench, shape: tuple[int, int], dtype: str
) -> None:
    hidden = stored(hard_values(1, shape), dtype)
    padded = -(-shape[1] // 16) * 16
    out_q, scale = run_quantize(bench, hidden, dtype, padded)
    x = widened(hidden)
    low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    step, zero_point = scale[:, 0].astype(np.float64), scale[:, 1].copy().view(np.int32)
    assert np.allclose(step, (high - low) / 255, rtol=2 * np.finfo(np.float32).eps, atol=0)
    assert np.all(out_q[:, shape[1] :] == 0)
    q = out_q[:, : shape[1]].astype(np.int64)
    # The ends of the row's range are the ends of int8: the step and the zero point are rounded
    # apart, so one of them may stay one short.
    assert np.all(q.min(axis=1) <= -127) and np.all(q.max(axis=1) >= 126)
    error = np.abs((q - zero_point[:, None]) * step[:, None] - x) / step[:, None]
    inside = (q > -128) & (q < 127)
    # Half a step, and the rounding of the factor and of the product (2 ulp of 255 in float32); a
    # value at the end can be cut by half a step more.
    tiny = 2 * 255 * np.finfo(np.float32).eps
    assert error[inside].max(initial=0.0) <= 0.5 + tiny and error.max() <= 1 + tiny


def test_zero_is_kept_exactly_whatever_the_range(bench: Bench) -> None:
    ranges = ((-0.17, 3), (-5, 0), (2, 9), (-7, -1), (0, 0))
    x = np.stack([np.linspace(low, high, 64) for low, high in ranges])
    x[:, 10] = 0
    out_q, scale = run_quantize(bench, x.astype(np.float32), "float32", 64)
    zero_point = scale[:, 1].copy().view(np.int32)
    assert np.array_equal(out_q[:, 10], zero_point)
    assert np.all((zero_point >= -128) & (zero_point <= 127))
    # One-sided values use all 256 steps.
    assert out_q[2].max() == out_q[1].max() == 127 and out_q[2].min() == out_q[1].min() == -128
    assert scale[4, 0] == 0 and np.all(out_q[4] == zero_point[4])


@pytest.mark.parametrize("size", [384, 136])
def test_fused_quantization_gives_the_bytes_of_the_separate_one(bench: Bench, size: int) -> None:
    hidden = stored(hard_values(1, (6, size)), "float16")
    weight, bias = hard_values(2, (size,)), hard_values(3, (size,))
    padded = -(-size // 16) * 16
    out, fused_q, fused_scale = run_layer_norm(
        bench, hidden, weight, bias, "float16", quantized_size=padded
    )
    out_q, scale = run_quantize(bench, out, "float16", padded)
    assert np.array_equal(fused_q, out_q)
    assert np.array_equal(fused_scale.view(np.uint32), scale.view(np.uint32))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("tables", ["all", "no position", "no type", "no norm"])
def test_embeddings_are_gathered_added_and_normalised(
    bench: Bench, dtype: str, tables: str
) -> None:
    tokens, size = 7, 136
    rng = np.random.default_rng(5)
    word, position, kind = (
        stored(hard_values(seed, (rows, size)), dtype) for seed, rows in ((1, 50), (2, 20), (3, 2))
    )
    ids = [rng.integers(0, rows, tokens).astype(np.int32) for rows in (50, 20, 2)]
    weight, bias = hard_values(6, (size,)), hard_values(7, (size,))
    has_position, has_kind = tables != "no position", tables != "no type"
    norm = tables != "no norm"
    out = bench.empty((tokens, size), dtype)
    bench.launch(
        launch.embed_layer_norm(bench.target, dtype, num_tokens=tokens, hidden_size=size),
        out,
        None,
        None,
        *(bench.put(array) for array in ids),
        bench.put(word),
        bench.put(position) if has_position else None,
        bench.put(kind) if has_kind else None,
        bench.put(weight) if norm else None,
        bench.put(bias) if norm else None,
        tokens,
        size,
        0,
        EPS,
    )
    x = widened(word)[ids[0]]
    x = x + (widened(position)[ids[1]] if has_position else 0)
    x = x + (widened(kind)[ids[2]] if has_kind else 0)
    ref = x
    if norm:
        ref = reference.layer_norm(x, weight.astype(np.float64), bias.astype(np.float64), EPS)
    assert_as_good_as_plain(bench.get(out), rounded(ref, dtype), ref)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 384), (5, 24), (3, 1536), (2, 136)])
def test_rows_are_quantized_to_a_fixed_range(
    bench: Bench, shape: tuple[int, int], dtype: str
) -> None:
    values = hard_values(1, shape)
    hidden = stored(values, dtype)
    padded, (tokens, stride) = -(-shape[1] // 16) * 16, shape
    low, high = np.float32(-0.25), np.float32(0.5)
    assert (values < low).any() and (values > high).any()
    found = []
    for damage in (False, True):
        if damage:
            infinity = {"float32": np.inf, "float16": np.inf, "bfloat16": 0x7F80}[dtype]
            hidden = hidden.copy()
            hidden[-1, 3] = infinity
        out_q, scale = bench.empty((tokens, padded), "int8"), bench.empty((tokens, 2), "float32")
        bench.launch(
            launch.quantize_rows_fixed(bench.target, dtype, num_tokens=tokens),
            *(out_q, scale, bench.put(hidden), tokens, stride, stride, padded),
            *(float(low), float(high)),
        )
        found.append((bench.get(out_q), bench.get(scale)))
    (out_q, scale), (_, damaged) = found
    x = widened(stored(values, dtype))
    per_unit = np.float64(255) / (float(high) - float(low))
    zero_point = np.rint(-float(low) * per_unit) - 128
    wanted = np.clip(np.rint(x * per_unit) + zero_point, -128, 127)
    # A product that float32 rounds over the edge of a step is one step away.
    near_edge = np.abs(x * per_unit - np.floor(x * per_unit) - 0.5) < 2 * 255 * 2.0**-23
    assert np.array_equal(out_q[:, : shape[1]][~near_edge], wanted[~near_edge])
    assert np.abs(out_q[:, : shape[1]] - wanted).max() <= 1
    assert np.all(out_q[:, shape[1] :] == 0)
    assert np.all(scale[:, 1].copy().view(np.int32) == zero_point)
    assert np.allclose(scale[:, 0], 1 / per_unit, rtol=2.0**-23, atol=0)
    # A row that is not finite says so, whatever its values saturate to; the others do not.
    assert np.isnan(damaged[-1, 0]) and np.isfinite(damaged[:-1, 0]).all()
