"""A batch on its way to the device: one buffer, one copy, and buckets for graphs.

All that a forward pass reads of a batch is int32 and lies behind one another in one staging buffer:
input_ids, token_type_ids, position_ids, cu_seqlens, skip, and the tiles of the attention grid. The
places depend on the sizes alone, so a graph captured for a bucket finds the next batch of that
bucket where it found the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.batch import Batch
from minibert.kernels.cuda.launch import attention_tiles
from minibert.ops.cuda_weights import pad_to

__all__ = ["BatchShape", "DeviceBatch", "bucket_shape", "pad_batch", "stage"]

_FILLER_SEQLEN = 64  # tokens of one filler sequence: one tile of the attention grid


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Sizes that decide grids and addresses of a forward pass.

    Attributes:
        num_tokens: tokens, fillers included.
        num_seqs: sequences, fillers included.
        num_tiles: blocks of the attention grid along the sequences.
    """

    num_tokens: int
    num_seqs: int
    num_tiles: int

    @property
    def staging_size(self) -> int:
        """int32 of the staging buffer."""
        return sum(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """int32 of each part of the staging buffer; every part starts at 256 bytes."""
        parts = (
            self.num_tokens,
            self.num_tokens,
            self.num_tokens,
            self.num_seqs + 1,
            self.num_seqs,
            2 * self.num_tiles,
        )
        return tuple(pad_to(max(part, 1), 64) for part in parts)


@dataclass(slots=True)
class DeviceBatch:
    """What `Ops.upload` gives.

    Attributes:
        shape: sizes on the device.
        source: the real batch, without fillers.
        input_ids, token_type_ids, position_ids: (num_tokens,) int32 on the device.
        cu_seqlens: (num_seqs + 1,) int32 on the device.
        skip: (num_seqs,) int32 on the device.
        tiles: (num_tiles, 2) int32 on the device.
        table_rows: rows of the word, position and token type tables that were read, once `embed`
            has run; a replayed graph checks new ids against them.
    """

    shape: BatchShape
    source: Batch
    input_ids: Any
    token_type_ids: Any
    position_ids: Any
    cu_seqlens: Any
    skip: Any
    tiles: Any
    table_rows: list[int | None] = field(default_factory=list)


def exact_shape(batch: Batch, block_m: int) -> BatchShape:
    """Sizes of the batch as it is."""
    return BatchShape(batch.num_tokens, batch.num_seqs, _count_tiles(batch.cu_seqlens, block_m))


def bucket_shape(batch: Batch, block_m: int) -> BatchShape:
    """Sizes of the smallest bucket that holds the batch and the fillers it then needs.

    Tokens are rounded up by at most an eighth (from 128 tokens on), so that few graphs serve all
    batches and little work is wasted.
    """
    num_tokens = _bucket(batch.num_tokens, least=16)
    fillers = -(-(num_tokens - batch.num_tokens) // _FILLER_SEQLEN)
    num_seqs = _bucket(batch.num_seqs + fillers, least=1)
    tiles = _count_tiles(batch.cu_seqlens, block_m)
    tiles += fillers * -(-_FILLER_SEQLEN // block_m)
    return BatchShape(num_tokens, num_seqs, _bucket(tiles, least=1))


def pad_batch(batch: Batch, shape: BatchShape) -> tuple[Batch, NDArray[np.int32]]:
    """The batch with filler sequences up to a bucket.

    Fillers are ordinary sequences of token 0 at position 0: nothing on the device treats them
    apart, and as no sequence sees another, they change no result.

    Returns:
        The batch of `shape.num_tokens` tokens, and its cu_seqlens (shape.num_seqs + 1,), whose
        last sequences may be empty.
    """
    extra = shape.num_tokens - batch.num_tokens
    starts = np.arange(batch.num_tokens, shape.num_tokens, _FILLER_SEQLEN, dtype=np.int32)
    cu_seqlens = np.full(shape.num_seqs + 1, shape.num_tokens, np.int32)
    cu_seqlens[: batch.num_seqs] = batch.cu_seqlens[:-1]
    cu_seqlens[batch.num_seqs : batch.num_seqs + starts.size] = starts
    kept = np.append(cu_seqlens[: batch.num_seqs + starts.size], np.int32(shape.num_tokens))

    def extended(array: NDArray[np.int32], size: int) -> NDArray[np.int32]:
        return np.concatenate([array, np.zeros(size, np.int32)])

    padded = Batch(
        input_ids=extended(batch.input_ids, extra),
        token_type_ids=extended(batch.token_type_ids, extra),
        position_ids=extended(batch.position_ids, extra),
        cu_seqlens=kept,
        skip=extended(batch.skip, starts.size),
    )
    return padded, cu_seqlens


def stage(
    buffer: NDArray[np.int32],
    batch: Batch,
    cu_seqlens: NDArray[np.int32],
    shape: BatchShape,
    block_m: int,
) -> None:
    """Write a batch into a staging buffer of `shape.staging_size` int32."""
    tiles = attention_tiles(cu_seqlens, block_m=block_m, num_tiles=shape.num_tiles)
    parts = (
        batch.input_ids,
        batch.token_type_ids,
        batch.position_ids,
        cu_seqlens,
        batch.skip,
        tiles.reshape(-1),
    )
    begin = 0
    for part, size in zip(parts, shape.sizes, strict=True):
        buffer[begin : begin + part.size] = part
        buffer[begin + part.size : begin + size] = 0
        begin += size


def _count_tiles(cu_seqlens: NDArray[np.int32], block_m: int) -> int:
    return int((-(-np.diff(cu_seqlens) // block_m)).sum())


def _bucket(size: int, *, least: int) -> int:
    """The next size with three significant bits, at least `least`."""
    if size <= least:
        return least
    step = max(1 << max(size.bit_length() - 4, 0), least if least > 1 else 1)
    return pad_to(size, step)
