"""Attention on matrix units: bfloat16 products against the same roundings in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.kernels.cpu.test_attention import SHORT, make, run

BLOCK = 256  # keys between two corrections of what was summed


def bfloat16(x: Any) -> Any:
    """x to 8 significant bits, to nearest, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def expected(qkv: Any, cu_seqlens: Any, num_heads: int, head_dim: int) -> Any:
    """Queries, keys, values and exponentials rounded; everything between them exact."""
    out = np.zeros((len(qkv), num_heads, head_dim))
    exact = qkv.astype(np.float64).reshape(-1, 3, num_heads, head_dim)
    parts = bfloat16(exact)
    for begin, end in itertools.pairwise(cu_seqlens):
        for head in range(num_heads):
            short = end - begin <= SHORT
            rounded = (lambda x: x) if short else bfloat16
            found = (exact if short else parts)[begin:end, :, head]
            query, key, value = found.transpose(1, 0, 2)
            scores = query @ key.T * head_dim**-0.5
            total, sums, most = 0.0, 0.0, np.full((end - begin, 1), -np.inf)
            for block in range(0, end - begin, BLOCK):
                x = scores[:, block : block + BLOCK]
                before, most = most, np.maximum(most, x.max(axis=1, keepdims=True))
                p = np.exp(x - most)
                total = total * np.exp(before - most) + rounded(p) @ value[block : block + BLOCK]
                sums = sums * np.exp(before - most) + p.sum(axis=1, keepdims=True)
            out[begin:end, head] = total / sums
    return out.reshape(len(qkv), -1)


def check(out: Any, batch: Any, qkv: Any, num_heads: int, head_dim: int) -> None:
    """Some exponentials lie near the middle between two values of bfloat16 and go the other way."""
    error = np.abs(out - expected(qkv, batch.cu_seqlens, num_heads, head_dim))
    largest = np.abs(qkv).max()
    assert error.max() <= largest * 2.0**-8
    assert np.median(error) <= 2e-6 * largest


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("head_dim", [8, 24, 32, 40, 64, 96, 128])
def test_roundings_are_the_documented_ones(
    tile_isa: str, make_ops: Any, reference: Any, head_dim: int, dtype: str
) -> None:
    batch, qkv = make([1, 2, 17, 64, 5, 31, 33], 3, head_dim)
    out = run(make_ops(dtype, isa=tile_isa), reference.put, batch, qkv, 3, head_dim)
    check(out, batch, qkv, 3, head_dim)


@pytest.mark.parametrize("seqlen", [1, 31, 32, 191, 193, 255, 256, 257, 512, 700])
def test_blocks_and_groups_join(tile_isa: str, make_ops: Any, reference: Any, seqlen: int) -> None:
    batch, qkv = make([seqlen, 3], 1, 32, seed=seqlen)
    out = run(make_ops("bfloat16", isa=tile_isa), reference.put, batch, qkv, 1, 32)
    check(out, batch, qkv, 1, 32)


@pytest.mark.parametrize("head_dim", [8, 40, 64, 128])
@pytest.mark.parametrize("seqlen", [1, 33, 300])
def test_two_parts_are_as_exact_as_three_products(
    tile_isa: str, make_ops: Any, reference: Any, head_dim: int, seqlen: int
) -> None:
    """What two parts leave of an operand is 2^-17 of it, and the fourth product is left out."""
    batch, qkv = make([seqlen, 2], 2, head_dim, seed=seqlen)
    ops = make_ops(isa=tile_isa, matmul_precision="high")
    out = run(ops, reference.put, batch, qkv, 2, head_dim)
    exact = reference.attention(
        qkv.astype(np.float64), batch.cu_seqlens, 2, head_dim, head_dim**-0.5
    )
    assert np.abs(out - exact).max() <= 2.0**-13 * np.abs(qkv).max()
    assert np.sqrt(np.mean((out - exact) ** 2)) <= 2.0**-17 * np.abs(qkv).max()


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "highest"), ("float32", "high")])
def test_growing_and_large_scores(
    tile_isa: str, make_ops: Any, reference: Any, dtype: str, precision: str
) -> None:
    batch, qkv = make([600, 40], 1, 32, seed=2)
    qkv[:, 32:64] += np.linspace(0, 3, 640)[:, None].astype(np.float32)
    ops = make_ops(dtype, isa=tile_isa, matmul_precision=precision)
    out = run(ops, reference.put, batch, qkv, 1, 32)
    if dtype == "bfloat16":
        check(out, batch, qkv, 1, 32)
    exact = reference.attention(qkv.astype(np.float64), batch.cu_seqlens, 1, 32, 32**-0.5)
    bound = 2.0**-4 if dtype == "bfloat16" else 2.0**-12
    assert np.abs(out - exact).max() <= bound * np.abs(qkv).max()
    qkv[:, ::7] *= 1e4  # one key takes all
    out = run(ops, reference.put, batch, qkv, 1, 32)
    assert np.isfinite(out).all()


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "highest"), ("float32", "high")])
def test_a_sequence_has_the_same_bytes_in_any_batch(
    tile_isa: str, make_ops: Any, reference: Any, dtype: str, precision: str
) -> None:
    seqlens = [1, 7, 300, 12, 33, 530]
    batch, qkv = make(seqlens, 2, 32, seed=3)
    ops = make_ops(dtype, isa=tile_isa, matmul_precision=precision)
    together = run(ops, reference.put, batch, qkv, 2, 32)
    for i, (begin, end) in enumerate(itertools.pairwise(batch.cu_seqlens)):
        single, _ = make([seqlens[i]], 2, 32)
        for alone in (False, True):
            out = run(ops, reference.put, single, qkv[begin:end], 2, 32, alone=alone)
            assert out.tobytes() == together[begin:end].tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_what_is_not_finite_stays_in_its_sequence_and_head(
    tile_isa: str, make_ops: Any, reference: Any, dtype: str
) -> None:
    ops = make_ops(dtype, isa=tile_isa)
    for column, value in itertools.product((3, 32 + 3, 64 + 3), (np.nan, np.inf, -np.inf)):
        batch, qkv = make([6, 300], 2, 16, seed=5)
        clean = run(ops, reference.put, batch, qkv, 2, 16)
        qkv[7, column] = value  # of head 0 in the second sequence: a query, a key or a value
        out = run(ops, reference.put, batch, qkv, 2, 16)
        assert not np.isfinite(out[6:, :16]).all()
        assert out[:6].tobytes() == clean[:6].tobytes()
        assert out[6:, 16:].tobytes() == clean[6:, 16:].tobytes()


def test_earlier_scratch_leaves_no_trace(tile_isa: str, make_ops: Any, reference: Any) -> None:
    for dtype, precision in (("bfloat16", "highest"), ("float32", "high")):
        ops = make_ops(dtype, isa=tile_isa, matmul_precision=precision, threads=1)
        batch, qkv = make([5, 21], 2, 40, seed=4)
        clean = run(ops, reference.put, batch, qkv, 2, 40)
        poison_batch, poison = make([300], 2, 128, seed=4)
        run(ops, reference.put, poison_batch, np.full_like(poison, np.nan), 2, 128)
        assert run(ops, reference.put, batch, qkv, 2, 40).tobytes() == clean.tobytes()
