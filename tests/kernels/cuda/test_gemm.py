from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from minibert.kernels.cuda import launch
from minibert.kernels.cuda.launch import Launch
from minibert.ops.cuda_weights import quantize_weight
from tests import reference
from tests.kernels.cuda.conftest import (
    Bench,
    Float64,
    assert_as_good_as_plain,
    hard_values,
    rounded,
    stored,
    widened,
)

FLOATS = ("float32", "float16", "bfloat16")
# rows, out_features, in_features: one of each, off every tile, several tiles.
SHAPES = [(1, 8, 8), (3, 24, 40), (17, 72, 136), (33, 96, 384), (70, 200, 64), (2, 16, 1536)]
ACTIVATIONS = {
    None: lambda x: x,
    "gelu": reference.gelu,
    "gelu_tanh": reference.gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


class Case:
    """Operands of one linear layer, as stored and as float64."""

    def __init__(self, shape: tuple[int, int, int], dtype: str, seed: int = 0) -> None:
        rows, out_features, in_features = shape
        self.dtype = dtype
        self.hidden = stored(hard_values(seed, (rows, in_features)), dtype)
        self.weight = stored(
            hard_values(seed + 1, (out_features, in_features), in_features**-0.5), dtype
        )
        self.bias = hard_values(seed + 2, (out_features,), 0.3)
        self.residual = stored(hard_values(seed + 3, (rows, out_features)), dtype)

    def sum(self) -> Float64:
        product: Float64 = widened(self.hidden) @ widened(self.weight).T
        return product + self.bias

    def sizes(self) -> dict[str, int]:
        return {
            "num_rows": self.hidden.shape[0],
            "out_features": self.weight.shape[0],
            "in_features": self.weight.shape[1],
        }


def run(
    bench: Bench, case: Case, made: Launch, *, residual: bool = False, narrow: bool = False
) -> NDArray[Any]:
    sizes = case.sizes()
    out = bench.empty((sizes["num_rows"], sizes["out_features"]), case.dtype)
    bench.launch(
        made,
        out,
        bench.put(case.hidden),
        bench.put(case.weight),
        *((None, None, None) if narrow else ()),
        bench.put(case.bias),
        bench.put(case.residual) if residual else None,
        *sizes.values(),
    )
    return bench.get(out)


def plain(case: Case, activation: str | None, residual: bool) -> Float64:
    """A float32 product, rounded once: what a plain version of this dtype can do."""
    product = widened(case.hidden).astype(np.float32) @ widened(case.weight).astype(np.float32).T
    out = ACTIVATIONS[activation]((product + case.bias).astype(np.float64))
    return rounded(out + (widened(case.residual) if residual else 0), case.dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gemm_matches_float64(bench: Bench, shape: tuple[int, int, int], dtype: str) -> None:
    case = Case(shape, dtype)
    out = run(bench, case, launch.gemm(bench.target, dtype, None, **case.sizes()))
    assert_as_good_as_plain(out, plain(case, None, False), case.sum())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogues_match_float64(bench: Bench, activation: str | None, dtype: str) -> None:
    case = Case((5, 40, 72), dtype)
    made = launch.gemm(bench.target, dtype, activation, **case.sizes())
    out = run(bench, case, made, residual=True)
    ref = ACTIVATIONS[activation](case.sum()) + widened(case.residual)
    assert_as_good_as_plain(out, plain(case, activation, True), ref)


def gemm_variants(bench: Bench, case: Case) -> list[Launch]:
    """The same product on every tile shape that the launch functions know."""
    sizes = case.sizes()
    if case.dtype == "float32":
        chosen = (
            launch.gemm(replace(bench.target, num_sms=n), "float32", None, **sizes)
            for n in (1, 2, 4, 10**6)
        )
    else:
        made = launch.gemm(bench.target, case.dtype, None, **sizes)
        chosen = (
            replace(
                made,
                kernel=re.sub(r"Tile<[^>]*>", tile.text, made.kernel),
                grid_size=(
                    -(-sizes["out_features"] // tile.block_n),
                    -(-sizes["num_rows"] // tile.block_m),
                    1,
                ),
                block_size=tile.block_size,
                smem_bytes=tile.smem_bytes,
            )
            for tile in launch.gemm_tiles(bench.target)
        )
    return list({made.kernel: made for made in chosen}.values())


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_tile_shape_gives_the_same_bytes(bench: Bench, dtype: str) -> None:
    case = Case((70, 136, 392), dtype)
    variants = gemm_variants(bench, case)
    assert len(variants) >= 3
    outs = [run(bench, case, made, residual=True) for made in variants]
    for made, out in zip(variants, outs, strict=True):
        assert np.array_equal(out, outs[0]), made.kernel


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_row_does_not_depend_on_the_batch(bench: Bench, dtype: str) -> None:
    case = Case((40, 64, 136), dtype)
    out = run(bench, case, launch.gemm(bench.target, dtype, "gelu", **case.sizes()))
    order = np.random.default_rng(0).permutation(40)
    case.hidden = case.hidden[order]
    permuted = run(bench, case, launch.gemm(bench.target, dtype, "gelu", **case.sizes()))
    assert np.array_equal(permuted, out[order])
    case.hidden = case.hidden[:1]
    alone = run(bench, case, launch.gemm(bench.target, dtype, "gelu", **case.sizes()))
    assert np.array_equal(alone[0], out[order[0]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 16, 17, 32])
def test_narrow_gemm_matches_float64(bench: Bench, rows: int, dtype: str) -> None:
    case = Case((rows, 40, 264), dtype)
    made = launch.gemm_narrow(bench.target, dtype, "gelu", **case.sizes())
    out = run(bench, case, made, residual=True, narrow=True)
    ref = reference.gelu(case.sum()) + widened(case.residual)
    assert_as_good_as_plain(out, plain(case, "gelu", True), ref)


def test_narrow_gemm_gives_a_row_the_same_bytes_in_every_batch(bench: Bench) -> None:
    case = Case((32, 24, 136), "float16")
    outs = []
    for rows in (32, 16, 1):
        case.hidden, case.residual = case.hidden[:rows], case.residual[:rows]
        made = launch.gemm_narrow(bench.target, "float16", None, **case.sizes())
        outs.append(run(bench, case, made, narrow=True))
    assert all(np.array_equal(out, outs[0][: len(out)]) for out in outs)


# ---- int8 --------------------------------------------------------------------------------------
def run_int8(
    bench: Bench, case: Case, dtype: str, activation: str | None, *, narrow: bool, residual: bool
) -> tuple[NDArray[Any], Float64]:
    """The kernel's output, and the exact integer product dequantized in float64."""
    x = widened(case.hidden)
    low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    act_scale = ((high - low) / 255).astype(np.float32)
    divisor = np.where(act_scale > 0, act_scale, 1).astype(np.float64)
    zero_point = (np.rint(-low / divisor) - 128).astype(np.int32)
    steps = np.rint(x / divisor[:, None]) + zero_point[:, None]
    hidden_q = np.clip(steps, -128, 127).astype(np.int8)
    row_scale = np.stack([act_scale, zero_point.view(np.float32)], axis=1)
    weight_q, weight_scale = quantize_weight(widened(case.weight).astype(np.float32))
    choose = launch.gemm_narrow if narrow else launch.gemm
    made = choose(bench.target, dtype, activation, **case.sizes(), quantized=True)
    sizes = case.sizes()
    out = bench.empty((sizes["num_rows"], sizes["out_features"]), dtype)
    bench.launch(
        made,
        out,
        bench.put(hidden_q),
        bench.put(weight_q),
        bench.put(row_scale),
        bench.put(weight_scale),
        bench.put(weight_q.sum(axis=1, dtype=np.int32)),
        bench.put(case.bias),
        bench.put(stored(widened(case.residual), dtype)) if residual else None,
        *sizes.values(),
    )
    acc = (hidden_q.astype(np.int64) - zero_point[:, None]) @ weight_q.astype(np.int64).T
    ref = acc * act_scale[:, None].astype(np.float64) * weight_scale.astype(np.float64)
    ref = ACTIVATIONS[activation](ref + case.bias)
    return bench.get(out), ref + (rounded(widened(case.residual), dtype) if residual else 0)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("shape", [(1, 8, 16), (5, 40, 144), (32, 72, 400)])
def test_int8_gemm_is_exact_up_to_its_output(
    bench: Bench, shape: tuple[int, int, int], activation: str | None, narrow: bool
) -> None:
    case = Case(shape, "float32")
    out, ref = run_int8(bench, case, "float16", activation, narrow=narrow, residual=True)
    assert_as_good_as_plain(out, rounded(ref, "float16"), ref)


def test_int8_gemm_gives_the_same_bytes_on_every_tile_and_kernel(bench: Bench) -> None:
    case = Case((20, 40, 144), "float32")
    whole, _ = run_int8(bench, case, "float16", "gelu", narrow=False, residual=True)
    narrow, _ = run_int8(bench, case, "float16", "gelu", narrow=True, residual=True)
    assert np.array_equal(narrow, whole)
    case.hidden, case.residual = case.hidden[:1], case.residual[:1]
    alone, _ = run_int8(bench, case, "float16", "gelu", narrow=False, residual=True)
    assert np.array_equal(alone[0], whole[0])


def test_int8_gemm_does_not_overflow_at_the_extremes(bench: Bench) -> None:
    case = Case((2, 8, 1536), "float32")
    case.hidden[:], case.weight[:] = 1.0, -1.0
    out, ref = run_int8(bench, case, "float32", None, narrow=False, residual=False)
    assert_as_good_as_plain(out, rounded(ref, "float32"), ref)
