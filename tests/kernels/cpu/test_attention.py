"""Attention on packed sequences against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minibert.batch import pack

SHORT = 16
"""Sequences of at most so many tokens are computed in float32, whatever the format."""


def make(seqlens: list[int], num_heads: int, head_dim: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    batch = pack([np.zeros(n, np.int32) for n in seqlens])
    qkv = rng.standard_normal((sum(seqlens), 3 * num_heads * head_dim)).astype(np.float32)
    return batch, qkv


def run(
    ops: Any, put: Any, batch: Any, qkv: Any, num_heads: int, head_dim: int, *, alone: bool = False
) -> Any:
    with ops.stream(alone=alone) as running:
        out = running.attention(
            put(running, qkv),
            running.upload(batch),
            num_heads=num_heads,
            head_dim=head_dim,
            softmax_scale=head_dim**-0.5,
        )
        return running.download(out)


def check(reference: Any, out: Any, batch: Any, qkv: Any, num_heads: int, head_dim: int) -> None:
    args = (batch.cu_seqlens, num_heads, head_dim, head_dim**-0.5)
    plain = reference.attention(qkv, *args)
    reference.assert_close(out, plain, reference.attention(qkv.astype(np.float64), *args))


@pytest.mark.parametrize("head_dim", [8, 24, 32, 40, 64, 96, 128])
def test_attention_is_as_exact_as_float32(
    isa: str, make_ops: Any, reference: Any, head_dim: int
) -> None:
    batch, qkv = make([1, 2, 17, 64, 5, 31], 3, head_dim)
    out = run(make_ops(isa=isa), reference.put, batch, qkv, 3, head_dim)
    check(reference, out, batch, qkv, 3, head_dim)


@pytest.mark.parametrize("head_dim", [8, 24, 32, 40, 128])
def test_short_sequences_are_float32_and_alone(
    isa: str, make_ops: Any, reference: Any, head_dim: int
) -> None:
    """Every length, between rows of NaN: the bytes of float32 in each format.

    The largest error of so few values is chance; their root mean square is compared.
    """
    seqlens = [length for n in range(1, SHORT + 1) for length in (n, 1)]
    batch, qkv = make(seqlens, 2, head_dim, seed=head_dim)
    args = (2, head_dim, head_dim**-0.5)
    plain = reference.attention(qkv, batch.cu_seqlens, *args)
    exact = reference.attention(qkv.astype(np.float64), batch.cu_seqlens, *args)
    poisoned = qkv.copy()
    others = np.repeat(np.arange(len(seqlens)) % 2 == 1, seqlens)
    poisoned[others] = np.nan
    out = run(make_ops(isa=isa), reference.put, batch, poisoned, 2, head_dim)
    squares = [np.square(found - exact)[~others].mean() for found in (out, plain)]
    assert np.sqrt(squares[0]) <= 2 * np.sqrt(squares[1])
    assert np.isnan(out[others]).all()
    for dtype in ("bfloat16", "int8"):
        narrow = run(make_ops(dtype, isa=isa), reference.put, batch, poisoned, 2, head_dim)
        assert narrow[~others].tobytes() == out[~others].tobytes()


@pytest.mark.parametrize("head_dim", [136, 256, 1024])
def test_wide_heads_are_float32_in_every_format(
    isa: str, make_ops: Any, reference: Any, head_dim: int
) -> None:
    """Equal values, whose scores are the largest there can be, among them."""
    batch, qkv = make([1, 5, SHORT, 17, 40], 1, head_dim)
    qkv[-40:] = 1
    out = run(make_ops(isa=isa), reference.put, batch, qkv, 1, head_dim)
    check(reference, out, batch, qkv, 1, head_dim)
    for dtype in ("bfloat16", "int8"):
        other = run(make_ops(dtype, isa=isa), reference.put, batch, qkv, 1, head_dim)
        assert other.tobytes() == out.tobytes()


@pytest.mark.parametrize("seqlen", [1, 255, 256, 257, 512, 700])
def test_key_blocks_join_without_loss(isa: str, make_ops: Any, reference: Any, seqlen: int) -> None:
    batch, qkv = make([seqlen, 3], 1, 32, seed=seqlen)
    out = run(make_ops(isa=isa), reference.put, batch, qkv, 1, 32)
    check(reference, out, batch, qkv, 1, 32)


def test_large_scores_neither_overflow_nor_lose_the_rest(
    isa: str, make_ops: Any, reference: Any
) -> None:
    batch, qkv = make([300, 40], 2, 32, seed=1)
    qkv[:, ::7] *= 20
    out = run(make_ops(isa=isa), reference.put, batch, qkv, 2, 32)
    check(reference, out, batch, qkv, 2, 32)


def test_growing_maxima_rescale_what_was_summed(isa: str, make_ops: Any, reference: Any) -> None:
    batch, qkv = make([600], 1, 32, seed=2)
    # Later keys match better: each block of keys raises the maximum.
    qkv[:, 32:64] = qkv[:, :32].mean(axis=0) + np.linspace(0, 3, 600)[:, None]
    out = run(make_ops(isa=isa), reference.put, batch, qkv.astype(np.float32), 1, 32)
    check(reference, out, batch, qkv, 1, 32)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_sequence_has_the_same_bytes_in_any_batch(
    isa: str, make_ops: Any, reference: Any, dtype: str
) -> None:
    rng = np.random.default_rng(3)
    seqlens = [1, 7, 300, 12, 13, 40, 8, 100, 530]
    batch, qkv = make(seqlens, 4, 32, seed=3)
    single, team = make_ops(dtype, isa=isa, threads=1), make_ops(dtype, isa=isa)
    expected = run(single, reference.put, batch, qkv, 4, 32)
    bounds = list(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True))
    for size in (1, 2, 5, 9):
        chosen = rng.permutation(len(seqlens))[:size]
        rows = np.concatenate([np.arange(*bounds[i]) for i in chosen])
        part = pack([np.zeros(seqlens[i], np.int32) for i in chosen])
        for ops, alone in ((single, False), (team, True)):
            out = run(ops, reference.put, part, qkv[rows], 4, 32, alone=alone)
            assert out.tobytes() == expected[rows].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_scratch_of_an_earlier_call_leaves_no_trace(
    isa: str, make_ops: Any, reference: Any, dtype: str
) -> None:
    ops = make_ops(dtype, isa=isa, threads=1)
    batch, qkv = make([5, 21], 2, 40, seed=4)
    expected = run(ops, reference.put, batch, qkv, 2, 40)
    poison_batch, poison = make([300], 2, 128, seed=4)
    run(ops, reference.put, poison_batch, np.full_like(poison, np.nan), 2, 128)
    assert run(ops, reference.put, batch, qkv, 2, 40).tobytes() == expected.tobytes()


def test_nan_stays_in_its_sequence_and_head(isa: str, make_ops: Any, reference: Any) -> None:
    batch, qkv = make([6, 9], 2, 8, seed=5)
    clean = run(make_ops(isa=isa), reference.put, batch, qkv, 2, 8)
    qkv[7, 16 + 1] = np.nan  # a key of head 0 in the second sequence
    out = run(make_ops(isa=isa), reference.put, batch, qkv, 2, 8)
    assert np.isnan(out[6:, :8]).all()
    assert out[:6].tobytes() == clean[:6].tobytes()
    assert out[6:, 8:].tobytes() == clean[6:, 8:].tobytes()
