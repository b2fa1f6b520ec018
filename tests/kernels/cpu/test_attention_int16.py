"""Attention of int8 models: 16-bit products against the same steps in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from minibert.kernels.cpu import loader
from tests.kernels.cpu.test_attention import SHORT, make, run

BLOCK = 256  # keys that share a scale
BITS = 13  # of an exponential


def tiles(size: int, most: int) -> list[slice]:
    """Parts of at most `most`, as equal as possible, the larger ones first."""
    count = -(-size // most)
    bounds = [0]
    for left in range(count, 0, -1):
        bounds.append(bounds[-1] + -(-(size - bounds[-1]) // left))
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def whole_steps(x: Any, steps: int, axis: int | None) -> Any:
    """x in whole steps of its largest value, `steps` of them."""
    unit = np.abs(x).max(axis=axis, keepdims=True) / steps
    return np.rint(x / unit) * unit


def expected(qkv: Any, cu_seqlens: Any, num_heads: int, head_dim: int, group: int) -> Any:
    out = np.zeros((len(qkv), num_heads, head_dim))
    parts = qkv.astype(np.float64).reshape(-1, 3, num_heads, head_dim)
    for begin, end in itertools.pairwise(cu_seqlens):
        for head in range(num_heads):
            query, key, value = parts[begin:end, :, head].transpose(1, 0, 2)
            if end - begin <= SHORT:
                p = np.exp(query @ key.T * head_dim**-0.5)
                out[begin:end, head] = p @ value / p.sum(axis=1, keepdims=True)
                continue
            blocks = [slice(i, i + BLOCK) for i in range(0, end - begin, BLOCK)]
            for outer in tiles(end - begin, 8 * group):
                for inner in tiles(outer.stop - outer.start, group):
                    rows = slice(outer.start + inner.start, outer.start + inner.stop)
                    q = whole_steps(query[rows], 4095, None)
                    scores = [q @ whole_steps(key[b], 4095, None).T for b in blocks]
                    exponents = [s * head_dim**-0.5 / np.log(2) for s in scores]
                    total, sums, most = 0.0, 0.0, np.full((q.shape[0], 1), -np.inf)
                    for b, x in zip(blocks, exponents, strict=True):
                        before, most = most, np.maximum(most, x.max(axis=1, keepdims=True))
                        p = np.rint(2.0 ** (BITS + x - most))
                        total = total * 2.0 ** (before - most) + p @ whole_steps(value[b], 1023, 0)
                        sums = sums * 2.0 ** (before - most) + p.sum(axis=1, keepdims=True)
                    out[begin:end, head][rows] = total / sums
    return out.reshape(len(qkv), -1)


def check(isa: str, out: Any, batch: Any, qkv: Any, num_heads: int, head_dim: int) -> None:
    """Some exponentials lie near the middle between two whole numbers: those may differ by one."""
    group = 12 if isa.startswith("avx2") else 24
    exact = expected(qkv, batch.cu_seqlens, num_heads, head_dim, group)
    error = np.abs(out - exact)
    largest = np.abs(qkv).max()
    assert error.max() <= 4 * largest * 2.0**-BITS
    assert np.median(error) <= 1e-6 * largest


@pytest.mark.parametrize("head_dim", [8, 24, 32, 40, 64, 96, 128])
def test_steps_and_exponentials_are_the_documented_ones(
    words_isa: str, make_ops: Any, reference: Any, head_dim: int
) -> None:
    batch, qkv = make([1, 2, 17, 64, 5, 31], 3, head_dim)
    out = run(make_ops("int8", isa=words_isa), reference.put, batch, qkv, 3, head_dim)
    check(words_isa, out, batch, qkv, 3, head_dim)


@pytest.mark.parametrize("seqlen", [1, 191, 193, 255, 256, 257, 512, 700])
def test_blocks_and_groups_join(words_isa: str, make_ops: Any, reference: Any, seqlen: int) -> None:
    batch, qkv = make([seqlen, 3], 1, 32, seed=seqlen)
    qkv[seqlen // 2 :] *= 3  # each block its own scale
    out = run(make_ops("int8", isa=words_isa), reference.put, batch, qkv, 1, 32)
    check(words_isa, out, batch, qkv, 1, 32)


def test_it_is_finer_than_eight_bits(words_isa: str, make_ops: Any, reference: Any) -> None:
    """Against float64 without any steps; eight bits alone would cost 1 / 255 of the largest."""
    batch, qkv = make([300, 64, 7], 4, 32, seed=9)
    out = run(make_ops("int8", isa=words_isa), reference.put, batch, qkv, 4, 32)
    exact = reference.attention(qkv.astype(np.float64), batch.cu_seqlens, 4, 32, 32**-0.5)
    assert np.abs(out - exact).max() <= np.abs(qkv).max() / 2000


def test_growing_and_large_scores(words_isa: str, make_ops: Any, reference: Any) -> None:
    batch, qkv = make([600, 40], 1, 32, seed=2)
    qkv[:, ::7] *= 20
    qkv[:, 32:64] += np.linspace(0, 3, 640)[:, None].astype(np.float32)
    out = run(make_ops("int8", isa=words_isa), reference.put, batch, qkv, 1, 32)
    check(words_isa, out, batch, qkv, 1, 32)


def test_zeros_and_values_out_of_every_range(words_isa: str, make_ops: Any, reference: Any) -> None:
    ops = make_ops("int8", isa=words_isa)
    batch, qkv = make([70], 1, 32, seed=1)
    qkv[:, :64] = 0  # no scores: the mean of the values
    out = run(ops, reference.put, batch, qkv, 1, 32)
    assert np.abs(out - qkv[:, 64:].mean(axis=0)).max() < 2e-3
    qkv[:, 64:] = 0
    assert not run(ops, reference.put, batch, qkv, 1, 32).any()
    qkv[:, 64:] = 1e-38
    assert not run(ops, reference.put, batch, qkv, 1, 32).any()
    qkv[:, 64:] = 1e36
    assert run(ops, reference.put, batch, qkv, 1, 32) == pytest.approx(1e36, rel=1e-5)


@pytest.mark.parametrize("column", [3, 32 + 3, 64 + 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_sequence_and_head(
    words_isa: str, make_ops: Any, reference: Any, column: int, value: float
) -> None:
    batch, qkv = make([6, 300], 2, 16, seed=5)
    ops = make_ops("int8", isa=words_isa)
    clean = run(ops, reference.put, batch, qkv, 2, 16)
    qkv[7, column] = value  # of head 0 in the second sequence: a query, a key or a value
    out = run(ops, reference.put, batch, qkv, 2, 16)
    assert np.isnan(out[7, :16]).all()
    if column >= 32:
        assert np.isnan(out[6:, :16]).all()
    assert out[:6].tobytes() == clean[:6].tobytes()
    assert out[6:, 16:].tobytes() == clean[6:, 16:].tobytes()


@pytest.mark.parametrize(
    "names",
    [
        ("avx2", "avx2-vnni-software", "avx2-vnni"),
        ("avx512-vnni-software", "avx512", "avx512-vnni"),
    ],
    ids=["8 lanes", "16 lanes"],
)
@pytest.mark.parametrize("head_dim", [8, 32, 40, 128])
def test_paths_of_one_width_give_the_same_bytes(
    make_ops: Any, reference: Any, names: tuple[str, ...], head_dim: int
) -> None:
    batch, qkv = make([1, 30, 300, 7], 2, head_dim, seed=1)
    here = {path.name for path in loader.all_paths() if path.supported}
    found = [
        run(make_ops("int8", isa=name), reference.put, batch, qkv, 2, head_dim).tobytes()
        for name in names
        if name in here
    ]
    assert len(found) > 0
    assert len(set(found)) == 1


def test_paths_without_16_bit_products_have_float32_attention(
    make_ops: Any, reference: Any
) -> None:
    batch, qkv = make([40, 3], 2, 32)
    outs = [
        run(make_ops(dtype, isa="portable"), reference.put, batch, qkv, 2, 32).tobytes()
        for dtype in ("int8", "float32")
    ]
    assert outs[0] == outs[1]
