from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from minibert.kernels.cuda import launch
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


def run(
    bench: Bench,
    qkv: NDArray[Any],
    seqlens: list[int],
    dtype: str,
    *,
    num_heads: int,
    head_dim: int,
    idle_tiles: int = 0,
) -> NDArray[Any]:
    """qkv (num_tokens, row_stride) as stored -> context as stored."""
    cu_seqlens = np.cumsum([0, *seqlens]).astype(np.int32)
    tiles = launch.attention_tiles(cu_seqlens, block_m=launch.attention_block_m(dtype))
    tiles = np.concatenate([tiles, np.full((idle_tiles, 2), -1, np.int32)])
    num_tokens, row_stride = qkv.shape
    out = bench.empty((num_tokens, num_heads * head_dim), dtype)
    bench.launch(
        launch.attention(
            bench.target,
            dtype,
            num_tiles=len(tiles),
            num_heads=num_heads,
            head_dim=head_dim,
            row_stride=row_stride,
        ),
        out,
        bench.put(qkv),
        bench.put(cu_seqlens),
        bench.put(tiles),
        num_heads,
        head_dim,
        row_stride,
        float(head_dim**-0.5),
    )
    return bench.get(out)


def plain_attention(qkv: Float64, seqlens: list[int], num_heads: int, dtype: str) -> Float64:
    """A plain version of this dtype: float32 sums, probabilities and result rounded."""
    width = qkv.shape[1] // 3
    head_dim = width // num_heads
    out = np.zeros((len(qkv), width))
    begin = 0
    for seqlen in seqlens:
        rows = slice(begin, begin + seqlen)
        for head in range(num_heads):
            columns = slice(head * head_dim, (head + 1) * head_dim)
            q, k, v = (
                qkv[rows, part * width :][:, columns].astype(np.float32) for part in range(3)
            )
            scores = q @ k.T * np.float32(head_dim**-0.5)
            probs = np.exp(scores - scores.max(axis=1, keepdims=True))
            sums = probs.sum(axis=1, keepdims=True)
            weighted = rounded(probs, dtype).astype(np.float32) @ v
            out[rows, columns] = rounded(weighted / sums, dtype)
        begin += seqlen
    return out


def check(
    bench: Bench, seqlens: list[int], dtype: str, num_heads: int, head_dim: int, seed: int = 0
) -> None:
    width = num_heads * head_dim
    qkv = stored(hard_values(seed, (sum(seqlens), 3 * width)), dtype)
    out = run(bench, qkv, seqlens, dtype, num_heads=num_heads, head_dim=head_dim)
    wide = widened(qkv)
    cu_seqlens = np.cumsum([0, *seqlens])
    ref = reference.attention(wide, cu_seqlens, num_heads, head_dim**-0.5)
    assert_as_good_as_plain(out, plain_attention(wide, seqlens, num_heads, dtype), ref)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seqlens", [[1], [5, 1, 17], [64], [65, 3], [130]])
def test_attention_matches_float64(bench: Bench, seqlens: list[int], dtype: str) -> None:
    check(bench, seqlens, dtype, num_heads=2, head_dim=32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("head_dim", [8, 16, 24, 40, 64, 72, 96, 120, 128])
def test_every_head_dim_matches_float64(bench: Bench, head_dim: int, dtype: str) -> None:
    check(bench, [33, 7], dtype, num_heads=1, head_dim=head_dim)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_attention_matches_float64_at_512_tokens(bench: Bench, dtype: str) -> None:
    check(bench, [512], dtype, num_heads=1, head_dim=32)


@pytest.mark.parametrize("dtype", FLOATS)
def test_attention_ignores_other_sequences(bench: Bench, dtype: str) -> None:
    seqlens = [19, 70, 1]
    qkv = stored(hard_values(1, (90, 192)), dtype)
    out = run(bench, qkv, seqlens, dtype, num_heads=2, head_dim=32)
    parts = np.split(qkv, np.cumsum(seqlens)[:-1])
    for part, expected in zip(parts, np.split(out, np.cumsum(seqlens)[:-1]), strict=True):
        alone = run(bench, part, [len(part)], dtype, num_heads=2, head_dim=32)
        assert np.array_equal(alone, expected)
    order = [2, 0, 1]
    permuted = run(
        bench,
        np.concatenate([parts[i] for i in order]),
        [seqlens[i] for i in order],
        dtype,
        num_heads=2,
        head_dim=32,
        idle_tiles=2,
    )
    expected = np.concatenate([np.split(out, np.cumsum(seqlens)[:-1])[i] for i in order])
    assert np.array_equal(permuted, expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_of_qkv_may_be_longer_than_the_heads(bench: Bench, dtype: str) -> None:
    qkv = stored(hard_values(2, (9, 96)), dtype)
    wide = np.concatenate([qkv, np.zeros((9, 8), qkv.dtype)], axis=1)
    out = run(bench, wide, [9], dtype, num_heads=1, head_dim=32)
    assert np.array_equal(out, run(bench, qkv, [9], dtype, num_heads=1, head_dim=32))


@pytest.mark.parametrize("dtype", FLOATS)
def test_large_scores_do_not_overflow(bench: Bench, dtype: str) -> None:
    qkv = stored(hard_values(3, (40, 96), scale=20.0), dtype)
    out = widened(run(bench, qkv, [40], dtype, num_heads=1, head_dim=32))
    assert np.isfinite(out).all()
    values = widened(qkv)[:, 64:]
    assert np.all(out <= values.max(axis=0) * (1 + 2**-7 * np.sign(values.max(axis=0))))


@pytest.mark.parametrize("dtype", FLOATS)
def test_equal_keys_give_the_mean_of_the_values(bench: Bench, dtype: str) -> None:
    qkv = np.zeros((48, 96), np.float32)
    qkv[:, 64:] = np.arange(48)[:, None]
    out = run(bench, stored(qkv, dtype), [48], dtype, num_heads=1, head_dim=32)
    assert np.array_equal(widened(out), np.full((48, 32), 23.5))
