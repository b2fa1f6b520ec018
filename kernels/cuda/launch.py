"""Which kernel runs, on which grid: pure functions of shapes and of the device.

Every function returns a `Launch` or refuses, naming the rule that the kernel's header states. None
of them touches a device, so all of them are tested without one. Linear layers are in `linear.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minibert.errors import InputError
from minibert.kernels.cuda.describe import describe
from minibert.kernels.cuda.linear import (
    ACTIVATIONS,
    NARROW_ROWS,
    gemm,
    gemm_narrow,
    gemm_sparse,
    gemm_tiles,
    has_sparse_gemm,
    sparse_tiles,
)
from minibert.kernels.cuda.target import (
    CTYPES,
    MAX_GRID_Y,
    MAX_INDEX,
    Launch,
    Target,
    ceil_div,
    element_type,
    round_up,
    target_for,
)

__all__ = [
    "ACTIVATIONS",
    "CTYPES",
    "NARROW_ROWS",
    "POOL_MODES",
    "Launch",
    "Target",
    "attention",
    "attention_block_m",
    "attention_tiles",
    "copy_columns",
    "describe",
    "embed_layer_norm",
    "gemm",
    "gemm_narrow",
    "gemm_sparse",
    "gemm_tiles",
    "has_sparse_gemm",
    "layer_norm",
    "normalize",
    "pool",
    "quantize_rows",
    "quantize_rows_fixed",
    "sparse_tiles",
    "target_for",
]

POOL_MODES = {
    "cls": "kCls",
    "mean": "kMean",
    "max": "kMax",
    "mean_sqrt_len_tokens": "kMeanSqrtLenTokens",
    "weightedmean": "kWeightedMean",
    "lasttoken": "kLastToken",
}
"""Mode of `Ops.pool` -> enumerator in pool.cu."""

MAX_HIDDEN_SIZE = 2048
"""Widest row that one warp holds in registers: 16 vectors of 4 in each of 32 lanes."""

MAX_HEAD_DIM = 128


# ---- rows ------------------------------------------------------------------------------------
def _row_grid(num_rows: int) -> tuple[int, int, int]:
    """Four rows per block, one per warp."""
    return (ceil_div(num_rows, 4), 1, 1)


def _row_vectors(hidden_size: int) -> int:
    if hidden_size % 4 or not 4 <= hidden_size <= MAX_HIDDEN_SIZE:
        raise InputError(
            f"hidden_size must be a multiple of 4 and at most {MAX_HIDDEN_SIZE}, "
            f"got {hidden_size}; use device='cpu'"
        )
    return ceil_div(hidden_size, 128)


def embed_layer_norm(target: Target, dtype: str, *, num_tokens: int, hidden_size: int) -> Launch:
    """Launch of embed_layer_norm.cu."""
    kernel = f"embed_layer_norm_kernel<{element_type(target, dtype)}, {_row_vectors(hidden_size)}>"
    return Launch("embed_layer_norm.cu", kernel, _row_grid(num_tokens), 128)


def layer_norm(target: Target, dtype: str, *, num_tokens: int, hidden_size: int) -> Launch:
    """Launch of layer_norm.cu."""
    kernel = f"layer_norm_kernel<{element_type(target, dtype)}, {_row_vectors(hidden_size)}>"
    return Launch("layer_norm.cu", kernel, _row_grid(num_tokens), 128)


def quantize_rows(target: Target, dtype: str, *, num_tokens: int) -> Launch:
    """Launch of quantize_rows.cu."""
    kernel = f"quantize_rows_kernel<{element_type(target, dtype)}>"
    return Launch("quantize_rows.cu", kernel, _row_grid(num_tokens), 128)


def quantize_rows_fixed(target: Target, dtype: str, *, num_tokens: int) -> Launch:
    """Launch of quantize_rows_fixed.cu."""
    kernel = f"quantize_rows_fixed_kernel<{element_type(target, dtype)}>"
    return Launch("quantize_rows_fixed.cu", kernel, _row_grid(num_tokens), 128)


def pool(target: Target, dtype: str, mode: str, *, num_seqs: int, hidden_size: int) -> Launch:
    """Launch of pool.cu."""
    if mode not in POOL_MODES:
        raise InputError(f"mode must be one of {', '.join(POOL_MODES)}, got {mode!r}")
    if hidden_size % 4:
        raise InputError(f"hidden_size must be a multiple of 4, got {hidden_size}")
    kernel = f"pool_kernel<{element_type(target, dtype)}, {POOL_MODES[mode]}>"
    return Launch("pool.cu", kernel, (num_seqs, ceil_div(hidden_size, 128), 1), 256)


def normalize(target: Target, dtype: str, *, num_rows: int) -> Launch:
    """Launch of normalize.cu."""
    kernel = f"normalize_kernel<{element_type(target, dtype)}>"
    return Launch("normalize.cu", kernel, _row_grid(num_rows), 128)


def copy_columns(
    target: Target, to: str, source: str, *, num_rows: int, written_columns: int
) -> Launch:
    """Launch of copy_columns.cu, from dtype `source` to dtype `to`."""
    count = num_rows * written_columns
    if count > MAX_INDEX - 256:
        raise InputError(f"num_rows * written_columns must stay below 2^31 - 256, got {count}")
    kernel = f"copy_columns_kernel<{element_type(target, to)}, {element_type(target, source)}>"
    return Launch("copy_columns.cu", kernel, (ceil_div(count, 256), 1, 1), 256)


# ---- attention -------------------------------------------------------------------------------
def attention_block_m(dtype: str) -> int:
    """Queries of one block: kBlockM of attention_float32.cu or attention.cu."""
    return 32 if dtype == "float32" else 64


def attention(
    target: Target, dtype: str, *, num_tiles: int, num_heads: int, head_dim: int, row_stride: int
) -> Launch:
    """Launch of attention.cu or attention_float32.cu.

    Raises:
        InputError: a head that the kernels do not support.
    """
    ctype = element_type(target, dtype)
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        raise InputError(
            f"head_dim must be a multiple of 8 and at most {MAX_HEAD_DIM}, got {head_dim}; "
            "use device='cpu'"
        )
    if row_stride % 8:
        raise InputError(f"the row stride of qkv must be a multiple of 8, got {row_stride}")
    if num_heads > MAX_GRID_Y:
        raise InputError(f"num_heads must be at most {MAX_GRID_Y}, got {num_heads}")
    grid_size = (num_tiles, num_heads, 1)
    if dtype == "float32":
        width = round_up(head_dim, 32)
        smem_bytes = 3 * 32 * width * 4 + 32 * 32 * 4
        kernel = f"attention_float32_kernel<{width}>"
        return Launch("attention_float32.cu", kernel, grid_size, 128, smem_bytes)
    width = round_up(head_dim, 16)
    # Wide heads take fewer keys at a time: their results fill the registers.
    block_n = 64 if width <= 64 else 32
    smem_bytes = (64 + 2 * 2 * block_n) * width * 2
    kernel = f"attention_kernel<{ctype}, {width}, {block_n}>"
    return Launch("attention.cu", kernel, grid_size, 128, smem_bytes)


def attention_tiles(
    cu_seqlens: NDArray[np.int32], *, block_m: int, num_tiles: int | None = None
) -> NDArray[np.int32]:
    """Sequence and first query of every block of an attention grid.

    Args:
        cu_seqlens: (num_seqs + 1,) int32.
        block_m: queries of a block.
        num_tiles: rows of the result; those behind the real tiles are idle (-1, 0).

    Returns:
        (num_tiles, 2) int32.
    """
    per_seq = -(-np.diff(cu_seqlens) // block_m)
    count = int(per_seq.sum())
    tiles = np.zeros((count if num_tiles is None else num_tiles, 2), np.int32)
    tiles[:, 0] = -1
    ends = np.cumsum(per_seq)
    tiles[:count, 0] = np.repeat(np.arange(per_seq.size), per_seq)
    tiles[:count, 1] = (np.arange(count) - np.repeat(ends - per_seq, per_seq)) * block_m
    return tiles
