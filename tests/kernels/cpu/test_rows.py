"""layer_norm, embedding, pooling, normalisation and concatenation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minibert.batch import Batch, pack
from minibert.errors import InputError

SIZES = [1, 3, 8, 31, 32, 100, 384, 768, 1030]


@pytest.mark.parametrize("hidden_size", SIZES)
@pytest.mark.parametrize("eps", [1e-12, 1e-5])
def test_layer_norm_is_as_exact_as_float32(
    isa: str, make_ops: Any, reference: Any, hidden_size: int, eps: float
) -> None:
    rng = np.random.default_rng(hidden_size)
    x = rng.standard_normal((70, hidden_size)).astype(np.float32)
    x[:, 0] *= 20
    x[1] += 300  # a large mean: the two-pass variance keeps its digits
    weight = rng.standard_normal(hidden_size).astype(np.float32)
    bias = rng.standard_normal(hidden_size).astype(np.float32)
    if hidden_size == 1:
        x[:] = 0  # one value less its mean is 0; anything else tests the sign of rounding
    ops = make_ops(isa=isa)
    norm = ops.prepare_layer_norm(weight, bias, eps=eps)
    with ops.stream(alone=False) as running:
        out = running.download(running.layer_norm(reference.put(running, x), norm))
    plain = reference.layer_norm(x, weight, bias, eps)
    exact = reference.layer_norm(
        x.astype(np.float64), weight.astype(np.float64), bias.astype(np.float64), eps
    )
    reference.assert_close(out, plain, exact)


def test_layer_norm_without_bias(isa: str, make_ops: Any, reference: Any) -> None:
    x = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    ops = make_ops(isa=isa)
    with ops.stream(alone=False) as running:
        rows = reference.put(running, x)
        weight = np.ones(50, np.float32)
        without = running.layer_norm(rows, ops.prepare_layer_norm(weight, None, eps=1e-5))
        zero = running.layer_norm(rows, ops.prepare_layer_norm(weight, 0 * weight, eps=1e-5))
        assert running.download(without).tobytes() == running.download(zero).tobytes()


def embedding_inputs(hidden_size: int) -> tuple[Batch, list[Any], Any, Any]:
    rng = np.random.default_rng(1)
    batch = pack(
        [rng.integers(0, 40, n).astype(np.int32) for n in (1, 33, 7)],
        token_type_ids=[rng.integers(0, 2, n).astype(np.int32) for n in (1, 33, 7)],
        first_position=2,
    )
    tables = [rng.standard_normal((n, hidden_size)).astype(np.float32) for n in (40, 36, 2)]
    weight, bias = rng.standard_normal((2, hidden_size)).astype(np.float32)
    return batch, tables, weight, bias


@pytest.mark.parametrize("hidden_size", [7, 32, 384])
@pytest.mark.parametrize("left_out", [(), (1,), (2,), (1, 2)], ids=str)
def test_embed_sums_rows_and_normalises(
    isa: str, make_ops: Any, reference: Any, hidden_size: int, left_out: tuple[int, ...]
) -> None:
    batch, tables, weight, bias = embedding_inputs(hidden_size)
    ids = [batch.input_ids, batch.position_ids, batch.token_type_ids]
    ops = make_ops(isa=isa)
    prepared = [
        None if i in left_out else ops.prepare_embedding(table) for i, table in enumerate(tables)
    ]
    norm = ops.prepare_layer_norm(weight, bias, eps=1e-5)
    with ops.stream(alone=True) as running:
        uploaded = running.upload(batch)
        summed = running.download(running.embed(uploaded, prepared, None))
        out = running.download(running.embed(uploaded, prepared, norm))
    kept = [i for i in range(3) if i not in left_out]
    plain = np.zeros_like(summed)
    for i in kept:
        plain += tables[i][ids[i]]
    assert (summed == plain).all()
    exact = sum(tables[i].astype(np.float64)[ids[i]] for i in kept)
    reference.assert_close(
        out,
        reference.layer_norm(plain, weight, bias, 1e-5),
        reference.layer_norm(exact, weight.astype(np.float64), bias.astype(np.float64), 1e-5),
    )


@pytest.mark.parametrize("table", [0, 1, 2])
@pytest.mark.parametrize("bad", [-1, 1000])
def test_ids_outside_their_table_are_refused_by_name(
    isa: str, make_ops: Any, table: int, bad: int
) -> None:
    batch, tables, _, _ = embedding_inputs(8)
    name = ("input_ids", "position_ids", "token_type_ids")[table]
    getattr(batch, name)[9] = bad
    ops = make_ops(isa=isa)
    prepared = [ops.prepare_embedding(weights) for weights in tables]
    with ops.stream(alone=False) as running:
        with pytest.raises(InputError, match=rf"{name} must be .* got {bad} at token 9"):
            running.embed(running.upload(batch), prepared, None)


POOLINGS = {
    "cls": lambda rows, first: rows[0],
    "lasttoken": lambda rows, first: rows[-1],
    "max": lambda rows, first: rows.max(axis=0),
    "mean": lambda rows, first: rows.mean(axis=0),
    "mean_sqrt_len_tokens": lambda rows, first: rows.sum(axis=0) / np.sqrt(len(rows)),
    "weightedmean": lambda rows, first: (
        (rows * np.arange(first, first + len(rows))[:, None]).sum(axis=0)
        / np.arange(first, first + len(rows)).sum()
    ),
}


@pytest.mark.parametrize("mode", list(POOLINGS))
@pytest.mark.parametrize("hidden_size", [5, 64, 384])
def test_pool(isa: str, make_ops: Any, reference: Any, mode: Any, hidden_size: int) -> None:
    rng = np.random.default_rng(2)
    seqlens, skip = [1, 9, 512, 4], [0, 3, 0, 3]
    batch = pack([np.zeros(n, np.int32) for n in seqlens], skip=skip)
    hidden = rng.standard_normal((sum(seqlens), hidden_size)).astype(np.float32)
    ops = make_ops(isa=isa)
    with ops.stream(alone=False) as running:
        pooled = running.pool(reference.put(running, hidden), running.upload(batch), mode)
        out = running.download(pooled)
    for i, begin in enumerate(batch.cu_seqlens[:-1]):
        rows = hidden[begin + skip[i] : batch.cu_seqlens[i + 1]].astype(np.float64)
        exact = POOLINGS[mode](rows, skip[i] + 1)
        # The sum is float64; one rounding to float32 remains.
        assert (np.abs(out[i] - exact) <= 2.0**-24 * np.abs(exact) * 1.01).all()


def test_pool_keeps_nan(isa: str, make_ops: Any, reference: Any) -> None:
    hidden = np.ones((4, 3), np.float32)
    hidden[1, 2] = np.nan
    ops = make_ops(isa=isa)
    with ops.stream(alone=False) as running:
        uploaded = running.upload(pack([np.zeros(4, np.int32)]))
        for mode in ("max", "mean"):
            out = running.download(running.pool(reference.put(running, hidden), uploaded, mode))
            assert np.isnan(out).tolist() == [[False, False, True]]


def test_skip_must_leave_a_token(isa: str, make_ops: Any) -> None:
    with make_ops(isa=isa).stream(alone=False) as running:
        with pytest.raises(InputError, match="skip must leave"):
            running.upload(pack([np.zeros(4, np.int32)], skip=[4]))


def test_normalize_gives_unit_rows(isa: str, make_ops: Any, reference: Any) -> None:
    rows = np.random.default_rng(3).standard_normal((5, 100)).astype(np.float32)
    rows[1] *= 1e18
    rows[2] *= 1e-30
    rows[3] = 0
    with make_ops(isa=isa).stream(alone=False) as running:
        out = running.download(running.normalize(reference.put(running, rows)))
    exact = rows.astype(np.float64)
    exact /= np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
    assert (np.abs(out - exact) <= 2.0**-24 * np.abs(exact) * 1.01).all()


def test_concatenate_puts_columns_side_by_side(isa: str, make_ops: Any, reference: Any) -> None:
    parts = [np.full((3, n), n, np.float32) for n in (1, 5, 2)]
    with make_ops(isa=isa).stream(alone=False) as running:
        out = running.concatenate([reference.put(running, part) for part in parts])
        assert (running.download(out) == np.concatenate(parts, axis=1)).all()
