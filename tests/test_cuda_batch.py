from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibert.batch import Batch, pack
from minibert.kernels.cuda.launch import attention_tiles
from minibert.ops.cuda_batch import bucket_shape, exact_shape, pad_batch, stage

seqlens = st.lists(st.integers(1, 200), min_size=1, max_size=40)


def batch_of(seqlens: list[int]) -> Batch:
    rng = np.random.default_rng(0)
    return pack([rng.integers(1, 99, n).astype(np.int32) for n in seqlens])


@given(seqlens, st.sampled_from([32, 64]))
def test_a_bucket_holds_the_batch_and_its_fillers(seqlens: list[int], block_m: int) -> None:
    batch = batch_of(seqlens)
    shape = bucket_shape(batch, block_m)
    assert batch.num_tokens <= shape.num_tokens <= batch.num_tokens * 9 // 8 + 16
    padded, cu_seqlens = pad_batch(batch, shape)
    assert padded.num_tokens == shape.num_tokens
    assert cu_seqlens.size == shape.num_seqs + 1
    assert np.array_equal(cu_seqlens[: batch.num_seqs + 1], batch.cu_seqlens)
    assert cu_seqlens[-1] == shape.num_tokens
    assert np.all(np.diff(cu_seqlens) >= 0)
    tiles = attention_tiles(cu_seqlens, block_m=block_m)
    assert len(tiles) <= shape.num_tiles


@given(seqlens)
def test_staging_places_depend_on_sizes_alone(seqlens: list[int]) -> None:
    batch = batch_of(seqlens)
    shape = exact_shape(batch, 64)
    buffer = np.full(shape.staging_size, -7, np.int32)
    stage(buffer, batch, batch.cu_seqlens, shape, 64)
    begins = np.cumsum((0, *shape.sizes))
    assert np.all(begins * 4 % 256 == 0)
    parts = (batch.input_ids, batch.token_type_ids, batch.position_ids, batch.cu_seqlens)
    for begin, part in zip(begins, parts, strict=False):
        assert np.array_equal(buffer[begin : begin + part.size], part)
    assert -7 not in buffer


def test_buckets_are_few() -> None:
    sizes = {bucket_shape(batch_of([n]), 64).num_tokens for n in range(1, 4097)}
    assert len(sizes) < 80


@pytest.mark.parametrize("num_tokens", [16, 32, 128, 4096])
def test_a_batch_at_its_bucket_gets_no_fillers(num_tokens: int) -> None:
    batch = batch_of([1] * num_tokens)
    shape = bucket_shape(batch, 64)
    padded, cu_seqlens = pad_batch(batch, shape)
    assert padded.num_seqs == shape.num_tokens == num_tokens
    assert np.array_equal(cu_seqlens, batch.cu_seqlens)
